"""The page that compares tested runs: the figures in their folders, and cards of samples that all of them exported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UsageError
from common.json_files import PATH, Schema, read_json
from evaluation.baselines import COMPARISON_SCHEMA, OVERALL
from evaluation.exports import Exports, read_exports
from evaluation.image_metrics import IMAGE_METRICS
from evaluation.mixture import PredictedImages
from evaluation.sample_records import FILE as SAMPLES
from evaluation.sample_records import SampleImages, SampleRecord, choose_samples, read_records, sample_record
from evaluation.split_metrics import METRICS_SCHEMA
from report.cards import Cards, Placeholders, make_cards
from report.page import write_page
from report.pictures import Chart, calibration_charts
from report.samples import exported_sample, rmse
from report.tables import (
    BASELINES,
    Column,
    Row,
    Table,
    by_band,
    by_stratum,
    cover_table,
    format_figure,
    ranked,
    runs_tables,
)

METRICS = "test_metrics.json"
_FLAGS: Schema = {"type": "object", "properties": {"root2": PATH, "root3": PATH}}


@dataclass(frozen=True)
class RunResult:
    """The content of the folder of a tested run."""

    name: str
    folder: Path
    metrics: Mapping[str, Any]
    comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]
    records: Sequence[SampleRecord]  # empty without a list of samples and a manifest
    exports: Exports | None
    flags: Mapping[str, Any]

    @property
    def root(self) -> str:
        """The data set of the test, if it exists; else empty."""
        flag = "root3" if self.flags.get("pretrain") else "root2"
        root = str(self.flags.get(flag, ""))
        return root if root and Path(root).is_dir() else ""

    @property
    def method(self) -> str:
        """The name of the run's network in its comparison."""
        return next((name for name in self.comparison.get(OVERALL, {}) if name not in BASELINES), "")


def read_runs(folders: Sequence[Path]) -> list[RunResult]:
    """The results of tested networks and ensembles, with distinct names: those of the folders, or their paths.

    Raises:
        DataError: if a folder is not that of a tested run, or a file in it cannot be read.
        UsageError: if a folder is named twice, or there is only one.
    """
    runs = [_read_run(folder) for folder in folders]
    if len(runs) < 2:
        raise UsageError("one run is no comparison: name two or more folders of tested runs")
    paths = [run.folder.resolve() for run in runs]
    duplicate = next((path for index, path in enumerate(paths) if path in paths[:index]), None)
    if duplicate is not None:
        raise UsageError(f"{duplicate} is named twice; name each run once")
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(run.folder)) for run in runs]
    return runs


def _read_run(folder: Path) -> RunResult:
    if not (folder / METRICS).is_file():
        raise DataError(f"there is no {METRICS} in {folder}; give the folder that a test wrote (RES_DIR/EXPERIMENT)")
    metrics = _read(folder / METRICS, METRICS_SCHEMA)
    comparison = metrics.get("comparison") or _read(folder / "comparison.json", COMPARISON_SCHEMA)
    flags = _read(folder / "test_conf.json", _FLAGS) or _read(folder / "conf.json", _FLAGS)
    exports = _exports(folder)
    if (folder / SAMPLES).is_file():
        records: Sequence[SampleRecord] = read_records(folder / SAMPLES)
    else:  # tested by a version that wrote no such list
        infos = {} if exports is None else exports.infos
        records = [sample_record(number, info, {}) for number, info in infos.items() if info]
    return RunResult(folder.resolve().name, folder, metrics, comparison, records, exports, flags)


