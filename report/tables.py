"""Tables of a page, from metrics files; the best of a column is marked with a word and a star."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.baselines import EVERY_CLOUDED, HIGHER_IS_BETTER, OVERALL
from evaluation.image_metrics import IMAGE_METRICS

BASELINES = {
    "least_cloudy": "the input with the least cloud",
    "mean": "the mean of the inputs",
    "clear_mean": "the mean of their clear pixels",
}
_COVERAGES = {"coverage 50": 0.5, "coverage 90": 0.9, "coverage 95": 0.95}
_UNRANKED = ("sharpness",)
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
    """The head of a column; the hint says which values are better."""

    name: str
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """A named row."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""
    strong: bool = False  # the row of a network among baselines


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def format_figure(name: str, value: float) -> str:
    """The text of a figure; its format depends on the name of the metric."""
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else "infinite"
    if name.startswith("coverage"):
        return f"{100 * value:.1f}{NARROW}%"
    text = f"{value:.{ {'PSNR': 2, 'SAM': 2, 'NLL': 3, 'ENCE': 3, 'AUSE': 3}.get(name, 4) }f}"
    return text.replace("-", "\N{MINUS SIGN}")


def methods_table(comparison: Mapping[str, Mapping[str, Metrics]], networks: Sequence[str]) -> Table | None:
    """Networks or ensembles and their members, and the trivial baselines, over all samples.

    Args:
        comparison: as in `comparison.json`: group -> method -> figures.
        networks: methods with highlighted rows.
    """
    group = comparison.get(OVERALL)
    if not group:
        return None
    cells = ranked({name: {key: entry.get(key, math.nan) for key in IMAGE_METRICS} for name, entry in group.items()})
    rows = tuple(Row(name, cells[name], BASELINES.get(name, ""), name in networks) for name in group)
    return Table("All samples: means over images", "method", _columns(IMAGE_METRICS), rows)


def by_cover(comparison: Mapping[str, Mapping[str, Metrics]]) -> Table | None:
    """PSNR of every method by the cloud cover of a sample's inputs."""
    groups = {name: group for name, group in comparison.items() if name != OVERALL}
    if not groups:
        return None
    names = list(next(iter(groups.values())))
    rows = []
    for name, group in groups.items():
        cells = ranked({method: {"PSNR": group[method]["PSNR"]} if method in group else {} for method in names})
        images = max(entry["images"] for entry in group.values())
        note = f"{images} sample" + ("" if images == 1 else "s")
        title = "every input clouded by 30 % or more" if name == EVERY_CLOUDED else name
        rows.append(Row(title, tuple(cells[method][0] if cells[method] else Cell("") for method in names), note))
    return cover_table(names, rows)


def cover_table(names: Sequence[str], rows: Sequence[Row]) -> Table:
    """A table of PSNR by cloud cover, with one column per method or run."""
    caption = "PSNR in dB by the mean cloud cover of a sample's inputs; higher is better"
    return Table(caption, "samples", tuple(Column(name) for name in names), tuple(rows))


def by_stratum(runs: Mapping[str, Metrics]) -> Table | None:
    """Figures by the cloudiness of a pixel: many for one run, RMSE and coverage for several runs."""
    strata = list(dict.fromkeys(name for run in runs.values() for name in run.get("strata", {})))
    if not strata:
        return None
    # the RMSE and MAE of a metrics file are means over images; here pixels count
    by_run = {
        run: {"all pixels": {**metrics, **_pooled(metrics)}, **metrics.get("strata", {})}
        for run, metrics in runs.items()
    }
    names = ["all pixels", *strata]
    if len(runs) > 1:
        return _several_strata(by_run, names)
    (groups,) = by_run.values()
    total = sum(groups[name].get("elements", 0) for name in strata)
    keys = [key for key in ("RMSE", "MAE", *_CALIBRATION) if key in groups[strata[0]]]
    rows = []
    for name in names:
        note = f"{100 * groups[name].get('elements', 0) / total:.0f} % of pixels" if total and name in strata else ""
        cells = tuple(Cell(format_figure(key, groups[name].get(key, math.nan))) for key in keys)
        rows.append(Row(name, cells, note))
    return Table("By the cloudiness of the pixel: over all pixels and bands", "pixels", _columns(keys), tuple(rows))


def _pooled(metrics: Metrics) -> dict[str, float]:
    """RMSE and MAE over all pixels and bands, from those of bands or of strata."""
    parts = [(1, band["RMSE"], band["MAE"]) for band in metrics.get("bands", {}).values()] or [
        (stratum["elements"], stratum["RMSE"], stratum["MAE"])
        for stratum in metrics.get("strata", {}).values()
        if stratum.get("elements")
    ]
    total = sum(share for share, _, _ in parts)
    if not total:
        return {"RMSE": math.nan, "MAE": math.nan}
    square = sum(share * rmse**2 for share, rmse, _ in parts) / total
    return {"RMSE": square**0.5, "MAE": sum(share * mae for share, _, mae in parts) / total}


