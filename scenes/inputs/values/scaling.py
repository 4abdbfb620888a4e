"""From stored values to reflectance: what a file declares, what the user gives, and what the values say."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import PurePath
from typing import Any

import numpy as np

from common.errors import DataError
from data.constants import N_S2, REFLECTANCE_SCALE, S2_BANDS
from scenes.inputs.products import Band, OpticalProduct
from scenes.inputs.rasters.raster import Raster
from scenes.inputs.values.evidence import BELOW_SHARE, LOWEST, OFFSET, check_order, lowest_band, offset_evidence
from scenes.options import SceneInputs

_OFFSET_BASELINE, _OFFSET_DATE = 4.0, date(2022, 1, 25)
_REFLECTANCE_MAX = 2.0  # values that nowhere exceed this are reflectance, not reflectance x 10000
_STORED_MAX = 30_000.0  # of the darkest pixel: not even clouds have a reflectance of 3
_BASELINE = re.compile(r"_N(\d{2})(\d{2})_R\d{3}(?=[_.]|$)")  # of product names; N0512_E0030 is a place
_WRAPPED = (60_000, 65_534)  # stored values that reflectance does not reach; 65535 is saturated or nodata
_DECIDED_PARTS = 2  # windows with data that are enough where names and offset are declared


@dataclass(frozen=True)
class Scaling:
    """How stored values become reflectance x 10000: times the factor plus the shift of their band.

    Attributes:
        factors: (13).
        shifts: (13).
        offset_from: what gives the offset: "--offset", or what the product declares it by; empty if nothing does.
        given: whether the user gives the offset.
    """

    factors: np.ndarray
    shifts: np.ndarray
    offset_from: str = ""
    given: bool = False


def declared_bands(
    path: str, dataset: Any, raster: Raster, positions: Sequence[int]
) -> tuple[tuple[Band | None, ...], str]:
    """The 13 bands of an open image with the scales and offsets that it declares for each, and what declares them.

    Args:
        path: for messages, and for the baseline in a product name.
        dataset: of rasterio.
        raster: the same.
        positions: of the 13 bands, from 1; 0 where there is none.

    Raises:
        DataError: if a tag holds no number.
    """
    present = [position - 1 for position in positions if position]
    scales, offsets = ([float(values[index]) for index in present] for values in (dataset.scales, dataset.offsets))
    has_scale = set(scales) != {1.0} or set(offsets) != {0.0}
    bands: list[Band | None] = []
    source = "the file" if has_scale else ""
    for index, position in enumerate(positions):
        if not position:
            bands.append(None)
            continue
        tags = dataset.tags() | dataset.tags(position)
        scale = float(dataset.scales[position - 1]) if has_scale else None
        offset = float(dataset.offsets[position - 1]) if any(offsets) else None
        if offset is None:
            stored, where = tagged_offset(path, tags, index) if has_scale else declared_offset(path, tags, index)
            if stored is not None:
                offset = stored * (scale or 1 / REFLECTANCE_SCALE)
                source = source or where
        bands.append(Band(raster, position, scale, offset, dataset.nodatavals[position - 1]))
    return tuple(bands), source


def tagged_offset(path: str, tags: Mapping[str, str], band: int = 0) -> tuple[float | None, str]:
    """The offset in stored units that a tag RADIO_ADD_OFFSET (L1C) or BOA_ADD_OFFSET (L2A) declares, and its name.

    Args:
        path: for messages.
        tags: of the file and of the band.
        band: index of the band, which may end the name of its tag.
    """
    keys = [key for key in tags if "RADIO_ADD_OFFSET" in key.upper() or "BOA_ADD_OFFSET" in key.upper()]
    key = next((key for key in keys if re.search(rf"_0?{band}$", key)), keys[0] if keys else None)
    if key is None:
        return None, ""
    return _number(tags[key], f"tag {key} of {path}"), f"tag {key}"


def declared_offset(path: str, tags: Mapping[str, str], band: int = 0) -> tuple[float | None, str]:
    """The offset that a Sentinel-2 product declares for its stored values, and where.

    By tags (RADIO_ADD_OFFSET of L1C, BOA_ADD_OFFSET of L2A, either also for each band; PROCESSING_BASELINE) or by the
    product name (`_N0400_R108`) of the file or the .SAFE that contains it. None if it declares nothing.

    Source:
        Sentinel-2 products specification, baseline 04.00 of 2022-01-25: -1000 in every band.
    """
    offset, where = tagged_offset(path, tags, band)
    if offset is not None:
        return offset, where
    for key, value in tags.items():
        if key.upper().endswith("PROCESSING_BASELINE"):
            baseline = _number(value, f"tag {key} of {path}")
            return baseline_offset(baseline / 100 if baseline >= 100 else baseline), f"tag {key} {value}"  # N0400
    folder, name = PurePath(path).parts[:-1], PurePath(path).name
    products = [part for part in folder if part.upper().removesuffix(".ZIP").endswith(".SAFE")]
    for part in (name, *reversed(products)):
        match = _BASELINE.search(part)
        if match is not None:
            major, minor = match.groups()
            return baseline_offset(int(major)), f"_N{major}{minor}_ in its name"
    return None, ""


def baseline_offset(baseline: float) -> float:
    """The offset in stored units of a processing baseline, such as 4.0 or 5.1."""
    return OFFSET if baseline >= _OFFSET_BASELINE else 0.0


def resolve_scaling(product: OpticalProduct, inputs: SceneInputs) -> tuple[Scaling, list[str]]:
    """How stored values become reflectance x 10000 by what is given and declared, and notes on it.

    Raises:
        DataError: if they give no reflectance.
    """
    scaling, notes = _find_scaling(product, inputs)
    pairs = zip(scaling.factors, scaling.shifts, strict=True)
    wrong = next((pair for pair in pairs if not (0 < pair[0] < np.inf and np.isfinite(pair[1]))), None)
    if wrong is not None:
        raise DataError(
            f"{product.name}: its values would be multiplied by {wrong[0]:g} and {wrong[1]:g} added, which gives no "
            "reflectance; check the scale and offset that it declares, or give --scale and --offset"
        )
    return scaling, notes


def _find_scaling(product: OpticalProduct, inputs: SceneInputs) -> tuple[Scaling, list[str]]:
    bands = [band for band in product.bands if band]
    scale = single(inputs.scale) if product.scale is None else product.scale
    given = parse_offset(single(inputs.offset)) if product.offset is None else product.offset
    factors, shifts, notes = np.ones(N_S2), np.zeros(N_S2), []
    has_scale = scale is None and any(band.scale is not None for band in bands)
    if has_scale:
        # rounded, because 0.0001 * 10000 is not 1
        factors[:] = [_scaled(band.scale if band else 1e-4, 1e-4) for band in product.bands]
    elif scale is not None:
        factors[:] = scale * REFLECTANCE_SCALE
        notes.append(f"stored values are multiplied by {scale:g} to reflectance, as given")
    if given is not None:
        shifts[:] = given
        declared = {_scaled(band.offset, 0.0) for band in bands if band.offset is not None}
        other = sorted(declared - {given})
        though = f", though {product.declared_by or 'the product'} declares {other[0]:g}" if other else ""
        if given or other:
            notes.append(f"{given:+g} is added to the stored values, as given{though}")
        if has_scale and (factors != 1).any():
            notes.append(f"values are scaled as {_declared_by(product)}: {_listed(factors, product)} x 10000")
        return Scaling(factors, shifts, "--offset", True), notes
    is_declared = any(band.offset is not None for band in bands)
    shifts[:] = [_scaled(band.offset if band else 0.0, 0.0) for band in product.bands]
    if has_scale:
        if (factors != 1).any() or shifts.any():
            by = _declared_by(product)
            added = _listed(shifts, product)
            notes.append(f"values are scaled as {by}: times {_listed(factors, product)}, plus {added}, x 10000")
    elif shifts.any():
        notes.append(f"{_listed(shifts, product, '+')} is added to the stored values ({product.declared_by})")
    return Scaling(factors, shifts, (product.declared_by or "the product") if is_declared else ""), notes


def _declared_by(product: OpticalProduct) -> str:
    return "the file declares" if product.declared_by in ("", "the file") else f"{product.declared_by} declares"


def _listed(values: np.ndarray, product: OpticalProduct, sign: str = "") -> str:
    """One number for all bands, or each with the first band that has it."""
    first: dict[float, str] = {}
    for name, value, band in zip(S2_BANDS, values.tolist(), product.bands, strict=True):
        if band:
            first.setdefault(value, name)
    if len(first) == 1:
        return f"{next(iter(first)):{sign}g}"
    return ", ".join(f"{value:{sign}g} ({name})" for value, name in first.items())


def single(values: Any) -> Any:
    """The value of a flag for all images, or None where it has one for each, which products then carry."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return values
    return values[0] if len(values) == 1 else None


