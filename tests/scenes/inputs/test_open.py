"""From files to a series: order by date, one grid, and arguments that exclude each other."""

import numpy as np
import pytest
from rasterio.transform import from_origin

from common.errors import DataError, UsageError
from scenes.inputs.dates import date_labels
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.scene_files import PLACE, ground, notes_of, read_all, write_tif


def test_images_are_sorted_by_date_and_two_of_one_day_are_told(tmp_path):
    paths = [write_tif(tmp_path / f"{name}.tif", ground(seed)) for seed, name in enumerate("abc")]
    series = open_series(SceneInputs(paths, dates=["2018-06-26", "2018-06-21", "2018-06-26"]))
    assert series.days == (1540, 1545, 1545)  # 2014-04-03 to 2018-06-21 is 1540 days
    assert series.labels == ("2018-06-21", "2018-06-26", "2018-06-26 (2)") == date_labels(series.days)
    assert "several images of 2018-06-26: all are used" in notes_of(series)
    assert np.array_equal(read_all(series).raw, [ground(1), ground(0), ground(2)])


def test_grids_must_agree_and_the_error_names_both(tmp_path):
    first = write_tif(tmp_path / "a_2018-06-21.tif", ground())

    def differs(**more) -> str:
        second = write_tif(tmp_path / "b_2018-06-26.tif", more.pop("pixels", ground()), **more)
        with pytest.raises(DataError, match=r"a_2018-06-21\.tif and .*b_2018-06-26\.tif have different") as error:
            open_series(SceneInputs([second, first]))
        return str(error.value)

    assert "coordinate systems EPSG:32632 and EPSG:32633" in differs(crs="EPSG:32633")
    assert "--crs EPSG:32632 brings them there" in differs(crs="EPSG:32633")
    assert "upper left corners (400000, 5000000) and (400005, 5000000)" in differs(
        transform=from_origin(400_005, 5_000_000, 10, 10)
    )
    assert "pixel sizes 10 x -10 and 20 x -20" in differs(transform=from_origin(400_000, 5_000_000, 20, 20))
    near = from_origin(400_000.01, 5_000_000, 10, 10)  # a thousandth of a pixel: rounding
    write_tif(tmp_path / "b_2018-06-26.tif", ground(), transform=near)
    assert open_series(SceneInputs([first, str(tmp_path / "b_2018-06-26.tif")])).grid.transform == PLACE


def test_sources_of_images_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="name the scene by one of --optical, --list and --folder; got"):
        open_series(SceneInputs())
    with pytest.raises(UsageError, match="name the scene by one of --optical, --list and --folder; got"):
        open_series(SceneInputs(["a.tif"], manifest="b.csv"))
    with pytest.raises(UsageError, match="a list or a folder names its own"):
        open_series(SceneInputs(manifest="b.csv", radar=["a.tif"]))
    with pytest.raises(UsageError, match="--numbers chooses among the 30 dates of --folder"):
        open_series(SceneInputs(["a.tif"], numbers=[1]))
