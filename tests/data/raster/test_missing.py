"""Pixels without data."""

from pathlib import Path

import numpy as np
import pytest

from data.raster.geotiff import read_bands
from data.raster.missing import mask_missing, missing_pixels, valid_pixels
from tests.support.commands import ROOT

REAL = sorted((ROOT.parent / "shared" / "data").glob("[Sr][Ee][Na]*/**/*.tif"))


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 9000, (13, 6, 5), dtype=np.uint16)


def test_an_image_with_a_value_at_every_pixel_misses_none():
    bands = image()
    mask = np.zeros((6, 5), np.float32)
    assert missing_pixels(bands) is None
    assert valid_pixels(bands).all()
    assert mask_missing(mask, bands) is mask
    bands[:12, 2] = 0  # one band is enough
    bands[0, 3:] = 0
    assert missing_pixels(bands) is None


@pytest.mark.parametrize("value", [0, np.nan, -3.0])
def test_pixels_are_missing_where_no_band_is_above_zero(value):
    bands = image().astype(np.float32)
    bands[:, 4:, 1:] = value
    bands[7, 5, 4] = 1
    expected = np.zeros((6, 5), bool)
    expected[4:, 1:] = True
    expected[5, 4] = False
    assert np.array_equal(missing_pixels(bands), expected)
    assert np.array_equal(valid_pixels(bands), ~expected)
    mask = mask_missing(np.full((6, 5), 0.25, np.float32), bands)
    assert mask.dtype == np.float32
    assert np.array_equal(mask, np.where(expected, 1, 0.25).astype(np.float32))


@pytest.mark.skipif(not REAL, reason="no real data beside the project")
@pytest.mark.parametrize("path", [path for path in REAL if "s2" in path.name.lower()][::6], ids=lambda path: path.name)
def test_real_images_miss_no_pixel(path: Path):
    bands = read_bands(path)
    assert missing_pixels(bands) is None
    assert bands.min() > 0
    assert bands[0].min() > 900
