"""Whole scenes from their patches: where each patch lies among the others, and the images they make together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import DataError
from data.datasets.file_index import SeriesPaths
from data.raster.geotiff import read_with_georef
from data.raster.image_store import Folder, Images
from data.raster.packed_store import Pack, patch_number

_OFF_GRID = 0.05  # pixels by which a patch may miss the grid of the first one: rounding of its corner


@dataclass(frozen=True)
class Mosaic:
    """The plan of one region's scene.

    Attributes:
        shape: (H, W) of the whole.
        patch_size: (h, w) of each patch.
        places: (P, 3) number of the patch, its first row and its first column.
        transform: six numbers, from pixels to metres of the coordinate system.
        crs: as WKT, empty where there is none.
    """

    shape: tuple[int, int]
    patch_size: tuple[int, int]
    places: np.ndarray
    transform: tuple[float, ...]
    crs: str

    def join(self, paths: Sequence[str], read: Callable[[str], np.ndarray]) -> np.ndarray:
        """One image of the scene.

        Args:
            paths: one file of each patch, in the order of `places`.
            read: gives the pixels of a file, (C, h, w).

        Returns:
            (C, H, W): where no patch lies 0, NaN in radar; of patches that overlap the first one wins.
        """
        whole: np.ndarray | None = None
        height, width = self.patch_size
        for path, (_, top, left) in reversed(list(zip(paths, self.places.tolist(), strict=True))):
            pixels = read(path)
            if whole is None:
                empty = np.nan if pixels.dtype.kind == "f" else 0
                whole = np.full((len(pixels), *self.shape), empty, pixels.dtype)
            if pixels.shape[1:] != self.patch_size or pixels.dtype != whole.dtype:
                raise DataError(f"{path}: {pixels.dtype} {pixels.shape}, unlike the other patches of its scene")
            whole[:, top : top + height, left : left + width] = pixels
        assert whole is not None
        return whole

    def covered(self) -> np.ndarray:
        """Where patches lie, bool (H, W)."""
        there = np.zeros(self.shape, np.bool_)
        for _, top, left in self.places.tolist():
            there[top : top + self.patch_size[0], left : left + self.patch_size[1]] = True
        return there


def lay_out(images: Images, patches: Sequence[SeriesPaths]) -> Mosaic:
    """Where the patches of one region lie among each other, by the georeference of their first optical image.

    Args:
        images: where they lie.
        patches: at least one, all dates of each.

    Raises:
        DataError: if patches differ in coordinate system, pixel size or size, or do not lie on one grid.
    """
    first = patches[0]["S2"][0]
    place, size = images.georef(first), images.size(first)
    step_x, step_y = place.transform.a, place.transform.e
    if place.transform.b or place.transform.d or not step_x or not step_y:
        raise DataError(f"{first}: its rows do not run along the coordinate system; it makes no scene")
    corners = []
    for paths in patches:
        path = paths["S2"][0]
        other = images.georef(path)
        if other.crs != place.crs or not np.allclose((other.transform.a, other.transform.e), (step_x, step_y)):
            raise DataError(f"{path} has another coordinate system or pixel size than {first}; they make no scene")
        column = (other.transform.c - place.transform.c) / step_x
        row = (other.transform.f - place.transform.f) / step_y
        if max(abs(column - round(column)), abs(row - round(row))) > _OFF_GRID:
            raise DataError(f"{path} lies {column:.2f}, {row:.2f} pixels from {first}, which is off its grid")
        corners.append((patch_number(path), round(row), round(column)))
    places = np.array(corners, np.int64)
    top, left = places[:, 1].min(), places[:, 2].min()
    places[:, 1:] -= (top, left)
    height, width = places[:, 1].max() + size[0], places[:, 2].max() + size[1]
    transform = (step_x, 0.0, place.transform.c + left * step_x, 0.0, step_y, place.transform.f + top * step_y)
    crs = "" if place.crs is None else str(place.crs.to_wkt())
    return Mosaic((int(height), int(width)), size, places, tuple(float(number) for number in transform), crs)


def read_native(images: Images, path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of an image in the type in which they are stored, (C, H, W).

    Raises:
        DataError: if it cannot be read, or is of another size.
    """
    if isinstance(images, Pack):
        pixels = images.read_native(path)[0]
    else:
        assert isinstance(images, Folder)
        pixels = read_with_georef(os.path.join(images.root, path), None, size)[0]
    return pixels
