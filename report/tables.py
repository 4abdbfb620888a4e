"""Tables of a page, from what metrics files tell; the best of a column is marked by a word and a star."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.baselines import EVERY_CLOUDED, OVERALL
from evaluation.metrics import IMAGE_METRICS

BASELINES = {
    "least_cloudy": "the input with the least cloud",
    "mean": "the mean of the inputs",
    "clear_mean": "the mean of their clear pixels",
}
LOWER, HIGHER = "lower is better", "higher is better"
_BETTER = {"PSNR": HIGHER, "SSIM": HIGHER}
_COVERAGES = {"coverage 50": 0.5, "coverage 90": 0.9, "coverage 95": 0.95}
_NO_RANKING = ("sharpness",)
_CALIBRATION = ("NLL", "CRPS", "ENCE", "UCE", "AUSE", "coverage 90", "sharpness")
_BAND_NAMES = {
    "B01": "coastal aerosol, 443 nm",
    "B02": "blue, 490 nm",
    "B03": "green, 560 nm",
    "B04": "red, 665 nm",
    "B05": "red edge, 705 nm",
    "B06": "red edge, 740 nm",
    "B07": "red edge, 783 nm",
    "B08": "near infrared, 842 nm",
    "B8A": "near infrared, 865 nm",
    "B09": "water vapour, 945 nm",
    "B10": "cirrus, 1375 nm",
    "B11": "short-wave infrared, 1610 nm",
    "B12": "short-wave infrared, 2190 nm",
}

Metrics = Mapping[str, Any]
UNKNOWN = "\N{EN DASH}"
NARROW = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    text: str
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column, and which way is better."""

    name: str
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """A named row."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""
    strong: bool = False  # the row of a network, beside baselines


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def number(name: str, value: float) -> str:
    """A figure as people read it, by the name of its metric."""
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else "infinite"
    if name.startswith("coverage"):
        return f"{100 * value:.1f}{NARROW}%"
    text = f"{value:.{ {'PSNR': 2, 'SAM': 2, 'NLL': 3, 'ENCE': 3, 'AUSE': 3}.get(name, 4) }f}"
    return text.replace("-", "\N{MINUS SIGN}")


def methods(comparison: Mapping[str, Mapping[str, Metrics]], networks: Sequence[str]) -> Table | None:
    """Networks (and members of ensembles) beside the trivial baselines over all samples.

    Args:
        comparison: as in `comparison.json`: group -> method -> figures.
        networks: methods whose rows are to stand out.
    """
    group = comparison.get(OVERALL)
    if not group:
        return None
    columns = tuple(Column(name, _BETTER.get(name, LOWER)) for name in IMAGE_METRICS)
    cells = ranked({name: {key: entry.get(key, math.nan) for key in IMAGE_METRICS} for name, entry in group.items()})
    rows = tuple(Row(name, cells[name], BASELINES.get(name, ""), name in networks) for name in group)
    return Table("All samples: means over images", "method", columns, rows)


def by_cover(comparison: Mapping[str, Mapping[str, Metrics]]) -> Table | None:
    """PSNR of every method by the cloud cover of a sample's inputs."""
    groups = {name: group for name, group in comparison.items() if name != OVERALL}
    if not groups:
        return None
    names = list(next(iter(groups.values())))
    rows = []
    for title, group in groups.items():
        figures = {name: {"PSNR": group[name]["PSNR"]} if name in group else {} for name in names}
        cells = ranked(figures)
        images = max(entry["images"] for entry in group.values())
        words = f"{images} sample" + ("" if images == 1 else "s")
        shown = "every input clouded by 30 % or more" if title == EVERY_CLOUDED else title
        rows.append(Row(shown, tuple(cells[name][0] if cells[name] else Cell("") for name in names), words))
    columns = tuple(Column(name) for name in names)
    return Table(
        "PSNR in dB by the mean cloud cover of a sample's inputs; higher is better", "samples", columns, tuple(rows)
    )


