"""What is remembered of each sample of a split: where it comes from and how well it was predicted, no pixels."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_json
from data.constants import DATE_ORIGIN
from evaluation.metrics import IMAGE_METRICS

FILE = "test_samples.json"


@dataclass(frozen=True)
class SampleRecord:
    """One sample: its number in the evaluation, its position in the split, its origin and its metrics."""

    id: int
    index: int  # differs from `id` where unreadable samples were skipped or a subset was taken
    roi: str
    patch: str
    dates: tuple[str, ...]  # of the inputs
    target_date: str
    coverage: tuple[float, ...]  # share of cloud of each input
    metrics: dict[str, float]

    @property
    def place(self) -> tuple[str, str, str]:
        """What the sample is, whoever tested it: region, patch and date of the target."""
        return self.roi, self.patch, self.target_date

    @property
    def rmse(self) -> float:
        """RMSE in reflectance, NaN if unknown."""
        return self.metrics.get("RMSE", math.nan)


def record_of(number: int, info: Mapping[str, Any], metrics: Mapping[str, float]) -> SampleRecord:
    """The record of a sample.

    Args:
        number: of the sample in the evaluation.
        info: as in a manifest of exports (`SampleInfo.to_json` and `coverage`); may be empty.
        metrics: of the image; IMAGE_METRICS are kept.
    """
    days = info.get("target_days")
    return SampleRecord(
        number,
        int(info.get("index", number)),
        str(info.get("roi", "")),
        str(info.get("patch", "")),
        tuple(iso_date(day) for day in info.get("input_days") or ()),
        "" if days is None else iso_date(days),
        tuple(float(share) for share in info.get("coverage") or ()),
        {name: float(metrics[name]) for name in IMAGE_METRICS if name in metrics},
    )


def iso_date(days: float) -> str:
    """The date so many days after the data set's day zero, such as 2018-06-21."""
    return (DATE_ORIGIN + timedelta(days=int(days))).isoformat()


def write_records(path: Path, records: Iterable[SampleRecord]) -> None:
    """Write `test_samples.json`: the samples in the order of their numbers."""
    ordered = sorted(records, key=lambda record: record.id)
    rows = [{**asdict(record), **record.metrics} for record in ordered]
    for row in rows:
        del row["metrics"]
    write_json(path, {"samples": rows})


def read_records(path: Path) -> list[SampleRecord]:
    """The samples of a `test_samples.json`.

    Raises:
        DataError: if it is none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return [
            SampleRecord(
                id=int(row["id"]),
                index=int(row["index"]),
                roi=str(row["roi"]),
                patch=str(row["patch"]),
                dates=tuple(row["dates"]),
                target_date=str(row["target_date"]),
                coverage=tuple(row["coverage"]),
                metrics={name: float(row[name]) for name in IMAGE_METRICS if name in row},
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of tested samples ({error!r}); test the run again") from error


def choose(records: Sequence[SampleRecord]) -> list[tuple[str, SampleRecord]]:
    """The samples to show: best, median and worst by RMSE, each with these words; fewer where there are fewer.

    Samples whose RMSE is not finite come last; of equal ones the first is the better.
    """
    of = f"of {len(records):,}"
    ordered = sorted(records, key=lambda record: (not math.isfinite(record.rmse), record.rmse, record.id))
    if len(ordered) < 3:
        words = ("the only sample",) if len(ordered) == 1 else (f"best {of}", f"worst {of}")
        return list(zip(words, ordered, strict=False))
    middle = ordered[(len(ordered) - 1) // 2]
    return [(f"best {of}", ordered[0]), (f"median {of}", middle), (f"worst {of}", ordered[-1])]
