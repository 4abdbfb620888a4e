"""Bad input to the series data set: each case is named in one line, or skipped and listed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from data.batch import Collate, Skipped
from data.clouds.mask_store import default_store
from data.dataLoader import SEN12MSCRTS
from data.raster.geotiff import write_geotiff
from tests.support.fake_trees import (
    ROI,
    SIZE,
    coverages_with_clear,
    image_path,
    patch_transform,
    write_series,
)


@pytest.mark.parametrize("sensor", ["S1", "S2"])
def test_a_missing_date_is_named_or_its_patch_left_out(copy, sensor):
    image_path(copy, sensor, 17, 10).unlink()
    expected = rf"patch 10 of ROIs1868/73: one image is missing.*{sensor} date 17 .*{sensor}/17/.*_DATE_patch_10.tif"
    with pytest.raises(DataError, match=expected):
        SEN12MSCRTS(copy, "test")
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert [paths["S2"][0][-6:] for paths in series.paths] == ["_9.tif"]
    assert "patch 10" in series.bad_samples[0].reason


def test_a_missing_folder_is_named(copy):
    shutil.rmtree(copy / ROI / "S1" / "29")
    with pytest.raises(DataError, match=r"patch 9 .*S1 date 29.*\(2 such in ROIs1868/73\); complete the download"):
        SEN12MSCRTS(copy, "test")


def test_a_misplaced_or_doubled_file_is_named(copy):
    shutil.copy(image_path(copy, "S2", 3), image_path(copy, "S2", 5).parent)
    with pytest.raises(DataError, match="S2/5/.*ImgNo_3.* is misplaced"):
        SEN12MSCRTS(copy, "test")
    assert len(SEN12MSCRTS(copy, "test", skip_bad_samples=True)) == 2
    double = image_path(copy, "S2", 5)
    shutil.copy(double, double.with_name(double.name.replace("2018-02-24", "2018-02-25")))
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert len(series) == 1
    assert any("two files for one date" in bad.reason for bad in series.bad_samples)


def test_missing_root_and_empty_split_name_root_split_region_and_layout(tree, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere \(root\).*ROIs1158"):
        SEN12MSCRTS(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"split 'val', region 'africa' in .*series_2020.*\(--root2\); expected .*S2/14/s2_"
    ):
        SEN12MSCRTS(tree, "val", "africa", flag="--root2")


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif how == "no tiff":
        path.write_bytes(b"nothing")
    else:
        bands, size, kind = {
            "size": (13, SIZE // 2, "uint16"),
            "bands": (12, SIZE, "uint16"),
            "type": (13, SIZE, "float32"),
        }[how]
        write_geotiff(path, np.ones((bands, size, size), kind), "EPSG:32633", patch_transform(9))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "truncated or damaged image: .*patch_9.tif"),
        ("no tiff", "not a readable GeoTIFF: .*patch_9.tif"),
        ("size", "patch_9.tif: expected 32 x 32 pixels, found 16 x 16"),
        ("bands", "patch_9.tif: expected 13 bands, found 12"),
        ("type", "patch_9.tif: expected uint16 values, found float32"),
    ],
)
def test_an_unusable_image_is_named_or_skipped(copy, how, message):
    damage(image_path(copy, "S2", 1), how)
    with pytest.raises(DataError, match=message):
        SEN12MSCRTS(copy, "test")[0]
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    bad = series[0]
    assert isinstance(bad, Skipped)
    assert bad.path.endswith("patch_9.tif")
    batch = Collate(use_sar=True)([bad, series[1]])
    assert batch.n == 1
    assert batch.skipped == (bad,)


def test_a_damaged_first_image_does_not_decide_the_size(copy):
    damage(image_path(copy, "S2", 0), "no tiff")
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert isinstance(series[0], Skipped)
    assert series[1]["input"]["idx"] == [0, 1, 2]


def test_nan_is_counted_told_once_and_becomes_zero(copy):
    radar = np.full((2, SIZE, SIZE), -10, np.float32)
    radar[0, :2] = np.nan
    for day in (0, 1):
        write_geotiff(image_path(copy, "S1", day), radar, "EPSG:32633", patch_transform(9))
    series = SEN12MSCRTS(copy, "test")
    with pytest.warns(UserWarning, match=r"patch_9.tif: 64 of 2048 values are NaN and become 0") as told:
        item = series[0]
    assert len([entry for entry in told if "NaN" in str(entry.message)]) == 1
    assert series._reader.nan_values == 2 * 2 * SIZE
    assert np.all(item["input"]["S1"][0][0, :2] == 0)
    assert np.allclose(item["input"]["S1"][0][0, 2:], 0.6)


def blank(path: Path) -> None:
    write_geotiff(path, np.zeros((13, SIZE, SIZE), np.uint16), "EPSG:32633", patch_transform(9))


def test_a_blank_image_is_cloudy_as_an_input_and_no_target(tmp_path):
    write_series(tmp_path, ROI, 9, coverages_with_clear(4), stored=False)
    for day in range(30):
        if day != 4:
            blank(image_path(tmp_path, "S2", day))
    detector = "cloud_cloudshadow_mask"
    with pytest.warns(UserWarning, match="[Bb]lank"):
        item = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector)[0]
    assert item["target"]["idx"] == [4]
    assert item["input"]["coverage"] == [1.0, 1.0, 1.0]
    assert np.all(item["input"]["masks"][0] == 1)
    blank(image_path(tmp_path, "S2", 4))
    shutil.rmtree(default_store(tmp_path))
    series = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector)
    with (
        pytest.warns(UserWarning, match="[Bb]lank"),
        pytest.raises(DataError, match="every value is 0, there is no image to be a target"),
    ):
        series[0]
