"""The page of several tested runs side by side: what their folders hold, and cards of samples they all exported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UsageError
from evaluation.baselines import OVERALL
from evaluation.charts import plot_coverage, plot_discards, plot_reliability
from evaluation.ensemble import read_target
from evaluation.exports import Exports, read_exports
from evaluation.sample_records import FILE as SAMPLES
from evaluation.sample_records import SampleRecord, choose, read_records, record_of
from report.cards import Cards, Missing, make_cards
from report.page import write_page
from report.pictures import charts
from report.samples import Case, output_of, read_series
from report.tables import BASELINES, Column, Row, Table, by_band, by_stratum, number, of_runs, ranked
from report.test_page import WIDTH, Chart

METRICS = "test_metrics.json"


@dataclass(frozen=True)
class RunResult:
    """What the folder of a tested run holds."""

    name: str
    folder: Path
    metrics: Mapping[str, Any]
    comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]
    records: Sequence[SampleRecord]  # empty where there is neither a list of samples nor a manifest
    exports: Exports | None
    flags: Mapping[str, Any]

    @property
    def root(self) -> str:
        """The data set it was tested on, if that is here; else empty."""
        flag = "root3" if self.flags.get("pretrain") else "root2"
        root = str(self.flags.get(flag, ""))
        return root if root and Path(root).is_dir() else ""

    @property
    def method(self) -> str:
        """What its own row is called in its comparison."""
        return next((name for name in self.comparison.get(OVERALL, {}) if name not in BASELINES), "")


def read_run(folder: Path) -> RunResult:
    """What a tested run left, of a network or of an ensemble.

    Raises:
        DataError: if the folder is none of a tested run, or a file in it cannot be read.
    """
    if not (folder / METRICS).is_file():
        raise DataError(f"there is no {METRICS} in {folder}; give the folder that a test wrote (RES_DIR/EXPERIMENT)")
    metrics = _read(folder / METRICS)
    comparison = metrics.get("comparison") or _read(folder / "comparison.json")
    flags = _read(folder / "test_conf.json") or _read(folder / "conf.json")
    exports = _exports(folder)
    if (folder / SAMPLES).is_file():
        records: Sequence[SampleRecord] = read_records(folder / SAMPLES)
    else:  # of a test before there were such lists
        infos = {} if exports is None else exports.infos
        records = [record_of(number, info, {}) for number, info in infos.items() if info]
    return RunResult(folder.resolve().name, folder, metrics, comparison, records, exports, flags)


def require_equal_samples(runs: Sequence[RunResult]) -> list[str]:
    """Check that all runs were tested on the same samples.

    Returns:
        What is to be said about it: runs whose samples are not known, runs that saw other inputs.

    Raises:
        DataError: if a sample of one run is not among those of another, or their numbers differ.
    """
    notes = []
    first = runs[0]
    for run in runs[1:]:
        here, there = first.metrics.get("images"), run.metrics.get("images")
        if here != there:
            raise DataError(
                f"{first.folder} was tested on {here} samples, {run.folder} on {there}; test both on the same data and "
                "subset (--root2, --region, --max_samples_count) to compare them"
            )
        if not first.records or not run.records:
            missing = run if first.records else first
            notes.append(f"Which samples {missing.name} was tested on is not known; their number is the same.")
            continue
        mine, others = ({record.id: record.place for record in of.records} for of in (first, run))
        other = next((number for number in mine if number in others and others[number] != mine[number]), None)
        if other is not None:
            raise DataError(
                f"sample {other} is {_words(mine[other])} in {first.folder}, but {_words(others[other])} in "
                f"{run.folder}; test both on the same data and subset to compare them"
            )
        dates, dates_there = ({record.id: record.dates for record in of.records} for of in (first, run))
        if any(dates[number] != dates_there.get(number, dates[number]) for number in dates):
            notes.append(f"{run.name} saw inputs of other dates than {first.name}; the targets are the same.")
    return notes


def report_runs(runs: Sequence[RunResult], path: Path, root: str, command: str) -> Path:
    """Write the page of several runs.

    Args:
        runs: two or more, with different names.
        path: the .html file.
        root: the data set, for inputs; empty to take that of the first run that has it.
        command: the command line.

    Returns:
        The path.

    Raises:
        DataError: if the runs were tested on different samples, or a file cannot be read or written.
    """
    notes = require_equal_samples(runs)
    named = {run.name: run.metrics for run in runs}
    cards, cards_note = _cards(runs, root)
    drawn = {name: metrics for name, metrics in named.items() if "reliability" in metrics}
    without = [name for name in named if name not in drawn]
    if without:
        notes.append(f"No variance, and so no calibration: {', '.join(without)}.")
    tables = [_baselines(runs[0]), _by_cover(runs), by_stratum(named), by_band(named)]
    if tables[-1] is None or len(tables[-1].columns) < len(runs):
        notes.append("Figures by band are missing where a run was tested by an earlier version; test it again.")
    content = {
        "title": " / ".join(named),
        "facts": [("runs", f"{len(runs)}"), ("samples", f"{runs[0].metrics.get('images', 0):,}")],
        "runs": of_runs(named),
        "notes": notes,
        "cards": cards,
        "cards_note": cards_note,
        "charts": _charts(drawn) if drawn else [],
        "tables": [table for table in tables if table is not None],
        "command": command,
        "folders": [(run.name, str(run.folder)) for run in runs],
    }
    return write_page(path, "compare.html", content)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); test the run again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of figures by name, got {type(content).__name__}")
    return content


def _exports(folder: Path) -> Exports | None:
    if not (folder / "export").is_dir():
        return None
    try:
        return read_exports(folder / "export")
    except DataError:  # none, or of several epochs: the page does without
        return None


def _words(place: tuple[str, str, str]) -> str:
    roi, patch, day = place
    return f"{roi or 'unknown'}, patch {patch or 'unknown'}" + (f", {day}" if day else "")


def _cards(runs: Sequence[RunResult], root: str) -> tuple[Cards, str]:
    """Cards of the samples that all runs with exports have, and what to do for more."""
    with_exports = [run for run in runs if run.exports is not None]
    lacking = [run.name for run in runs if run.exports is None]
    advice = (
        f"To see {'pictures' if not with_exports else 'those of ' + ', '.join(lacking)}, test with --export_every 1."
    )
    note = advice if lacking else ""
    if not with_exports:
        return make_cards([], Missing()), note
    shared = set.intersection(*(set(run.exports.ids) for run in with_exports if run.exports is not None))
    records = _shared_records(with_exports, shared)
    if not records:
        return make_cards([], Missing()), "The runs with exports share no sample; test them with --export_every 1."
    root = root or next((run.root for run in runs if run.root), "")
    cases = [_case(label, record, with_exports, root) for label, record in choose(records)]
    radar = "No radar to show: the networks use none, or the data set is not at hand (--root)."
    return make_cards(cases, Missing(radar=radar)), note


def _shared_records(runs: Sequence[RunResult], shared: set[int]) -> list[SampleRecord]:
    """The records of the samples that all have, with the mean of the runs' RMSE."""
    found = []
    known = [{record.id: record for record in run.records} for run in runs]
    for sample in sorted(shared):
        of = [records[sample] for records in known if sample in records]
        info = next((run.exports.infos[sample] for run in runs if run.exports is not None), {})
        base = of[0] if of else record_of(sample, info, {})
        errors = [_rmse(run, sample, records.get(sample)) for run, records in zip(runs, known, strict=True)]
        metrics = {"RMSE": float(np.mean(errors))}
        found.append(SampleRecord(**{**vars(base), "metrics": metrics}))
    return found


