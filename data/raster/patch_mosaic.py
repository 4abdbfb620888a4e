"""Images composed of neighbouring patches."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.merge import merge
from rasterio.transform import array_bounds

from common.errors import DataError
from data.constants import N_S1, N_S2
from data.layout import patch_number
from data.raster.geotiff import GeoRef
from data.raster.image_store import Images, open_images

_LARGEST_GAPS = 1000  # times the area of its patches that a mosaic may have
_OFF_GRID = 0.05  # pixels by which a patch may miss the grid of the first one: rounding of its corner


@dataclass(frozen=True)
class PatchMosaic:
    """Positions of equally sized patches on the grid of a scene.

    Attributes:
        shape: (H, W) of the scene.
        patch_size: (h, w) of each patch.
        places: (P, 3) patch number, first row and first column.
        transform: affine transform from pixels to metres of the coordinate system, six numbers.
        crs: as WKT, empty if there is none.
    """

    shape: tuple[int, int]
    patch_size: tuple[int, int]
    places: np.ndarray
    transform: tuple[float, ...]
    crs: str

    def join(self, paths: Sequence[str], read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Join the patches of one date and sensor.

        Args:
            paths: one file of each patch, in the order of `places`.
            read: reads the pixels of a file, (C, h, w).

        Returns:
            (C, H, W): gaps are 0, in radar NaN; where patches overlap the first one wins.
        """
        scene: np.ndarray | None = None
        height, width = self.patch_size
        for path, (_, top, left) in reversed(list(zip(paths, self.places.tolist(), strict=True))):
            pixels = read(path)
            if scene is None:
                gap = np.nan if pixels.dtype.kind == "f" else 0
                scene = np.full((len(pixels), *self.shape), gap, pixels.dtype)
            if pixels.shape[1:] != self.patch_size or pixels.dtype != scene.dtype:
                raise DataError(f"{path}: {pixels.dtype} {pixels.shape}, unlike the other patches of its scene")
            scene[:, top : top + height, left : left + width] = pixels
        assert scene is not None
        return scene

    def covered(self) -> np.ndarray:
        """Mask of the pixels that lie in a patch, bool (H, W)."""
        mask = np.zeros(self.shape, np.bool_)
        for _, top, left in self.places.tolist():
            mask[top : top + self.patch_size[0], left : left + self.patch_size[1]] = True
        return mask


def plan_mosaic(images: Images, paths: Sequence[str]) -> PatchMosaic:
    """Positions of patches relative to each other, from their georeferences.

    Args:
        images: where they lie.
        paths: one image of each patch, at least one.

    Raises:
        DataError: if patches differ in coordinate system or pixel size, or do not lie on one grid.
    """
    first = paths[0]
    georef, size = images.georef(first), images.size(first)
    step_x, step_y = _pixel_size(georef)
    if georef.transform.b or georef.transform.d or not step_x or not step_y:
        raise DataError(f"{first}: its rows are not parallel to the coordinate axes; it makes no scene")
    corners = []
    for path in paths:
        current = images.georef(path)
        if not _same_grid(current, georef):
            raise DataError(f"{path} has another coordinate system or pixel size than {first}; they make no scene")
        column = (current.transform.c - georef.transform.c) / step_x
        row = (current.transform.f - georef.transform.f) / step_y
        if max(abs(column - round(column)), abs(row - round(row))) > _OFF_GRID:
            raise DataError(f"{path} lies {column:.2f}, {row:.2f} pixels from {first}, which is off its grid")
        corners.append((patch_number(path), round(row), round(column)))
    places = np.array(corners, np.int64)
    top, left = places[:, 1].min(), places[:, 2].min()
    places[:, 1:] -= (top, left)
    height, width = places[:, 1].max() + size[0], places[:, 2].max() + size[1]
    if height * width > _LARGEST_GAPS * len(paths) * size[0] * size[1]:
        raise DataError(
            f"{len(paths)} patches of {size[0]} x {size[1]} pixels, of which {first} is one, lie in {height} x {width} "
            "pixels; patches of one scene lie side by side: check their georeferences"
        )
    transform = (step_x, 0.0, georef.transform.c + left * step_x, 0.0, step_y, georef.transform.f + top * step_y)
    crs = "" if georef.crs is None else str(georef.crs.to_wkt())
    return PatchMosaic((int(height), int(width)), size, places, tuple(float(number) for number in transform), crs)


def merge_patches(root: str | Path, paths: Sequence[str], bands: int) -> tuple[np.ndarray, GeoRef]:
    """Merge patches of any size into one image.

    Args:
        root: folder or pack of the data set.
        paths: of one sensor and date, relative to the root; the first one wins where patches overlap.
        bands: 13 (optical) or 2 (radar).

    Returns:
        Stored values (C, H, W) over the bounds of all patches, and their georeference. Gaps are 0 in optical, NaN in
        radar.

    Raises:
        DataError: if a file cannot be read, or the patches differ in coordinate system, pixel size or type.
    """
    images, first = open_images(root), os.path.join(root, paths[0])
    image, georef = images.read(paths[0], bands)[0], images.georef(paths[0])
    if len(paths) == 1:
        return image, georef
    for path in paths[1:]:
        images.read(path, bands)  # checks each file, with a specific message
        if not _same_grid(images.georef(path), georef):
            full_path = os.path.join(root, path)
            raise DataError(f"{full_path} has another coordinate system or pixel size than {first}; cannot merge them")
    nodata = {N_S1: float("nan"), N_S2: 0}[bands]
    with ExitStack() as stack:
        try:
            sources = [stack.enter_context(images.open(path)) for path in paths]
            _check_extent(first, sources)
            mosaic, transform = merge(sources, nodata=nodata)
        except RasterioError as error:
            raise DataError(f"cannot merge {first} and {len(paths) - 1} others into one image: {error}") from error
    left, bottom, right, top = array_bounds(*mosaic.shape[1:], transform)
    return mosaic, GeoRef((left, bottom, right, top), georef.crs, transform)


def _check_extent(first: str, sources: Sequence[Any]) -> None:
    """Raise a `DataError` if images lie so far apart that what lies between them does not fit into memory."""
    lefts, bottoms, rights, tops = zip(*(source.bounds for source in sources), strict=True)
    step_x, step_y = (abs(step) for step in (sources[0].transform.a, sources[0].transform.e))
    height, width = (max(tops) - min(bottoms)) / step_y, (max(rights) - min(lefts)) / step_x
    if not height * width <= _LARGEST_GAPS * sum(source.height * source.width for source in sources):
        raise DataError(
            f"{first} and {len(sources) - 1} others lie in {height:.0f} x {width:.0f} pixels, too far apart for one "
            "image; check their georeferences"
        )


def _pixel_size(georef: GeoRef) -> tuple[float, float]:
    return georef.transform.a, georef.transform.e


def _same_grid(left: GeoRef, right: GeoRef) -> bool:
    return left.crs == right.crs and np.allclose(_pixel_size(left), _pixel_size(right))
