"""Images of a data set by path, whether GeoTIFFs in folders or a pack (`util.pack_dataset`)."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from data.layout import STACKS, list_images
from data.raster.geotiff import (
    Bounds,
    GeoRef,
    Size,
    open_in_memory,
    read_georef,
    read_size,
    read_with_bounds,
    read_with_georef,
)
from data.raster.packed_store import MARK, PackedImages
from data.splits import MONO, SERIES, rois


class ImageFolder:
    """GeoTIFFs below a root; paths are POSIX and relative to it, errors are `DataError`s that name the file.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        """Names in a folder, in no particular order; empty if the folder does not exist."""
        try:
            with os.scandir(self._path(folder)) as entries:
                return [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"cannot list the folder {self._path(folder)}: {error.strerror or error}") from error

    def read(self, path: str, bands: int, size: Size | None = None) -> tuple[np.ndarray, Bounds]:
        """Pixels (C, H, W) as returned by `data.raster.geotiff.read_bands`, and bounds."""
        return read_with_bounds(self._path(path), bands, size)

    def read_native(self, path: str, size: Size | None = None) -> tuple[np.ndarray, GeoRef]:
        """Pixels (C, H, W) in the stored type, and georeference."""
        return read_with_georef(self._path(path), None, size)

    def georef(self, path: str) -> GeoRef:
        """Bounds, coordinate system and transform of an image."""
        return read_georef(self._path(path))

    def size(self, path: str) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return read_size(self._path(path))

    def file_bytes(self, path: str) -> int:
        """Size of the GeoTIFF, which reveals changes; -1 if unknown."""
        try:
            return os.stat(self._path(path)).st_size
        except OSError:  # deleted, or not downloaded: nothing to compare with
            return -1

    def open(self, path: str) -> AbstractContextManager[Any]:
        """The image as an open rasterio data set."""
        return open_in_memory(self._path(path))

    def _path(self, path: str) -> str:
        return os.path.join(self.root, path)


Images = ImageFolder | PackedImages


def open_images(root: str | Path) -> Images:
    """The images below a root, packed or not; open packs are cached.

    Raises:
        DataError: if the pack has an unsupported format.
    """
    try:
        changed = os.stat(os.path.join(root, MARK)).st_mtime_ns
    except OSError:
        return ImageFolder(str(root))
    return _open_pack(str(root), changed)


def dataset_of(root: str | Path) -> str:
    """The data set in a folder or a pack: `data.splits.SERIES` or `data.splits.MONO`.

    Raises:
        DataError: if it is neither.
    """
    images = open_images(root)
    if isinstance(images, PackedImages):
        return images.dataset
    if any(Path(root).glob("ROIs*/*/S2")):
        return SERIES
    if any(Path(root).glob("ROIs*_s2_cloudy")):
        return MONO
    raise DataError(f"neither SEN12MS-CR-TS (ROIs1868/73/S2/…) nor SEN12MS-CR (ROIs1868_summer_s2_cloudy/…) in {root}")


def image_series(root: str | Path, dataset: str, split: str, region: str) -> Iterator[tuple[str, ...]]:
    """The optical images that share a record of the mask store: all dates of a patch, or one cloudy image.

    Args:
        root: the data set's folder or pack, which may be incomplete.
        dataset: "SEN12MS-CR-TS" or "SEN12MS-CR".
        split: as in `data.splits.rois`.
        region: as in `data.splits.rois`.

    Yields:
        POSIX paths relative to the root, by date; patches in natural order.
    """
    images = open_images(root)
    for roi in rois(dataset, split, region):
        patches: dict[int, list[str]] = {}
        for _, number, path in list_images(images.names, dataset, roi, STACKS[dataset][-1]):
            if number is not None:
                patches.setdefault(number, []).append(path)
        for number in sorted(patches):
            yield from ((path,) for path in patches[number]) if dataset == MONO else (tuple(patches[number]),)


@lru_cache(maxsize=16)
def _open_pack(root: str, changed: int) -> PackedImages:
    return PackedImages(root)