def _several_strata(by_run: Mapping[str, Mapping[str, Metrics]], names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        for key, note in (("RMSE", "RMSE"), ("coverage 90", "targets inside the 90 % interval")):
            values = {run: groups.get(name, {}).get(key, math.nan) for run, groups in by_run.items()}
            if all(math.isnan(value) for value in values.values()):
                continue
            cells = ranked({run: {key: value} for run, value in values.items()})
            rows.append(Row(name, tuple(cells[run][0] for run in by_run), note))
    return Table("By the cloudiness of the pixel", "pixels", tuple(Column(run) for run in by_run), tuple(rows))


def by_band(runs: Mapping[str, Metrics]) -> Table | None:
    """Figures by band: many for one run, RMSE for several runs."""
    by_run = {name: metrics["bands"] for name, metrics in runs.items() if metrics.get("bands")}
    if not by_run:
        return None
    rows = []
    if len(runs) > 1:
        for band in next(iter(by_run.values())):
            cells = ranked({run: {"RMSE": bands[band]["RMSE"]} for run, bands in by_run.items()})
            rows.append(Row(band, tuple(cells[run][0] for run in by_run), _BAND_NAMES.get(band, "")))
        columns = [Column(run) for run in by_run]
        return Table("RMSE by band, reflectance; lower is better", "band", tuple(columns), tuple(rows))
    (bands,) = by_run.values()
    has_variance = "RMV" in next(iter(bands.values()))
    columns = [Column("RMSE"), Column("MAE"), Column("bias", "prediction minus target")]
    if has_variance:
        columns += [Column("stated deviation", "root mean variance"), Column("stated / true", "1 is calibrated")]
        columns.append(Column("verdict"))
    for band, values in bands.items():
        row = [Cell(format_figure(key, values[key])) for key in ("RMSE", "MAE", "bias")]
        if has_variance:
            ratio = values["RMV"] / values["RMSE"] if values["RMSE"] else math.nan
            row += [Cell(format_figure("RMV", values["RMV"])), Cell(f"{ratio:.2f}"), Cell(_verdict(ratio))]
        rows.append(Row(band, tuple(row), _BAND_NAMES.get(band, "")))
    return Table("By band, over all pixels, in reflectance", "band", tuple(columns), tuple(rows))


def runs_tables(runs: Mapping[str, Metrics]) -> list[Table]:
    """All figures of several runs, with differences to the first run: a table of errors and one of calibration."""
    kinds = {"All samples: errors": IMAGE_METRICS, "All samples: calibration and scores": _CALIBRATION}
    return [
        _runs_table(caption, keys, runs)
        for caption, names in kinds.items()
        if (keys := [key for key in names if any(key in metrics for metrics in runs.values())])
    ]


def _runs_table(caption: str, keys: Sequence[str], runs: Mapping[str, Metrics]) -> Table:
    figures = {run: {key: metrics.get(key, math.nan) for key in keys} for run, metrics in runs.items()}
    marked = ranked(figures)
    first = next(iter(figures.values()))
    rows = []
    for run, values in figures.items():
        cells = marked[run]
        if values is not first:
            cells = tuple(
                replace(cell, note=_difference(key, values[key] - first[key]))
                for cell, key in zip(cells, keys, strict=True)
            )
        rows.append(Row(run, cells, "the reference" if values is first else ""))
    return Table(caption, "run", _columns(keys), tuple(rows))


def _columns(keys: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(key, _hint(key)) for key in keys)


def _difference(key: str, value: float) -> str:
    if not math.isfinite(value):
        return ""
    text = f"{value:+.{2 if key in ('PSNR', 'SAM') else 4}f}"
    if key.startswith("coverage"):
        text = f"{100 * value:+.1f} points"
    return text.replace("-", "\N{MINUS SIGN}")


def _hint(key: str) -> str:
    if key in _COVERAGES:
        return f"nearest to {100 * _COVERAGES[key]:.0f} % is best"
    if key in _UNRANKED:
        return ""
    return "higher is better" if key in HIGHER_IS_BETTER else "lower is better"


def _verdict(ratio: float) -> str:
    if math.isnan(ratio):
        return ""
    if 0.9 <= ratio <= 1.1:
        return "about right"
    return "over-confident" if ratio < 1 else "too cautious"


def ranked(figures: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[Cell, ...]]:
    """The cells of each row; the best of each column is marked if at least two rows have a value."""
    rows: dict[str, list[Cell]] = {name: [] for name in figures}
    for key in next((list(values) for values in figures.values() if values), []):
        valid = {name: values[key] for name, values in figures.items() if not math.isnan(values.get(key, math.nan))}
        best = None  # as text, so that values that look equal are both marked
        if len(valid) > 1 and key not in _UNRANKED:
            best = format_figure(key, min(valid.values(), key=lambda value: _loss(key, value)))
        for name, values in figures.items():
            if key in values:
                text = format_figure(key, values[key])
                rows[name].append(Cell(text, text == best))
    return {name: tuple(cells) for name, cells in rows.items()}


def _loss(key: str, value: float) -> float:
    """A quantity that is smaller for better values."""
    if key in _COVERAGES:
        return abs(value - _COVERAGES[key])
    return -value if key in HIGHER_IS_BETTER else value