def parse_offset(offset: str | float | None) -> float | None:
    """None for "auto"."""
    if offset is None or offset == "auto":
        return None
    return 0.0 if offset == "none" else float(offset)


@dataclass
class ValueCheck:
    """Collects stored values of an image from sampled windows, and checks them.

    Attributes:
        product: the image.
        scaling: of its values, as given or declared.
    """

    product: OpticalProduct
    scaling: Scaling

    def __post_init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.bands = [index for index, band in enumerate(self.product.bands) if band]

    def add(self, stored: np.ndarray) -> None:
        """Take the valid pixels (C,n) of a window."""
        if stored.size:
            self.parts.append(stored)

    @property
    def decided(self) -> bool:
        """Whether further windows would tell nothing new."""
        if len(self.parts) < _DECIDED_PARTS or self.product.by_position:
            return False
        values = self._values()
        in_range = values.max() > _REFLECTANCE_MAX and values.min() < _STORED_MAX
        declared = bool(self.product.declared_by) and self.product.declared_by != "the file"
        return bool(in_range) and (declared or offset_evidence(values, self.bands).kind == "out")

    def finish(self) -> tuple[Scaling, list[str]]:
        """The scaling that the values agree with, and notes on it.

        Raises:
            DataError: if values are out of range, contradict the offset, or the order of bands without names.
        """
        if not self.parts:
            return self.scaling, []
        self._check_wrapped()
        values = self._values()
        self._check_range(values)
        scaling, notes = self._check_offset(values)
        if self.product.by_position:
            check_order(self.product.name, values + scaling.shifts[self.bands, None])
        return scaling, notes

    def _values(self) -> np.ndarray:
        """Reflectance x 10000 without the offset, (C,n)."""
        values = np.concatenate(self.parts, axis=1).astype(np.float64)
        factors = self.scaling.factors[self.bands]
        return values if (factors == 1).all() else values * factors[:, None]

    def _check_wrapped(self) -> None:
        low, high = _WRAPPED
        for stored in self.parts:
            if stored.dtype != np.uint16 or self.scaling.factors.max() < 0.5:
                return
            wrapped = (stored >= low) & (stored <= high)
            if wrapped.any():
                band, value = S2_BANDS[self.bands[int(wrapped.any(axis=1).argmax())]], int(stored[wrapped].min())
                raise DataError(
                    f"{self.product.name}: {band} has values such as {value}, as those below 0 become when 1000 is "
                    "subtracted in uint16; subtract by numpy.maximum(values, 1000) - 1000, or give the original values "
                    "with --offset -1000"
                )

    def _check_range(self, values: np.ndarray) -> None:
        name, shift = self.product.name, self.scaling.shifts[self.bands[0]]
        highest, lowest = float(values.max()), float(values.min())
        if 0 < highest <= _REFLECTANCE_MAX:
            raise DataError(
                f"{name}: expected reflectance x 10000, found values up to {highest:.3g}; multiply by 10000, or "
                "give --scale 1 if they are reflectance"
            )
        if highest + shift <= 0 or lowest + shift >= _STORED_MAX:
            added = f", to which {shift:g} is added" if shift else ""
            raise DataError(
                f"{name}: expected reflectance x 10000, found {lowest:g} to {highest:g}{added}; check --scale and "
                "--offset, or what the file declares"
            )

    def _check_offset(self, values: np.ndarray) -> tuple[Scaling, list[str]]:
        product, scaling, name = self.product, self.scaling, self.product.name
        band, share = lowest_band(values + scaling.shifts[self.bands, None] - LOWEST, self.bands)
        shift = scaling.shifts[self.bands[0]]
        if share >= BELOW_SHARE and shift < 0:
            found = f"{100 * share:.0f} % of {band} would lie below a reflectance of {LOWEST / REFLECTANCE_SCALE:g}"
            if scaling.given:
                raise DataError(
                    f"{name}: with --offset {shift:g} {found}: its values are without the offset; give one for each "
                    "image (--offset none -1000 ...), or a column offset in --list"
                )
            raise DataError(
                f"{name}: {scaling.offset_from} declares an offset of {shift:g}, but {found}: it was taken off "
                "already; give --offset none"
            )
        if shift:
            return scaling, []
        evidence = offset_evidence(values, self.bands)
        if evidence.kind == "in" and scaling.given:
            return scaling, [
                f"an offset of 1000 seems to be in the values, and is left there as given: {evidence.reason}"
            ]
        if evidence.kind == "in" and scaling.offset_from:
            raise DataError(
                f"{name}: {scaling.offset_from} declares no offset, but 1000 is still in the values: "
                f"{evidence.reason}; give --offset -1000, or --offset none to keep them"
            )
        if evidence.kind == "in":
            note = f"-1000 is added to the values, which still hold the offset of new baselines: {evidence.reason}"
            shifts = np.full(N_S2, OFFSET)
            return replace(scaling, shifts=shifts, offset_from="the values"), [f"{note} (--offset none keeps them)"]
        if evidence.kind == "likely in" and scaling.offset_from:
            by, reason = scaling.offset_from, evidence.reason
            return scaling, [f"{by} declares no offset, but {reason}: if it is still in, give --offset -1000"]
        if scaling.offset_from:
            return scaling, []
        if evidence.kind == "likely in":
            raise DataError(
                f"{name}: nothing says whether the offset of -1000 was taken off its values, and {evidence.reason}; "
                "give --offset -1000 to take it off, or --offset none if that was done"
            )
        notes = []
        if evidence.kind != "out" and product.day is not None and product.day >= _OFFSET_DATE:
            notes.append(
                "the image is of 2022-01-25 or later and nothing says whether the offset of -1000 was taken off its "
                "values: it is taken as done; else give --offset -1000"
            )
        lowest = float(values.min())
        if lowest >= -OFFSET:
            notes.append(
                f"the lowest sampled value is {lowest:g}: an offset of -1000 may still be in; if so give --offset -1000"
            )
        return scaling, notes


def _scaled(value: float | None, default: float) -> float:
    return round((default if value is None else value) * REFLECTANCE_SCALE, 6)


def _number(text: str, where: str) -> float:
    try:
        return float(text.strip().removeprefix("N"))  # N0400
    except ValueError as error:
        raise DataError(f"{where} is {text!r}; expected a number, or give --offset") from error
