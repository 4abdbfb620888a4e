"""Clouds in the classifications that products bring, and the values that these can have."""

import numpy as np

SCL_CLEAR = (2, 4, 5, 6, 7, 11)  # dark ground, vegetation, bare soil, water, unclassified, snow
_SCL_CLASSES = 12
_QA60_CLOUDS = 1 << 10 | 1 << 11  # opaque, cirrus
CLASS_BANDS = {"scl": 1, "qa60": 1, "classi": 2}
"""Bands of each kind: scene classification of L2A, QA60 of Earth Engine, and MSK_CLASSI (opaque, cirrus) of L1C."""


def product_clouds(stored: np.ndarray, kind: str) -> np.ndarray:
    """Where a classification has clouds, bool (H, W).

    Of the scene classification these are the classes 3 cloud shadow, 8 and 9 clouds, and 10 thin cirrus. What is not
    known to be clear counts as cloud: 0 no data, 1 saturated or defective (often the tops of clouds), values that are
    no class, and NaN. Snow (11) is clear ground.

    Args:
        stored: (C, H, W), the bands of the classification as stored.
        kind: one of `CLASS_BANDS`.
    """
    if kind == "scl":
        return ~np.isin(stored[0], SCL_CLEAR)
    if kind == "classi":
        return ~(stored == 0).all(axis=0)
    values, known = _integers(stored[0])
    clouds: np.ndarray = ~known | (values & _QA60_CLOUDS != 0)
    return clouds


def class_fault(stored: np.ndarray, kind: str) -> str:
    """Why values are no classification of a kind, for a message; empty if they are.

    Args:
        stored: (C, N), values of some pixels that have optical data.
        kind: one of `CLASS_BANDS`.
    """
    name = kind.upper()
    values, known = _integers(stored)
    fractions = known & (stored != values)
    if fractions.any():
        value = float(stored[fractions][0])
        return f"{name} has values such as {value:g}: classes were interpolated; resample them by nearest"
    allowed = (
        known
        & {
            "scl": (values < _SCL_CLASSES) | (values == 255),
            "qa60": values & ~_QA60_CLOUDS == 0,
            "classi": (values <= 1) | (values == 255),
        }[kind]
    )
    if not (allowed | ~known).all():
        return f"{name} has values such as {int(values[known & ~allowed][0])}, which are no classes"
    filled = allowed & (values > 0) & (values < 255) if kind == "scl" else allowed & (values != 255)
    return "" if filled.any() else f"{name} is empty"


def _integers(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values as integers, and where they are known: neither NaN nor negative nor too large for uint16."""
    known = (stored >= 0) & (stored <= np.iinfo(np.uint16).max) if stored.dtype.kind != "u" else stored >= 0
    return np.where(known, stored, 0).astype(np.int64), known
