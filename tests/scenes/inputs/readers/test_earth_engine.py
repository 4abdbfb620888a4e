"""Stacks of dates in one image, as Earth Engine exports them, are split by the names of their bands."""

from datetime import date

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from scenes.inputs.open import open_series, read_products
from scenes.inputs.rasters.dataset_pool import dataset_pool, gdal_settings, open_raster
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import ImageFile, image_file
from scenes.inputs.readers.earth_engine import READER, split_stack
from scenes.options import SceneInputs
from tests.support.scene_files import ground, notes_of, read_all, speckle, write_tif, zone_31

DAYS = ("2018-06-21", "2018-06-26", "2018-07-01")
NAMES = [name.replace("B0", "B") for name in S2_BANDS]
GROUND = np.stack([ground(seed) for seed in range(3)])
RADAR = np.stack([speckle(seed) for seed in range(3)])
MONTHS = [f"2019-{month:02d}-15" for month in range(2, 13)] + ["2020-01-15"]


def numbered(path, radar=True, extra="temperature_2m") -> str:
    """VV, VH, B1 to B12 and a layer of weather, then the same with _1 and _2."""
    planes, names = [], []
    for index in range(3):
        suffix = f"_{index}" if index else ""
        if radar:
            planes += [*RADAR[index]]
            names += [f"VV{suffix}", f"VH{suffix}"]
        planes += [*GROUND[index], np.full(GROUND.shape[2:], 300.5)]
        names += [*(name + suffix for name in NAMES), extra + suffix]
    return write_tif(path, np.stack(planes).astype(np.float64), names=names)


def by_index(path, keys) -> str:
    """The same without radar, as `ImageCollection.toBands` names bands."""
    names = [f"{key}_{name}" for key in keys for name in [*NAMES, "QA60"]]
    pixels = np.concatenate([np.concatenate([own, np.zeros_like(own[:1])]) for own in GROUND])
    return write_tif(path, pixels, names=names)


def test_numbered_bands_with_dates_and_radar_of_the_same_dates(tmp_path):
    path = numbered(tmp_path / "export.tif")
    assert READER.recognises(path)
    series = open_series(SceneInputs([path], dates=DAYS))
    assert series.labels == DAYS
    assert series.radar_days == series.days
    assert "bands of the stack that are not used: temperature_2m, temperature_2m_1, temperature_2m_2" in notes_of(
        series
    )
    assert np.array_equal(read_all(series).raw, GROUND)
    assert np.array_equal(series.radar[1].read(series.grid.window), RADAR[1].astype(np.float32))


@pytest.mark.parametrize(
    "keys",
    [
        [
            "20180621T103021_20180621T103023_T32TPQ",
            "20180626T103019_20180626T103022_T32TPQ",
            "20180701T103021_x_T32TPQ",
        ],
        [f"{index}_{day.replace('-', '')}T103021_T32TPQ" for index, day in enumerate(DAYS, start=1)],
        DAYS,
    ],
)
def test_names_of_products_before_those_of_bands_hold_the_dates(tmp_path, keys):
    path = by_index(tmp_path / "stack.tif", keys)
    assert READER.recognises(path)
    series = open_series(SceneInputs([path]))
    assert series.labels == DAYS
    assert np.array_equal(read_all(series).raw, GROUND)
    products = read_products([path], "optical", SceneInputs([path])).optical
    assert [(product.classes.kind, product.classes.band.position) for product in products] == [
        ("qa60", 14),
        ("qa60", 28),
        ("qa60", 42),
    ]


def test_an_index_before_the_names_of_bands_needs_dates(tmp_path):
    path = by_index(tmp_path / "stack.tif", "012")
    with pytest.raises(DataError, match="a stack of 3 images whose band names hold no dates; give --dates"):
        open_series(SceneInputs([path]))
    with pytest.raises(UsageError, match="3 images of --optical, but 2 dates"):
        open_series(SceneInputs([path], dates=DAYS[:2]))
    assert np.array_equal(read_all(open_series(SceneInputs([path], dates=DAYS[::-1]))).raw, GROUND[::-1])