def require_equal_samples(runs: Sequence[RunResult]) -> list[str]:
    """Check that all runs were tested on the same samples.

    Returns:
        Notes about runs with unknown samples or with inputs of other dates.

    Raises:
        DataError: if samples of the same id or their numbers differ.
    """
    notes = []
    first = runs[0]
    for run in runs[1:]:
        counts = [each.metrics.get("images") for each in (first, run)]
        if counts[0] != counts[1]:
            raise DataError(
                f"{first.folder} was tested on {counts[0]} samples, {run.folder} on {counts[1]}; test both on the same "
                "data and subset (--root2, --region, --max_samples_count) to compare them"
            )
        if not first.records or not run.records:
            missing = run if first.records else first
            notes.append(f"Which samples {missing.name} was tested on is not known; their number is the same.")
            continue
        records = {record.id: record for record in run.records}
        pairs = [(record, records[record.id]) for record in first.records if record.id in records]
        for left, right in pairs:
            if left.place != right.place:
                raise DataError(
                    f"sample {left.id} is {_describe(left)} in {first.folder}, but {_describe(right)} in {run.folder}; "
                    "test both on the same data and subset to compare them"
                )
        if any(left.dates != right.dates for left, right in pairs):
            notes.append(f"{run.name} saw inputs of other dates than {first.name}; the targets are the same.")
    return notes


def write_comparison_page(runs: Sequence[RunResult], path: Path, root: str, command: str) -> Path:
    """Write the page of several runs.

    Args:
        runs: two or more, with distinct names.
        path: the .html file.
        root: the data set, for inputs; by default that of the first run whose data set exists.
        command: the command line.

    Returns:
        The path.

    Raises:
        DataError: if the runs were tested on different samples, or a file cannot be read or written.
    """
    notes = require_equal_samples(runs)
    named = {run.name: run.metrics for run in runs}
    cards, cards_note = _cards(runs, root)
    calibrated = {name: metrics for name, metrics in named.items() if "reliability" in metrics}
    if len(calibrated) < len(named):
        without = ", ".join(name for name in named if name not in calibrated)
        notes.append(f"No variance, and so no calibration: {without}.")
    tables = [_baselines(runs[0]), _by_cover(runs), by_stratum(named), by_band(named)]
    if tables[-1] is None or len(tables[-1].columns) < len(runs):
        notes.append("Figures by band are missing for runs tested by an earlier version; test them again.")
    content = {
        "title": " / ".join(named),
        "facts": [("runs", f"{len(runs)}"), ("samples", f"{runs[0].metrics.get('images', 0):,}")],
        "run_tables": runs_tables(named),
        "notes": notes,
        "cards": cards,
        "cards_note": cards_note,
        "charts": _charts(calibrated) if calibrated else [],
        "tables": [table for table in tables if table is not None],
        "command": command,
        "folders": [(run.name, str(run.folder)) for run in runs],
    }
    return write_page(path, "compare.html", content)


def _read(path: Path, schema: Schema) -> dict[str, Any]:
    """The content of a file, empty if there is none."""
    content: dict[str, Any] = read_json(path, schema, "test the run again") if path.is_file() else {}
    return content


def _exports(folder: Path) -> Exports | None:
    if not (folder / "export").is_dir():
        return None
    try:
        return read_exports(folder / "export")
    except DataError:  # none, or of several epochs: the page has no pictures then
        return None


def _describe(record: SampleRecord) -> str:
    place = f"{record.roi or 'unknown'}, patch {record.patch or 'unknown'}"
    return f"{place}, {record.target_date}" if record.target_date else place


def _cards(runs: Sequence[RunResult], root: str) -> tuple[Cards, str]:
    """Cards of the samples that all runs with exports have, and a note how to get more."""
    exports = {run.name: run.exports for run in runs if run.exports is not None}
    lacking = [run.name for run in runs if run.exports is None]
    wanted = f"those of {', '.join(lacking)}" if exports else "pictures"
    note = f"To see {wanted}, test with --export_every 1." if lacking else ""
    if not exports:
        return make_cards([], Placeholders()), note
    exported_runs = [run for run in runs if run.exports is not None]
    records = _shared_records(exported_runs, exports)
    if not records:
        return make_cards([], Placeholders()), "The runs with exports share no sample; test them with --export_every 1."
    root = root or next((run.root for run in runs if run.root), "")
    samples = [_sample(label, record, exports, root) for label, record in choose_samples(records)]
    if not any(run.flags.get("use_sar", True) for run in exported_runs):
        samples = [replace(sample, radar=None) for sample in samples]
    radar = "No radar to show: the networks use none, or the data set is not available (--root)."
    return make_cards(samples, Placeholders(radar=radar)), note


