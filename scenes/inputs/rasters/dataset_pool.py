"""Raster files that stay open between windows, one pool for each process, and probes of a file's pixels."""

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import rasterio
from rasterio.errors import RasterioError, RasterioIOError

from common.errors import DataError
from common.files import file_stamp
from data.raster.geotiff import SCENE_DRIVERS, open_image
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.vrt import is_vrt, read_vrt

CACHE_BYTES = 64 * 2**20  # GDAL's block cache, by default a twentieth of the machine's memory
_MOST_CACHE, _CACHE_SHARE = 2**30, 16  # of images that are slow to decode: bytes, and the share of the machine's memory
OPEN_FILES, _MOST_FILES = 64, 512  # the system allows a process about 1,000
_ARCHIVE = re.compile(r"/vsizip/\{(.*?)\}/")
_NETWORK = {  # of remote files: passing failures are tried again within 10 s
    **{"GDAL_HTTP_MAX_RETRY": 3, "GDAL_HTTP_RETRY_DELAY": 0.5, "GDAL_HTTP_RETRY_CODES": "429,500,502,503,504"},
    **{"GDAL_HTTP_CONNECTTIMEOUT": 10, "GDAL_HTTP_TIMEOUT": 60},
}
_WAITS = (0.2, 0.5, 1.0, 2.0)  # s, before a remote file is read again whose content broke off, which GDAL does not try
_FINAL = re.compile(r"HTTP response code|connect to|resolve host|configuration options|SSL|certificate")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes of TIFF and BigTIFF
_PROBES, _PROBE_PIXELS = 5, 32  # windows along each side of a scene that are probed, and their size
_Result = TypeVar("_Result")


class DatasetPool:
    """Open data sets by key; beyond the limit of files one that was not used lately is closed, with its warped views.

    Args:
        limit: how many files stay open.

    Attributes:
        lock: to be held while reading: GDAL's data sets are not thread-safe.
        cache_bytes: size of GDAL's block cache, see `gdal_settings`.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.lock = threading.RLock()
        self.cache_bytes = CACHE_BYTES
        self._limit = limit
        self._open: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, key: tuple[Any, ...], opener: Callable[[], Any]) -> Any:
        """The open data set of a key, whose first entry is the file's path."""
        if key not in self._open:
            files = dict.fromkeys(own[0] for own in self._open)
            while len(files) >= self._limit and key[0] not in files:
                oldest = next(iter(files))
                self.close([oldest])
                del files[oldest]
            self._open[key] = opener()
        self._open.move_to_end(key)
        return self._open[key]

    def reserve(self, cache_bytes: int, files: int) -> None:
        """Make room for the decoded blocks of a scene, which are lost when a file is closed; bounded.

        Args:
            cache_bytes: of the blocks, in addition to the default size.
            files: that are read in turns.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        bound = min(_MOST_CACHE, max(4 * CACHE_BYTES, memory // _CACHE_SHARE))
        self.cache_bytes = max(self.cache_bytes, min(CACHE_BYTES + cache_bytes, bound))
        self._limit = max(self._limit, min(files, _MOST_FILES))

    def close(self, paths: Sequence[str]) -> None:
        """Close the data sets of these files; warped views, which have longer keys, before their sources."""
        with self.lock:
            for key in sorted((key for key in self._open if key[0] in set(paths)), key=len, reverse=True):
                self._open.pop(key).close()

    @contextmanager
    def closing_others(self) -> Iterator[list[str]]:
        """Close what is opened within when it ends, also by an error; but for the paths in the list that it yields."""
        before = {key[0] for key in self._open}
        kept: list[str] = []
        try:
            yield kept
        finally:
            self.close([key[0] for key in self._open if key[0] not in before.union(kept)])

    def __len__(self) -> int:
        return len(self._open)


_pools: dict[int, DatasetPool] = {}


def dataset_pool() -> DatasetPool:
    """The pool of this process; a forked child gets its own, since shared file positions would corrupt its reads."""
    return _pools.setdefault(os.getpid(), DatasetPool())


def gdal_settings() -> Any:
    """The GDAL environment for reading and writing scenes; variables of the process's environment take precedence."""
    settings = _NETWORK | {"GDAL_CACHEMAX": dataset_pool().cache_bytes}
    return rasterio.Env(**{name: value for name, value in settings.items() if name not in os.environ})


