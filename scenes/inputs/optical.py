"""Sentinel-2 GeoTIFFs of any producer, read with the values that the training data have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from common.errors import DataError
from data.constants import N_S2, REFLECTANCE_SCALE
from scenes.inputs.bands import optical_bands
from scenes.inputs.dataset_pool import dataset_key, dataset_pool, grid_of, image_files, open_raster, probe, read_errors
from scenes.inputs.grid import Grid, Window

OFFSET = -1000.0  # added to the stored values of products from baseline 04.00, reflectance x 10000
_OFFSET_BASELINE, _OFFSET_DATE = 4.0, date(2022, 1, 25)
_UINT16_MAX = np.iinfo(np.uint16).max
_REFLECTANCE_MAX = 2.0  # values that nowhere exceed this are reflectance, not reflectance x 10000
_STORED_MAX = 30_000.0  # of the darkest pixel: not even clouds have a reflectance of 3
NO_DATA = "no pixel has data: all are nodata, NaN, infinite, or 0 in all bands"
_WIDE_STRIP = 4096  # pixels; wider rows do not stay in the cache from tile to tile
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")


@dataclass(frozen=True)
class OpticalImage:
    """A GeoTIFF of one date, an `OpticalSource`; picklable.

    Attributes:
        path: the file.
        bands: positions of the 13 bands in it, from 1; 0 where it lacks B10.
        factor: reflectance x 10000 is the stored value times this, plus `shift`.
        shift: see `factor`.
        nodata: as declared.
        masked: whether the file has a mask of valid pixels.
        sources: of a VRT.
    """

    path: str
    bands: tuple[int, ...]
    factor: float
    shift: float
    nodata: float | None
    masked: bool
    sources: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The file, and the sources of a VRT."""
        return (self.path, *self.sources)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """See `OpticalSource.read`.

        Raises:
            DataError: if the file is damaged.
        """
        pool = dataset_pool()
        with pool.lock:
            dataset = pool.get(dataset_key(self.path), lambda: open_raster(self.path, bool(self.sources)))
            with read_errors(self.path):
                stored = dataset.read([band for band in self.bands if band], window=window.rasterio)  # (12 or 13,h,w)
                masked = dataset.dataset_mask(window=window.rasterio) == 0 if self.masked else False
        valid = ~(missing_pixels(stored, self.nodata) | masked)
        raw = np.zeros((N_S2, window.height, window.width), np.uint16)
        raw[[index for index, band in enumerate(self.bands) if band]] = self._convert(stored)
        raw *= valid
        return raw, valid

    def _convert(self, stored: np.ndarray) -> np.ndarray:
        """Reflectance x 10000 as uint16, rounded and clipped."""
        if stored.dtype == np.uint16 and self.factor == 1 and not self.shift:
            return stored
        if stored.dtype == np.uint16 and self.factor == 1 and self.shift == int(self.shift) and self.shift < 0:
            shift = np.uint16(-self.shift)
            return np.maximum(stored, shift) - shift  # negative reflectance would be clipped anyway
        values = stored.astype(np.float32) * np.float32(self.factor) + np.float32(self.shift)
        return np.nan_to_num(values).round().clip(0, _UINT16_MAX).astype(np.uint16)


