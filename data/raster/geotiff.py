"""Reading and writing GeoTIFFs."""

import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

from common.errors import DataError
from common.files import atomic_file
from data.constants import DATE_ORIGIN, N_S1, N_S2

DATASET_DRIVERS = ("GTiff",)
"""GDAL drivers that open images of data sets. Others follow references: a VRT or WMS text named .tif reads any file."""
SCENE_DRIVERS = (*DATASET_DRIVERS, "JP2OpenJPEG", "netCDF", "Zarr", "HDF5")
"""GDAL drivers that open images of scenes."""
LARGEST = 2**28
"""Values that an image of a data set may have, and a block of any image: 13 bands of 4,544 x 4,544 pixels. Patches have
256 x 256."""
# By number of bands, as the data sets store them; the size of the SEN12MS-CR-TS archives implies float64 radar.
_STORED_TYPES = {N_S1: ("float32", "float64"), N_S2: ("uint16",)}
_DATE = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2})(?=_|\.|$)")

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top, in units of the CRS."""
Size = int | tuple[int, int]
"""(height, width) in pixels, or one number for a square."""


@dataclass(frozen=True)
class GeoRef:
    """Georeference of an image: bounds, CRS (or None) and affine transform."""

    bounds: Bounds
    crs: Any
    transform: Any


@ensure_env_with_credentials
def open_image(path: str, drivers: Sequence[str] = DATASET_DRIVERS, name: str | Path = "") -> Any:
    """An open rasterio data set; all images are opened here.

    Args:
        path: a file, or whatever else GDAL opens.
        drivers: those that may open it; GDAL itself tries a hundred.
        name: of the file in messages, if not `path`.

    Raises:
        RasterioIOError: if none of them can.
        DataError: if the path is not UTF-8, the file refers to others, or its blocks are too large to be read.
    """
    try:
        source = DatasetReader(path, driver=list(drivers))
    except UnicodeEncodeError as error:
        raise _not_utf8(path) from error
    try:
        _check_structure(name or path, source)
    except DataError:
        source.close()
        raise
    return source


def read_bands(path: str | Path, expected_bands: int | None = None, expected_size: Size | None = None) -> np.ndarray:
    """Read the pixels of a GeoTIFF as stored; the file is closed again.

    Args:
        path: the file.
        expected_bands: 13 (optical, uint16) or 2 (radar, float32, or float64 which is read as float32): number of
            bands in the file; the type is checked with it. None accepts any.
        expected_size: size of the image; None accepts any.

    Returns:
        Array (C, H, W).

    Raises:
        DataError: if the file is missing or truncated, or has another number of bands, size or type.
    """
    with open_in_memory(path, expected_bands, expected_size) as source:
        return _read_pixels(path, source, expected_bands)


def read_with_georef(
    path: str | Path, expected_bands: int | None = None, expected_size: Size | None = None
) -> tuple[np.ndarray, GeoRef]:
    """`read_bands` and `read_georef` with a single opening of the file."""
    with open_in_memory(path, expected_bands, expected_size) as source:
        return _read_pixels(path, source, expected_bands), _georef(path, source)


def read_with_bounds(
    path: str | Path, expected_bands: int | None = None, expected_size: Size | None = None
) -> tuple[np.ndarray, Bounds]:
    """`read_bands` with the bounds; skipping the CRS halves the time of opening."""
    with open_in_memory(path, expected_bands, expected_size, GTIFF_SRS_SOURCE="GEOKEYS") as source:
        return _read_pixels(path, source, expected_bands), _georef(path, source).bounds


def read_georef(path: str | Path) -> GeoRef:
    """The georeference of a GeoTIFF, without reading its pixels."""
    with _open_header(path) as source:
        return _georef(path, source)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a GeoTIFF in pixels, without reading its pixels."""
    with _open_header(path) as source:
        return source.height, source.width


def write_geotiff(
    path: str | Path, array: np.ndarray, crs: Any, transform: Any, compress: str | None = "deflate"
) -> None:
    """Write an array (C, H, W) as a GeoTIFF, atomically.

    Args:
        path: output file; missing folders are created.
        array: any type that GeoTIFF supports.
        crs: a CRS object, an "EPSG:…" string, or None.
        transform: affine transform from pixels to the CRS.
        compress: a GeoTIFF compression, or None.

    Raises:
        ValueError: if the array is not (C, H, W).
        DataError: if the file cannot be written.
    """
    if array.ndim != 3:
        raise ValueError(f"expected an array (C, H, W), got {array.shape}")
    bands, height, width = array.shape
    profile: dict[str, Any] = {"driver": "GTiff", "count": bands, "height": height, "width": width}
    profile |= {"dtype": array.dtype.name, "crs": crs, "transform": transform}
    if compress:
        # differences of neighbours compress better than values: predictor 2 for integers, 3 for floats
        profile |= {"compress": compress, "predictor": 3 if array.dtype.kind == "f" else 2}
    with atomic_file(path) as temporary:
        try:
            with rasterio.open(temporary, "w", **profile) as target:
                target.write(array)
        except UnicodeEncodeError as error:
            raise _not_utf8(path) from error
        except RasterioError as error:
            raise DataError(f"cannot write {path}: {error}; check the disk's free space") from error


