"""Samples of one's own making: mosaics in space, their georeference, the two forms of a list."""

import json

import numpy as np
import pytest
import rasterio

from common.errors import DataError
from data.batch import Collate
from data.dataLoader import SEN12MSCRTS, get_pairedS1
from data.datasets.custom_samples import read_custom_list
from data.raster.geotiff import write_geotiff
from data.raster.patch_mosaic import merge_patches
from tests.support.fake_trees import (
    ROI,
    SIZE,
    coverages_with_clear,
    days_since_launch,
    image_path,
    optical_date,
    optical_level,
    patch_transform,
    series_path,
    write_series,
)


def test_paired_files_are_found_by_sensor_and_date(tree):
    patches = [series_path(ROI, "S2", 4, number) for number in (10, 9)]
    assert get_pairedS1(patches, tree, mod="s1") == [series_path(ROI, "S1", 4, number) for number in (10, 9)]
    assert get_pairedS1(patches, str(tree), "s2", 7) == [series_path(ROI, "S2", 7, number) for number in (10, 9)]
    mixed = [series_path(ROI, "S2", 4, 9), series_path(ROI, "S1", 5, 9)]
    assert get_pairedS1(mixed, tree) == mixed  # each keeps its own date and sensor
    with pytest.raises(DataError, match=r"no twin of .*patch_99.tif: expected .*S1/4/s1_.*ImgNo_4_DATE_patch_99"):
        get_pairedS1([series_path(ROI, "S2", 4, 99)], tree, mod="s1")
    with pytest.raises(DataError, match="is no file of SEN12MS-CR-TS"):
        get_pairedS1(["ROIs1868/73/S2/4/image.tif"], tree)


def custom_entry(patches=(9, 10)) -> dict:
    return {"target": [series_path(ROI, "S2", 4, patch) for patch in patches], "inputs": [0, 2]}


def test_custom_samples_are_mosaics_with_their_georeference(tree):
    # patches 9 and 10 lie side by side
    series = SEN12MSCRTS(tree, "test", custom_samples=[custom_entry()], cloud_masks="cloud_cloudshadow_mask")
    for _ in range(2):  # the published loader changed its list at the first reading
        item = series[0]
        assert len(item["input"]["S2"]) == 2
        assert item["target"]["S2"][0].shape == (13, SIZE, 2 * SIZE)
        assert item["target"]["S1"][0].shape == (2, SIZE, 2 * SIZE)
        assert item["target"]["masks"][0].shape == (SIZE, 2 * SIZE)
        left, right = item["target"]["S2"][0][0, 0, 0], item["target"]["S2"][0][0, 0, -1]
        assert (left, right) == (np.float32(optical_level(9, 4) / 1e4), np.float32(optical_level(10, 4) / 1e4))
        assert item["input"]["S2 TD"] == [days_since_launch(optical_date(0)), days_since_launch(optical_date(2))]
        assert item["target"]["S2 TD"] == [days_since_launch(optical_date(4))]
    _, georef = merge_patches(tree, series.paths[0]["target"]["S2"][0], 13)
    assert georef.crs == rasterio.crs.CRS.from_epsg(32633)
    assert georef.transform == patch_transform(9)
    corner = patch_transform(9)
    assert item["target"]["coord"] == [list(georef.bounds)]
    assert georef.bounds == (corner.c, corner.f - 10 * SIZE, corner.c + 20 * SIZE, corner.f)
    batch = Collate(use_sar=True)([item])
    assert batch.x.shape == (1, 2, 15, SIZE, 2 * SIZE)
    assert batch.info[0].patch == "9+10"
    assert batch.info[0].roi == ROI


def test_a_gap_in_a_mosaic_is_empty(tmp_path):
    for patch in (0, 2):  # patch 1 between them is not there
        write_series(tmp_path, ROI, patch, coverages_with_clear(4), stored=False)
    series = SEN12MSCRTS(tmp_path, "test", custom_samples=[custom_entry((0, 2))], cloud_masks=None)
    with pytest.warns(UserWarning, match="NaN"):
        target = series[0]["target"]
    assert target["S2"][0].shape == (13, SIZE, 3 * SIZE)
    assert np.all(target["S2"][0][:, :, SIZE : 2 * SIZE] == 0)
    assert np.all(target["S1"][0][:, :, SIZE : 2 * SIZE] == 0)
    assert np.all(target["S1"][0][0, :, :SIZE] > 0)


def test_custom_lists_come_in_two_forms(tree, tmp_path):
    short, nested = tmp_path / "short.json", tmp_path / "nested.json"
    short.write_text(json.dumps([custom_entry()]))
    expanded = read_custom_list(short, tree)
    assert expanded[0]["input"]["S1"][1] == [series_path(ROI, "S1", 2, patch) for patch in (9, 10)]
    nested.write_text(json.dumps(expanded))
    assert read_custom_list(nested, tree) == expanded
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "must contain at least 1 items, got .*a JSON list"),
        (
            '[{"input": {}}]',
            r"custom sample 1: the content must contain \['target'\] properties|custom sample 1: .*'target'",
        ),
    ):
        short.write_text(text)
        with pytest.raises(DataError, match=message):
            read_custom_list(short, tree)
    with pytest.raises(DataError, match="cannot read .*none.json: No such file"):
        read_custom_list(tmp_path / "none.json", tree)


def test_the_published_custom_list(tmp_path):
    patches = (171, 172, 173, 187, 188, 189, 203, 204, 205)
    for patch in patches:
        for day, when in ((0, "2018-01-05"), (1, "2018-01-20"), (2, "2018-02-04"), (14, "2018-06-21")):
            for sensor in ("s1", "s2"):
                folder = tmp_path / ROI / sensor.upper() / str(day)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{sensor}_ROIs1868_73_ImgNo_{day}_{when}_patch_{patch}.tif").touch()
    (sample,) = read_custom_list("published", tmp_path)
    targets = sample["target"]["S2"][0]
    assert targets[0] == "ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_171.tif"
    assert [int(path.split("patch_")[1][:-4]) for path in targets] == list(patches)
    assert [group[0].split("/")[3] for group in sample["input"]["S1"]] == ["0", "1", "2"]
    assert [len(group) for group in sample["input"]["S2"]] == [9, 9, 9]


def test_mosaics_of_different_coordinate_systems_are_refused(copy):
    write_geotiff(
        image_path(copy, "S2", 4, 10), np.ones((13, SIZE, SIZE), np.uint16), "EPSG:32634", patch_transform(10)
    )
    series = SEN12MSCRTS(copy, "test", custom_samples=[custom_entry()], cloud_masks=None)
    with pytest.raises(DataError, match="patch_10.tif has another coordinate system or pixel size"):
        series[0]
