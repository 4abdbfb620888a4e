"""Optical images of a scene: Sentinel-2 in GeoTIFFs of any maker, read as the data sets store theirs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from common.errors import DataError, UsageError
from data.constants import N_S2, REFLECTANCE_SCALE
from scenes.inputs.bands import optical_bands
from scenes.inputs.dataset_pool import first_look, grid_of, handles, open_raster, reading, stamp
from scenes.inputs.grid import Grid, Window

OFFSET = -1000.0  # added to the stored values of products from baseline 04.00, reflectance x 10000
_OFFSET_BASELINE, _OFFSET_DATE = 4.0, date(2022, 1, 25)
_HIGHEST_STORED = np.iinfo(np.uint16).max
_UNSCALED = 2.0  # reflectance x 10000 that nowhere exceeds this is reflectance itself
_WIDE_STRIP = 4096  # pixels; wider rows do not stay in the cache from tile to tile
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")


@dataclass(frozen=True)
class OpticalImage:
    """One date of a scene; picklable.

    Attributes:
        path: the file.
        bands: positions of the 13 bands in it, from 1; 0 where it lacks B10.
        factor: reflectance x 10000 is the stored value times this, plus `shift`.
        shift: see `factor`.
        nodata: as declared.
        masked: the file carries a mask of valid pixels.
    """

    path: str
    bands: tuple[int, ...]
    factor: float
    shift: float
    nodata: float | None
    masked: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return (self.path,)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """A window's pixels.

        Returns:
            uint16 (13,h,w), reflectance x 10000, 0 where missing; and bool (h,w), where there is data.

        Raises:
            DataError: if the file is damaged.
        """
        pool = handles()
        with pool.lock:
            source = pool.get(stamp(self.path), lambda: open_raster(self.path))
            with reading(self.path):
                stored = source.read([band for band in self.bands if band], window=window.gdal)  # (12 or 13,h,w)
                masked = source.dataset_mask(window=window.gdal) == 0 if self.masked else None
        valid = ~missing_pixels(stored, self.nodata)
        if masked is not None:
            valid &= ~masked
        raw = np.zeros((N_S2, window.height, window.width), np.uint16)
        raw[[place for place, band in enumerate(self.bands) if band]] = self._convert(stored)
        raw *= valid
        return raw, valid

    def _convert(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.uint16 and self.factor == 1 and not self.shift:
            return stored
        if stored.dtype == np.uint16 and self.factor == 1 and self.shift == int(self.shift) and self.shift < 0:
            shift = np.uint16(-self.shift)
            return np.maximum(stored, shift) - shift  # below 0 the unit range clips anyway
        values = stored.astype(np.float32) * np.float32(self.factor) + np.float32(self.shift)
        return np.nan_to_num(values).round().clip(0, _HIGHEST_STORED).astype(np.uint16)


def missing_pixels(stored: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where an image (C,h,w) holds no data, bool (h,w).

    One band at `nodata` is enough, but for 0, declared or not: water and B10 do reach it, so all bands must.
    NaN is always missing.
    """
    missing: np.ndarray = np.isnan(stored).any(axis=0) if stored.dtype.kind == "f" else np.zeros(stored.shape[1:], bool)
    if nodata is None or nodata == 0:
        return missing | ~stored.any(axis=0)
    return missing | (stored == nodata).any(axis=0)


def open_optical(
    path: str, offset: str | float = "auto", scale: float | None = None, day: date | None = None
) -> tuple[OpticalImage, Grid, list[str]]:
    """Find out how to read an optical file.

    Args:
        path: 13 bands, or 12 without B10, see `scenes.inputs.bands.optical_bands`.
        offset: what is added to stored values of reflectance x 10000: "auto" finds it out (`declared_offset`),
            "none", or a number.
        scale: reflectance for each stored unit; None takes what the file declares, else 1e-4.
        day: when it was taken, by which "auto" says what it could not find out.

    Returns:
        How to read it, where it lies, and notes on what is done to it.

    Raises:
        DataError: if it cannot be read, lacks bands, or holds other values than reflectance x 10000.
        UsageError: if `offset` is none of these.
    """
    with open_raster(path) as source:
        bands = optical_bands(path, source.descriptions)
        there = [band for band in bands if band]
        notes = []
        if len(there) < N_S2:
            notes.append(
                "B10 is missing and filled with 0; the network was trained on L1C, where clear ground is near 0 in "
                "B10, and cloud detection sees no cirrus"
            )
        elif not any(source.descriptions):
            notes.append("bands have no names and are taken as B01 to B12 in order")
        factor, shift = _scaling(path, source, there, offset, scale, day, notes)
        nodata = source.nodatavals[there[0] - 1]
        masked = _has_mask(source)
        if nodata is None and not masked:
            notes.append("no nodata value is declared: pixels at 0 in all bands count as missing")
        strip = source.block_shapes[0][1]
        if strip >= _WIDE_STRIP:
            notes.append(f"stored in rows of {strip} pixels: tiled files (gdal_translate -co TILED=YES) read faster")
        image = OpticalImage(path, bands, factor, shift, nodata, masked)
        _check_values(image, source, there, notes)
        return image, grid_of(source), notes