def by_stratum(runs: Mapping[str, Metrics]) -> Table | None:
    """Figures by the cloudiness of a pixel: of one run many figures, of several runs their RMSE and coverage."""
    strata = list(dict.fromkeys(name for run in runs.values() for name in run.get("strata", {})))
    if not strata:
        return None
    everything = {"all pixels": runs} | {
        name: {run: metrics["strata"][name] for run, metrics in runs.items() if name in metrics.get("strata", {})}
        for name in strata
    }
    if len(runs) > 1:
        return _several_strata(everything, list(runs))
    (metrics,) = runs.values()
    total = sum(stratum.get("elements", 0) for stratum in metrics["strata"].values())
    keys = [key for key in ("RMSE", "MAE", *_CALIBRATION) if key in metrics["strata"][strata[0]]]
    rows = []
    for name, of in everything.items():
        figures = next(iter(of.values()))
        if name == "all pixels":  # the RMSE of a metrics file is a mean over images; here pixels count
            figures = {**figures, **_pooled(metrics)}
        share = figures.get("elements", 0) / total if total and name != "all pixels" else math.nan
        note = "" if math.isnan(share) else f"{100 * share:.0f} % of pixels"
        rows.append(Row(name, tuple(Cell(number(key, figures.get(key, math.nan))) for key in keys), note))
    columns = tuple(Column(key, _hint(key)) for key in keys)
    return Table("By the cloudiness of the pixel: over all pixels and bands", "pixels", columns, tuple(rows))


def _pooled(metrics: Metrics) -> dict[str, float]:
    """RMSE and MAE over all pixels and bands, from those of bands or of strata."""
    parts = [(1, of["RMSE"], of["MAE"]) for of in metrics.get("bands", {}).values()] or [
        (of["elements"], of["RMSE"], of["MAE"]) for of in metrics.get("strata", {}).values() if of.get("elements")
    ]
    total = sum(share for share, _, _ in parts)
    if not total:
        return {"RMSE": math.nan, "MAE": math.nan}
    square = sum(share * rmse**2 for share, rmse, _ in parts) / total
    return {"RMSE": square**0.5, "MAE": sum(share * mae for share, _, mae in parts) / total}


def _several_strata(everything: Mapping[str, Mapping[str, Metrics]], runs: Sequence[str]) -> Table:
    rows = []
    for name, of in everything.items():
        figures = dict(of)
        for key in ("RMSE", "coverage 90"):
            values = {run: figures.get(run, {}).get(key, math.nan) for run in runs}
            if name == "all pixels" and key == "RMSE":
                values = {run: _pooled(figures[run])["RMSE"] for run in runs}
            if all(math.isnan(value) for value in values.values()):
                continue
            cells = ranked({run: {key: value} for run, value in values.items()})
            words = "RMSE" if key == "RMSE" else "targets inside the 90 % interval"
            rows.append(Row(name, tuple(cells[run][0] for run in runs), words))
    return Table("By the cloudiness of the pixel", "pixels", tuple(Column(run) for run in runs), tuple(rows))


