"""GeoTIFFs in and out, and the ways between stored values and those that networks see."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.io import MemoryFile

from common.errors import DataError
from common.files import whole_file
from data.constants import DATE_ORIGIN, N_S1, N_S2, REFLECTANCE_SCALE, SAR_RANGE_DB, SAR_RANGE_DB_RESNET

RESCALE_METHODS = ("default", "resnet")
_RESNET_OPTICAL, _RESNET_SAR = 2000.0, 2.0  # digital numbers per unit; upper end of the radar range
# By number of bands, as the data sets store them; the size of SEN12MS-CR-TS' archives says that its radar is float64.
_STORED_TYPES = {N_S1: ("float32", "float64"), N_S2: ("uint16",)}
_DATE = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2})(?=_|\.|$)")


Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top, in units of the CRS."""


@dataclass(frozen=True)
class GeoRef:
    """Where a patch lies: bounds, CRS (or None) and transform."""

    bounds: Bounds
    crs: Any
    transform: Any


def read_bands(
    path: str | Path,
    expected_bands: int | None = None,
    expected_size: int | tuple[int, int] | None = None,
    indexes: Sequence[int] | None = None,
) -> np.ndarray:
    """The pixels of a GeoTIFF, as stored; the file is closed again.

    Args:
        path: the file.
        expected_bands: 13 (optical, uint16) or 2 (radar, float32 or float64, which is read as float32): the number of
            bands in the file; the type is checked with it. None takes what comes.
        expected_size: pixels, (height, width) or one number for a square; None takes what comes.
        indexes: positions of the bands to read, from 0; None reads all.

    Returns:
        Array (C, H, W).

    Raises:
        DataError: if the file is missing, truncated, or has other bands, another size or type.
    """
    with _loaded(path, expected_bands, expected_size) as source:
        return _pixels(path, source, indexes, expected_bands)


def read_with_georef(
    path: str | Path, expected_bands: int | None = None, expected_size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, GeoRef]:
    """What `read_bands` and `read_georef` give, for one opening of the file."""
    with _loaded(path, expected_bands, expected_size) as source:
        return _pixels(path, source, None, expected_bands), _georef(path, source)


def read_with_bounds(
    path: str | Path, expected_bands: int | None = None, expected_size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, Bounds]:
    """What `read_bands` gives, and left, bottom, right, top; half the time of opening goes into the CRS, left out."""
    with _loaded(path, expected_bands, expected_size, GTIFF_SRS_SOURCE="GEOKEYS") as source:
        return _pixels(path, source, None, expected_bands), _georef(path, source).bounds


def read_georef(path: str | Path) -> GeoRef:
    """Bounds, CRS and transform of a GeoTIFF, without reading its pixels."""
    with _opened(path) as source:
        return _georef(path, source)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a GeoTIFF in pixels, without reading its pixels."""
    with _opened(path) as source:
        return source.height, source.width


def write_geotiff(
    path: str | Path,
    array: np.ndarray,
    crs: Any,
    transform: Any,
    band_names: Sequence[str] | None = None,
    compress: str | None = "deflate",
) -> None:
    """Write an array (C, H, W) as a GeoTIFF, whole or not at all.

    Args:
        path: where to; folders are made.
        array: any type that GeoTIFF knows.
        crs: a CRS object, an "EPSG:…" text, or None.
        transform: affine transform from pixels to the CRS.
        band_names: one description for each band.
        compress: a GeoTIFF compression, or None.

    Raises:
        ValueError: if the array is not (C, H, W) or the names do not fit it.
        DataError: if the file cannot be written.
    """
    if array.ndim != 3 or (band_names is not None and len(band_names) != len(array)):
        raise ValueError(f"an array (C, H, W) and C names are needed, not {array.shape} and {band_names}")
    bands, height, width = array.shape
    profile: dict[str, Any] = {"driver": "GTiff", "count": bands, "height": height, "width": width}
    profile |= {"dtype": array.dtype.name, "crs": crs, "transform": transform}
    if compress:
        # differences of neighbours pack better than values: 2 for integers, 3 for floats
        profile |= {"compress": compress, "predictor": 3 if array.dtype.kind == "f" else 2}
    with whole_file(path) as temporary:
        try:
            with rasterio.open(temporary, "w", **profile) as target:
                target.write(array)
                if band_names is not None:
                    target.descriptions = tuple(band_names)
        except RasterioError as error:
            raise DataError(f"cannot write {path}: {error}; check the disk's free space") from error


def acquisition_date(path: str | Path) -> date:
    """The date in a file's name, `…_2018-06-21_patch_171.tif`; folders above it do not matter.

    Raises:
        DataError: if the name holds no date, or one that no calendar knows.
    """
    name = Path(path).name
    found = _DATE.search(name)
    if found is None:
        raise DataError(f"no date in the file name of {path}; expected one like …_2018-06-21_patch_171.tif")
    try:
        return date.fromisoformat(found[1])
    except ValueError as error:
        raise DataError(f"impossible date {found[1]} in the file name of {path}") from error


def days_since_origin(day: date, origin: date = DATE_ORIGIN) -> int:
    """Whole days from `origin` (the launch of Sentinel-1A) to `day`; negative before it."""
    return (day - origin).days


def optical_to_unit(raw: np.ndarray, method: str = "default", out: np.ndarray | None = None) -> np.ndarray:
    """Stored optical values as float32: in [0, 1] (default) or [0, 5] (resnet); NaN becomes 0.

    Args:
        raw: any shape, reflectance x 10000.
        method: "default" or "resnet".
        out: where to put them, float32 of that shape; None makes a new array.

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    divisor = np.float32({"default": REFLECTANCE_SCALE, "resnet": _RESNET_OPTICAL}[_method(method)])
    if raw.dtype == np.uint16:  # as stored: nothing below 0, no NaN; converted within the division
        filled = np.empty(raw.shape, np.float32) if out is None else out
        bands = ((raw, filled),) if raw.ndim < 3 else zip(raw, filled, strict=True)
        for band, room in bands:  # one after the other: what is clipped stays in the cache
            np.divide(np.minimum(band, np.uint16(REFLECTANCE_SCALE)), divisor, out=room, dtype=np.float32)
        return filled
    unit = np.clip(raw.astype(np.float32), 0, REFLECTANCE_SCALE, out=out)
    unit /= divisor
    return np.nan_to_num(unit, copy=False)


