"""Cards of samples: every picture of a case with its caption, on scales that all cards of a page share."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.constants import SAR_RANGE_DB
from data.raster.rgb import to_rgb
from evaluation.images import root_mean_square, standard_deviation
from report.pictures import ColourBar, Picture, colour_bar, is_small, mapped, photograph
from report.samples import Case, Image, Output
from report.tables import number

_COLOURS, _RADAR_COLOURS = "viridis", "gray"
_STEPS = {1: 4, 2: 4, 3: 3, 4: 4, 5: 5, 6: 3, 8: 4, 10: 4}  # first digit of the end of a scale -> steps on its bar
_MOST_DATES = 8  # of a series; a page of 30 dates would be read by nobody
_UNCERTAINTIES = {"aleatoric": "aleatoric", "epistemic": "epistemic", "total": "total deviation"}


@dataclass(frozen=True)
class Slider:
    """Two pictures one over the other; `left` and `right` are keys of pictures of the card, shown at the start."""

    left: Picture
    right: Picture
    choices: tuple[Picture, ...]


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, such as the inputs."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""  # what is missing, or how to read it
    wide: bool = False  # a row of its own


@dataclass(frozen=True)
class Card:
    """What a page shows of one sample."""

    label: str
    title: str
    figures: tuple[tuple[str, str], ...]  # name and value
    slider: Slider
    series: tuple[Group, ...]  # inputs and radar
    results: tuple[Group, ...]  # prediction and target; then maps, of each network
    sentence: str


@dataclass(frozen=True)
class Cards:
    """All cards of a page and the scales they share."""

    cards: tuple[Card, ...]
    scale: ColourBar | None
    radar_scale: ColourBar | None


@dataclass(frozen=True)
class Missing:
    """What to say where a sample has no inputs, radar or variance to show."""

    inputs: str = "The inputs are not at hand."
    radar: str = "No radar."
    variance: str = "This network has no variance: it states no uncertainty."


def make_cards(cases: Sequence[Case], missing: Missing) -> Cards:
    """The cards of these cases, all on one scale."""
    end = _shared_end(cases)
    cards = tuple(_card(case, end, missing) for case in cases)
    label = "error and standard deviation, reflectance"
    low, high = SAR_RANGE_DB
    has_radar = any(case.radar is not None for case in cases)
    return Cards(
        cards,
        colour_bar(0.0, end, _COLOURS, label, _n_steps(end)) if cases else None,
        colour_bar(low, high, _RADAR_COLOURS, "VV backscatter, dB", 5, open_end=False) if has_radar else None,
    )


def _maps(case: Case, output: Output) -> Iterator[tuple[str, Image]]:
    """Error and deviations over bands, (H,W), reflectance, by the words of their captions.

    Of several networks only the total is shown, not its parts.
    """
    yield "error", root_mean_square(output.mean - case.target)
    for kind, words in _UNCERTAINTIES.items():
        variance = getattr(output, kind)
        if variance is not None and (kind == "total" or len(case.outputs) == 1):
            yield words, standard_deviation(variance)


def _shared_end(cases: Sequence[Case]) -> float:
    """The end of the scale of all errors and deviations of a page: a round number that few pixels lie beyond."""
    values = [image.ravel() for case in cases for output in case.outputs.values() for _, image in _maps(case, output)]
    end = float(np.nanpercentile(np.concatenate(values), 97)) if values else 0.0
    if not 0 < end < math.inf:
        return 0.1
    unit = 10.0 ** math.floor(math.log10(end))
    return round(next(digit for digit in _STEPS if digit * unit >= end * (1 - 1e-6)) * unit, 12)


def _n_steps(end: float) -> int:
    """Steps between the numbers of a colour bar, so that each is as round as its end."""
    return _STEPS[round(end / 10.0 ** math.floor(math.log10(end) + 1e-9))]


def _card(case: Case, end: float, missing: Missing) -> Card:
    record = case.record
    title = ", ".join(
        word
        for word in (
            f"Sample {record.id}",
            record.roi and f"region {record.roi}",
            record.patch and f"patch {record.patch}",
        )
        if word
    )
    small = is_small(case.target[0])
    target = _photo(case.target, "Target", record.target_date, "target", small, "the true clear image")
    predictions = []
    groups = []
    alone = len(case.outputs) == 1
    for name, output in case.outputs.items():
        note = _psnr(case.rmse[name]) if alone else f"RMSE {case.rmse[name]:.4f}"
        key, words = f"prediction {name}", "reconstructed" if alone else "prediction"
        predictions.append(_photo(output.mean, "Prediction" if alone else name, note, key, small, words))
        maps = tuple(_map(case, words, image, end, "" if alone else name) for words, image in _maps(case, output))
        title_of = "Error and stated uncertainty" if output.total is not None else "Error"
        said = missing.variance if output.total is None else _split_note(output) if alone else ""
        groups.append(Group(title_of if alone else f"{name}: {title_of.lower()}", maps, said))
    inputs, hidden = _inputs(case, small)
    series = [Group("Inputs", inputs, hidden or ("" if inputs else case.no_inputs or missing.inputs))]
    radar = _radar(case, small)
    series.append(Group("Radar of the same dates, VV", radar, "" if radar else missing.radar))
    title_of = "Result" if alone else "Predictions and target"
    results = [Group(title_of, (*predictions, target), wide=not alone), *groups]
    choices = (*predictions, target, *inputs)
    if not alone:
        slider = Slider(predictions[0], predictions[1], choices)
    elif inputs:
        slider = Slider(inputs[_most_clouded(case)], predictions[0], choices)
    else:
        slider = Slider(predictions[0], target, choices)
    return Card(case.label, title, _figures(case), slider, tuple(series), tuple(results), _sentence(case))


def _figures(case: Case) -> tuple[tuple[str, str], ...]:
    if len(case.outputs) > 1:
        return tuple((f"RMSE {name}", f"{value:.4f}") for name, value in case.rmse.items())
    units = {"PSNR": " dB", "SAM": "\N{DEGREE SIGN}"}
    found = []
    for name, value in case.record.metrics.items():
        found.append((name, number(name, value) + (units.get(name, "") if math.isfinite(value) else "")))
    return tuple(found)


def _sentence(case: Case) -> str:
    """How good the best trivial reconstruction of this sample is."""
    if case.baseline is None:
        return ""
    name, rmse = case.baseline
    own = min(case.rmse.values())
    if not (rmse > 0 and own > 0):
        return f"The best trivial reconstruction of this sample ({name}) has an RMSE of {rmse:.4f}."
    ratio = rmse / own
    words = f"{ratio:.1f} times that of the network" if ratio >= 1 else f"{1 / ratio:.1f} times better than the network"
    return f"The best trivial reconstruction of this sample ({name}) has an RMSE of {rmse:.4f}, {words}."


def _split_note(output: Output) -> str:
    if output.epistemic is None:
        return "This network does not tell epistemic uncertainty apart; all of its deviation counts as aleatoric."
    return ""


def _photo(image: Image, caption: str, note: str, key: str, small: bool, words: str) -> Picture:
    alt = f"{caption}, {words}, true colour" + (f", {note}" if note else "")
    return Picture(photograph(to_rgb(image)), alt, caption, note, key, small)


def _map(case: Case, words: str, image: Image, end: float, of: str) -> Picture:
    level = float(np.sqrt(np.square(image, dtype=np.float64).mean()))
    beyond = float((image > end).mean())
    more = f"; {100 * beyond:.0f} % of pixels lie above the scale" if beyond >= 0.005 else ""
    owner = f" of {of}" if of else ""
    alt = f"Map of the {words}{owner}, sample {case.record.id}: root mean square {level:.4f} reflectance{more}"
    caption = words[0].upper() + words[1:]
    note = f"RMS {level:.4f}" + (f", {100 * beyond:.0f}\N{NO-BREAK SPACE}% off the scale" if beyond >= 0.05 else "")
    return Picture(mapped(image, 0.0, end, _COLOURS), alt, caption, note, small=is_small(image))


def _inputs(case: Case, small: bool) -> tuple[tuple[Picture, ...], str]:
    if case.inputs is None:
        return (), ""
    pictures = []
    for date in _shown_dates(case):
        cover = case.record.coverage[date] if date < len(case.record.coverage) else math.nan
        note = "" if math.isnan(cover) else f"{100 * cover:.0f} % cloud"
        day = case.record.dates[date] if date < len(case.record.dates) else f"date {date + 1}"
        pictures.append(_photo(case.inputs[date], day, note, f"input {date}", small, f"input {date + 1}"))
    n_dates, n_shown = len(case.inputs), len(pictures)
    return tuple(
        pictures
    ), "" if n_shown == n_dates else f"{n_shown} of {n_dates} dates: the clearest and the cloudiest."


def _radar(case: Case, small: bool) -> tuple[Picture, ...]:
    if case.radar is None:
        return ()
    low, high = SAR_RANGE_DB
    found = []
    for date in _shown_dates(case):
        day = case.record.dates[date] if date < len(case.record.dates) else f"date {date + 1}"
        note = f"median {np.median(case.radar[date]):.1f} dB".replace("-", "\N{MINUS SIGN}")
        alt = f"Radar of {day}, VV backscatter in grey, {note}"
        found.append(Picture(mapped(case.radar[date], low, high, _RADAR_COLOURS), alt, day, note, small=small))
    return tuple(found)


def _shown_dates(case: Case) -> list[int]:
    """All dates of a short series; of a long one those with least and most cloud, in order of time."""
    series = case.inputs if case.inputs is not None else case.radar
    n_dates = 0 if series is None else len(series)
    if n_dates <= _MOST_DATES:
        return list(range(n_dates))
    cover = np.asarray(case.record.coverage if len(case.record.coverage) == n_dates else np.arange(n_dates))
    order = np.argsort(cover, kind="stable")
    return sorted({*order[: _MOST_DATES // 2].tolist(), *order[-_MOST_DATES // 2 :].tolist()})


def _most_clouded(case: Case) -> int:
    """Position among the shown inputs."""
    shown = _shown_dates(case)
    cover = [case.record.coverage[date] if date < len(case.record.coverage) else 0.0 for date in shown]
    return int(np.argmax(np.nan_to_num(cover)))


def _psnr(rmse: float) -> str:
    return f"PSNR {-20 * math.log10(rmse):.2f} dB" if rmse > 0 else "PSNR infinite"
