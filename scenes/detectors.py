"""Which detector finds the clouds of each date: one of ours, or the classification that its product brings."""

from dataclasses import dataclass
from datetime import date

import numpy as np

from common.errors import DataError
from data.clouds.detectors import detect_clouds
from data.clouds.product_classes import class_fault
from data.constants import DATE_ORIGIN, DETECTORS, band_index
from scenes.inputs.dataset_pool import gdal_settings
from scenes.inputs.grid import Grid, Window
from scenes.inputs.optical import OpticalDate, OpticalImage
from scenes.inputs.raster import sample
from scenes.inputs.series import SceneSeries

CLOUD_THRESHOLD = 0.5  # of detectors that return more than 0 and 1
_CIRRUS = band_index("B10")
_SAMPLES = 256  # pixels along the longer side of a scene at which classifications are checked
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
            names, notes = [_require_classes(choice, series, index) for index in range(len(series.days))], []
    if len(set(names)) == 1:
        return Detectors(tuple(names), tuple(notes), names[0])
    by_name: dict[str, list[str]] = {}
    for label, name in zip(series.labels, names, strict=True):
        by_name.setdefault(name, []).append(label)
    text = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in by_name.items())
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
    reasons: dict[str, list[str]] = {}
    for index, source in enumerate(series.optical):
        name = DETECTORS[0]
        if isinstance(source, OpticalDate) and all(image.bands[_CIRRUS] is None for image in source.images):
            reason = _find_fault("scl", series, index)[1]
            name = name if reason else "scl"
            reasons.setdefault(reason, []).append(series.labels[index])
        names.append(name)
    notes = []
    for reason, dates in reasons.items():
        where = f"all {len(names)}" if len(dates) == len(names) > 1 else ", ".join(dates)
        ours = f"{DETECTORS[0]}, which is made for Level-1C: the image lacks B10 and {reason}"
        notes.append(
            f"clouds are those of {ours if reason else 'the scene classification of the product, SCL'} ({where})"
        )
    return names, notes


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
    """Why the classification of an image cannot be used; empty if it can. A coarse sample is read."""
    assert image.classes is not None
    band, kind = image.classes.band, image.classes.kind
    step = max(1, -(-max(grid.shape) // _SAMPLES))
    missing = image.sample_stored(grid, step)[1]
    stored, outside = sample(band.raster, image.classes.positions, grid, step)
    known = ~missing if outside is None else ~(missing | outside)
    if missing.all():
        return ""  # nothing to classify
    fault = class_fault(stored[:, known], kind)
    first, last = ((limit - DATE_ORIGIN).days for limit in _QA60_EMPTY)
    if not fault and kind == "qa60" and first <= day <= last and not stored[:, known].any():
        return f"QA60 is 0 everywhere, as in exports of Earth Engine of {_QA60_EMPTY[0]} to {_QA60_EMPTY[1]}"
    return fault