def sar_to_unit(db: np.ndarray, method: str = "default", out: np.ndarray | None = None) -> np.ndarray:
    """Backscatter (2, H, W) in dB, VV then VH, as float32 in [0, 1] (default) or [0, 2] (resnet); NaN becomes 0.

    Args:
        db: any float type.
        method: "default" or "resnet".
        out: where to put it, float32 (2, H, W); None makes a new array.

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    resnet = _method(method) == "resnet"
    ranges = np.asarray(SAR_RANGE_DB_RESNET if resnet else (SAR_RANGE_DB, SAR_RANGE_DB), np.float32)
    unit = np.empty(db.shape, np.float32) if out is None else out
    for band, room, (low, high) in zip(db, unit, ranges, strict=True):
        np.clip(band.astype(np.float32, copy=False), low, high, out=room)
        room -= low
        if resnet:
            room *= np.float32(_RESNET_SAR)
        room /= high - low
        room[np.isnan(room)] = 0
    return unit


def unit_to_optical(unit: np.ndarray, method: str = "default") -> np.ndarray:
    """Reflectance as it is stored: uint16, rounded, clipped to what the data sets' range [0, 10000] holds."""
    factor = {"default": REFLECTANCE_SCALE, "resnet": _RESNET_OPTICAL}[_method(method)]
    return np.clip(np.rint(np.nan_to_num(unit) * factor), 0, REFLECTANCE_SCALE).astype(np.uint16)


def count_nan(array: np.ndarray) -> int:
    """How many values are NaN; 0 for integers."""
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def _method(method: str) -> str:
    if method not in RESCALE_METHODS:
        raise ValueError(f"unknown rescale_method {method!r}; choose from {', '.join(RESCALE_METHODS)}")
    return method


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A file whose pixels are not wanted."""
    # EMPTY_DIR: GDAL would list the whole folder at every opening, hundreds of files on a shared file system
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        try:
            source = rasterio.open(path)
        except RasterioIOError as error:
            raise _unreadable(path, str(error)) from error
        with source:
            yield source


@contextmanager
def _loaded(path: str | Path, bands: int | None, size: int | tuple[int, int] | None, **more: str) -> Iterator[Any]:
    """A file whose pixels are wanted: fetched by one reading, opened in memory."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if not content:
        raise _unreadable(path, "it is empty")
    # VIRTUAL_MEM_IO: bands that are stored pixel by pixel, as in the published files, are taken apart in memory in
    # one go; a third of the time of the way by strips. Compressed files do not notice.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GTIFF_VIRTUAL_MEM_IO": "YES"}
    with rasterio.Env(**options, **more), MemoryFile(content) as memory:
        try:
            source = memory.open()
        except RasterioIOError as error:
            raise _unreadable(path, str(error).replace(memory.name, str(path))) from error
        with source:
            check_image(path, (source.count, source.height, source.width), set(source.dtypes), bands, size)
            yield source


def _unreadable(path: str | Path, reason: str) -> DataError:
    if not Path(path).is_file():
        return DataError(f"no such image: {path}; is the download complete?")
    return DataError(f"not a readable GeoTIFF: {path} ({reason}); fetch it again")


def check_image(
    path: str | Path,
    shape: tuple[int, int, int],
    types: set[str],
    bands: int | None,
    size: int | tuple[int, int] | None,
) -> None:
    """Compare what an image is with what it should be.

    Args:
        path: its name in messages.
        shape: (C, H, W) as found.
        types: of its values, as found.
        bands: expected, see `read_bands`.
        size: expected, see `read_bands`.

    Raises:
        DataError: if they differ.
    """
    if bands is not None and shape[0] != bands:
        raise DataError(f"{path}: expected {bands} bands, found {shape[0]}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if shape[1:] != (height, width):
            found = f"{shape[1]} x {shape[2]}"
            raise DataError(f"{path}: expected {height} x {width} pixels, found {found}; all patches must be alike")
    wanted = _STORED_TYPES.get(bands, ()) if bands is not None else ()
    if wanted and not (len(types) == 1 and types <= set(wanted)):
        raise DataError(f"{path}: expected {' or '.join(wanted)} values, found {', '.join(sorted(types))}")


def _pixels(path: str | Path, source: Any, indexes: Sequence[int] | None, bands: int | None) -> np.ndarray:
    out_dtype = "float32" if bands == N_S1 else None
    positions = None if indexes is None else [index + 1 for index in indexes]
    try:
        pixels: np.ndarray = source.read(positions, out_dtype=out_dtype)
    except RasterioIOError as error:
        raise DataError(f"truncated or damaged image: {path} ({error}); fetch it again") from error
    return pixels


def _georef(path: str | Path, source: Any) -> GeoRef:
    left, bottom, right, top = source.bounds
    if not all(math.isfinite(value) for value in (left, bottom, right, top)):
        raise DataError(f"{path}: the georeference is not finite")
    return GeoRef((left, bottom, right, top), source.crs, source.transform)
