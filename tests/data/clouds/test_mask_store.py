import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from common.errors import DataError
from common.processes import process_tag
from data.clouds.detectors import detect_clouds
from data.clouds.mask_record import MaskRecord, write_record
from data.clouds.mask_store import MaskStore, StoreWriteError, default_store, open_mask_store
from data.clouds.published_coverage import ImportedCoverage
from data.raster.geotiff import read_bands, write_geotiff
from tests.support.commands import ROOT
from tests.support.mask_cases import RULES, detect_files, optical_path, write_image, write_images

ANY = {"n_inputs": 3, "split": "test", "region": "all"}


@pytest.fixture
def patches(tmp_path):
    """A root with three patches of five dates, and the paths of each patch."""
    return tmp_path / "root", write_images(tmp_path / "root", n_patches=3)


def no_computing(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed, though it is stored")

    monkeypatch.setattr("data.clouds.mask_store.mask_and_coverage", refuse)


def assert_intact(store, root, series):
    """Every record can be read and equals the computed masks."""
    for paths in series:
        masks, coverages = store.masks(root, paths), store.coverages(root, paths)
        for mask, coverage, want in zip(masks, coverages, detect_files(root, paths), strict=True):
            np.testing.assert_array_equal(mask, want)
            assert coverage == want.mean(dtype=np.float64)


def test_computed_once_then_read(patches, tmp_path, monkeypatch):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    assert store.missing(root, series[0]) == series[0]
    first = store.coverages(root, series[0])
    assert first.dtype == np.float64
    assert store.missing(root, series[0]) == []
    want = detect_files(root, series[0])
    no_computing(monkeypatch)
    for again in (store, MaskStore(tmp_path / "store", RULES)):
        np.testing.assert_array_equal(again.coverages(root, series[0]), first)
        masks = again.masks(root, series[0][1:3])
        assert all(mask.dtype == np.float32 for mask in masks)
        np.testing.assert_array_equal(masks, want[1:3])
    np.testing.assert_array_equal(first, [mask.mean(dtype=np.float64) for mask in want])


def test_one_record_for_each_patch_and_settings_beside(patches, tmp_path):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0] + series[2])
    mono = "ROIs1970_fall_s2_cloudy/s2_cloudy_139/ROIs1970_fall_s2_cloudy_139_p8.tif"
    write_image(root / mono, 0)
    store.masks(root, [mono])
    files = sorted(p.relative_to(store.folder(root)).as_posix() for p in store.folder(root).rglob("*") if p.is_file())
    assert files == [
        "ROIs1868/73/patch_0.npz",
        "ROIs1868/73/patch_2.npz",
        "ROIs1970_fall_s2_cloudy/s2_cloudy_139/ROIs1970_fall_s2_cloudy_139_p8.npz",
        "settings.json",
    ]
    assert store.folder(root).name.startswith(f"{RULES}-")
    assert MaskStore(tmp_path / "store", "s2cloudless_map").folder(root) != store.folder(root)


def test_images_that_are_passed_in_are_not_read_again(patches, tmp_path):
    root, series = patches
    image = read_bands(root / series[0][0])
    (root / series[0][0]).unlink()
    store = MaskStore(tmp_path / "store", RULES)
    np.testing.assert_array_equal(store.masks(root, series[0][:1], [image])[0], detect_clouds(image, RULES))


def test_partial_downloads_fill_up(patches, tmp_path):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0][:2])
    assert store.missing(root, series[0]) == series[0][2:]
    assert_intact(MaskStore(tmp_path / "store", RULES), root, series)
    assert MaskStore(tmp_path / "store", RULES).missing(root, series[0]) == []


def test_read_only_writes_nothing(patches, tmp_path, monkeypatch):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES, read_only=True)
    store.coverages(root, series[0])
    assert not (tmp_path / "store").exists()
    no_computing(monkeypatch)  # the masks just computed are cached
    store.masks(root, series[0])


def test_a_missing_image_is_named(patches, tmp_path):
    root, series = patches
    (root / series[0][3]).unlink()
    with pytest.raises(DataError, match="no such image: .*ImgNo_3"):
        MaskStore(tmp_path / "store", RULES).coverages(root, series[0])


def test_changed_images_are_computed_again(patches, tmp_path):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0])
    for seed, path in enumerate(series[0]):
        write_image(root / path, 100 + seed)
    with pytest.warns(UserWarning, match="images have changed since"):
        coverages = MaskStore(tmp_path / "store", RULES).coverages(root, series[0])
    np.testing.assert_array_equal(coverages, [mask.mean(dtype=np.float64) for mask in detect_files(root, series[0])])
    assert_intact(MaskStore(tmp_path / "store", RULES), root, series[:1])


