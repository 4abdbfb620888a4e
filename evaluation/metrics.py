"""The meter that gathers all figures of a test: metrics per image, calibration per pixel."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluation.calibration import (
    CalibrationMeter,
    CalibrationSums,
    calibration_figures,
    coverage_curve,
    discard_curve,
    error_figures,
    reliability,
    uce_auce,
)
from evaluation.image_metrics import (
    IMAGE_METRICS,
    Reference,
    at_least_float32,
    average_metrics,
    batch_metrics,
    image_metrics,
    item_mean,
)

__all__ = [
    "IMAGE_METRICS",
    "STRATA",
    "EvaluationMeter",
    "MeterParts",
    "average_metrics",
    "batch_metrics",
    "image_metrics",
]

VARIANCE_METRICS = ("error", "mean ae", "mean se", "mean var")
STRATA = ("clouded at no date", "clouded at some dates", "clouded at all dates")
_UNKNOWN = len(STRATA)  # the stratum of samples without masks


class PredictionLike(Protocol):
    """What the meter asks of a prediction, in reflectance, (B,1,13,H,W)."""

    @property
    def mean(self) -> Tensor:
        """The predicted image."""

    @property
    def total(self) -> Tensor | None:
        """The predictive variance; None where the head has none."""

    def nll(self, target: Tensor) -> Tensor:
        """Negative log-likelihood of each element."""

    def fields(self) -> dict[str, Tensor]:
        """Parameters by name; `alpha`, half of the degrees of freedom, marks a Student-t."""


class EvaluationMeter:
    """Gathers a split batch by batch: metrics per image, calibration per pixel, both by cloudiness of the pixel.

    Args:
        has_variance: whether the predictions carry a variance; None looks at the first one.
    """

    def __init__(self, has_variance: bool | None = None) -> None:
        self.has_variance = has_variance
        self.per_image: list[dict[str, float]] = []
        self._ids: list[int] = []  # of the images, as far as `add` was told the first of its batch
        self._pixels = CalibrationMeter(n_strata=len(STRATA) + 1)

    @torch.no_grad()
    def add(
        self,
        target: Tensor | Reference,
        prediction: PredictionLike | Tensor,
        masks: Tensor | None = None,
        first: int | None = None,
    ) -> list[dict[str, float]]:
        """Take in a batch.

        Args:
            target: (B,1,13,H,W) or (B,13,H,W), reflectance; or these as a `Reference` that other methods share.
            prediction: in reflectance, same shape; a tensor stands for a prediction without variance.
            masks: (B,T,H,W) cloud masks of the inputs, for the strata.
            first: number of the first image in the split (default: as many as came before), for `join`.

        Returns:
            The metrics of each image; with both kinds of variance also `mean aleatoric` and `mean epistemic`.
        """
        mean = prediction if isinstance(prediction, Tensor) else prediction.mean
        total = None if isinstance(prediction, Tensor) else prediction.total
        if self.has_variance is None:
            self.has_variance = total is not None
        if self.has_variance and total is None:
            raise ValueError("this meter expects predictions with a variance; this one has none")
        reference = target if isinstance(target, Reference) else Reference(_series(target).to(mean.device))
        target, mean = reference.target, _series(mean)  # (B,1,13,H,W)
        if masks is None:
            stratum = torch.full_like(mean[:, :, 0], _UNKNOWN, dtype=torch.int64)  # (B,1,H,W)
        else:
            stratum = _strata(masks.to(mean.device))
        error = _bands_first(at_least_float32(target - mean))
        if not self.has_variance or total is None or isinstance(prediction, Tensor):
            per_image = reference.metrics(mean)
            self._pixels.add(error, stratum=stratum)
        else:
            total = _series(total)
            per_image = reference.metrics(mean, total)
            for metrics, parts in zip(per_image, _split_variance(prediction), strict=True):
                metrics.update(parts)
            nll = _series(prediction.nll(target.reshape(prediction.mean.shape)))
            alpha = prediction.fields().get("alpha")
            dof = None if alpha is None else _bands_first(2 * _series(alpha))
            self._pixels.add(error, _bands_first(total), _bands_first(nll), dof, stratum)
        first = len(self.per_image) if first is None else first
        self._ids += range(first, first + len(per_image))
        self.per_image += per_image
        return per_image

    def parts(self) -> "MeterParts":
        """All that was taken in, as plain values to be sent elsewhere and joined there."""
        return MeterParts(self.has_variance, list(zip(self._ids, self.per_image, strict=True)), self._pixels.parts())

    def join(self, others: "Sequence[MeterParts]") -> None:
        """Become the meter of all that other meters took in, images in the order of their numbers.

        Args:
            others: their `parts`, those of this meter among them.
        """
        self.has_variance = next((part.has_variance for part in others if part.has_variance is not None), None)
        images = sorted((image for part in others for image in part.images), key=lambda image: image[0])
        self._ids, self.per_image = [number for number, _ in images], [metrics for _, metrics in images]
        self._pixels.join([part.pixels for part in others])

    def summary(self) -> dict[str, Any]:
        """Everything that a metrics file tells, ready for JSON.

        Returns:
            `images`, the averages by their published names, with a variance `UCE SE`, `AUCE SE` and the
            calibration figures; then nested: `strata` (figures and curves by cloudiness of the pixel), `left out`
            (counts of NaN and infinite values that no average contains), `discard curve SE`, `reliability`,
            `coverage curve`.
        """
        means, left_out = average_metrics(self.per_image)
        everything = self._pixels.sums()
        report: dict[str, Any] = {"images": len(self.per_image), **means}
        if self.has_variance:
            columns = {name: [metrics[name] for metrics in self.per_image] for name in VARIANCE_METRICS}
            report["UCE SE"], report["AUCE SE"] = uce_auce(columns["mean var"], columns["error"])
            report |= calibration_figures(everything)
        strata = {name: self._pixels.sums(index) for index, name in enumerate(STRATA)}
        report["strata"] = {
            name: error_figures(sums) | (calibration_figures(sums) | _curves(sums) if self.has_variance else {})
            for name, sums in strata.items()
            if sums.count + sums.left_out > 0
        }
        report["left out"] = {**left_out, "elements": int(everything.left_out)}
        if self.has_variance:
            report["discard curve SE"] = discard_curve(columns["mean var"], columns["mean se"])
            report |= _curves(everything)
        return report


class MeterParts(NamedTuple):
    """What an `EvaluationMeter` holds: `images` are pairs of an image's number and its metrics."""

    has_variance: bool | None
    images: list[tuple[int, dict[str, float]]]
    pixels: tuple[npt.NDArray[np.float64], ...]


