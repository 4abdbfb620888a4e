"""The protocol of everything that is accumulated over a split, and the batches that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.batch import Batch
from evaluation.image_metrics import Reference
from model.predictions import NIG, Mean, Prediction

MISSING = "target_pixels_missing"  # in the infos of samples whose targets lack pixels: their number


class Part(NamedTuple):
    """Images of a batch that are measured at once."""

    rows: slice  # of the batch
    reference: Reference
    prediction: Prediction
    variance: Tensor | None  # total predictive variance


@dataclass(frozen=True, eq=False)
class EvaluatedBatch:
    """Samples and their predictions, in reflectance, on one device.

    Attributes:
        target: (B,1,13,H,W).
        prediction: fields (B,1,13,H,W).
        masks: cloud masks of the inputs (B,T,H,W); None if unknown.
        coverage: cloud cover of the inputs (B,T), in [0, 1]; None if unknown.
        inputs: (B,T,13,H,W), or (B,T,15,H,W) with radar first; None if not available.
        infos: origin of each sample, as in the manifest of exports.
        valid: pixels of the targets that have data, bool (B,1,H,W), to which all metrics are restricted; None if all
            have.
        first: id of the first sample; ids count the samples of a split (known issue 7).
    """

    target: Tensor
    prediction: Prediction
    masks: Tensor | None = None
    coverage: Tensor | None = None
    inputs: Tensor | None = None
    infos: Sequence[Mapping[str, Any]] = ()
    first: int = 0
    valid: Tensor | None = None

    @classmethod
    def from_batch(cls, batch: Batch, prediction: Prediction, first: int) -> "EvaluatedBatch":
        """A batch of a loader and its prediction in reflectance."""
        coverages = batch.coverage.tolist()
        infos = [info.to_json() | {"coverage": row} for info, row in zip(batch.info, coverages, strict=True)]
        if batch.valid is not None:
            for info, missing in zip(infos, (~batch.valid).flatten(1).sum(dim=1).tolist(), strict=True):
                info |= {MISSING: missing} if missing else {}
        return cls(batch.target, prediction, batch.masks, batch.coverage, batch.x, infos, first, batch.valid)

    @property
    def ids(self) -> range:
        """Number of each sample in the split."""
        return range(self.first, self.first + len(self.target))

    @cached_property
    def parts(self) -> list[Part]:
        """The batch in parts: on a CPU single images, whose temporaries then stay in the cache; else all at once."""
        step = 1 if self.target.device.type == "cpu" else len(self.target)
        parts = []
        for start in range(0, len(self.target), step):
            rows = slice(start, start + step)
            prediction = self.prediction.map(itemgetter(rows))
            reference = Reference(self.target[rows], None if self.valid is None else self.valid[rows])
            parts.append(Part(rows, reference, prediction, prediction.total))
        return parts

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each image; of NIG predictions also `mean aleatoric` and `mean epistemic`."""
        per_image = []
        for part in self.parts:
            rows = part.reference.metrics(part.prediction.mean, part.variance)
            for row, variances in zip(rows, _mean_variances(part), strict=True):
                per_image.append(row | variances)
        return per_image

    @property
    def has_variance(self) -> bool:
        """Whether the prediction has a variance."""
        return not isinstance(self.prediction, Mean)


class Accumulator:
    """Accumulates over a split: `update` with each batch, `merge` the states of all processes, then `compute`."""

    def update(self, batch: EvaluatedBatch) -> None:
        """Take a batch into account."""
        raise NotImplementedError

    def state(self) -> Any:
        """All that was accumulated so far, picklable, for `merge`."""
        return None

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by that of all processes.

        Args:
            states: the `state` of each, the own among them.
        """

    def compute(self) -> Any:
        """The result."""
        return None


@torch.no_grad()
def _mean_variances(part: Part) -> list[dict[str, float]]:
    """Mean aleatoric and epistemic variance of each image, if the prediction has both."""
    prediction = part.prediction
    if not isinstance(prediction, NIG):
        return [{} for _ in prediction.mean]
    variances = prediction.aleatoric, prediction.epistemic
    columns = [part.reference.mean(variance).double() for variance in variances]
    return [
        {"mean aleatoric": aleatoric, "mean epistemic": epistemic}
        for aleatoric, epistemic in torch.stack(columns, dim=1).tolist()
    ]
