"""Images by path: a folder and its pack have the same interface, and list the same images."""

import shutil

import numpy as np
import pytest

from common.errors import DataError
from data.raster.geotiff import read_bands
from data.raster.image_store import ImageFolder, image_series, open_images
from data.raster.packed_store import PackedImages
from data.splits import MONO, SERIES
from tests.support.fake_trees import ROI, SIZE, series_path, triplet_path, write_triplet

PATH = series_path(ROI, "S2", 3, 10)


@pytest.fixture(params=["tree", "pack"])
def images(request):
    """The series of `tree`, in folders and packed."""
    return open_images(request.getfixturevalue(request.param))


def test_a_root_is_opened_by_its_content(images):
    assert isinstance(images, ImageFolder | PackedImages)
    assert sorted(images.names(ROI)) == ["S1", "S2"]
    assert len(images.names(f"{ROI}/S1/29")) == 2
    assert images.names("ROIs1868/99") == []
    names = {series_path(ROI, "S2", 3, patch).rpartition("/")[2] for patch in (9, 10)}
    assert set(images.names(f"{ROI}/S2/3")) == names


def test_reading_the_same_image_in_every_way(images, tree):
    expected = read_bands(tree / PATH, 13)
    pixels, bounds = images.read(PATH, 13, SIZE)
    native, georef = images.read_native(PATH, SIZE)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(native, expected)
    assert georef == images.georef(PATH)
    assert georef.bounds == bounds
    assert images.size(PATH) == (SIZE, SIZE)
    assert images.file_bytes(PATH) == (tree / PATH).stat().st_size
    with images.open(PATH) as source:
        np.testing.assert_array_equal(source.read(), expected)
        assert (source.crs, source.transform) == (georef.crs, georef.transform)


def test_another_size_is_an_error_in_every_way(images):
    for read in (lambda: images.read(PATH, 13, 64), lambda: images.read_native(PATH, (64, SIZE))):
        with pytest.raises(DataError, match="patch_10.tif: expected 64 x .* pixels, found 32 x 32"):
            read()


def test_series_are_listed_by_patch_and_date(images):
    test = [tuple(series_path(ROI, "S2", date, patch) for date in range(30)) for patch in (9, 10)]
    assert list(image_series(images.root, SERIES, "test", "all")) == test
    assert len(list(image_series(images.root, SERIES, "all", "all"))) == 3
    assert list(image_series(images.root, SERIES, "all", "europa")) == []


def test_triplets_are_listed_by_their_cloudy_images(tmp_path):
    for roi, patch in (("ROIs1970_fall/139", 10), ("ROIs1970_fall/139", 2), ("ROIs2017_winter/112", 1)):
        write_triplet(tmp_path, roi, patch)
    paths = [triplet_path("ROIs1970_fall/139", "s2_cloudy", patch) for patch in (2, 10)]
    assert [series for (series,) in image_series(tmp_path, MONO, "test", "all")] == paths
    assert len(list(image_series(tmp_path, MONO, "all", "all"))) == 3


def test_partial_downloads_are_listed_as_they_are(copy):
    shutil.rmtree(copy / ROI / "S2" / "29")
    (copy / PATH).unlink()
    series = list(image_series(copy, SERIES, "test", "all"))
    assert [len(paths) for paths in series] == [29, 28]
