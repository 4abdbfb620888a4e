"""Which detector finds the clouds of each date: one of ours, or the classification that its product brings."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from common.errors import DataError
from data.clouds.detectors import detect_clouds
from data.clouds.product_classes import class_fault
from data.constants import DATE_ORIGIN, DETECTORS, band_index
from scenes.inputs.rasters.dataset_pool import gdal_settings, probe_windows
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.series import SceneSeries
from scenes.inputs.values.optical import OpticalDate, OpticalImage

CLOUD_THRESHOLD = 0.5  # of detectors that return more than 0 and 1
_CIRRUS = band_index("B10")
_QA60_EMPTY = date(2022, 1, 25), date(2024, 2, 28)  # Earth Engine has no QA60 of these days: all 0 in exports
_ADVICE = f"--detector {DETECTORS[0]} needs none"


@dataclass(frozen=True)
class Detectors:
    """The detectors of a series.

    Attributes:
        of_dates: of each date one of `data.constants.DETECTORS`, or "scl", "qa60", "classi" of its product; empty
            for no masks.
        notes: on the choice.
        name: for records: the one name, or that of each date.
    """

    of_dates: tuple[str, ...]
    notes: tuple[str, ...]
    name: str


def choose_detectors(choice: str, series: SceneSeries) -> Detectors:
    """Determine the detector of each date.

    Args:
        choice: one of `data.constants.DETECTORS`, scl, product, auto or none. auto takes the scene classification of
            dates without B10 (L2A) that have one: s2cloudless is made for L1C.
        series: of which classifications are sampled.

    Raises:
        DataError: if a date lacks the classification.
    """
    if choice == "none":
        return Detectors((), (), "none")
    if choice in DETECTORS:
        return Detectors((choice,) * len(series.days), (), choice)
    with gdal_settings():
        if choice == "auto":
            names, notes = _choose_by_level(series)
        else:
            names = [_require_classes(choice, series, index) for index in range(len(series.days))]
            notes = [
                f"clouds are those of {name.upper()} ({_list(series, names, name)})" for name in dict.fromkeys(names)
            ]
    if len(set(names)) == 1:
        return Detectors(tuple(names), tuple(notes), names[0])
    text = "; ".join(f"{name}: {_list(series, names, name)}" for name in dict.fromkeys(names))
    return Detectors(tuple(names), tuple(notes), text)


def date_clouds(series: SceneSeries, index: int, window: Window, raw: np.ndarray, detector: str) -> np.ndarray:
    """Where a date has clouds, bool (h, w).

    Args:
        series: the inputs.
        index: of the date.
        window: the pixels.
        raw: (13, h, w) of the window, reflectance x 10000.
        detector: of this date, from `Detectors.of_dates`.
    """
    if detector in DETECTORS:
        clouds: np.ndarray = detect_clouds(raw, detector) >= CLOUD_THRESHOLD
        return clouds
    source = series.optical[index]
    assert isinstance(source, OpticalDate)  # of others `choose_detectors` takes no classes
    with gdal_settings():
        return source.read_clouds(window)


def _choose_by_level(series: SceneSeries) -> tuple[list[str], list[str]]:
    """The detector of each date by `auto`, and notes."""
    names: list[str] = []
    reasons: list[str | None] = []
    for index, source in enumerate(series.optical):
        reason = None
        if isinstance(source, OpticalDate) and all(image.bands[_CIRRUS] is None for image in source.images):
            reason = _find_fault("scl", series, index)[1]
        reasons.append(reason)
        names.append("scl" if reason == "" else DETECTORS[0])
    notes = []
    for reason in filter(lambda reason: reason is not None, dict.fromkeys(reasons)):
        ours = f"{DETECTORS[0]}, made for Level-1C, where B10 shows cirrus: the image lacks B10 and {reason}"
        notes.append(
            f"clouds are those of {ours if reason else 'the scene classification of the product, SCL'} "
            f"({_list(series, reasons, reason)})"
        )
    return names, notes


def _list(series: SceneSeries, values: Sequence[str | None], value: str | None) -> str:
    """The dates that have a value among those of all dates."""
    labels = [label for label, own in zip(series.labels, values, strict=True) if own == value]
    return f"all {len(values)}" if len(labels) == len(values) > 1 else ", ".join(labels)


def _require_classes(choice: str, series: SceneSeries, index: int) -> str:
    """The kind of the classification of a date.

    Raises:
        DataError: if it has none, or one that cannot be used.
    """
    name, reason = _find_fault("scl" if choice == "scl" else "", series, index)
    if reason:
        raise DataError(f"--detector {choice}: {series.labels[index]} ({name}) {reason}; {_ADVICE}")
    source = series.optical[index]
    assert isinstance(source, OpticalDate)
    return "+".join(dict.fromkeys(image.classes.kind for image in source.images if image.classes))


def _find_fault(kind: str, series: SceneSeries, index: int) -> tuple[str, str]:
    """The image of a date without a classification of a kind, "" for any, and the reason; empty if all have one."""
    source = series.optical[index]
    wanted = "scene classification (SCL)" if kind == "scl" else "classification of clouds (SCL, QA60 or MSK_CLASSI)"
    if not isinstance(source, OpticalDate):
        return source.paths[0], f"has no {wanted}"
    for image in source.images:
        if image.classes is None or kind not in ("", image.classes.kind):
            return image.name, f"has no {wanted}"
        fault = _class_fault(image, series.grid, series.days[index])
        if fault:
            return image.name, f"has no usable classification: {fault}"
    return "", ""


def _class_fault(image: OpticalImage, grid: Grid, day: int) -> str:
    """Why the classification of an image cannot be used; empty if it can. Windows are sampled."""
    assert image.classes is not None
    kind = image.classes.kind
    first, last = ((limit - DATE_ORIGIN).days for limit in _QA60_EMPTY)
    may_lack = kind == "qa60" and first <= day <= last
    parts: list[np.ndarray] = []
    fault = ""
    for window in probe_windows(grid):
        stored, outside = image.read_classes(window, grid)
        parts.append(stored.reshape(len(stored), -1) if outside is None else stored[:, ~outside])
        fault = class_fault(np.concatenate(parts, axis=1), kind)
        if not fault and (parts[-1].any() or not may_lack):
            return ""
    if not fault:
        return f"QA60 is 0 everywhere, as in exports of Earth Engine of {_QA60_EMPTY[0]} to {_QA60_EMPTY[1]}"
    has_data = any(not image.read_stored(window, grid, "nearest")[1].all() for window in probe_windows(grid))
    return fault if has_data else ""