def _rmse(run: RunResult, sample: int, record: SampleRecord | None) -> float:
    """The RMSE of a sample, remembered or from its exported arrays."""
    if record is not None and "RMSE" in record.metrics:
        return record.rmse
    assert run.exports is not None
    fields = run.exports.load(sample)
    if "target" not in fields:
        return float("nan")
    return float(np.sqrt(np.square(fields["pred"] - fields["target"], dtype=np.float64).mean()))


def _case(label: str, record: SampleRecord, runs: Sequence[RunResult], root: str) -> Case:
    loaded = {run.name: run.exports.load(record.id) for run in runs if run.exports is not None}
    info = next((run.exports.infos[record.id] for run in runs if run.exports and run.exports.infos[record.id]), {})
    target = next((fields["target"] for fields in loaded.values() if "target" in fields), None)
    target = read_target(info, root, record.id) if target is None else np.array(target)
    inputs, radar, reason = read_series(info, root)
    if not any(run.flags.get("use_sar", True) for run in runs):
        radar = None
    outputs = {name: output_of(fields) for name, fields in loaded.items()}
    rmse = {name: float(np.sqrt(np.square(o.mean - target, dtype=np.float64).mean())) for name, o in outputs.items()}
    return Case(label, record, target, inputs, radar, outputs, rmse, no_inputs=reason)


