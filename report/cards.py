"""Sample cards: the pictures of a sample with captions, on scales that all cards of a page share."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.constants import SAR_RANGE_DB
from data.raster.rgb import to_rgb
from evaluation.images import root_mean_square, standard_deviation
from evaluation.mixture import Image, PredictedImages
from evaluation.sample_records import SampleImages
from report.pictures import ColourBar, Picture, colour_bar, colour_map, is_small, photograph
from report.tables import format_figure

_COLOURS, _RADAR_COLOURS = "viridis", "gray"
_STEPS = {1: 4, 2: 4, 3: 3, 4: 4, 5: 5, 6: 3, 8: 4, 10: 4}  # first digit of the end of a scale -> steps on its bar
_MAX_DATES = 8  # of a series on a card
_UNCERTAINTIES = {"aleatoric": "aleatoric", "epistemic": "epistemic", "total": "total deviation"}


@dataclass(frozen=True)
class Slider:
    """Two overlaid pictures with a divider; `left` and `right` are shown first, `choices` can replace them."""

    left: Picture
    right: Picture
    choices: tuple[Picture, ...]


@dataclass(frozen=True)
class Group:
    """Pictures of one kind, such as the inputs."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""
    wide: bool = False  # takes a row of its own


@dataclass(frozen=True)
class Card:
    """The content of one card."""

    label: str
    title: str
    figures: tuple[tuple[str, str], ...]  # name and value
    slider: Slider
    series: tuple[Group, ...]  # inputs and radar
    results: tuple[Group, ...]  # prediction and target; then the maps of each network
    sentence: str


@dataclass(frozen=True)
class Cards:
    """All cards of a page and their common scales."""

    cards: tuple[Card, ...]
    scale: ColourBar | None
    radar_scale: ColourBar | None


@dataclass(frozen=True)
class Placeholders:
    """Texts for samples without inputs, radar or variance."""

    inputs: str = "The inputs are not available."
    radar: str = "No radar."
    variance: str = "This network has no variance: it states no uncertainty."


def make_cards(samples: Sequence[SampleImages], placeholders: Placeholders) -> Cards:
    """The cards of samples, on one scale."""
    if not samples:
        return Cards((), None, None)
    end = _common_end(samples)
    cards = tuple(_card(sample, end, placeholders) for sample in samples)
    label, steps = "error and standard deviation, reflectance", _n_steps(end)
    radar_scale = None
    if any(sample.radar is not None for sample in samples):
        radar_scale = colour_bar(*SAR_RANGE_DB, _RADAR_COLOURS, "VV backscatter, dB", 5, open_end=False)
    return Cards(cards, colour_bar(0.0, end, _COLOURS, label, steps), radar_scale)


def _maps(sample: SampleImages, prediction: PredictedImages) -> Iterator[tuple[str, Image]]:
    """Names and images (H,W) of error and deviations over bands, reflectance; of several networks only the total."""
    yield "error", root_mean_square(prediction.mean - sample.target)
    for kind, name in _UNCERTAINTIES.items():
        variance = getattr(prediction, kind)
        if variance is not None and (kind == "total" or len(sample.predictions) == 1):
            yield name, standard_deviation(variance)


def _common_end(samples: Sequence[SampleImages]) -> float:
    """The end of the scale of all errors and deviations of a page: a round number above 97 % of them."""
    values = [
        image.ravel()
        for sample in samples
        for prediction in sample.predictions.values()
        for _, image in _maps(sample, prediction)
    ]
    end = float(np.nanpercentile(np.concatenate(values), 97))
    if not 0 < end < math.inf:
        return 0.1
    unit = 10.0 ** math.floor(math.log10(end))
    return round(next(digit for digit in _STEPS if digit * unit >= end * (1 - 1e-6)) * unit, 12)


def _n_steps(end: float) -> int:
    """Number of steps on a colour bar, such that its numbers are as round as its end."""
    return _STEPS[round(end / 10.0 ** math.floor(math.log10(end) + 1e-9))]


def _card(sample: SampleImages, end: float, placeholders: Placeholders) -> Card:
    record, small = sample.record, is_small(sample.target[0])
    parts = {"Sample": record.id, "region": record.roi, "patch": record.patch}
    title = ", ".join(f"{name} {value}" for name, value in parts.items() if value != "")
    target = _photo(sample.target, "Target", record.target_date, "target", small, "the true clear image")
    predictions, maps = [], []
    single = len(sample.predictions) == 1
    for name, prediction in sample.predictions.items():
        note = _psnr(sample.rmse[name]) if single else f"RMSE {sample.rmse[name]:.4f}"
        caption, kind = ("Prediction", "reconstructed") if single else (name, "prediction")
        predictions.append(_photo(prediction.mean, caption, note, f"prediction {name}", small, kind))
        pictures = tuple(
            _map(record.id, map_name, image, end, "" if single else name)
            for map_name, image in _maps(sample, prediction)
        )
        heading, note = "Error and stated uncertainty", ""
        if prediction.total is None:
            heading, note = "Error", placeholders.variance
        elif single and prediction.epistemic is None:
            note = "This network does not separate epistemic uncertainty; all of its deviation counts as aleatoric."
        maps.append(Group(heading if single else f"{name}: {heading.lower()}", pictures, note))
    inputs, radar = _inputs(sample, small), _radar(sample, small)
    note = "" if inputs else sample.missing_inputs or placeholders.inputs
    if inputs and sample.inputs is not None and len(inputs) < len(sample.inputs):
        note = f"{len(inputs)} of {len(sample.inputs)} dates: the clearest and the cloudiest."
    series = (
        Group("Inputs", inputs, note),
        Group("Radar of the same dates, VV", radar, "" if radar else placeholders.radar),
    )
    heading = "Result" if single else "Predictions and target"
    results = (Group(heading, (*predictions, target), wide=not single), *maps)
    if not single:
        left, right = predictions[:2]
    elif inputs:
        left, right = inputs[_most_clouded(sample)], predictions[0]
    else:
        left, right = predictions[0], target
    slider = Slider(left, right, (*predictions, target, *inputs))
    return Card(sample.label, title, _figures(sample), slider, series, results, _baseline_sentence(sample))


