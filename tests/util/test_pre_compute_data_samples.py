import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common.cli import run_command
from data.clouds.mask_store import MaskStore
from data.raster.image_store import image_series
from data.splits import MONO, SERIES
from tests.support.commands import ROOT
from tests.support.mask_cases import RULES, detect_files, optical_path, published_samples, save_npy, write_image
from util.pre_compute_data_samples import main

MONO_IMAGE = "ROIs1970_fall_s2_cloudy/s2_cloudy_{roi}/ROIs1970_fall_s2_cloudy_{roi}_p{patch}.tif"


@pytest.fixture
def root(tmp_path):
    """Two patches of a test region and one of a training region, three dates each."""
    images = [(patch, date, "ROIs1868/73") for patch in (10, 9) for date in range(3)]
    images += [(1, date, "ROIs1868/36") for date in range(3)]
    for seed, (patch, date, roi) in enumerate(images):
        write_image(tmp_path / "root" / optical_path(patch, date, roi), seed)
    return tmp_path / "root"


def call(root, store, *more):
    return run_command(main, ["--root", str(root), "--out", str(store), "--detector", RULES, *more])


def assert_filled(root, folder, series):
    store = MaskStore(folder, RULES)
    for paths in series:
        assert store.missing(root, paths) == []
        np.testing.assert_array_equal(store.masks(root, paths), detect_files(root, paths))


def test_fills_a_store_and_goes_on_where_it_stopped(root, tmp_path, capsys):
    store = tmp_path / "store"
    assert call(root, store, "--split", "test") == 0
    assert "2 patches computed" in capsys.readouterr().out
    assert call(root, store) == 0
    out = capsys.readouterr().out
    assert "3 patches, 2 of them stored already" in out
    assert "1 patches computed" in out
    assert_filled(root, store, image_series(root, SERIES, "all", "all"))


def test_shards_make_up_the_whole(root, tmp_path):
    for shard in ("1/2", "2/2"):
        assert call(root, tmp_path / "store", "--shard", shard) == 0
    assert_filled(root, tmp_path / "store", image_series(root, SERIES, "all", "all"))


def test_shards_are_disjoint_and_always_the_same(root, tmp_path):
    """Each shard fills a store of its own: no patch is computed twice, none is left out."""
    everything = list(image_series(root, SERIES, "all", "all"))
    shards = []
    for shard in ("1/2", "2/2"):
        store = tmp_path / shard[0]
        assert call(root, store, "--shard", shard) == 0
        done = [series for series in everything if not MaskStore(store, RULES).missing(root, series)]
        assert_filled(root, store, done)
        shards.append(set(done))
    assert sorted(map(len, shards)) == [1, 2]
    assert set.union(*shards) == set(everything)


def test_a_shard_that_is_run_again_has_nothing_to_do(root, tmp_path, capsys):
    for message in ("2 patches computed", "2 patches, 2 of them stored already"):
        assert call(root, tmp_path / "store", "--shard", "1/2") == 0
        assert message in capsys.readouterr().out


def test_workers_fill_the_same_store(root, tmp_path):
    assert call(root, tmp_path / "store", "--workers", "2") == 0
    assert_filled(root, tmp_path / "store", image_series(root, SERIES, "all", "all"))


def test_mono_images_are_found(tmp_path):
    paths = [MONO_IMAGE.format(roi=roi, patch=patch) for roi, patch in ((139, 2), (139, 10), (112, 1))]
    for seed, path in enumerate(paths):
        write_image(tmp_path / "root" / path, seed)
    assert call(tmp_path / "root", tmp_path / "store") == 0
    assert_filled(tmp_path / "root", tmp_path / "store", [[path] for path in paths])


def test_unreadable_images_are_listed_and_the_others_stored(root, tmp_path, capsys):
    bad = root / optical_path(9, 1)
    bad.write_bytes(bad.read_bytes()[:300])
    assert call(root, tmp_path / "store") == 1
    err = capsys.readouterr().err
    assert "error: 1 of 3 patches could not be computed, the others are stored" in err
    assert bad.name in err
    assert_filled(
        root, tmp_path / "store", [s for s in image_series(root, SERIES, "all", "all") if "patch_9" not in s[0]]
    )


def test_published_coverage_is_imported(root, tmp_path, capsys):
    file = save_npy(tmp_path / f"generic_3_test_all_{RULES}.npy", published_samples([9, 55], dates=3))
    assert call(root, tmp_path / "store", "--import", str(file)) == 0
    assert "imported 3 coverages for 9 images" in capsys.readouterr().out
    store = MaskStore(tmp_path / "store", RULES)
    paths = next(image_series(root, SERIES, "test", "all"))
    np.testing.assert_allclose(store.coverages(root, paths), [0.9, 0.0, 0.1], rtol=1e-7)


def test_import_of_other_data(root, tmp_path, capsys):
    file = save_npy(tmp_path / f"generic_3_test_all_{RULES}.npy", published_samples([55], dates=3))
    assert call(root, tmp_path / "store", "--import", str(file)) == 1
    assert "coverage file for other data" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    file = save_npy(tmp_path / "generic_3_test_all_s2cloudless_mask.npy", published_samples([55], dates=3))
    assert call(root, tmp_path / "store", "--import", str(file)) == 2
    assert "add --detector s2cloudless_mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--shard", "0/3"], 2, "--shard takes i/n with i from 1 to n"),
        (["--shard", "half"], 2, "not 'half'"),
        (["--dataset", MONO, "--region", "europa"], 2, "not divided into regions"),
        (["--device", "gpu"], 2, "--device takes cuda, cuda:N or cpu, got 'gpu'"),
        (["--split", "val"], 1, "no optical images of SEN12MS-CR-TS, split val, region all, in"),
        (["--root", "/nowhere"], 1, "no such folder: /nowhere"),
        (["--root", str(ROOT / "tests")], 1, "neither SEN12MS-CR-TS .* nor SEN12MS-CR"),
    ],
)
def test_errors_of_the_user_are_one_line(root, tmp_path, capsys, more, code, message):
    assert call(root, tmp_path / "store", *more) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("flags", [["--detector", "s2cloud"], ["--split", "trian"], ["--workers", "many"], []])
def test_bad_flags_exit_with_2(flags):
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2


def test_a_store_that_cannot_be_written_stops_at_once(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(root, tmp_path / "file" / "store") == 1
    assert "error: cannot write" in capsys.readouterr().err


def test_the_command_can_be_killed_and_run_again(root, tmp_path):
    command = [sys.executable, "-m", "util.pre_compute_data_samples", "--root", root, "--out", tmp_path / "store"]
    command += ["--detector", RULES]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "store").rglob("patch_*.npz")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=60)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_filled(root, tmp_path / "store", image_series(root, SERIES, "all", "all"))


def test_a_gpu_is_accepted_with_a_note(root, tmp_path, capsys):
    assert call(root, tmp_path / "store", "--device", "cuda:1", "--split", "test") == 0
    assert "--device cuda:1: cloud detection runs on processor cores" in capsys.readouterr().out
    assert_filled(root, tmp_path / "store", image_series(root, SERIES, "test", "all"))