def test_radar_of_a_stack_of_its_own(tmp_path):
    optical = by_index(tmp_path / "s2.tif", DAYS)
    product = "S1A_IW_GRDH_1SDV_{}T053041_{}T053106_022436_026E0C_5F4B"
    names = [f"{product.format(day, day)}_{band}" for day in ("20180620", "20180702") for band in ("VV", "VH", "angle")]
    planes = np.concatenate([np.concatenate([own, np.full_like(own[:1], 38)]) for own in RADAR[:2]])
    radar = write_tif(tmp_path / "s1.tif", planes, names=names)
    series = open_series(SceneInputs([optical], [radar]))
    assert [series.days[0] - own for own in series.radar_days] == [1, 1, -11]
    assert np.array_equal(series.radar[2].read(series.grid.window), RADAR[1])
    with pytest.raises(DataError, match="no bands of Sentinel-2, but VV and VH; give it to --sar"):
        open_series(SceneInputs([radar]))
    with pytest.raises(DataError, match="no image of this stack has VV and VH"):
        open_series(SceneInputs([optical], [optical]))


def test_a_date_that_lacks_bands_is_named(tmp_path):
    names = [*NAMES, *(f"{name}_1" for name in NAMES[:5])]
    path = write_tif(tmp_path / "s2.tif", np.concatenate([GROUND[0], GROUND[1, :5]]), names=names)
    with pytest.raises(DataError, match=r"s2\.tif, image 1: missing B06, B07, .* found bands called B1, B2, B3,"):
        open_series(SceneInputs([path], dates=DAYS[:2]))


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        [None] * 13,
        [f"T33UUU_{name}_10m" for name in S2_BANDS],
        [f"Sigma0_{name}" for name in ("VV", "VH")],
        ["VV_ASC", "VH_ASC", "VV_DSC", "VH_DSC"],
    ],
)
def test_images_of_one_date_are_no_stacks(tmp_path, names):
    path = write_tif(tmp_path / "one.tif", np.ones((len(names), 5, 5), np.uint16), names=names)
    assert not READER.recognises(path)
    assert len(split_stack(names)) <= 1


def test_of_many_bands_only_those_that_are_read_are_warped_and_to_the_same_bits(tmp_path):
    path = numbered(tmp_path / "export.tif")
    own = write_tif(tmp_path / "one.tif", GROUND[1].astype(np.float64))
    with open_raster(path) as dataset:
        stack = image_file(path, dataset)
    assert stack.count == 48
    transform, (height, width) = zone_31(9)
    grid = Grid(height, width, transform, CRS.from_epsg(32631))
    positions = list(range(19, 32))
    with gdal_settings():
        expected = ImageFile(own, stack.grid, count=13).read(range(1, 14), grid.window, grid).stored
        for window in (grid.window, Window(11, 7, 30, 25)):
            stored = stack.read(positions, window, grid).stored
            assert np.array_equal(stored, expected[(..., *window.slices)], equal_nan=True)
    dataset_pool().close([path, own])


def test_a_real_export_of_twelve_months(products):
    path = str(products / "gee_export" / "98-togo_2019-02-06_2020-02-01.tif")
    assert READER.recognises(path)
    with pytest.raises(DataError, match="a stack of 12 images"):
        open_series(SceneInputs([path]))
    series = open_series(SceneInputs([path], dates=MONTHS))
    assert series.labels == tuple(MONTHS)
    pixels = read_all(series)
    with rasterio.open(path) as dataset:
        stored, position = dataset.read(), {name: index for index, name in enumerate(dataset.descriptions)}
        assert series.grid.transform == dataset.transform
    for month in range(12):
        suffix = f"_{month}" if month else ""
        plain = np.stack([stored[position[name + suffix]] for name in NAMES])
        assert np.array_equal(pixels.raw[month], plain.round())
        plain = np.stack([stored[position[name + suffix]] for name in ("VV", "VH")])
        np.testing.assert_allclose(series.radar[month].read(series.grid.window), plain, rtol=1e-6)
    products_of = read_products([path], "optical", SceneInputs([path], dates=MONTHS))
    assert products_of.radar[3].day == date(2019, 5, 15)
