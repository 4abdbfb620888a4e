"""Records of the samples of a split, without pixels, and the images of the few samples that a report shows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import write_json
from common.json_files import Schema, read_json
from data.constants import DATE_ORIGIN, N_S1, N_S2, SAR_RANGE_DB
from evaluation.accumulator import Accumulator, EvaluatedBatch
from evaluation.image_metrics import IMAGE_METRICS
from evaluation.mixture import Image, PredictedImages

FILE = "test_samples.json"
_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_COLUMNS = {
    **{"id": _WHOLE, "index": _WHOLE, "roi": _TEXT, "patch": _TEXT, "target_date": _TEXT},
    "dates": {"type": "array", "items": _TEXT},
    "coverage": {"type": "array", "items": _NUMBER},
}
_SCHEMA: Schema = {
    "type": "object",
    "required": ["samples"],
    "properties": {
        "samples": {
            "type": "array",
            "items": {
                "type": "object",
                "required": list(_COLUMNS),
                "properties": _COLUMNS | dict.fromkeys(IMAGE_METRICS, _NUMBER),
            },
        }
    },
}


@dataclass(frozen=True)
class SampleRecord:
    """One sample: its id in the evaluation, its position in the split, its origin and its metrics."""

    id: int
    index: int  # differs from `id` if unreadable samples were skipped or a subset was taken
    roi: str
    patch: str
    dates: tuple[str, ...]  # of the inputs
    target_date: str
    coverage: tuple[float, ...]  # share of cloud of each input
    metrics: dict[str, float]

    @property
    def place(self) -> tuple[str, str, str]:
        """Region, patch and date of the target, which identify a sample across runs."""
        return self.roi, self.patch, self.target_date

    @property
    def rmse(self) -> float:
        """RMSE in reflectance, NaN if unknown."""
        return self.metrics.get("RMSE", math.nan)


class SampleRecorder(Accumulator):
    """Records every sample of a split."""

    def __init__(self) -> None:
        self.records: list[SampleRecord] = []

    def update(self, batch: EvaluatedBatch) -> None:
        """Record the samples of a batch."""
        rows = zip(batch.ids, batch.infos, batch.metrics, strict=True)
        self.records += [sample_record(sample_id, info, metrics) for sample_id, info, metrics in rows]

    def state(self) -> list[SampleRecord]:
        """The records so far, for `merge`."""
        return self.records

    def merge(self, states: Sequence[list[SampleRecord]]) -> None:
        """Replace the own records by those of all processes, in the order of their ids."""
        self.records = sorted((record for records in states for record in records), key=lambda record: record.id)

    def compute(self) -> list[SampleRecord]:
        """The records, by id."""
        return self.records


@dataclass(frozen=True)
class SampleImages:
    """The images of one sample.

    Attributes:
        record: the sample.
        target: (13,H,W), reflectance.
        predictions: by the name of the network.
        inputs: (T,13,H,W), reflectance; None if not available.
        radar: VV of each date, dB, (T,H,W); None if the network uses none, or it is not available.
        rmse: of each prediction on this sample, for captions.
        baseline: the best trivial reconstruction of this sample and its RMSE, if known.
        missing_inputs: why there are no inputs, if known.
        label: why the sample is shown, such as "best".
    """

    record: SampleRecord
    target: Image
    predictions: Mapping[str, PredictedImages]
    inputs: Image | None = None
    radar: Image | None = None
    rmse: Mapping[str, float] = field(default_factory=dict)
    baseline: tuple[str, float] | None = None
    missing_inputs: str = ""
    label: str = ""

    @classmethod
    def from_batch(
        cls, record: SampleRecord, batch: EvaluatedBatch, position: int, name: str, **options: Any
    ) -> "SampleImages":
        """The images of the sample at `position` of a batch with inputs, predicted by the network `name`."""
        assert batch.inputs is not None
        x = _array(batch.inputs[position])  # (T,C,H,W)
        prediction = batch.prediction.item(position)
        variances = (prediction.aleatoric, prediction.epistemic, prediction.total)
        arrays = (None if variance is None else _array(variance[0, 0]) for variance in variances)
        return cls(
            record,
            _array(batch.target[position, 0]),
            {name: PredictedImages(_array(prediction.mean[0, 0]), *arrays)},
            inputs=x[:, -N_S2:],
            radar=decibels(x[:, 0]) if x.shape[1] == N_S1 + N_S2 else None,
            **options,
        )


def decibels(radar: Image) -> Image:
    """Radar in dB, from the range [0, 1] of network inputs."""
    low, high = SAR_RANGE_DB
    return (low + (high - low) * radar).astype(np.float32)


def sample_record(sample_id: int, info: Mapping[str, Any], metrics: Mapping[str, float]) -> SampleRecord:
    """The record of a sample.

    Args:
        sample_id: its number in the evaluation.
        info: as in a manifest of exports (`SampleInfo.to_json` and `coverage`); may be empty.
        metrics: of the image; IMAGE_METRICS are kept.
    """
    days = info.get("target_days")
    return SampleRecord(
        sample_id,
        int(info.get("index", sample_id)),
        str(info.get("roi", "")),
        str(info.get("patch", "")),
        tuple(iso_date(day) for day in info.get("input_days") or ()),
        "" if days is None else iso_date(days),
        tuple(float(share) for share in info.get("coverage") or ()),
        {name: float(metrics[name]) for name in IMAGE_METRICS if name in metrics},
    )


def iso_date(days: float) -> str:
    """The date a number of days after the data set's origin, such as 2018-06-21."""
    return (DATE_ORIGIN + timedelta(days=int(days))).isoformat()


def write_records(path: Path, records: Iterable[SampleRecord]) -> None:
    """Write `test_samples.json`: the samples in the order of their ids."""
    rows = []
    for record in sorted(records, key=lambda record: record.id):
        row = asdict(record)
        metrics = row.pop("metrics")
        rows.append(row | metrics)
    write_json(path, {"samples": rows})


def read_records(path: Path) -> list[SampleRecord]:
    """The samples of a `test_samples.json`.

    Raises:
        DataError: if the file is not valid.
    """
    return [
        SampleRecord(
            id=int(row["id"]),
            index=int(row["index"]),
            roi=row["roi"],
            patch=row["patch"],
            dates=tuple(row["dates"]),
            target_date=row["target_date"],
            coverage=tuple(row["coverage"]),
            metrics={name: float(row[name]) for name in IMAGE_METRICS if name in row},
        )
        for row in read_json(path, _SCHEMA, "test the run again")["samples"]
    ]


def choose_samples(records: Sequence[SampleRecord]) -> list[tuple[str, SampleRecord]]:
    """The samples with the lowest, the median and the highest RMSE, each with its label; fewer if there are fewer.

    Samples whose RMSE is not finite come last; of equal ones the first id comes first.
    """
    total = f"of {len(records):,}"
    ordered = sorted(records, key=lambda record: (not math.isfinite(record.rmse), record.rmse, record.id))
    if len(ordered) < 3:
        labels = ("the only sample",) if len(ordered) == 1 else (f"best {total}", f"worst {total}")
        return list(zip(labels, ordered, strict=False))
    median = ordered[(len(ordered) - 1) // 2]
    return [(f"best {total}", ordered[0]), (f"median {total}", median), (f"worst {total}", ordered[-1])]


def _array(image: torch.Tensor) -> Image:
    return image.float().cpu().numpy()
