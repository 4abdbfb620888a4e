"""The page of an ensemble: the mixture beside its members."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.ensemble import Members, Mixture, mix, read_target
from evaluation.sample_records import SampleRecord, choose
from report.cards import Missing
from report.samples import Case, Output, read_series
from report.test_page import Tested, write_report

NAME = "ensemble"


def report_ensemble(
    folder: Path,
    members: Members,
    flags: Mapping[str, Any],
    metrics: Mapping[str, Any],
    records: Sequence[SampleRecord],
    command: Sequence[str],
) -> Path:
    """Write the report of an ensemble.

    Args:
        folder: where its metrics are.
        members: their exports.
        flags: of the command, by name; `root` and `uncertainty` are used.
        metrics: as in its `test_metrics.json`, with `comparison`.
        records: of all samples.
        command: the words of the command line.

    Returns:
        The path of the report.

    Raises:
        DataError: if it cannot be written, or a member's exports cannot be read again.
    """
    cases = [_case(label, record, members, flags) for label, record in choose(records)]
    kinds = {
        "aleatoric": "the mean of the members' variances",
        "epistemic": "the variance of the members' means",
        "both": "the mean of the members' variances plus the variance of their means",
    }
    tested = Tested(
        kicker="Ensemble report",
        title=f"{NAME} of {', '.join(members.names)}",
        facts=[
            ("members", f"{len(members.exports)}"),
            ("variance", kinds[flags["uncertainty"]]),
            ("samples", f"{metrics['images']:,}"),
        ],
        metrics=metrics,
        comparison=metrics["comparison"],
        networks=[NAME],
        cases=cases,
        command=shlex.join(["python", *command]),
        command_words="The command line of this ensemble:",
        configuration={name: value for name, value in flags.items() if name != "debug"},
        missing=Missing(radar="No radar to show: the members use none, or the data set is not at hand (--root)."),
        methods_note="The other rows are its members. Trivial baselines stand in the members' own reports.",
    )
    return write_report(folder, tested)


def _case(label: str, record: SampleRecord, members: Members, flags: Mapping[str, Any]) -> Case:
    fields, info = members.load(record.id), members.info(record.id)
    target = next((member["target"] for member in fields if "target" in member), None)
    target = read_target(info, flags["root"], record.id) if target is None else np.array(target)
    inputs, radar, reason = read_series(info, flags["root"])
    output = _output(mix(fields), flags["uncertainty"])
    return Case(label, record, target, inputs, radar, {NAME: output}, {NAME: record.rmse}, no_inputs=reason)


def _output(mixture: Mixture, uncertainty: str) -> Output:
    """The mixture with the parts of its variance that were asked for."""
    return Output(
        mixture.mean,
        None if uncertainty == "epistemic" else mixture.aleatoric,
        None if uncertainty == "aleatoric" else mixture.epistemic,
        mixture.variance(uncertainty),
    )
