"""The page of one test: a network beside the trivial baselines, or an ensemble beside its members."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import DataError
from evaluation.baselines import OVERALL
from evaluation.charts import plot_coverage, plot_discards, plot_reliability, strata_of
from report import interpretation as words
from report.cards import Missing, make_cards
from report.page import pretty, write_page
from report.pictures import charts
from report.samples import Case
from report.tables import BASELINES, by_band, by_cover, by_stratum, methods, number

FILE = "report.html"
WIDTH = 4.4  # of a chart, inches: three stand side by side, and letters are readable on a phone


@dataclass(frozen=True)
class Tested:
    """What a page tells of one test.

    Attributes:
        kicker: what kind of page it is.
        title: name of the run.
        facts: pairs of words: model, data, number of samples.
        metrics: as in `test_metrics.json`.
        comparison: as in `comparison.json`.
        networks: methods of the comparison that are not baselines; the first is the one reported on.
        cases: the samples to show.
        command: the command line, and what is to be said of it.
        configuration: the flags.
        missing: what to say where samples have no inputs, radar or variance.
        methods_note: below the first table.
        samples_note: below the cards.
    """

    kicker: str
    title: str
    facts: Sequence[tuple[str, str]]
    metrics: Mapping[str, Any]
    comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]
    networks: Sequence[str]
    cases: Sequence[Case]
    command: str
    command_words: str
    configuration: Mapping[str, Any]
    missing: Missing = Missing()
    methods_note: str = ""
    samples_note: str = ""


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and what to see in it."""

    title: str
    src: str
    alt: str
    caption: str


def write_report(folder: Path, tested: Tested) -> Path:
    """Write `report.html` into the folder of a test.

    Returns:
        Its path.

    Raises:
        DataError: if jinja2 is missing, or the file cannot be written.
    """
    metrics = tested.metrics
    named = {tested.title: metrics}
    tables = [by_cover(tested.comparison), by_stratum(named), by_band(named)]
    missing = [
        f"There is no table {what}: {why}."
        for table, what, why in zip(
            tables,
            ("by cloud cover", "by cloudiness of the pixel", "by band"),
            ("the cloud cover of the inputs is not known", "no cloud masks are at hand", "it was not measured"),
            strict=True,
        )
        if table is None
    ]
    content = {
        "kicker": tested.kicker,
        "title": tested.title,
        "facts": tested.facts,
        "tiles": _tiles(tested),
        "methods": methods(tested.comparison, tested.networks),
        "methods_note": tested.methods_note,
        "cards": make_cards(tested.cases, tested.missing),
        "samples_note": tested.samples_note,
        "statements": words.calibration(metrics),
        "charts": _charts(metrics) if "reliability" in metrics else [],
        "tables": [table for table in tables if table is not None],
        "missing": missing,
        "command": tested.command,
        "command_words": tested.command_words,
        "configuration": pretty(tested.configuration),
        "n_flags": len(tested.configuration),
    }
    return write_page(folder / FILE, "report.html", content)


def report_or_say_why(write: Callable[[], Path]) -> None:
    """Write a report and print its path; what goes wrong is told in a line, for metrics are there already."""
    try:
        print(f"report: {write()}")
    except DataError as error:
        print(f"note: there is no report: {error}")


def _tiles(tested: Tested) -> list[Tile]:
    metrics, group = tested.metrics, tested.comparison.get(OVERALL, {})
    others = {name: entry for name, entry in group.items() if name not in tested.networks}
    kind = "baseline" if all(name in BASELINES for name in others) else "member"
    tiles = []
    for name, unit, sign in (("PSNR", " dB", 1), ("RMSE", "", -1), ("SSIM", "", 1), ("SAM", "\N{DEGREE SIGN}", -1)):
        note = ""
        known = {other: entry[name] for other, entry in others.items() if not math.isnan(entry.get(name, math.nan))}
        if known:
            best = max(known, key=lambda other: sign * known[other])
            note = f"best {kind}: {number(name, known[best])}{unit} ({best})"
        tiles.append(Tile(name, f"{number(name, metrics.get(name, math.nan))}{unit}", note))
    if "coverage 90" in metrics:
        tiles.append(Tile("inside the 90 % interval", number("coverage 90", metrics["coverage 90"]), "should be 90 %"))
        tiles.append(Tile("ENCE", number("ENCE", metrics["ENCE"]), "how far stated deviations are off; 0 is perfect"))
    return tiles


def _charts(metrics: Mapping[str, Any]) -> list[Chart]:
    """Reliability, coverage and discard curve; the first two by cloudiness of the pixel as well."""
    reports = {name.split(",")[0]: report for name, report in strata_of(metrics).items()}  # a table tells the shares
    images = [
        partial(plot_reliability, reports, width=WIDTH),
        partial(plot_coverage, reports, width=WIDTH),
        partial(plot_discards, {"sorted by stated variance": metrics["discard curve SE"]}, width=WIDTH),
    ]
    reliability, coverage, discard = charts(images)
    return [
        Chart(
            "Reliability",
            reliability,
            f"True against stated error in 20 groups of pixels; ENCE {metrics['ENCE']:.3f} over all pixels",
            "True error against stated deviation, all pixels and by how many of the inputs are clouded there. On the "
            "diagonal the network is right about its errors; above it, it is over-confident.",
        ),
        Chart(
            "Coverage",
            coverage,
            f"Share of true values inside the stated intervals; {100 * metrics['coverage 90']:.1f} % in that of 90 %",
            "How many true values lie inside intervals of each level. On the diagonal as many as promised; below it, "
            "fewer: over-confident.",
        ),
        Chart(
            "Discard curve",
            discard,
            "Mean squared error of the images that are kept when the least certain ones are discarded",
            "The error of the most certain images. It should rise to the right: then the stated uncertainty tells good "
            "images from bad ones." + _few(metrics),
        ),
    ]


def _few(metrics: Mapping[str, Any]) -> str:
    images = metrics.get("images", 0)
    return f" With {images} images the first steps hold none, and are not drawn." if images < 20 else ""
