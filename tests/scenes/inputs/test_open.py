"""From files to a series: order by date, one grid, and arguments that exclude each other."""

from dataclasses import replace

import numpy as np
import pytest
from rasterio.transform import from_origin

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from data.raster.rescaling import sar_to_unit
from scenes.inputs.dates import date_labels
from scenes.inputs.open import _group_by_date, open_series, read_products
from scenes.inputs.values.optical import open_optical
from scenes.options import SceneInputs
from tests.support.scene_files import HEIGHT, PLACE, WIDTH, ground, notes_of, read_all, speckle, write_tif


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


@pytest.mark.parametrize(
    ("crs", "size", "note"),
    [
        ("EPSG:32632", 10, ""),
        ("EPSG:32632", 60, "pixels are 60 x 60 m; networks were trained on 10 m"),
        ("EPSG:4326", 8.983e-5, ""),  # as SEN12MS-CR-TS
        ("EPSG:4326", 0.0005, "pixels are 0.0005 x 0.0005 degrees, about 39.4 x 55.7 m; networks were trained on 10 m"),
        ("EPSG:2264", 32.8084, ""),  # feet
        ("EPSG:2264", 10, "pixels are 3.048 x 3.048 m; networks"),
    ],
)
def test_pixels_of_another_size_than_in_training_are_noted(crs, size, note, tmp_path):
    corner = {"EPSG:32632": (400_000, 5_000_000), "EPSG:4326": (9, 45), "EPSG:2264": (2_000_000, 700_000)}[crs]
    path = write_tif(tmp_path / "2018-06-21.tif", ground(), crs=crs, transform=from_origin(*corner, size, size))
    notes = notes_of(open_series(SceneInputs([path])))
    assert (note in notes) if note else ("networks were trained on 10 m" not in notes)


def test_sources_of_images_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="name the scene by one of --optical, --stac, --list and --folder; got"):
        open_series(SceneInputs())
    with pytest.raises(UsageError, match="name the scene by one of --optical, --stac, --list and --folder; got"):
        open_series(SceneInputs(["a.tif"], manifest="b.csv"))
    with pytest.raises(UsageError, match="a list or a folder names its own"):
        open_series(SceneInputs(manifest="b.csv", radar=["a.tif"]))
    with pytest.raises(UsageError, match="--numbers chooses among the 30 dates of --folder"):
        open_series(SceneInputs(["a.tif"], numbers=[1]))


DAY = "2018-06-21"


def half(path, pixels, columns: slice, *, crop=False) -> str:
    """An image of some columns of a scene: a file of their size, or of all columns, of which the others are nodata."""
    if crop:
        corner = PLACE @ (columns.indices(WIDTH)[0], 0)
        return write_tif(path, pixels[:, :, columns], names=S2_BANDS, transform=from_origin(*corner, 10, 10))
    filled = np.zeros_like(pixels)
    filled[:, :, columns] = pixels[:, :, columns]
    return write_tif(path, filled, names=S2_BANDS, nodata=0)


@pytest.mark.parametrize("crop", [True, False], ids=["own sizes", "nodata"])
def test_two_halves_of_one_overpass_are_one_date_in_any_order(tmp_path, crop):
    scene = ground()
    west = half(tmp_path / f"w_{DAY}.tif", scene, np.s_[:50], crop=crop)
    east = half(tmp_path / f"e_{DAY}.tif", scene, np.s_[40:], crop=crop)
    series = open_series(SceneInputs([west, east]))
    assert series.days == (1540,)
    assert series.labels == (DAY,)
    assert series.grid.shape == (HEIGHT, WIDTH)
    assert f"images of {DAY} are parts of one date, the first ones take precedence: e_{DAY}.tif, w_" in notes_of(series)
    assert "several images" not in notes_of(series)
    swapped = open_series(SceneInputs([east, west]))
    assert swapped.paths == series.paths
    for pixels in (read_all(series), read_all(swapped)):
        assert pixels.valid.all()
        np.testing.assert_array_equal(pixels.raw[0], scene)


def test_where_parts_overlap_the_first_by_name_takes_precedence(tmp_path):
    first = half(tmp_path / f"a_{DAY}.tif", ground(1), np.s_[:50], crop=True)
    second = half(tmp_path / f"b_{DAY}.tif", ground(2), np.s_[40:], crop=True)
    raw = read_all(open_series(SceneInputs([second, first]))).raw[0]
    np.testing.assert_array_equal(raw[..., :50], ground(1)[..., :50])
    np.testing.assert_array_equal(raw[..., 50:], ground(2)[..., 50:])


def test_images_of_one_day_that_overlap_by_half_stay_two_dates(tmp_path):
    first = half(tmp_path / f"a_{DAY}.tif", ground(1), np.s_[:60])
    second = half(tmp_path / f"b_{DAY}.tif", ground(2), np.s_[30:])
    series = open_series(SceneInputs([second, first]))
    assert series.labels == (DAY, f"{DAY} (2)")
    assert f"several images of {DAY}: all are used" in notes_of(series)


def test_halves_of_two_overpasses_of_a_day_are_paired_by_their_names(tmp_path):
    parts = {"a": np.s_[:50], "b": np.s_[45:], "c": np.s_[:52], "d": np.s_[48:]}
    paths = [
        half(tmp_path / f"{name}_{DAY}.tif", ground(seed), columns)
        for seed, (name, columns) in enumerate(parts.items())
    ]
    for order in (paths, paths[::-1]):
        series = open_series(SceneInputs(order))
        groups = {tuple(image.name[-16] for image in date.images) for date in series.optical}
        assert groups == {("a", "b"), ("c", "d")}


def test_parts_of_one_overpass_are_one_date_however_much_they_overlap(tmp_path):
    paths = [write_tif(tmp_path / f"{name}_{DAY}.tif", ground(seed), names=S2_BANDS) for seed, name in enumerate("ab")]
    inputs = SceneInputs(paths)
    products = read_products(paths, "optical", inputs).optical
    images = [open_optical(product, inputs)[0] for product in products]
    grid = products[0].bands[0].raster.grid
    assert _group_by_date(products, images, grid) == ((0,), (1,))
    same = [replace(product, overpass="GS2A_20180621") for product in products]
    assert _group_by_date(same, images, grid) == ((0, 1),)
    levels = [replace(product, level=level) for product, level in zip(same, ("L1C", "L2A"), strict=True)]
    assert _group_by_date(levels, images, grid) == ((0,), (1,))


def test_a_date_of_parts_gets_the_radar_of_each(tmp_path):
    scene, backscatter = ground(), speckle()
    rows = ["optical,radar,date"]
    for name, columns in (("w", np.s_[:45]), ("e", np.s_[45:])):
        half(tmp_path / f"s2_{name}.tif", scene, columns, crop=True)
        corner = PLACE @ (columns.indices(WIDTH)[0], 0)
        place = from_origin(*corner, 10, 10)
        write_tif(
            tmp_path / f"s1_{name}_2018-06-20.tif", backscatter[:, :, columns], names=("VV", "VH"), transform=place
        )
        rows.append(f"s2_{name}.tif,s1_{name}_2018-06-20.tif,{DAY}")
    (tmp_path / "scene.csv").write_text("\n".join(rows))
    series = open_series(SceneInputs(manifest=str(tmp_path / "scene.csv")))
    assert (series.days, series.radar_days) == ((1540,), (1539,))
    np.testing.assert_array_equal(read_all(series).radar[0], sar_to_unit(backscatter))