def _baselines(run: RunResult) -> Table | None:
    """The trivial baselines, which are the same for all runs: those that stand beside the first."""
    group = {name: entry for name, entry in run.comparison.get(OVERALL, {}).items() if name in BASELINES}
    if not group:
        return None
    keys = ("RMSE", "MAE", "PSNR", "SAM", "SSIM")
    cells = ranked({name: {key: entry[key] for key in keys} for name, entry in group.items()})
    rows = tuple(Row(name, cells[name], BASELINES[name]) for name in group)
    return Table(
        f"Trivial baselines on these samples, for inputs as {run.name} saw them", "method", _columns(keys), rows
    )


def _by_cover(runs: Sequence[RunResult]) -> Table | None:
    groups = [name for name in runs[0].comparison if name != OVERALL]
    rows = []
    for group in groups:
        figures = {}
        images = 0
        for run in runs:
            entry = run.comparison.get(group, {}).get(run.method)
            figures[run.name] = {"PSNR": entry["PSNR"] if entry else float("nan")}
            images = max(images, entry["images"] if entry else 0)
        cells = ranked(figures)
        rows.append(Row(group, tuple(cells[run.name][0] for run in runs), f"{images} samples"))
    if not rows:
        return None
    caption = "PSNR in dB by the mean cloud cover of a sample's inputs; higher is better"
    return Table(caption, "samples", _columns([run.name for run in runs]), tuple(rows))


def _columns(names: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(name) for name in names)


def _charts(drawn: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Calibration and discard curves, all runs in each."""
    curves = {name: metrics["discard curve SE"] for name, metrics in drawn.items()}
    reliability, coverage, discard = charts(
        [
            partial(plot_reliability, drawn, width=WIDTH),
            partial(plot_coverage, drawn, width=WIDTH),
            partial(plot_discards, curves, width=WIDTH),
        ]
    )
    ence = ", ".join(f"{name} ENCE {metrics['ENCE']:.3f}" for name, metrics in drawn.items())
    inside = ", ".join(f"{name} {number('coverage 90', metrics['coverage 90'])}" for name, metrics in drawn.items())
    return [
        Chart(
            "Reliability",
            reliability,
            f"True against stated error of all runs: {ence}",
            "On the diagonal a network is right about its errors; above it, it is over-confident.",
        ),
        Chart(
            "Coverage",
            coverage,
            f"Share of true values inside the stated intervals; in that of 90 %: {inside}",
            "On the diagonal as many true values lie inside as promised; below it, fewer: over-confident.",
        ),
        Chart(
            "Discard curve",
            discard,
            "Mean squared error of the images that each run keeps when its least certain ones are discarded",
            "A curve that rises steeply tells good images from bad ones; the lower one has the smaller error.",
        ),
    ]


def require_names(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs with names that tell them apart: those of their folders, or the paths where names are equal.

    Raises:
        UsageError: if a folder is named twice, or there is only one.
    """
    if len(runs) < 2:
        raise UsageError("one run is no comparison: name two or more folders of tested runs")
    places = [run.folder.resolve() for run in runs]
    twice = next((place for at, place in enumerate(places) if place in places[:at]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; name each run once")
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    return [RunResult(**{**vars(run), "name": str(run.folder)}) for run in runs]
