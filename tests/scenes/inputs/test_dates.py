"""Acquisition dates from tags, names and flags, and the pairing of radar with optical dates."""

import numpy as np
import pytest

from common.errors import DataError, UsageError
from data.raster.rescaling import sar_to_unit
from scenes.inputs.dates import find_date, pair_nearest, parse_date
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.scene_files import ground, read_all, speckle, write_tif


@pytest.mark.parametrize(
    ("name", "tags", "day"),
    [
        ("ROI_2018-06-21_x.tif", {}, "2018-06-21"),
        ("20180621.tif", {}, "2018-06-21"),
        ("a_2018_06_21.tif", {}, "2018-06-21"),
        ("S2A_MSIL1C_20180621T103021_N0206_R108_T32TMK_20190101T123456.tif", {}, "2018-06-21"),
        ("S1A_IW_GRDH_1SDV_20180618T165043_20180618T165108_022_026_1.tif", {}, "2018-06-18"),
        ("x_123456789_20180621.tif", {}, "2018-06-21"),  # a longer number is no date
        ("2018-06-21.tif", {"ACQUISITION_DATE": "2018-06-22T10:00:00Z"}, "2018-06-22"),
        ("a.tif", {"datetime": "20180623T103021"}, "2018-06-23"),
        ("a.tif", {"TIFFTAG_DATETIME": "2018:06:24 10:30:21"}, "2018-06-24"),
        ("2018-06-21.tif", {"TIFFTAG_DATETIME": "2024:01:01 00:00:00"}, "2018-06-21"),  # when the file was made
    ],
)
def test_dates_come_from_tags_and_names(name, tags, day):
    assert find_date(f"/data/1999-01-01/{name}", tags).isoformat() == day


def test_dates_that_are_none_are_errors(write_optical):
    with pytest.raises(DataError, match=r"no date for .*scene\.tif: neither its tags .* or give --dates"):
        open_series(SceneInputs([write_optical(name="scene.tif")]))
    with pytest.raises(DataError, match=r"impossible date 2018-02-30 in the name of"):
        find_date("a_2018-02-30.tif", {})
    with pytest.raises(DataError, match=r"--dates: expected a date like 2018-06-21, found 'June'"):
        parse_date("June", "--dates")
    with pytest.raises(UsageError, match="1 images of --optical, but 2 dates"):
        open_series(SceneInputs([write_optical()], dates=["2018-06-21", "2018-06-22"]))


def test_radar_goes_with_the_nearest_date():
    assert pair_nearest([10, 20, 30], [28, 12]) == (1, 1, 0)
    assert pair_nearest([10], [12, 8]) == (1,)  # as near: the earlier one
    assert pair_nearest([10, 11], [10, 10]) == (0, 0)


def test_far_and_unused_radar_is_told(tmp_path):
    optical = [write_tif(tmp_path / f"s2_2018-06-{day}.tif", ground()) for day in ("01", "21")]
    radar = [write_tif(tmp_path / f"s1_2018-{day}.tif", speckle(seed)) for seed, day in enumerate(("06-20", "05-10"))]
    unused = write_tif(tmp_path / "s1_2018-01-01.tif", speckle(5))
    series = open_series(SceneInputs(optical, [*radar, unused]))
    notes = "\n".join(series.notes)
    assert "2018-06-01 with 2018-06-20; 2018-06-21 with 2018-06-20" in notes  # 19 days off, the other one is 22
    assert "radar of 2018-06-20 lies 19 days from the optical image of 2018-06-01" in notes
    assert "not used: s1_2018-05-10.tif, s1_2018-01-01.tif" in notes
    assert np.array_equal(read_all(series).radar[1], sar_to_unit(speckle(0)))
