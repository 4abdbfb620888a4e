"""Where the images of a data set lie: GeoTIFFs in folders, or a pack of them (`util.pack_dataset`), read alike."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio

from common.errors import DataError
from data.raster.geotiff import Bounds, GeoRef, read_georef, read_size, read_with_bounds
from data.raster.packed_store import MARK, Pack
from data.splits import MONO, SERIES

Reading = tuple[np.ndarray, Bounds]


class Images(Protocol):
    """Images by POSIX path below a root; every error is a `DataError` that names the file."""

    def names(self, folder: str) -> list[str]:
        """What a folder holds, in no order; nothing where there is no such folder."""

    def holds(self, folder: str) -> bool:
        """Whether there is such a folder."""

    def read(self, path: str, bands: int, size: tuple[int, int] | None = None) -> Reading:
        """Pixels (C, H, W) as `data.raster.geotiff.read_bands` gives them, and their bounds."""

    def georef(self, path: str) -> GeoRef:
        """Bounds, coordinate system and transform of an image."""

    def size(self, path: str) -> tuple[int, int]:
        """Height and width of an image in pixels."""

    def file_bytes(self, path: str) -> int:
        """The size of the GeoTIFF, by which changes are seen; -1 where it is unknown."""

    def opened(self, path: str) -> AbstractContextManager[Any]:
        """The image as an open rasterio data set."""


class Folder:
    """GeoTIFFs below a root.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        """See `Images`."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                return [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            where = os.path.join(self.root, folder)
            raise DataError(f"cannot list the folder {where}: {error.strerror or error}") from error

    def holds(self, folder: str) -> bool:
        """See `Images`."""
        return os.path.isdir(os.path.join(self.root, folder))

    def read(self, path: str, bands: int, size: tuple[int, int] | None = None) -> Reading:
        """See `Images`."""
        return read_with_bounds(os.path.join(self.root, path), bands, size)

    def georef(self, path: str) -> GeoRef:
        """See `Images`."""
        return read_georef(os.path.join(self.root, path))

    def size(self, path: str) -> tuple[int, int]:
        """See `Images`."""
        return read_size(os.path.join(self.root, path))

    def file_bytes(self, path: str) -> int:
        """See `Images`."""
        try:
            return os.stat(os.path.join(self.root, path)).st_size
        except OSError:  # gone since, or of a partial download: nothing to compare with
            return -1

    def opened(self, path: str) -> AbstractContextManager[Any]:
        """See `Images`."""
        return rasterio.open(os.path.join(self.root, path))


class PackedImages(Pack):
    """A pack whose images can also be opened with rasterio, from memory."""

    @contextmanager
    def opened(self, path: str) -> Iterator[Any]:
        """See `Images`."""
        pixels, georef = self.read_native(path)
        bands, height, width = pixels.shape
        shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
        with rasterio.io.MemoryFile() as memory:
            with memory.open(driver="GTiff", crs=georef.crs, transform=georef.transform, **shape) as target:
                target.write(pixels)
            with memory.open() as source:
                yield source


def open_images(root: str | Path) -> Images:
    """The images below a root, packed or not; open packs are kept.

    Raises:
        DataError: if the pack is of another format than this program writes.
    """
    try:
        changed = os.stat(os.path.join(root, MARK)).st_mtime_ns
    except OSError:
        return Folder(str(root))
    return _pack(str(root), changed)


def dataset_of(root: str | Path) -> str:
    """Which data set a folder or a pack holds: `data.splits.SERIES` or `data.splits.MONO`.

    Raises:
        DataError: if it is neither.
    """
    images = open_images(root)
    if isinstance(images, Pack):
        return images.dataset
    if any(Path(root).glob("ROIs*/*/S2")):
        return SERIES
    if any(Path(root).glob("ROIs*_s2_cloudy")):
        return MONO
    raise DataError(f"neither SEN12MS-CR-TS (ROIs1868/73/S2/…) nor SEN12MS-CR (ROIs1868_summer_s2_cloudy/…) in {root}")


@lru_cache(maxsize=16)
def _pack(root: str, changed: int) -> PackedImages:
    return PackedImages(root)
