"""Scenes and series in HDF5: pixels at the position of their patch, dates, masks, and errors."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from common.cli import run_command
from data.raster.geotiff import read_bands, write_geotiff
from tests.support.fake_trees import (
    ROI,
    SIZE,
    cloud_mask,
    coverages_with_clear,
    image_path,
    optical_date,
    optical_image,
    radar_date,
    radar_image,
    series_path,
    write_series,
)
from util import export_hdf5, pack_dataset


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Three patches of one region: 9 and 10 side by side, 14 below 10; a gap below 9."""
    root = tmp_path_factory.mktemp("scene")
    for patch in (9, 10, 14):
        write_series(root, ROI, patch, coverages_with_clear(4, 9))
    return root


def run(capsys, *words) -> tuple[int, str]:
    code = run_command(export_hdf5.main, [str(word) for word in words])
    return code, " ".join(line for line in capsys.readouterr().err.splitlines() if "error:" in line)


@pytest.mark.parametrize("packed", [False, True])
def test_scenes_hold_every_pixel_where_its_patch_lies(scene, tmp_path, capsys, packed):
    root = scene
    if packed:
        root = tmp_path / "pack"
        pack_dataset.main(["--root", str(scene), "--out", str(root)])
    assert run(capsys, "--root", root, "--out", tmp_path / "out", "--split", "test", "--cloud_masks")[0] == 0
    with h5py.File(tmp_path / "out" / "test.hdf5") as file:
        group = file[ROI]
        assert group["patches"][:].tolist() == [[9, 0, 0], [10, 0, SIZE], [14, SIZE, SIZE]]
        assert tuple(group.attrs["transform"]) == (10, 0, 500_000 + SIZE * 10, 0, -10, 4_000_000 - 2 * SIZE * 10)
        assert "UTM zone 33N" in group.attrs["crs"]
        covered = np.ones((2 * SIZE, 2 * SIZE), bool)
        covered[SIZE:, :SIZE] = False
        np.testing.assert_array_equal(group["covered"][:], covered)
        s2, s1, clouds = group["S2/S2"], group["S1/S1"], group["S2/cloud_mask"]
        assert (s2.dtype, s2.shape) == (np.uint16, (30, 13, 2 * SIZE, 2 * SIZE))
        assert (s1.dtype, s1.shape) == (np.float32, (30, 2, 2 * SIZE, 2 * SIZE))
        coverages = coverages_with_clear(4, 9)
        for day in (0, 4, 29):
            for patch, row, column in group["patches"][:].tolist():
                place = np.s_[day, :, row : row + SIZE, column : column + SIZE]
                np.testing.assert_array_equal(s2[place], optical_image(patch, day, coverages[day]))
                np.testing.assert_array_equal(s1[place], radar_image(patch, day))
                np.testing.assert_array_equal(clouds[place][0], cloud_mask(coverages[day]))
            assert not s2[day][:, ~covered].any()
            assert np.isnan(s1[day][:, ~covered]).all()
        assert [text.decode() for text in group["S2/S2_dates"][:]] == [str(optical_date(day)) for day in range(30)]
        assert [text.decode() for text in group["S1/S1_dates"][:]] == [str(radar_date(day)) for day in range(30)]


def test_patches_have_the_published_groups_names_and_shapes(scene, tmp_path, capsys):
    words = ["--root", scene, "--out", tmp_path, "--split", "test", "--layout", "patches", "--cloud_masks"]
    assert run(capsys, *words)[0] == 0
    with h5py.File(tmp_path / "test.hdf5") as file:
        assert sorted(file[ROI]) == [f"ROIs1868_73_patch_{patch}" for patch in (10, 14, 9)]
        group = file[ROI]["ROIs1868_73_patch_10"]
        assert {name: group[f"S2/{name}"].shape for name in group["S2"]} == {
            "S2": (30, 13, SIZE, SIZE),
            "S2_dates": (30,),
            "cloud_mask": (30, 1, SIZE, SIZE),
        }
        assert {name: group[f"S1/{name}"].shape for name in group["S1"]} == {
            "S1": (30, 2, SIZE, SIZE),
            "S1_dates": (30,),
        }
        np.testing.assert_array_equal(group["S2/S2"][7], read_bands(scene / series_path(ROI, "S2", 7, 10)))
        np.testing.assert_array_equal(group["S1/S1"][7], read_bands(scene / series_path(ROI, "S1", 7, 10)))


def test_a_second_run_leaves_regions_as_they_are(scene, tmp_path, capsys):
    words = ["--root", scene, "--out", tmp_path, "--split", "test"]
    run(capsys, *words)
    file = tmp_path / "test" / "ROIs1868_73.hdf5"
    before = file.stat().st_ino
    assert run(capsys, *words)[0] == 0
    assert file.stat().st_ino == before
    with h5py.File(tmp_path / "test.hdf5") as exported:
        assert "cloud_mask" not in exported[ROI]["S2"]  # only with --cloud_masks
    code, error = run(capsys, *words, "--layout", "patches")
    assert code == 1
    assert "is of layout scenes, not patches" in error
    file.write_bytes(file.read_bytes()[:1000])
    assert run(capsys, *words)[0] == 0
    assert file.stat().st_size > 1000


def test_patches_that_make_no_scene_are_refused(copy, tmp_path, capsys):
    from rasterio.transform import from_origin

    path = image_path(copy, "S2", 0, 10)
    image = read_bands(path)
    for crs, left, message in (("EPSG:32634", 0, "another coordinate system"), ("EPSG:32633", 4, "off its grid")):
        write_geotiff(path, image, crs, from_origin(500_000 + left, 4_000_000, 10, 10), compress=None)
        code, error = run(capsys, "--root", copy, "--out", tmp_path / "out", "--split", "test")
        assert code == 1
        assert message in error
        assert not (tmp_path / "out" / "test.hdf5").exists()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_other_days_of_a_date_are_reported(copy, tmp_path):
    path = image_path(copy, "S2", 3, 10)
    path.rename(path.with_name(path.name.replace("2018", "2017")))
    with pytest.warns(UserWarning, match="date 3: 1 of 2 patches are of other days than"):
        export_hdf5.main(["--root", str(copy), "--out", str(tmp_path / "out"), "--split", "test"])


def test_nothing_to_export(tree, tmp_path, capsys):
    assert run(capsys, "--root", tmp_path / "none", "--out", tmp_path)[0] == 1
    code, error = run(capsys, "--root", tree, "--out", tmp_path, "--split", "val")
    assert code == 1
    assert "no patch of SEN12MS-CR-TS, split 'val'" in error
