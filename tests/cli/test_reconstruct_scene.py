"""`reconstruct_scene.py` from files to maps: a scene of 1,200 x 900, kills, other settings, what is kept, its score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from reconstruct_scene import main
from scenes.prediction.tiles import TilePlan
from tests.support.cli_cases import call, refused
from tests.support.commands import ROOT
from tests.support.scene_cases import border_steps, maps_in, write_run, write_scene

CPU = ["--device", "cpu", "--workers", "1"]
SMALL = [*CPU, "--tile", "64", "--overlap", "16"]
MAPS = ("reflectance", "aleatoric_std", "epistemic_std", "total_std", "clouds")


def assert_same(left: Path, right: Path) -> None:
    first, second = maps_in(left), maps_in(right)
    assert set(first) == set(second) == set(MAPS)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"), 150, 200)


@pytest.fixture(scope="module")
def reference(scene, scene_run, tmp_path_factory):
    """The maps of the small scene, made without interruption."""
    out = tmp_path_factory.mktemp("reference") / "maps"
    assert call(main, "--weights", scene_run, *scene.words(), "--out", out, *SMALL) == 0
    return out


@pytest.fixture(scope="module")
def tested(commands, sample_data, tmp_path_factory):
    """A run, and the results of `test_reconstruct.py` for it."""
    folder = tmp_path_factory.mktemp("tested")
    run = write_run(folder / "runs" / "tiny", "conv3d_mamba", use_sar=True)
    line = ["--weight_folder", run.parent, "--experiment_name", run.name, "--root2", sample_data.series]
    commands.run("test_reconstruct.py", *line, "--device cpu --res_dir", folder / "results").ok()
    return run, folder / "results"


def test_a_scene_of_1200_by_900_is_seamless_and_lies_where_its_input_lies(tmp_path, scene_run, capsys):
    files = write_scene(tmp_path, 900, 1200, nodata=0, radar=False)
    assert (
        call(main, "--weights", scene_run, *files.words(), "--out", tmp_path / "maps", *CPU, "--detector", "none") == 0
    )
    output = capsys.readouterr().out
    assert "900 x 1200 pixels, 3 dates 2018-06-01, 2018-06-11, 2018-06-21; 30 tiles of 256, overlap 64" in output
    assert "1.08 megapixels in" in output
    assert "megapixels per second" in output
    with rasterio.open(files.optical[0]) as given, rasterio.open(tmp_path / "maps" / "reflectance.tif") as made:
        assert (made.crs, made.transform, made.nodata) == (given.crs, given.transform, given.nodata)
        assert made.shape == (900, 1200)
        assert made.dtypes[0] == given.dtypes[0]
        image = made.read() / 10000
    # 1: steps across the borders of tiles are those inside; 5 %: what means over few columns scatter
    assert border_steps(image, TilePlan(900, 1200, 256, 64), 8) < 1.05
    assert not (tmp_path / "maps" / ".work").exists()


def test_killed_and_resumed_equals_uninterrupted(commands, scene, scene_run, reference, tmp_path, capsys):
    out = tmp_path / "maps"
    line = ["--weights", scene_run, *scene.words(), "--out", out, *SMALL]
    # the fifth finished file, of a record, 12 tiles and a block
    killed = commands.start("reconstruct_scene.py", *line, kill_at=("after", "*", 5))
    assert killed.code == -9, killed.text
    tiles = list((out / ".work" / "tiles").rglob("*.npz"))
    assert len(tiles) == 4
    killed = commands.start("reconstruct_scene.py", *line, kill_at=("after", "total_std.tif", 1))  # amid the products
    assert killed.code == -9, killed.text
    assert "going on where an earlier command was interrupted" in killed.text
    assert "4/12" in killed.text  # the bar starts with the tiles that are there
    assert call(main, *line) == 0
    assert "0.00 megapixels in" in capsys.readouterr().out
    assert_same(out, reference)
    assert not (out / ".work").exists()
    assert call(main, *line) == 0
    assert "is complete already" in capsys.readouterr().out


def test_other_settings_are_refused_unless_overwritten(scene, scene_run, tmp_path, capsys):
    out = tmp_path / "maps"
    line = ["--weights", scene_run, *scene.words(), "--out", out, *SMALL, "--detector", "none"]
    assert call(main, *line) == 0
    first = maps_in(out)
    text = refused(capsys, main, *line[:-2], "--batch_size", 2, code=2)
    assert (
        "holds a reconstruction with other --batch_size, --detector; choose another --out, or add --overwrite" in text
    )
    other_run = write_run(tmp_path / "other_run", seed=1)
    assert "other --weights" in refused(capsys, main, "--weights", other_run, *line[2:], code=2)
    os.utime(scene.optical[0], ns=(1, 1))
    assert "other inputs" in refused(capsys, main, *line, code=2)
    assert call(main, "--weights", other_run, *line[2:], "--overwrite") == 0
    assert (maps_in(out)["reflectance"] != first["reflectance"]).any()


def test_keep_copies_the_latest_clear_pixels(scene, scene_run, reference, tmp_path):
    out = tmp_path / "maps"
    assert call(main, "--weights", scene_run, *scene.words(), "--out", out, *SMALL, "--where-clear", "keep") == 0
    kept, plain = maps_in(out), maps_in(reference)
    observed = kept["observed"][0] == 1
    np.testing.assert_array_equal(observed, plain["clouds"][2] == 0)
    assert 0.2 < observed.mean() < 0.9
    with rasterio.open(scene.optical[2]) as latest:
        np.testing.assert_array_equal(kept["reflectance"][:, observed], latest.read()[:, observed])
    np.testing.assert_array_equal(kept["reflectance"][:, ~observed], plain["reflectance"][:, ~observed])
    assert (kept["total_std"][:, observed] == 0).all()
    assert (kept["total_std"][:, ~observed] > 0).all()


def test_lists_and_dashes_say_the_same_as_files(scene, scene_run, reference, tmp_path):
    rows = [{"optical": str(path), "date": path.stem.removeprefix("s2_")} for path in reversed(scene.optical)]
    (tmp_path / "scene.json").write_text(json.dumps(rows), encoding="utf-8")
    line = ["--weights", scene_run, "--list", tmp_path / "scene.json", "--out", tmp_path / "maps", *SMALL]
    assert call(main, *line, "--batch-size", 1, "--where-clear", "predict") == 0
    assert_same(tmp_path / "maps", reference)


@pytest.mark.parametrize("head", ["gaussian", "mean"])
def test_the_maps_are_those_that_the_head_can_give(head, scene, tmp_path):
    run = write_run(tmp_path / "run", head=head, loss={"gaussian": "MGNLL", "mean": "l2"}[head])
    out = tmp_path / "maps"
    assert call(main, "--weights", run, *scene.words(), "--out", out, *SMALL, "--detector", "none") == 0
    deviations = {"aleatoric_std", "total_std"} if head == "gaussian" else set()
    assert set(maps_in(out)) == {"reflectance"} | deviations


def test_radar_goes_in_where_the_network_takes_it(scene, scene_run, reference, tmp_path, capsys):
    out, with_radar = tmp_path / "maps", write_run(tmp_path / "radar", "conv3d_mamba", use_sar=True)
    assert call(main, "--weights", with_radar, *scene.words(radar=True), "--out", out, *SMALL) == 0
    capsys.readouterr()
    assert call(main, "--weights", scene_run, *scene.words(radar=True), "--out", tmp_path / "without", *SMALL) == 0
    assert "note: this run's network was trained without radar: --sar is ignored" in capsys.readouterr().out
    assert_same(tmp_path / "without", reference)


def test_one_date_is_enough_for_a_network_of_single_images(scene, tmp_path):
    run = write_run(tmp_path / "run", "unet")
    out = tmp_path / "maps"
    assert call(main, "--weights", run, "--optical", scene.optical[0], "--out", out, *SMALL, "--detector", "none") == 0
    assert maps_in(out)["reflectance"].shape == (13, 150, 200)


@pytest.mark.parametrize(("overlap", "tolerance"), [(0, 0.01), (8, 0.3)])
def test_score_of_a_region_equals_that_of_its_patches(overlap, tolerance, tested, sample_data, tmp_path):
    """The same network on the same dates: patch by patch by `test_reconstruct.py`, and as one scene.

    Tiles of the patches' size without overlap are the patches; what remains is the maps' rounding to 1e-4.
    """
    run, results = tested
    manifest = json.loads(next(results.rglob("manifest.json")).read_text(encoding="utf-8"))
    infos = [entry["info"] for entry in manifest["samples"].values()]
    assert len(infos) == 2
    assert infos[0]["input_days"] == infos[1]["input_days"], "patches of other dates make no scene"
    numbers = [path.split("/")[3] for path in infos[0]["input_paths"]]
    line = ["--weights", run, "--folder", sample_data.series / infos[0]["roi"], "--numbers", *numbers]
    assert call(main, *line, "--tile", 32, "--overlap", overlap, *CPU, "--out", tmp_path, "--detector", "none") == 0
    scores = []
    with rasterio.open(tmp_path / "reflectance.tif") as made:
        assert made.shape == (32, 64)
        for info in infos:
            window = made.window(*info["bounds"]).round_offsets().round_lengths()
            with rasterio.open(sample_data.series / info["target_path"]) as target:
                error = made.read(window=window) / 10000 - target.read().clip(0, 10000) / 10000
            scores.append(-10 * np.log10(np.mean(error**2)))
    of_patches = json.loads((results / "tiny" / "test_metrics.json").read_text(encoding="utf-8"))["PSNR"]
    assert of_patches > 15  # dB: a conv3d_mamba starts at the mosaic of the dates
    assert np.mean(scores) == pytest.approx(of_patches, abs=tolerance)


def watched(words: list) -> subprocess.Popen:
    """A process that prints the peak of its resident memory, kilobytes, in its last line."""
    code = "import resource, sys; from reconstruct_scene import main; main(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GDAL_CACHEMAX": "16"}
    line = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)


def test_memory_does_not_grow_with_the_scene(scene_run, tmp_path):
    """Four times the area; both scenes are larger than a block of 512 pixels, of which memory holds one."""
    processes = []
    for side in (520, 1040):
        files = write_scene(tmp_path / str(side), side, side, radar=False)
        words = [
            "--weights",
            scene_run,
            *files.words(),
            "--out",
            tmp_path / str(side) / "maps",
            *CPU,
            "--detector",
            "none",
        ]
        processes.append(watched(words))
    peaks = [int(process.communicate()[0].split()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert peaks[1] < 1.1 * peaks[0], peaks