@pytest.mark.parametrize("ruin", ["coverage", "size"])
def test_records_of_impossible_content_are_computed_again(patches, tmp_path, ruin):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0])
    path = next(store.folder(root).rglob("*.npz"))
    entries = MaskRecord(path).entries()
    wrong = {"coverage": {"coverage": -1.0}, "size": {"mask": np.ones((4, 4), np.float32)}}[ruin]
    write_record(path, {name: replace(entry, **wrong) for name, entry in entries.items()})
    images = [read_bands(root / path) for path in series[0]]
    fresh = MaskStore(tmp_path / "store", RULES)
    with pytest.warns(UserWarning, match="damaged record"):
        masks = fresh.masks(root, series[0], images)
    np.testing.assert_array_equal(masks, detect_files(root, series[0]))
    assert_intact(MaskStore(tmp_path / "store", RULES), root, series[:1])


def test_pixels_without_data_count_as_cloud_in_what_is_stored(tmp_path):
    clear = np.full((13, 16, 16), 700, np.uint16)
    store, paths = MaskStore(tmp_path / "store", RULES), [optical_path(0, date) for date in range(3)]
    for path, rows in zip(paths, (0, 6, 9), strict=True):
        image = clear.copy()
        image[:, :rows] = 0
        write_geotiff(tmp_path / "root" / path, image, "EPSG:32631", from_origin(0, 0, 10, 10))
    cloud_of_the_rest = detect_clouds(clear, RULES).mean()
    assert cloud_of_the_rest == 0
    assert store.coverages(tmp_path / "root", paths).tolist() == [0.0, 6 / 16, 1.0]  # 9 of 16 rows are more than half
    again = MaskStore(tmp_path / "store", RULES)
    assert again.coverages(tmp_path / "root", paths).tolist() == [0.0, 6 / 16, 1.0]
    assert [int(mask.sum()) for mask in again.masks(tmp_path / "root", paths)] == [0, 6 * 16, 9 * 16]