def dataset_key(path: str) -> tuple[str, int, int]:
    """A key that changes when the file does, or its archive; remote files (`/vsicurl/…`, `s3://…`) are constant."""
    archive = _ARCHIVE.match(path)
    try:
        return (path, *file_stamp(archive[1] if archive else path))
    except OSError:
        return path, 0, 0


def is_remote(path: str) -> bool:
    """Whether GDAL reads the path from somewhere other than the local file system."""
    return "://" in path or path.startswith("/vsi")


def open_raster(path: str, allow_vrt: bool = False) -> Any:
    """An open rasterio data set.

    Args:
        path: a local file, or a remote path of GDAL.
        allow_vrt: whether it may be a VRT of images in its folder.

    Raises:
        DataError: if there is none, it cannot be read, or refers to other files.
    """
    if is_remote(path):
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):  # no listing of its folder, no sidecar files
            return try_again(path, lambda: _open(path, path))
    if not os.path.exists(path):
        raise DataError(f"no such image: {path}")
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise DataError(f"{path} is a pipe or a device; expected an image")
    if not is_vrt(path):
        _check_companions(path)
        return _open(path, path)
    if not allow_vrt:
        raise DataError(f"{path} is a VRT, which reads other files; if you trust it, add --allow_vrt")
    text, sources = read_vrt(path)
    for source in sources:
        open_raster(source).close()
    return _open(text, path, ("VRT",))


def image_files(path: str) -> tuple[str, ...]:
    """The files of an image: itself, and the sources of a VRT."""
    return (path, *read_vrt(path)[1]) if not is_remote(path) and is_vrt(path) else (path,)


def _open(path: str, name: str, drivers: Sequence[str] = SCENE_DRIVERS) -> Any:
    try:
        return open_image(path, drivers, name)
    except RasterioIOError as error:
        raise DataError(f"not a readable GeoTIFF: {name} ({error}); fetch it again") from error


def _check_companions(path: str) -> None:
    """Raise a `DataError` if mask or overviews beside an image are no TIFF: GDAL opens them with any driver."""
    for suffix in (".msk", ".ovr"):
        companion = Path(path + suffix)
        try:
            with companion.open("rb") as file:
                start = file.read(len(_TIFF[0]))
        except OSError:
            continue
        if start not in _TIFF:
            raise DataError(f"{companion}: expected a TIFF beside {path}; remove it")


@contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Turn errors of reading pixels into a `DataError` that names the file."""
    try:
        yield
    except RasterioError as error:
        reason = error.__cause__ or error
        raise DataError(f"truncated or damaged image: {path} ({reason}); fetch it again") from error


def try_again(path: str, read: Callable[[], _Result]) -> _Result:
    """What `read` returns; for a remote file after some attempts if its content breaks off.

    Raises:
        DataError: of the last attempt.
    """
    for wait in _WAITS if is_remote(path) and not path.startswith("/vsizip/") else ():
        try:
            return read()
        except DataError as error:
            if _FINAL.search(str(error)):
                raise
            dataset_pool().close([path])
            _forget(path)
            time.sleep(wait)
    return read()


def _forget(path: str) -> None:
    """Drop what GDAL keeps of a remote file: incomplete parts too, which it would read again."""
    with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=path, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), suppress(DataError):
        _open(path, path).close()


def grid_of(dataset: Any) -> Grid:
    """The grid of an open data set."""
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def probe_windows(grid: Grid) -> Iterator[Window]:
    """Windows that sample an image: its end, which a truncated file lacks, then its middle, then all over it."""
    height, width = min(_PROBE_PIXELS, grid.height), min(_PROBE_PIXELS, grid.width)
    last, middle = _PROBES - 1, _PROBES // 2
    places = [(row, column) for row in range(_PROBES) for column in range(_PROBES)]
    places.sort(key=lambda place: (place != (last, last), abs(place[0] - middle) + abs(place[1] - middle)))
    for row, column in places:
        top, left = (grid.height - height) * row // last, (grid.width - width) * column // last
        yield Window(top, left, height, width)
