"""Stored pixel values rescaled to the ranges that networks take."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.constants import REFLECTANCE_SCALE, SAR_RANGE_DB, SAR_RANGE_DB_RESNET

RESCALE_METHODS = ("default", "resnet")
_RESNET_OPTICAL, _RESNET_SAR = 2000.0, 2.0  # digital numbers per unit; upper end of the radar range


def optical_to_unit(raw: np.ndarray, method: str = "default", out: np.ndarray | None = None) -> np.ndarray:
    """Rescale optical values to float32 in [0, 1] (default) or [0, 5] (resnet); NaN becomes 0.

    Args:
        raw: any shape, reflectance x 10000.
        method: "default" or "resnet".
        out: float32 array of that shape for the result; None allocates one.

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    divisor = np.float32({"default": REFLECTANCE_SCALE, "resnet": _RESNET_OPTICAL}[_check_method(method)])
    if raw.dtype == np.uint16:  # as stored: no negative values, no NaN; converted within the division
        unit = np.empty(raw.shape, np.float32) if out is None else out
        pairs = ((raw, unit),) if raw.ndim < 3 else zip(raw, unit, strict=True)
        for band, unit_band in pairs:  # band by band: the clipped values stay in the cache
            np.divide(np.minimum(band, np.uint16(REFLECTANCE_SCALE)), divisor, out=unit_band, dtype=np.float32)
        return unit
    unit = np.clip(raw.astype(np.float32), 0, REFLECTANCE_SCALE, out=out)
    unit /= divisor
    return np.nan_to_num(unit, copy=False)


def sar_to_unit(db: np.ndarray, method: str = "default", out: np.ndarray | None = None) -> np.ndarray:
    """Rescale backscatter to float32 in [0, 1] (default) or [0, 2] (resnet); NaN becomes 0.

    Args:
        db: (2, H, W) in dB, VV then VH, any float type.
        method: "default" or "resnet".
        out: float32 array (2, H, W) for the result; None allocates one.

    Source:
        Published pre-processing of UnCRtainTS. Changes: none.
    """
    resnet = _check_method(method) == "resnet"
    ranges = np.asarray(SAR_RANGE_DB_RESNET if resnet else (SAR_RANGE_DB, SAR_RANGE_DB), np.float32)
    unit = np.empty(db.shape, np.float32) if out is None else out
    for band, unit_band, (low, high) in zip(db, unit, ranges, strict=True):
        np.clip(band.astype(np.float32, copy=False), low, high, out=unit_band)
        unit_band -= low
        if resnet:
            unit_band *= np.float32(_RESNET_SAR)
        unit_band /= high - low
        unit_band[np.isnan(unit_band)] = 0
    return unit


@dataclass(frozen=True)
class RawImage:
    """An image as stored, rescaled when it is copied into a batch: one conversion and no intermediate copy.

    Attributes:
        values: (C, H, W) as stored.
        rescale: `optical_to_unit` or `sar_to_unit`.
        method: "default" or "resnet".
    """

    values: np.ndarray
    rescale: Callable[[np.ndarray, str, np.ndarray | None], np.ndarray]
    method: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.values.shape

    def to_unit(self, out: np.ndarray | None = None) -> np.ndarray:
        """The rescaled image, float32 (C, H, W), written to `out` if given."""
        return self.rescale(self.values, self.method, out)


def _check_method(method: str) -> str:
    if method not in RESCALE_METHODS:
        raise ValueError(f"unknown rescale_method {method!r}; choose from {', '.join(RESCALE_METHODS)}")
    return method