def _curves(sums: CalibrationSums) -> dict[str, dict[str, list[float]]]:
    """What the reliability and coverage plots show, ready for JSON."""
    rmv, rmse = reliability(sums)
    nominal, inside = coverage_curve(sums)
    return {
        "reliability": {"RMV": rmv.tolist(), "RMSE": rmse.tolist()},
        "coverage curve": {"nominal": nominal.tolist(), "inside": inside.tolist()},
    }


def _split_variance(prediction: PredictionLike) -> list[dict[str, float]]:
    """Mean aleatoric and epistemic variance of each item, where the prediction tells them apart."""
    parts = {kind: getattr(prediction, kind, None) for kind in ("aleatoric", "epistemic")}
    if any(part is None for part in parts.values()):
        return [{} for _ in range(prediction.mean.shape[0])]
    columns = torch.stack([item_mean(part).double() for part in parts.values() if part is not None], dim=1)
    return [{f"mean {kind}": value for kind, value in zip(parts, row, strict=True)} for row in columns.tolist()]


def _strata(masks: Tensor) -> Tensor:
    """(B,T,H,W) masks to (B,1,H,W) positions in STRATA."""
    clouded = masks >= 0.5
    at_some, at_all = clouded.any(dim=1), clouded.all(dim=1)  # (B,H,W)
    return (at_some.long() + at_all.long())[:, None]  # (B,1,H,W)


def _bands_first(image: Tensor) -> Tensor:
    """(B,1,13,H,W) to (13,B,1,H,W)."""
    return image.movedim(2, 0)


def _series(image: Tensor) -> Tensor:
    """(B,13,H,W) or (B,1,13,H,W) to the latter."""
    return image.unsqueeze(1) if image.dim() == 4 else image