def _figures(sample: SampleImages) -> tuple[tuple[str, str], ...]:
    if len(sample.predictions) > 1:
        return tuple((f"RMSE {name}", f"{value:.4f}") for name, value in sample.rmse.items())
    units = {"PSNR": " dB", "SAM": "\N{DEGREE SIGN}"}
    return tuple(
        (name, format_figure(name, value) + (units.get(name, "") if math.isfinite(value) else ""))
        for name, value in sample.record.metrics.items()
    )


def _baseline_sentence(sample: SampleImages) -> str:
    """The quality of the best trivial reconstruction of a sample."""
    if sample.baseline is None:
        return ""
    name, baseline_rmse = sample.baseline
    rmse = min(sample.rmse.values())
    comparison = ""
    if baseline_rmse >= rmse > 0:
        comparison = f", {baseline_rmse / rmse:.1f} times that of the network"
    elif rmse > baseline_rmse > 0:
        comparison = f", {rmse / baseline_rmse:.1f} times better than the network"
    return f"The best trivial reconstruction of this sample ({name}) has an RMSE of {baseline_rmse:.4f}{comparison}."


def _photo(image: Image, caption: str, note: str, key: str, small: bool, kind: str) -> Picture:
    alt = f"{caption}, {kind}, true colour" + (f", {note}" if note else "")
    return Picture(photograph(to_rgb(image)), alt, caption, note, key, small)


def _map(sample_id: int, name: str, image: Image, end: float, network: str) -> Picture:
    level = float(np.sqrt(np.square(image, dtype=np.float64).mean()))
    beyond = float((image > end).mean())
    clipped = f"; {100 * beyond:.0f} % of pixels lie above the scale" if beyond >= 0.005 else ""
    owner = f" of {network}" if network else ""
    alt = f"Map of the {name}{owner}, sample {sample_id}: root mean square {level:.4f} reflectance{clipped}"
    note = f"RMS {level:.4f}" + (f", {100 * beyond:.0f}\N{NO-BREAK SPACE}% off the scale" if beyond >= 0.05 else "")
    return Picture(colour_map(image, 0.0, end, _COLOURS), alt, name.capitalize(), note, small=is_small(image))


def _inputs(sample: SampleImages, small: bool) -> tuple[Picture, ...]:
    if sample.inputs is None:
        return ()
    pictures = []
    for date in _shown_dates(sample):
        cover = sample.record.coverage[date] if date < len(sample.record.coverage) else math.nan
        note = "" if math.isnan(cover) else f"{100 * cover:.0f} % cloud"
        key, kind = f"input {date}", f"input {date + 1}"
        pictures.append(_photo(sample.inputs[date], _day(sample, date), note, key, small, kind))
    return tuple(pictures)


def _radar(sample: SampleImages, small: bool) -> tuple[Picture, ...]:
    if sample.radar is None:
        return ()
    pictures = []
    for date in _shown_dates(sample):
        day = _day(sample, date)
        note = f"median {np.median(sample.radar[date]):.1f} dB".replace("-", "\N{MINUS SIGN}")
        image = colour_map(sample.radar[date], *SAR_RANGE_DB, _RADAR_COLOURS)
        pictures.append(Picture(image, f"Radar of {day}, VV backscatter in grey, {note}", day, note, small=small))
    return tuple(pictures)


def _day(sample: SampleImages, date: int) -> str:
    return sample.record.dates[date] if date < len(sample.record.dates) else f"date {date + 1}"


def _shown_dates(sample: SampleImages) -> list[int]:
    """All dates of a short series; of a long one those with least and most cloud, in chronological order."""
    series = sample.inputs if sample.inputs is not None else sample.radar
    n_dates = 0 if series is None else len(series)
    if n_dates <= _MAX_DATES:
        return list(range(n_dates))
    coverage = sample.record.coverage
    order = np.argsort(coverage if len(coverage) == n_dates else np.arange(n_dates), kind="stable")
    return sorted({*order[: _MAX_DATES // 2].tolist(), *order[-_MAX_DATES // 2 :].tolist()})


def _most_clouded(sample: SampleImages) -> int:
    """Position among the shown inputs."""
    coverage = sample.record.coverage
    shown = [coverage[date] if date < len(coverage) else 0.0 for date in _shown_dates(sample)]
    return int(np.argmax(np.nan_to_num(shown)))


def _psnr(rmse: float) -> str:
    return f"PSNR {-20 * math.log10(rmse):.2f} dB" if rmse > 0 else "PSNR infinite"
