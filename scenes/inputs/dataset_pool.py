"""Raster files kept open between windows, one set for each process; and the first look at a file."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError, RasterioIOError

from common.errors import DataError
from scenes.inputs.grid import Grid, Window

CACHE_BYTES = 64 * 2**20  # of GDAL's block cache, which would grow to a twentieth of the machine's memory
OPEN_FILES = 64
_PROBES, _PROBE_PIXELS = 5, 32  # windows along each side of a scene, and their size, that the first look reads


class Handles:
    """Open data sets by key; the one not used for longest is closed when there are too many.

    Args:
        limit: how many stay open.

    Attributes:
        lock: whoever reads holds it, GDAL's data sets being for one thread at a time.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.lock = threading.RLock()
        self._limit = limit
        self._open: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, key: tuple[Any, ...], opener: Callable[[], Any]) -> Any:
        """The open data set of a key, whose first entry is the file's path."""
        if key not in self._open:
            while len(self._open) >= self._limit:
                self._open.popitem(last=False)[1].close()
            self._open[key] = opener()
        self._open.move_to_end(key)
        return self._open[key]

    def close(self, paths: Sequence[str]) -> None:
        """Close what belongs to some files."""
        with self.lock:
            for key in [key for key in self._open if key[0] in set(paths)]:
                self._open.pop(key).close()

    def __len__(self) -> int:
        return len(self._open)


_of_process: dict[int, Handles] = {}


def handles() -> Handles:
    """Those of this process. After a fork the child starts anew: shared file positions would mix its reading up."""
    return _of_process.setdefault(os.getpid(), Handles())


def gdal_settings() -> Any:
    """What reading and writing of scenes happens under; GDAL_CACHEMAX of the environment goes first."""
    return rasterio.Env() if "GDAL_CACHEMAX" in os.environ else rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES)


def stamp(path: str) -> tuple[str, int, int]:
    """A key that changes when the file does; remote files (`/vsicurl/…`, `s3://…`) are taken to stay."""
    try:
        found = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, found.st_mtime_ns, found.st_size


def is_remote(path: str) -> bool:
    """Whether GDAL is to look elsewhere than among this machine's files."""
    return "://" in path or path.startswith("/vsi")


def open_raster(path: str) -> Any:
    """An open rasterio data set.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    try:
        return rasterio.open(path)
    except RasterioIOError as error:
        if not is_remote(path) and not Path(path).is_file():
            raise DataError(f"no such image: {path}") from error
        raise DataError(f"not a readable GeoTIFF: {path} ({error}); fetch it again") from error


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Tell what goes wrong while pixels are read in one line that names the file."""
    try:
        yield
    except RasterioError as error:
        reason = error.__cause__ or error
        raise DataError(f"truncated or damaged image: {path} ({reason}); fetch it again") from error


def grid_of(source: Any) -> Grid:
    """Where an open data set lies."""
    return Grid(source.height, source.width, source.transform, source.crs)


def first_look(path: str, source: Any, bands: Sequence[int]) -> Iterator[np.ndarray]:
    """Some pixels of an image: its last ones first, which a truncated file lacks, then its middle, then all over it.

    Args:
        path: its name in messages.
        source: the open data set.
        bands: positions in the file, from 1.

    Yields:
        (C,h,w) as stored.

    Raises:
        DataError: if they cannot be read.
    """
    high, wide = min(_PROBE_PIXELS, source.height), min(_PROBE_PIXELS, source.width)
    last, middle = _PROBES - 1, _PROBES // 2
    places = [(row, column) for row in range(_PROBES) for column in range(_PROBES)]
    places.sort(key=lambda place: (place != (last, last), abs(place[0] - middle) + abs(place[1] - middle)))
    for row, column in places:
        top, left = (source.height - high) * row // last, (source.width - wide) * column // last
        with reading(path):
            pixels = source.read(list(bands), window=Window(top, left, high, wide).gdal)
        yield pixels
