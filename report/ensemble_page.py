"""The page of an ensemble, compared with its members."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.ensemble import NAME, EnsembleResult
from evaluation.mixture import PredictedImages, mix
from evaluation.sample_records import choose_samples
from report.cards import Placeholders
from report.page import report_or_note
from report.samples import exported_sample
from report.test_page import TestReport, write_test_page

_VARIANCES = {
    "aleatoric": "the mean of the members' variances",
    "epistemic": "the variance of the members' means",
    "both": "the mean of the members' variances plus the variance of their means",
}


def report_ensemble(folder: Path, result: EnsembleResult, flags: Mapping[str, Any], command: Sequence[str]) -> None:
    """Write `report.html` of an ensemble; a failing report is a note.

    Args:
        folder: of the results.
        result: of the evaluation.
        flags: of the command, by name; `root` and `uncertainty` are used.
        command: the words of the command line.
    """
    report_or_note(lambda: write_test_page(folder, ensemble_report(result, flags, command)))


def ensemble_report(result: EnsembleResult, flags: Mapping[str, Any], command: Sequence[str]) -> TestReport:
    """The content of the page of an ensemble; see `report_ensemble`.

    Raises:
        DataError: if a member's exports cannot be read again.
    """
    members, samples = result.members, []
    for label, record in choose_samples(result.records):
        fields, info = members.load(record.id), members.info(record.id)
        mixture = mix([PredictedImages.from_fields(member) for member in fields])
        predictions = {NAME: mixture.prediction(flags["uncertainty"])}
        sample = exported_sample(label, record, fields, predictions, info, flags["root"])
        samples.append(replace(sample, rmse={NAME: record.rmse}))
    return TestReport(
        kicker="Ensemble report",
        title=f"{NAME} of {', '.join(members.names)}",
        facts=[
            ("members", f"{len(members.exports)}"),
            ("variance", _VARIANCES[flags["uncertainty"]]),
            ("samples", f"{result.metrics['images']:,}"),
        ],
        metrics=result.metrics,
        comparison=result.metrics["comparison"],
        networks=[NAME],
        samples=samples,
        command=shlex.join(["python", *command]),
        command_note="The command line of this ensemble:",
        configuration=flags,
        placeholders=Placeholders(
            radar="No radar to show: the members use none, or the data set is not available (--root)."
        ),
        methods_note="The other rows are its members. Trivial baselines are in the members' own reports.",
    )
