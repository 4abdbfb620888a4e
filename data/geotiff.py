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

from data.constants import DATE_ORIGIN, N_S1, N_S2, REFLECTANCE_SCALE, SAR_RANGE_DB, SAR_RANGE_DB_RESNET
from util.atomic import whole_file
from util.errors import DataError

RESCALE_METHODS = ("default", "resnet")
_RESNET_OPTICAL, _RESNET_SAR = 2000.0, 2.0  # digital numbers per unit; upper end of the radar range
# By number of bands, as the data sets store them; the size of SEN12MS-CR-TS' archives says that its radar is float64.
_STORED_TYPES = {N_S1: ("float32", "float64"), N_S2: ("uint16",)}
_DATE = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2})(?=_|\.|$)")


@dataclass(frozen=True)
class GeoRef:
    """Where a patch lies: bounds (left, bottom, right, top) in units of its CRS, CRS (or None) and transform."""

    bounds: tuple[float, float, float, float]
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
    with _opened(path, expected_bands, expected_size) as source:
        return _pixels(path, source, indexes, expected_bands)


def read_with_georef(
    path: str | Path, expected_bands: int | None = None, expected_size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, GeoRef]:
    """What `read_bands` and `read_georef` give, for one opening of the file."""
    with _opened(path, expected_bands, expected_size) as source:
        return _pixels(path, source, None, expected_bands), _georef(source)


def read_georef(path: str | Path) -> GeoRef:
    """Bounds, CRS and transform of a GeoTIFF, without reading its pixels."""
    with _opened(path, None, None) as source:
        return _georef(source)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a GeoTIFF in pixels, without reading its pixels."""
    with _opened(path, None, None) as source:
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


def optical_to_unit(raw: np.ndarray, method: str = "default") -> np.ndarray:
    """Stored optical values as float32: in [0, 1] (default) or [0, 5] (resnet); NaN becomes 0.

    Args:
        raw: any shape, reflectance x 10000.
        method: "default" or "resnet".

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    divisor = np.float32({"default": REFLECTANCE_SCALE, "resnet": _RESNET_OPTICAL}[_method(method)])
    if raw.dtype == np.uint16:  # as stored: nothing below 0, no NaN; a third of the time of the general way
        return np.minimum(raw, np.uint16(REFLECTANCE_SCALE)).astype(np.float32) / divisor
    unit: np.ndarray = np.clip(raw.astype(np.float32), 0, REFLECTANCE_SCALE) / divisor
    return np.nan_to_num(unit, copy=False)


def sar_to_unit(db: np.ndarray, method: str = "default") -> np.ndarray:
    """Backscatter (2, H, W) in dB, VV then VH, as float32 in [0, 1] (default) or [0, 2] (resnet); NaN becomes 0.

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    resnet = _method(method) == "resnet"
    ranges = np.asarray(SAR_RANGE_DB_RESNET if resnet else (SAR_RANGE_DB, SAR_RANGE_DB), np.float32)
    low, high = (ranges[:, end].reshape(-1, 1, 1) for end in (0, 1))  # each (2, 1, 1)
    unit = (np.clip(db.astype(np.float32), low, high) - low) * np.float32(_RESNET_SAR if resnet else 1) / (high - low)
    return np.nan_to_num(unit, copy=False)


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
def _opened(path: str | Path, bands: int | None, size: int | tuple[int, int] | None) -> Iterator[Any]:
    # EMPTY_DIR: GDAL would list the whole folder at every opening, hundreds of files on a shared file system
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        try:
            source = rasterio.open(path)
        except RasterioIOError as error:
            if not Path(path).is_file():
                raise DataError(f"no such image: {path}; is the download complete?") from error
            raise DataError(f"not a readable GeoTIFF: {path} ({error}); fetch it again") from error
        with source:
            _check(path, source, bands, size)
            yield source


def _check(path: str | Path, source: Any, bands: int | None, size: int | tuple[int, int] | None) -> None:
    if bands is not None and source.count != bands:
        raise DataError(f"{path}: expected {bands} bands, found {source.count}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if (source.height, source.width) != (height, width):
            found = f"{source.height} x {source.width}"
            raise DataError(f"{path}: expected {height} x {width} pixels, found {found}; all patches must be alike")
    types = set(source.dtypes)
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


def _georef(source: Any) -> GeoRef:
    left, bottom, right, top = source.bounds
    if not all(math.isfinite(value) for value in (left, bottom, right, top)):
        raise DataError(f"{source.name}: the georeference is not finite")
    return GeoRef((left, bottom, right, top), source.crs, source.transform)
