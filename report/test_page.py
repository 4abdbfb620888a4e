"""The page of one test: a network compared with the trivial baselines, or an ensemble with its members."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.baselines import OVERALL
from evaluation.charts import metrics_by_stratum
from evaluation.sample_records import SampleImages
from report.cards import Placeholders, make_cards
from report.interpretation import interpret_calibration
from report.page import format_flags, write_page
from report.pictures import Chart, calibration_charts
from report.tables import BASELINES, by_band, by_cover, by_stratum, format_figure, methods_table

FILE = "report.html"


@dataclass(frozen=True)
class TestReport:
    """The content of the page of one test.

    Attributes:
        kicker: the kind of page.
        title: name of the run.
        facts: names and values: model, data, number of samples.
        metrics: as in `test_metrics.json`.
        comparison: as in `comparison.json`.
        networks: methods of the comparison that are not baselines; the first is the tested one.
        samples: the samples to show.
        command: the command line.
        command_note: a sentence about it.
        configuration: the flags.
        placeholders: texts for samples without inputs, radar or variance.
        methods_note: a note below the first table.
    """

    kicker: str
    title: str
    facts: Sequence[tuple[str, str]]
    metrics: Mapping[str, Any]
    comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]
    networks: Sequence[str]
    samples: Sequence[SampleImages]
    command: str
    command_note: str
    configuration: Mapping[str, Any]
    placeholders: Placeholders = Placeholders()
    methods_note: str = ""


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    name: str
    value: str
    note: str


def write_test_page(folder: Path, report: TestReport) -> Path:
    """Write `report.html` into the folder of a test.

    Returns:
        Its path.

    Raises:
        DataError: if jinja2 is missing, or the file cannot be written.
    """
    metrics, run = report.metrics, {report.title: report.metrics}
    tables = {
        "by cloud cover: the cloud cover of the inputs is not known": by_cover(report.comparison),
        "by cloudiness of the pixel: no cloud masks are available": by_stratum(run),
        "by band: it was not measured": by_band(run),
    }
    content = {
        "kicker": report.kicker,
        "title": report.title,
        "facts": report.facts,
        "tiles": _tiles(report),
        "methods": methods_table(report.comparison, report.networks),
        "methods_note": report.methods_note,
        "cards": make_cards(report.samples, report.placeholders),
        "statements": interpret_calibration(metrics),
        "charts": _charts(metrics) if "reliability" in metrics else [],
        "tables": [table for table in tables.values() if table is not None],
        "missing": [f"There is no table {reason}." for reason, table in tables.items() if table is None],
        "command": report.command,
        "command_note": report.command_note,
        "configuration": format_flags(report.configuration),
        "n_flags": len(report.configuration),
    }
    return write_page(folder / FILE, "report.html", content)


def _tiles(report: TestReport) -> list[Tile]:
    metrics, group = report.metrics, report.comparison.get(OVERALL, {})
    others = {name: entry for name, entry in group.items() if name not in report.networks}
    kind = "baseline" if all(name in BASELINES for name in others) else "member"
    tiles = []
    for name, unit, sign in (("PSNR", " dB", 1), ("RMSE", "", -1), ("SSIM", "", 1), ("SAM", "\N{DEGREE SIGN}", -1)):
        note = ""
        values = {method: entry[name] for method, entry in others.items() if not math.isnan(entry.get(name, math.nan))}
        if values:
            best = max(values, key=lambda method: sign * values[method])
            note = f"best {kind}: {format_figure(name, values[best])}{unit} ({best})"
        tiles.append(Tile(name, f"{format_figure(name, metrics.get(name, math.nan))}{unit}", note))
    if "coverage 90" in metrics:
        inside = format_figure("coverage 90", metrics["coverage 90"])
        tiles.append(Tile("inside the 90 % interval", inside, "should be 90 %"))
        ence = format_figure("ENCE", metrics["ENCE"])
        tiles.append(Tile("ENCE", ence, "how far stated deviations are off; 0 is perfect"))
    return tiles


def _charts(metrics: Mapping[str, Any]) -> list[Chart]:
    """Reliability, coverage and discard curve; the first two by cloudiness of the pixel as well."""
    strata = {name.split(",")[0]: stratum for name, stratum in metrics_by_stratum(metrics).items()}
    images = metrics.get("images", 0)
    few = f" With {images} images the first steps hold none, and are not drawn." if images < 20 else ""
    return calibration_charts(
        strata,
        {"sorted by stated variance": metrics["discard curve SE"]},
        reliability=(
            f"True against stated error in 20 groups of pixels; ENCE {metrics['ENCE']:.3f} over all pixels",
            "True error against stated deviation, all pixels and by how many of the inputs are clouded there. On the "
            "diagonal the network is right about its errors; above it, it is over-confident.",
        ),
        coverage=(
            f"Share of true values inside the stated intervals; {100 * metrics['coverage 90']:.1f} % in that of 90 %",
            "How many true values lie inside intervals of each level. On the diagonal as many as promised; below it, "
            "fewer: over-confident.",
        ),
        discard=(
            "Mean squared error of the images that are kept when the least certain ones are discarded",
            "The error of the most certain images. It should rise to the right: then the stated uncertainty tells good "
            "images from bad ones." + few,
        ),
    )