def _shared_records(runs: Sequence[RunResult], exports: Mapping[str, Exports]) -> list[SampleRecord]:
    """The records of the samples that all runs exported, with the mean of their RMSE."""
    shared, by_run = [], [{record.id: record for record in run.records} for run in runs]
    for sample_id in sorted(set.intersection(*(set(exported.ids) for exported in exports.values()))):
        recorded = [records[sample_id] for records in by_run if sample_id in records]
        info = next(iter(exports.values())).infos[sample_id]
        record = recorded[0] if recorded else sample_record(sample_id, info, {})
        errors = [
            _rmse(exports[run.name], sample_id, records.get(sample_id))
            for run, records in zip(runs, by_run, strict=True)
        ]
        shared.append(replace(record, metrics={"RMSE": float(np.mean(errors))}))
    return shared


def _rmse(exports: Exports, sample_id: int, record: SampleRecord | None) -> float:
    """The RMSE of a sample, from its record or its exported arrays."""
    if record is not None and "RMSE" in record.metrics:
        return record.rmse
    fields = exports.load(sample_id)
    return rmse(fields["pred"], fields["target"]) if "target" in fields else float("nan")


def _sample(label: str, record: SampleRecord, exports: Mapping[str, Exports], root: str) -> SampleImages:
    fields = {name: exported.load(record.id) for name, exported in exports.items()}
    info = next((exported.infos[record.id] for exported in exports.values() if exported.infos[record.id]), {})
    predictions = {name: PredictedImages.from_fields(run_fields) for name, run_fields in fields.items()}
    return exported_sample(label, record, list(fields.values()), predictions, info, root)


def _baselines(run: RunResult) -> Table | None:
    """The trivial baselines of the first run; they are the same for all runs with equal inputs."""
    group = {name: entry for name, entry in run.comparison.get(OVERALL, {}).items() if name in BASELINES}
    if not group:
        return None
    cells = ranked({name: {key: entry[key] for key in IMAGE_METRICS} for name, entry in group.items()})
    rows = tuple(Row(name, cells[name], BASELINES[name]) for name in group)
    columns = tuple(Column(name) for name in IMAGE_METRICS)
    return Table(f"Trivial baselines on these samples, for inputs as {run.name} saw them", "method", columns, rows)


def _by_cover(runs: Sequence[RunResult]) -> Table | None:
    rows = []
    for group in runs[0].comparison:
        if group != OVERALL:
            entries = {run.name: run.comparison.get(group, {}).get(run.method, {}) for run in runs}
            cells = ranked({name: {"PSNR": entry.get("PSNR", float("nan"))} for name, entry in entries.items()})
            images = max(entry.get("images", 0) for entry in entries.values())
            rows.append(Row(group, tuple(cells[run.name][0] for run in runs), f"{images} samples"))
    return cover_table([run.name for run in runs], rows) if rows else None


def _charts(runs: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Calibration and discard curves, all runs in each."""
    ence = ", ".join(f"{name} ENCE {metrics['ENCE']:.3f}" for name, metrics in runs.items())
    inside = ", ".join(
        f"{name} {format_figure('coverage 90', metrics['coverage 90'])}" for name, metrics in runs.items()
    )
    return calibration_charts(
        runs,
        {name: metrics["discard curve SE"] for name, metrics in runs.items()},
        reliability=(
            f"True against stated error of all runs: {ence}",
            "On the diagonal a network is right about its errors; above it, it is over-confident.",
        ),
        coverage=(
            f"Share of true values inside the stated intervals; in that of 90 %: {inside}",
            "On the diagonal as many true values lie inside as promised; below it, fewer: over-confident.",
        ),
        discard=(
            "Mean squared error of the images that each run keeps when its least certain ones are discarded",
            "A curve that rises steeply tells good images from bad ones; the lower one has the smaller error.",
        ),
    )