def missing_pixels(stored: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where an image (C,h,w) has no data, bool (h,w).

    `nodata` in one band is enough, except for 0, declared or not, which valid water and B10 reach: it must be in all
    bands. NaN and infinity are always missing.
    """
    missing: np.ndarray = np.zeros(stored.shape[1:], bool)
    if stored.dtype.kind == "f":
        missing = ~np.isfinite(stored).all(axis=0)
    if nodata is None or nodata == 0:
        return missing | ~stored.any(axis=0)
    return missing | (stored == nodata).any(axis=0)


def open_optical(
    path: str,
    offset: float | None = None,
    scale: float | None = None,
    day: date | None = None,
    allow_vrt: bool = False,
) -> tuple[OpticalImage, Grid, list[str]]:
    """Determine how to read an optical file.

    Args:
        path: 13 bands, or 12 without B10, see `scenes.inputs.bands.optical_bands`.
        offset: added to stored values of reflectance x 10000; None detects it, see `declared_offset`.
        scale: reflectance for each stored unit; None takes what the file declares, else 1e-4.
        day: acquisition date, for a note where the offset cannot be detected.
        allow_vrt: see `open_raster`.

    Returns:
        The image, its grid, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, lacks bands, or has other values than reflectance x 10000.
    """
    with open_raster(path, allow_vrt) as dataset:
        bands = optical_bands(path, dataset.descriptions)
        present = [band for band in bands if band]
        notes = []
        if len(present) < N_S2:
            notes.append(
                "B10 is missing and filled with 0; the network was trained on L1C, where clear ground is near 0 in "
                "B10, and cloud detection sees no cirrus"
            )
        elif not any(dataset.descriptions):
            notes.append("bands have no names and are taken as B01 to B12 in order")
        factor, shift, scaling_notes = _scaling(path, dataset, present, offset, scale, day)
        nodata = dataset.nodatavals[present[0] - 1]
        # a mask within the file or beside it, not one that rasterio derives from nodata
        masked = any("per_dataset" in flag.name for flag in dataset.mask_flag_enums[0])
        notes += scaling_notes
        if nodata is None and not masked:
            notes.append("no nodata value is declared: pixels at 0 in all bands count as missing")
        strip = dataset.block_shapes[0][1]
        if strip >= _WIDE_STRIP:
            notes.append(f"stored in rows of {strip} pixels: tiled files (gdal_translate -co TILED=YES) read faster")
        image = OpticalImage(path, bands, factor, shift, nodata, masked, image_files(path)[1:])
        notes += _check_values(image, dataset, present)
        grid = grid_of(dataset)
        grid.check_transform(path)
        return image, grid, notes


def declared_offset(path: str, tags: Mapping[str, str]) -> tuple[float | None, str]:
    """The offset that a Sentinel-2 product declares for its stored values, and where.

    By tags (RADIO_ADD_OFFSET of L1C, BOA_ADD_OFFSET of L2A, either also for each band; PROCESSING_BASELINE) or by the
    product name (`_N0400_`) of the file or a folder above it. None if it declares nothing.

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
    baselines = _BASELINE.findall(path)
    if baselines:
        major, minor = baselines[-1]
        return (OFFSET if int(major) >= _OFFSET_BASELINE else 0.0), f"_N{major}{minor}_ in its name"
    return None, ""


def _scaling(
    path: str, dataset: Any, bands: Sequence[int], offset: float | None, scale: float | None, day: date | None
) -> tuple[float, float, list[str]]:
    """`factor` and `shift` of `OpticalImage`, and notes on them; a `DataError` if they give no reflectance."""
    factor, shift, notes = _find_scaling(path, dataset, bands, offset, scale, day)
    if not (0 < factor < np.inf and np.isfinite(shift)):
        raise DataError(
            f"{path}: its values would be multiplied by {factor:g} and {shift:g} added, which gives no reflectance; "
            "check the scale and offset that it declares, or give --scale and --offset"
        )
    return factor, shift, notes


def _find_scaling(
    path: str, dataset: Any, bands: Sequence[int], offset: float | None, scale: float | None, day: date | None
) -> tuple[float, float, list[str]]:
    factor, shift, notes = 1.0, 0.0, []
    scales, offsets = ({values[band - 1] for band in bands} for values in (dataset.scales, dataset.offsets))
    is_declared = scale is None and (scales != {1.0} or offsets != {0.0})
    if is_declared:
        if not np.isfinite([*scales, *offsets]).all():
            return np.nan, np.nan, []
        if len(scales) > 1 or len(offsets) > 1:
            raise DataError(f"{path}: its bands declare different scales or offsets; expected one for all")
        # rounded, because 0.0001 * 10000 is not 1
        factor, shift = (round(values.pop() * REFLECTANCE_SCALE, 6) for values in (scales, offsets))
        if factor != 1 or shift:
            notes.append(f"values are scaled as the file declares: times {factor:g}, plus {shift:g}, x 10000")
    elif scale is not None:
        factor = scale * REFLECTANCE_SCALE
        notes.append(f"stored values are multiplied by {scale:g} to reflectance, as given")
    if offset is not None:
        if offset:
            notes.append(f"{offset:+g} is added to the stored values, as given")
        return factor, offset, notes
    if is_declared:
        return factor, shift, notes
    detected, where = declared_offset(path, dataset.tags() | dataset.tags(bands[0]))
    if detected:
        notes.append(f"{detected:+g} is added to the stored values ({where})")
    elif detected is None and day is not None and day >= _OFFSET_DATE:
        notes.append(
            "the image is of 2022-01-25 or later and nothing says whether the offset of -1000 was taken off its "
            "values: it is taken as done; else give --offset -1000"
        )
    return factor, detected or 0.0, notes


def _has_data(image: OpticalImage, dataset: Any, bands: Sequence[int]) -> bool:
    """Whether any pixel of an image has data; reads block by block."""
    for _, window in dataset.block_windows(bands[0]):
        with read_errors(image.path):
            pixels = dataset.read(list(bands), window=window)
        if not missing_pixels(pixels, image.nodata).all():
            return True
    return False


def _number(text: str, where: str) -> float:
    try:
        return float(text.strip().removeprefix("N"))  # N0400
    except ValueError as error:
        raise DataError(f"{where} is {text!r}; expected a number, or give --offset") from error


def _check_values(image: OpticalImage, dataset: Any, bands: Sequence[int]) -> list[str]:
    """Check sampled pixels for the range of reflectance x 10000; returns notes."""
    types = {dataset.dtypes[band - 1] for band in bands}
    if types & {"uint8", "int8"} or any(name.startswith("complex") for name in types):
        raise DataError(f"{image.path}: {', '.join(sorted(types))} values; expected reflectance x 10000 as uint16")
    highest, lowest = 0.0, np.inf
    for pixels in probe(image.path, dataset, bands):
        values = pixels[:, ~missing_pixels(pixels, image.nodata)].astype(np.float64) * image.factor
        if values.size:
            highest, lowest = max(highest, float(values.max())), min(lowest, float(values.min()))
        if highest > max(_REFLECTANCE_MAX, -image.shift) and lowest + image.shift < _STORED_MAX:
            break
    if lowest == np.inf:
        return [NO_DATA] if not _has_data(image, dataset, bands) else []
    if 0 < highest <= _REFLECTANCE_MAX:
        raise DataError(
            f"{image.path}: expected reflectance x 10000, found values up to {highest:.3g}; multiply by 10000, or give "
            "--scale 1 if they are reflectance"
        )
    if highest + image.shift <= 0 or lowest + image.shift >= _STORED_MAX:
        added = f", to which {image.shift:g} is added" if image.shift else ""
        raise DataError(
            f"{image.path}: expected reflectance x 10000, found {lowest:g} to {highest:g}{added}; check --scale and "
            "--offset, or what the file declares"
        )
    if not image.shift and lowest >= -OFFSET:
        return [
            f"the lowest sampled value is {lowest:g}: an offset of -1000 may still be in; if so give --offset -1000"
        ]
    return []