def acquisition_date(path: str | Path) -> date:
    """The date in a file name such as `…_2018-06-21_patch_171.tif`; parent folders are ignored.

    Raises:
        DataError: if the name holds no valid date.
    """
    match = _DATE.search(Path(path).name)
    if match is None:
        raise DataError(f"no date in the file name of {path}; expected a name like …_2018-06-21_patch_171.tif")
    try:
        return date.fromisoformat(match[1])
    except ValueError as error:
        raise DataError(f"impossible date {match[1]} in the file name of {path}") from error


def days_since_origin(day: date, origin: date = DATE_ORIGIN) -> int:
    """Days from `origin` (the launch of Sentinel-1A) to `day`; negative before it."""
    return (day - origin).days


def check_image(
    path: str | Path, shape: tuple[int, int, int], dtypes: set[str], bands: int | None, size: Size | None
) -> None:
    """Check the bands, size and type of an image.

    Args:
        path: its name in messages.
        shape: its shape (C, H, W).
        dtypes: types of its bands.
        bands: expected number, see `read_bands`.
        size: expected size, see `read_bands`.

    Raises:
        DataError: if one of them is not as expected.
    """
    if bands is not None and shape[0] != bands:
        raise DataError(f"{path}: expected {bands} bands, found {shape[0]}")
    if math.prod(shape) > LARGEST:
        declared = " x ".join(map(str, shape))
        raise DataError(f"{path}: it declares {declared} values, expected at most {LARGEST:,}; fetch it again")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if shape[1:] != (height, width):
            raise DataError(
                f"{path}: expected {height} x {width} pixels, found {shape[1]} x {shape[2]}; all patches must have "
                "the same size"
            )
    allowed = _STORED_TYPES.get(bands, ()) if bands is not None else ()
    if allowed and not (len(dtypes) == 1 and dtypes <= set(allowed)):
        raise DataError(f"{path}: expected {' or '.join(allowed)} values, found {', '.join(sorted(dtypes))}")


@contextmanager
def _open_header(path: str | Path) -> Iterator[Any]:
    """Open a file to read its metadata only."""
    # EMPTY_DIR: GDAL would list the whole folder at every opening, hundreds of files on a shared file system
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        if not Path(path).is_file():  # GDAL would fetch a remote path, and wait at a pipe
            raise _unreadable(path, "it is no file")
        try:
            source = open_image(str(path))
        except RasterioIOError as error:
            raise _unreadable(path, str(error)) from error
        with source:
            yield source


@contextmanager
def open_in_memory(path: str | Path, bands: int | None = None, size: Size | None = None, **env: str) -> Iterator[Any]:
    """Load a file with a single read, open it in memory and check it; see `read_bands`."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unreadable(path, "it is no file")
            content = file.read()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if not content:
        raise _unreadable(path, "it is empty")
    # VIRTUAL_MEM_IO: pixel-interleaved bands, as in the published files, are separated in memory at once, in a third
    # of the time of reading by strips. It does not affect compressed files.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GTIFF_VIRTUAL_MEM_IO": "YES"}
    with rasterio.Env(**options, **env), MemoryFile(content) as memory:
        try:
            source = open_image(memory.name, name=path)
        except RasterioIOError as error:
            raise _unreadable(path, str(error).replace(memory.name, str(path))) from error
        with source:
            check_image(path, (source.count, source.height, source.width), set(source.dtypes), bands, size)
            yield source


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block


def _check_structure(path: str | Path, source: Any) -> None:
    if "OVERVIEW_FILE" in source.tags(ns="OVERVIEWS"):  # GDAL opens it with any driver
        raise DataError(f"{path}: its metadata names another file as its overviews; remove it (gdal_edit.py -unsetmd)")
    height, width = max(source.block_shapes, default=(0, 0))
    if height * width > LARGEST:
        raise DataError(
            f"{path}: stored in blocks of {height} x {width} pixels, expected at most {LARGEST:,}; store it in tiles "
            "(gdal_translate -co TILED=YES)"
        )


def _not_utf8(path: str | Path) -> DataError:
    return DataError(f"{str(path)!a}: GDAL opens only paths in UTF-8; rename the file or its folder")


def _unreadable(path: str | Path, reason: str) -> DataError:
    if not Path(path).exists():
        return DataError(f"no such image: {path}; is the download complete?")
    return DataError(f"not a readable GeoTIFF: {path} ({reason}); fetch it again")


def _read_pixels(path: str | Path, source: Any, bands: int | None) -> np.ndarray:
    try:
        pixels: np.ndarray = source.read(out_dtype="float32" if bands == N_S1 else None)
    except RasterioIOError as error:
        raise DataError(f"truncated or damaged image: {path} ({error}); fetch it again") from error
    return pixels


def _georef(path: str | Path, source: Any) -> GeoRef:
    left, bottom, right, top = source.bounds
    if not all(math.isfinite(edge) for edge in (left, bottom, right, top)):
        raise DataError(f"{path}: the georeference is not finite")
    return GeoRef((left, bottom, right, top), source.crs, source.transform)