def declared_offset(path: str, tags: Mapping[str, str]) -> tuple[float | None, str]:
    """What a Sentinel-2 product says is to be added to its stored values, and where it says so.

    By tags (RADIO_ADD_OFFSET of L1C, BOA_ADD_OFFSET of L2A, also one for each band; PROCESSING_BASELINE) or by the
    product's name (`_N0400_`), of the file or a folder above it. None if nothing says anything.

    Source:
        Sentinel-2 products specification, baseline 04.00 of 2022-01-25: -1000 in every band.
    """
    for key, value in tags.items():
        name = key.upper()
        if "RADIO_ADD_OFFSET" in name or "BOA_ADD_OFFSET" in name:
            return _number(value, f"tag {key} of {path}"), f"tag {key}"
    for key, value in tags.items():
        if key.upper().endswith("PROCESSING_BASELINE"):
            baseline = _number(value, f"tag {key} of {path}")
            baseline = baseline / 100 if baseline >= 100 else baseline  # N0400 is 04.00
            return (OFFSET if baseline >= _OFFSET_BASELINE else 0.0), f"tag {key} {value}"
    found = _BASELINE.findall(path)
    if found:
        major, minor = found[-1]
        return (OFFSET if int(major) >= _OFFSET_BASELINE else 0.0), f"_N{major}{minor}_ in its name"
    return None, ""


def _scaling(
    path: str,
    source: Any,
    there: list[int],
    offset: str | float,
    scale: float | None,
    day: date | None,
    notes: list[str],
) -> tuple[float, float]:
    """`factor` and `shift` of `OpticalImage`."""
    scales = {source.scales[band - 1] for band in there}
    offsets = {source.offsets[band - 1] for band in there}
    if scale is None and scales | offsets != {1.0, 0.0}:
        if len(scales) > 1 or len(offsets) > 1:
            raise DataError(f"{path}: its bands declare different scales or offsets; expected one for all")
        factor, shift = scales.pop() * REFLECTANCE_SCALE, offsets.pop() * REFLECTANCE_SCALE
        factor, shift = round(factor, 6), round(shift, 6)  # 0.0001 * 10000 is 1
        if factor != 1 or shift:
            notes.append(f"values are scaled as the file declares: times {factor:g}, plus {shift:g}, x 10000")
        if offset == "auto":
            return factor, shift
    else:
        factor, shift = (1.0 if scale is None else scale * REFLECTANCE_SCALE), 0.0
        if scale is not None:
            notes.append(f"stored values are multiplied by {scale:g} to reflectance, as told")
    if offset == "auto":
        found, where = declared_offset(path, source.tags() | source.tags(there[0]))
        if found:
            notes.append(f"{found:+g} is added to the stored values ({where})")
        elif found is None and day is not None and day >= _OFFSET_DATE:
            notes.append(
                "the image is of 2022-01-25 or later and nothing says whether the offset of -1000 was taken off its "
                "values: it is taken as done; else give --offset -1000"
            )
        return factor, found or 0.0
    told = 0.0 if offset == "none" else _told_offset(offset)
    if told:
        notes.append(f"{told:+g} is added to the stored values, as told")
    return factor, told


def _told_offset(offset: str | float) -> float:
    try:
        return float(offset)
    except ValueError as error:
        raise UsageError(f"--offset must be auto, none or a number like -1000, not {offset!r}") from error


def _number(text: str, where: str) -> float:
    try:
        return float(text.strip().removeprefix("N"))  # N0400
    except ValueError as error:
        raise DataError(f"{where} is {text!r}; expected a number, or give --offset") from error


def _has_mask(source: Any) -> bool:
    """Whether the file has a mask of its own (internal, or beside it), not one that follows from nodata."""
    return any("per_dataset" in flag.name for flag in source.mask_flag_enums[0])


def _check_values(image: OpticalImage, source: Any, there: list[int], notes: list[str]) -> None:
    """Compare the first pixels that hold data with what reflectance x 10000 looks like."""
    kinds = {source.dtypes[band - 1] for band in there}
    if kinds & {"uint8", "int8"} or any(kind.startswith("complex") for kind in kinds):
        raise DataError(f"{image.path}: {', '.join(sorted(kinds))} values; expected reflectance x 10000 as uint16")
    largest, lowest = 0.0, np.inf
    for pixels in first_look(image.path, source, there):
        valid = ~missing_pixels(pixels, image.nodata)
        if not valid.any():
            continue
        values = pixels[:, valid].astype(np.float64)
        largest = max(largest, float(values.max()) * image.factor)
        lowest = min(lowest, float(values.min()) * image.factor)
        if largest > _UNSCALED:
            break
    if 0 < largest <= _UNSCALED:
        raise DataError(
            f"{image.path}: expected reflectance x 10000, found values up to {largest:.3g}; multiply by 10000, or give "
            "--scale 1 if they are reflectance"
        )
    if not image.shift and -OFFSET <= lowest < np.inf:
        notes.append(
            f"the lowest value looked at is {lowest:g}: an offset of -1000 may still be in; if so give --offset -1000"
        )