def by_band(runs: Mapping[str, Metrics]) -> Table | None:
    """Figures of each band: of one run many figures, of several runs their RMSE."""
    known = {name: metrics["bands"] for name, metrics in runs.items() if metrics.get("bands")}
    if not known:
        return None
    bands = list(next(iter(known.values())))
    if len(runs) > 1:
        figures = {band: {run: {"RMSE": table[band]["RMSE"]} for run, table in known.items()} for band in bands}
        marked = {band: ranked(of) for band, of in figures.items()}
        rows = tuple(
            Row(band, tuple(marked[band][run][0] for run in known), _BAND_NAMES.get(band, "")) for band in bands
        )
        return Table("RMSE by band, reflectance; lower is better", "band", tuple(Column(run) for run in known), rows)
    (table,) = known.values()
    has_variance = "RMV" in table[bands[0]]
    columns = [Column("RMSE"), Column("MAE"), Column("bias", "prediction minus target")]
    if has_variance:
        columns += [Column("stated deviation", "root mean variance"), Column("stated / true", "1 is calibrated")]
        columns.append(Column("verdict"))
    found = []
    for band, values in table.items():
        cells = [Cell(number(key, values[key])) for key in ("RMSE", "MAE", "bias")]
        if has_variance:
            ratio = values["RMV"] / values["RMSE"] if values["RMSE"] else math.nan
            cells += [Cell(number("RMV", values["RMV"])), Cell(f"{ratio:.2f}"), Cell(_verdict(ratio))]
        found.append(Row(band, tuple(cells), _BAND_NAMES.get(band, "")))
    return Table("By band, over all pixels, in reflectance", "band", tuple(columns), tuple(found))


def of_runs(runs: Mapping[str, Metrics]) -> list[Table]:
    """All figures of several runs beside each other, with differences to the first run: errors; calibration."""
    kinds = {"All samples: errors": IMAGE_METRICS, "All samples: calibration and scores": _CALIBRATION}
    return [
        _beside(caption, keys, runs)
        for caption, names in kinds.items()
        if (keys := [key for key in names if any(key in metrics for metrics in runs.values())])
    ]


def _beside(caption: str, keys: Sequence[str], runs: Mapping[str, Metrics]) -> Table:
    figures = {run: {key: metrics.get(key, math.nan) for key in keys} for run, metrics in runs.items()}
    marked = ranked(figures)
    first = next(iter(figures.values()))
    rows = []
    for at, (run, values) in enumerate(figures.items()):
        cells = []
        for cell, key in zip(marked[run], keys, strict=True):
            difference = "" if at == 0 else _difference(key, values[key] - first[key])
            cells.append(Cell(cell.text, cell.best, difference))
        rows.append(Row(run, tuple(cells), "the reference" if at == 0 else ""))
    return Table(caption, "run", tuple(Column(key, _hint(key)) for key in keys), tuple(rows))


def _difference(key: str, value: float) -> str:
    if not math.isfinite(value):
        return ""
    text = (
        f"{100 * value:+.1f} points"
        if key.startswith("coverage")
        else f"{value:+.{2 if key in ('PSNR', 'SAM') else 4}f}"
    )
    return text.replace("-", "\N{MINUS SIGN}")


def _hint(key: str) -> str:
    if key in _COVERAGES:
        return f"nearest to {100 * _COVERAGES[key]:.0f} % is best"
    return "" if key in _NO_RANKING else _BETTER.get(key, LOWER)


def _verdict(ratio: float) -> str:
    if math.isnan(ratio):
        return ""
    if 0.9 <= ratio <= 1.1:
        return "about right"
    return "over-confident" if ratio < 1 else "too cautious"


def ranked(figures: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[Cell, ...]]:
    """Cells of each row; the best of each column is marked where there is something to compare it with."""
    found: dict[str, list[Cell]] = {name: [] for name in figures}
    for key in next((list(values) for values in figures.values() if values), []):
        known = {name: values[key] for name, values in figures.items() if not math.isnan(values.get(key, math.nan))}
        shown = {name: number(key, value) for name, value in known.items()}
        winner = min(known, key=lambda name: _loss(key, known[name])) if len(known) > 1 else None
        for name, values in figures.items():
            if key not in values:
                continue
            # what reads alike is alike
            best = winner is not None and shown.get(name) == shown[winner] and key not in _NO_RANKING
            found[name].append(Cell(number(key, values[key]), best))
    return {name: tuple(cells) for name, cells in found.items()}


def _loss(key: str, value: float) -> float:
    """What is to be small."""
    if key in _COVERAGES:
        return abs(value - _COVERAGES[key])
    return -value if _BETTER.get(key) == HIGHER else value
