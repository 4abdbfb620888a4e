"""From stored values to reflectance: what a file declares, what the user gives, and what the values say."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from common.errors import DataError
from data.constants import REFLECTANCE_SCALE
from scenes.inputs.products import OpticalProduct
from scenes.options import SceneInputs

OFFSET = -1000.0  # added to the stored values of products from baseline 04.00, reflectance x 10000
_OFFSET_BASELINE, _OFFSET_DATE = 4.0, date(2022, 1, 25)
_REFLECTANCE_MAX = 2.0  # values that nowhere exceed this are reflectance, not reflectance x 10000
_STORED_MAX = 30_000.0  # of the darkest pixel: not even clouds have a reflectance of 3
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")


class Declared(NamedTuple):
    """What a file declares about its values; reflectance is the stored value times `scale` plus `offset`.

    Attributes:
        scale: None where it declares none.
        offset: None where it declares none.
        source: what declares them, empty if nothing does.
    """

    scale: float | None
    offset: float | None
    source: str


def declared_scaling(path: str, dataset: Any, positions: Sequence[int]) -> Declared:
    """The scale and offset that an open image declares for some of its bands.

    Raises:
        DataError: if bands differ in them, or a tag holds no number.
    """
    scales, offsets = ({values[position - 1] for position in positions} for values in (dataset.scales, dataset.offsets))
    if scales != {1.0} or offsets != {0.0}:
        if not np.isfinite([*scales, *offsets]).all():
            return Declared(np.nan, np.nan, "the file")
        if len(scales) > 1 or len(offsets) > 1:
            raise DataError(f"{path}: its bands declare different scales or offsets; expected one for all")
        return Declared(scales.pop(), offsets.pop(), "the file")
    offset, where = declared_offset(path, dataset.tags() | dataset.tags(positions[0]))
    return Declared(None, None if offset is None else offset / REFLECTANCE_SCALE, where)


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
            return baseline_offset(baseline / 100 if baseline >= 100 else baseline), f"tag {key} {value}"  # N0400
    baselines = _BASELINE.findall(path)
    if baselines:
        major, minor = baselines[-1]
        return baseline_offset(int(major)), f"_N{major}{minor}_ in its name"
    return None, ""


def baseline_offset(baseline: float) -> float:
    """The offset in stored units of a processing baseline, such as 4.0 or 5.1."""
    return OFFSET if baseline >= _OFFSET_BASELINE else 0.0


def resolve_scaling(product: OpticalProduct, inputs: SceneInputs) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """How stored values become reflectance x 10000, and notes on it.

    Returns:
        (13) factors and (13) shifts: reflectance x 10000 is the stored value times the factor plus the shift.

    Raises:
        DataError: if they give no reflectance.
    """
    factors, shifts, notes = _find_scaling(product, inputs)
    if not ((factors > 0) & (factors < np.inf) & np.isfinite(shifts)).all():
        factor, shift = next(
            pair for pair in zip(factors, shifts, strict=True) if not (0 < pair[0] < np.inf and np.isfinite(pair[1]))
        )
        raise DataError(
            f"{product.name}: its values would be multiplied by {factor:g} and {shift:g} added, which gives no "
            "reflectance; check the scale and offset that it declares, or give --scale and --offset"
        )
    return factors, shifts, notes


def _find_scaling(product: OpticalProduct, inputs: SceneInputs) -> tuple[np.ndarray, np.ndarray, list[str]]:
    bands = [band for band in product.bands if band]
    given = parse_offset(inputs.offset) if product.offset is None else product.offset
    scales, offsets = ([getattr(band, name) for band in bands] for name in ("scale", "offset"))
    factors, shifts, notes = np.ones(len(product.bands)), np.zeros(len(product.bands)), []
    has_scale = inputs.scale is None and any(scale is not None for scale in scales)
    if has_scale:
        # rounded, because 0.0001 * 10000 is not 1
        factors[:] = [_scaled(band.scale if band else 1e-4, 1e-4) for band in product.bands]
        shifts[:] = [_scaled(band.offset if band else 0.0, 0.0) for band in product.bands]
        first = next(index for index, band in enumerate(product.bands) if band)
        if factors[first] != 1 or shifts[first]:
            by = "the file declares" if product.declared_by == "the file" else f"{product.declared_by} declares"
            notes.append(f"values are scaled as {by}: times {factors[first]:g}, plus {shifts[first]:g}, x 10000")
    elif inputs.scale is not None:
        factors[:] = inputs.scale * REFLECTANCE_SCALE
        notes.append(f"stored values are multiplied by {inputs.scale:g} to reflectance, as given")
    if given is not None:
        if given:
            notes.append(f"{given:+g} is added to the stored values, as given")
        shifts[:] = given
        return factors, shifts, notes
    if has_scale:
        return factors, shifts, notes
    if any(offset is not None for offset in offsets):
        shifts[:] = [_scaled(band.offset if band else 0.0, 0.0) for band in product.bands]
        if shifts.any():
            shift = shifts[np.flatnonzero(shifts)[0]]
            notes.append(f"{shift:+g} is added to the stored values ({product.declared_by})")
    elif product.day is not None and product.day >= _OFFSET_DATE:
        notes.append(
            "the image is of 2022-01-25 or later and nothing says whether the offset of -1000 was taken off its "
            "values: it is taken as done; else give --offset -1000"
        )
    return factors, shifts, notes


def parse_offset(offset: str | float) -> float | None:
    """None for "auto"."""
    if offset == "auto":
        return None
    return 0.0 if offset == "none" else float(offset)


def check_values(
    product: OpticalProduct, factor: float, shift: float, samples: Iterator[np.ndarray]
) -> tuple[bool, list[str]]:
    """Check samples of an image for the range of reflectance x 10000.

    Args:
        product: for messages.
        factor: see `resolve_scaling`; of its first band.
        shift: see `factor`.
        samples: stored values of valid pixels, (C,n).

    Returns:
        Whether any pixel had data, and notes.

    Raises:
        DataError: if values are out of the range.
    """
    highest, lowest = 0.0, np.inf
    for stored in samples:
        values = stored.astype(np.float64) * factor
        if values.size:
            highest, lowest = max(highest, float(values.max())), min(lowest, float(values.min()))
        if highest > max(_REFLECTANCE_MAX, -shift) and lowest + shift < _STORED_MAX:
            break
    if lowest == np.inf:
        return False, []
    if 0 < highest <= _REFLECTANCE_MAX:
        raise DataError(
            f"{product.name}: expected reflectance x 10000, found values up to {highest:.3g}; multiply by 10000, or "
            "give --scale 1 if they are reflectance"
        )
    if highest + shift <= 0 or lowest + shift >= _STORED_MAX:
        added = f", to which {shift:g} is added" if shift else ""
        raise DataError(
            f"{product.name}: expected reflectance x 10000, found {lowest:g} to {highest:g}{added}; check --scale and "
            "--offset, or what the file declares"
        )
    if not shift and lowest >= -OFFSET:
        return True, [
            f"the lowest sampled value is {lowest:g}: an offset of -1000 may still be in; if so give --offset -1000"
        ]
    return True, []


def _scaled(value: float | None, default: float) -> float:
    return round((default if value is None else value) * REFLECTANCE_SCALE, 6)


def _number(text: str, where: str) -> float:
    try:
        return float(text.strip().removeprefix("N"))  # N0400
    except ValueError as error:
        raise DataError(f"{where} is {text!r}; expected a number, or give --offset") from error