@pytest.mark.parametrize("ruin", ["empty", "half", "text", "bit"])
def test_damaged_records_are_computed_again(patches, tmp_path, ruin):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0])
    record = next(store.folder(root).rglob("*.npz"))
    data = record.read_bytes()
    middle = data.index(b"mask_2.npy") + 60  # within the bits of a mask
    flipped = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
    record.write_bytes({"empty": b"", "half": data[: len(data) // 2], "text": b"no zip", "bit": flipped}[ruin])
    with pytest.warns(UserWarning, match="damaged record"):
        np.testing.assert_array_equal(
            MaskStore(tmp_path / "store", RULES).masks(root, series[0]), detect_files(root, series[0])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_intact(MaskStore(tmp_path / "store", RULES), root, series[:1])


def test_paths_outside_the_root_are_refused(patches, tmp_path):
    for path in ("/etc/x.tif", "../x.tif"):
        with pytest.raises(ValueError, match="expected a path relative to the root"):
            MaskStore(tmp_path / "store", RULES).masks(patches[0], [path])


def test_a_store_that_cannot_be_written(patches, tmp_path):
    root, series = patches
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be stored and are computed at each reading: cannot write"):
        masks = MaskStore(tmp_path / "file" / "store", RULES).masks(root, series[0])
    np.testing.assert_array_equal(masks, detect_files(root, series[0]))
    with pytest.raises(StoreWriteError, match="cannot write"):
        MaskStore(tmp_path / "file" / "store", RULES, must_store=True).masks(root, series[0])


def test_default_store_lies_in_the_root_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_store(tmp_path) == tmp_path / ".mask_store"
    monkeypatch.setattr("data.clouds.mask_store.os.access", lambda *_: False)
    elsewhere = default_store(tmp_path)
    assert elsewhere.parent == tmp_path / "cache" / "cloudless-uncertainty"
    assert default_store(tmp_path / "other") != elsewhere


def test_a_root_that_is_read_only_by_its_mode_stays_untouched_also_by_the_superuser(patches, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, series = patches
    before = root.stat().st_mode
    root.chmod(0o555)
    try:
        assert default_store(root).parent == tmp_path / "cache" / "cloudless-uncertainty"
        MaskStore(None, RULES).masks(root, series[0])
        assert not (root / ".mask_store").exists()
        assert list((tmp_path / "cache").rglob("*.npz"))
    finally:
        root.chmod(before)


def test_imported_coverage_wins_and_stays(patches, tmp_path, monkeypatch):
    root, series = patches
    imported = ImportedCoverage(Path("f.npy"), {f"Data/{path}": 0.25 for path in series[0][:3]})
    store = MaskStore(tmp_path / "store", RULES)
    assert store.add_imported(root, series[0], imported) == 3
    assert store.add_imported(root, series[0], imported) == 0
    assert store.missing(root, series[0]) == series[0]
    want = [mask.mean(dtype=np.float64) for mask in detect_files(root, series[0])]
    np.testing.assert_array_equal(store.coverages(root, series[0]), [0.25] * 3 + want[3:])
    with pytest.warns(UserWarning, match="imported coverage 0.250 .*imported for other data"):
        MaskStore(tmp_path / "store", RULES).masks(root, series[0])
    no_computing(monkeypatch)
    fresh = MaskStore(tmp_path / "store", RULES)
    np.testing.assert_array_equal(fresh.coverages(root, series[0]), [0.25] * 3 + want[3:])
    assert fresh.missing(root, series[0]) == []


def test_opening(patches, tmp_path):
    root, series = patches
    assert open_mask_store("", RULES, **ANY).folder(root).parent == root / ".mask_store"
    with pytest.warns(UserWarning, match="no masks of cloud_cloudshadow_mask are stored in .* yet"):
        store = open_mask_store(tmp_path / "new", RULES, **ANY)
    store.masks(root, series[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_mask_store(tmp_path / "new", RULES, **ANY)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="neither a folder nor an .npy file"):
        open_mask_store(tmp_path / "file", RULES, **ANY)


FILL = """
import sys
from data.clouds.mask_store import MaskStore
root, store, detector, *paths = sys.argv[1:]
for start in range(0, len(paths), 5):
    MaskStore(store, detector).masks(root, paths[start : start + 5])
"""
DIE_WHILE_WRITING = """
import os, signal, numpy
def half(path, **arrays):
    path.write_bytes(b"PK half of a record")
    os.kill(os.getpid(), signal.SIGKILL)
numpy.savez_compressed = half
"""


def start(code, root, store, paths):
    return subprocess.Popen([sys.executable, "-c", code, root, store, RULES, *paths], cwd=ROOT)


def test_killed_while_writing(patches, tmp_path, monkeypatch):
    """SIGKILL between the first byte of a record and its renaming: the previous record stays intact."""
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    store.masks(root, series[0][:2])
    killed = start(DIE_WHILE_WRITING + FILL, root, tmp_path / "store", series[0])
    assert killed.wait(timeout=60) == -signal.SIGKILL
    leftover = list(store.folder(root).rglob(".*.tmp*"))
    assert len(leftover) == 1
    assert MaskStore(tmp_path / "store", RULES).missing(root, series[0]) == series[0][2:]
    monkeypatch.setattr("common.files._swept", set())  # as in another process
    assert_intact(MaskStore(tmp_path / "store", RULES), root, series)
    assert not list(store.folder(root).rglob(".*.tmp*"))


def test_a_living_writers_file_is_left_alone(patches, tmp_path):
    root, series = patches
    store = MaskStore(tmp_path / "store", RULES)
    folder = store.folder(root) / "ROIs1868" / "73"
    folder.mkdir(parents=True)
    being_written = folder / f".patch_0.{process_tag()}.abcdefgh.tmp.npz"
    being_written.write_bytes(b"being written")
    store.masks(root, series[0])
    assert being_written.exists()


def test_two_processes_fill_one_store_and_are_killed(tmp_path):
    """Two processes fill the same patches, one or both are killed at random moments; every record stays intact."""
    root, rng = tmp_path / "root", random.Random(1)
    series = write_images(root, n_patches=24)
    everything = [path for paths in series for path in paths]
    store = MaskStore(tmp_path / "store", RULES)
    for target in (3, 8, 13, 18):
        both = [start(FILL, root, tmp_path / "store", everything) for _ in range(2)]
        deadline = time.monotonic() + 60
        while len(list(store.folder(root).rglob("patch_*.npz"))) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        for process in both[: rng.choice((1, 2))]:
            os.kill(process.pid, signal.SIGKILL)
        for process in both[1:]:
            if rng.random() < 0.5:
                os.kill(process.pid, signal.SIGKILL)
        codes = [process.wait(timeout=60) for process in both]
        assert -signal.SIGKILL in codes
        assert set(codes) <= {0, -signal.SIGKILL}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as "damaged record"
            for record in store.folder(root).rglob("patch_*.npz"):
                MaskRecord(record).entries()
    both = [start(FILL, root, tmp_path / "store", everything) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert [path for paths in series for path in MaskStore(tmp_path / "store", RULES).missing(root, paths)] == []
    assert_intact(MaskStore(tmp_path / "store", RULES), root, series)


def test_reading_is_far_faster_than_computing(tmp_path):
    """Images of 64 x 64 in memory; the benchmark measures 256 x 256: thousands of times."""
    root = tmp_path / "root"
    paths = [optical_path(0, date) for date in range(4)]
    for seed, path in enumerate(paths):
        write_image(root / path, seed, size=64)
    store = MaskStore(tmp_path / "store", "s2cloudless_mask", must_store=True)
    images = [read_bands(root / path) for path in paths]
    detect_clouds(images[0], "s2cloudless_mask")
    began = time.perf_counter()
    store.masks(root, paths, images)
    computing = time.perf_counter() - began
    readings = []
    for _ in range(5):
        began = time.perf_counter()
        MaskStore(tmp_path / "store", "s2cloudless_mask").masks(root, paths)
        readings.append(time.perf_counter() - began)
    assert computing > 10 * min(readings)  # measured: 50 to 100 times; small images hide most of the gain


def test_masks_are_computed_where_the_folder_of_the_store_is_closed(patches, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    root, series = patches
    monkeypatch.setattr(Path, "is_file", closed)
    monkeypatch.setattr("common.files.tempfile.mkstemp", closed)
    with pytest.warns(UserWarning, match="cannot be stored and are computed at each reading: cannot write"):
        masks = MaskStore(tmp_path / "store", RULES).masks(root, series[0])
    monkeypatch.undo()
    np.testing.assert_array_equal(masks, detect_files(root, series[0]))
