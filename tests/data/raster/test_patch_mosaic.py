"""Mosaics of neighbouring patches: positions, gaps, overlaps, and patches that do not fit."""

import numpy as np
import pytest
from affine import Affine
from rasterio.transform import from_origin

from common.errors import DataError
from data.raster.geotiff import write_geotiff
from data.raster.image_store import open_images
from data.raster.patch_mosaic import merge_patches, plan_mosaic
from tests.support.fake_trees import CRS, SIZE, patch_transform


def write_patch(root, number, value, dtype="uint16", crs=CRS, transform=None, size=SIZE) -> str:
    bands = 13 if dtype == "uint16" else 2
    name = f"x_patch_{number}.tif"
    write_geotiff(root / name, np.full((bands, size, size), value, dtype), crs, transform or patch_transform(number))
    return name


def shifted(number, columns):
    """The transform of a patch, moved to the east."""
    corner = patch_transform(number)
    return from_origin(corner.c + 10 * columns, corner.f, 10, 10)


@pytest.mark.parametrize(("dtype", "gap"), [("uint16", 0), ("float32", np.nan)])
def test_patches_are_joined_at_their_positions(tmp_path, dtype, gap):
    paths = [write_patch(tmp_path, number, number, dtype) for number in (9, 10, 14)]
    images = open_images(tmp_path)
    mosaic = plan_mosaic(images, paths)
    assert mosaic.places.tolist() == [[9, 0, 0], [10, 0, SIZE], [14, SIZE, SIZE]]
    assert mosaic.transform == tuple(patch_transform(9))[:6]
    scene = mosaic.join(paths, lambda path: images.read_native(path)[0])
    expected = np.full((2 * SIZE, 2 * SIZE), gap)
    expected[:SIZE, :SIZE], expected[:SIZE, SIZE:], expected[SIZE:, SIZE:] = 9, 10, 14
    assert scene.dtype == dtype
    np.testing.assert_array_equal(scene, np.broadcast_to(expected, (len(scene), 2 * SIZE, 2 * SIZE)))
    np.testing.assert_array_equal(mosaic.covered(), np.isin(expected, (9, 10, 14)))
    merged, georef = merge_patches(tmp_path, paths, len(scene))
    np.testing.assert_array_equal(merged, scene)
    assert tuple(georef.transform)[:6] == mosaic.transform


def test_the_first_patch_wins_where_patches_overlap(tmp_path):
    paths = [write_patch(tmp_path, 9, 1), write_patch(tmp_path, 10, 2, transform=shifted(9, SIZE // 2))]
    images = open_images(tmp_path)
    expected = np.repeat([1, 2], [SIZE, SIZE // 2])
    for order, values in ((paths, expected), (paths[::-1], np.repeat([1, 2], [SIZE // 2, SIZE]))):
        scene = plan_mosaic(images, order).join(order, lambda path: images.read(path, 13)[0])
        np.testing.assert_array_equal(scene, np.broadcast_to(values, scene.shape))
        np.testing.assert_array_equal(merge_patches(tmp_path, order, 13)[0], scene)


def test_patches_that_do_not_fit_are_named(tmp_path):
    first = write_patch(tmp_path, 9, 1)
    images = open_images(tmp_path)
    other_crs = write_patch(tmp_path, 10, 1, crs="EPSG:32634")
    with pytest.raises(DataError, match="patch_10.tif has another coordinate system or pixel size than .*patch_9.tif"):
        plan_mosaic(images, [first, other_crs])
    with pytest.raises(DataError, match="patch_10.tif has another coordinate system.*cannot merge them"):
        merge_patches(tmp_path, [first, other_crs], 13)
    off_grid = write_patch(tmp_path, 11, 1, transform=shifted(11, 0.4))
    with pytest.raises(DataError, match=r"patch_11.tif lies 64.40, -?0.00 pixels from .* off its grid"):
        plan_mosaic(images, [first, off_grid])
    rotated = write_patch(tmp_path, 12, 1, transform=Affine(9, 1, 500_000, 1, -9, 4_000_000))
    with pytest.raises(DataError, match="patch_12.tif: its rows are not parallel"):
        plan_mosaic(images, [rotated])
    larger = write_patch(tmp_path, 13, 1, size=2 * SIZE)
    with pytest.raises(DataError, match=r"patch_13.tif: uint16 .*, unlike the other patches"):
        plan_mosaic(images, [first, larger]).join([first, larger], lambda path: images.read_native(path)[0])


def test_patches_far_apart_make_no_image(tmp_path):
    paths = [write_patch(tmp_path, 9, 1), write_patch(tmp_path, 10, 2, transform=shifted(9, 10**7))]
    with pytest.raises(DataError, match=r"patch_9\.tif is one, lie in 32 x 10000032 pixels; .*check their georef"):
        plan_mosaic(open_images(tmp_path), paths)
    with pytest.raises(DataError, match=r"patch_9\.tif and 1 others lie in 32 x 10000032 pixels, too far apart"):
        merge_patches(tmp_path, paths, 13)
