"""Metrics of images in reflectance, their average over a split, and the meter that gathers all figures of a test."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from util.calibration import (
    CalibrationMeter,
    CalibrationSums,
    calibration_figures,
    coverage_curve,
    discard_curve,
    error_figures,
    reliability,
    uce_auce,
)

IMAGE_METRICS = ("RMSE", "MAE", "PSNR", "SAM", "SSIM")
VARIANCE_METRICS = ("error", "mean ae", "mean se", "mean var")
STRATA = ("clouded at no date", "clouded at some dates", "clouded at all dates")
_UNKNOWN = len(STRATA)  # the stratum of samples without masks

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, pixels
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for a range of 1


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


def image_metrics(target: Any, prediction: Any, variance: Any = None) -> dict[str, float]:
    """The published metrics of one image.

    Args:
        target: (T,13,H,W) or (13,H,W), reflectance; tensor or array.
        prediction: same shape.
        variance: reflectance squared; only its mean is used.

    Returns:
        RMSE, MAE, PSNR (dB, peak 1), SAM (degrees), SSIM; with a variance also `error` (target minus prediction,
        mean), `mean ae`, `mean se` and `mean var`. PSNR is infinite for a perfect image, and SAM is NaN where a
        pixel is zero in every band.

    Raises:
        ValueError: if target and prediction differ in shape.

    Source:
        Ebel et al. 2023; SSIM: Wang et al. 2004, Gaussian window, zero padding.
    """
    given = [None if image is None else torch.as_tensor(image) for image in (target, prediction, variance)]
    series = [image if image is None else image.reshape(1, -1, *image.shape[-3:]) for image in given]  # (1,T,13,H,W)
    assert series[0] is not None
    assert series[1] is not None
    return batch_metrics(series[0], series[1], series[2])[0]


@torch.no_grad()
def batch_metrics(target: Tensor, prediction: Tensor, variance: Tensor | None = None) -> list[dict[str, float]]:
    """`image_metrics` of each item of a batch, with one wait for the device.

    Args:
        target: (B,T,C,H,W), reflectance.
        prediction: same shape.
        variance: (B,...), reflectance squared; only its mean over an item is used.

    Returns:
        B dicts.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"target {tuple(target.shape)} and prediction {tuple(prediction.shape)} differ in shape")
    target, prediction = _at_least_float32(target), _at_least_float32(prediction)
    error = target - prediction
    mean_se, mean_ae = _item_mean(error.square()), _item_mean(error.abs())
    rmse = mean_se.sqrt()
    columns = {
        "RMSE": rmse,
        "MAE": mean_ae,
        "PSNR": -20 * torch.log10(rmse),
        "SAM": _item_mean(_spectral_angle(target, prediction)),
        "SSIM": _ssim(target, prediction),
    }
    if variance is not None:
        mean_variance = _item_mean(_at_least_float32(variance))
        columns |= {"error": _item_mean(error), "mean ae": mean_ae, "mean se": mean_se, "mean var": mean_variance}
    rows = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def average_metrics(per_image: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """The mean of each metric over images, and what had to stay out of it.

    Args:
        per_image: as from `batch_metrics`.

    Returns:
        The mean over finite values (where there are none, that of the others: infinite or NaN), and for each metric
        with other values how many were `nan` and how many `inf`: a perfect image has an infinite PSNR, which no
        average survives.
    """
    names = list(dict.fromkeys(name for metrics in per_image for name in metrics))
    means, left_out = {}, {}
    for name in names:
        values = np.array([metrics[name] for metrics in per_image if name in metrics], dtype=np.float64)
        finite = values[np.isfinite(values)]
        means[name] = float((finite if finite.size else values).mean())
        if finite.size < values.size:
            left_out[name] = {"nan": int(np.isnan(values).sum()), "inf": int(np.isinf(values).sum())}
    return means, left_out


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
        target: Tensor,
        prediction: PredictionLike | Tensor,
        masks: Tensor | None = None,
        first: int | None = None,
    ) -> list[dict[str, float]]:
        """Take in a batch.

        Args:
            target: (B,1,13,H,W) or (B,13,H,W), reflectance.
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
        target, mean = _series(target).to(mean.device), _series(mean)  # (B,1,13,H,W)
        stratum = None if masks is None else _strata(masks.to(mean.device)).expand(mean.shape)
        if stratum is None:
            stratum = torch.full_like(mean, _UNKNOWN, dtype=torch.int64)
        if not self.has_variance or total is None or isinstance(prediction, Tensor):
            per_image = batch_metrics(target, mean)
            self._pixels.add(_at_least_float32(target - mean), stratum=stratum)
        else:
            total = _series(total)
            per_image = batch_metrics(target, mean, total)
            for metrics, parts in zip(per_image, _split_variance(prediction), strict=True):
                metrics.update(parts)
            nll = _series(prediction.nll(target.reshape(prediction.mean.shape)))
            alpha = prediction.fields().get("alpha")
            dof = None if alpha is None else 2 * _series(alpha)
            self._pixels.add(_at_least_float32(target - mean), total, nll, dof, stratum)
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
    columns = torch.stack([_item_mean(part).double() for part in parts.values() if part is not None], dim=1)
    return [{f"mean {kind}": value for kind, value in zip(parts, row, strict=True)} for row in columns.tolist()]


def _strata(masks: Tensor) -> Tensor:
    """(B,T,H,W) masks to (B,1,1,H,W) positions in STRATA."""
    clouded = masks >= 0.5
    at_some, at_all = clouded.any(dim=1), clouded.all(dim=1)  # (B,H,W)
    return (at_some.long() + at_all.long())[:, None, None]  # (B,1,1,H,W)


def _series(image: Tensor) -> Tensor:
    """(B,13,H,W) or (B,1,13,H,W) to the latter."""
    return image.unsqueeze(1) if image.dim() == 4 else image


def _at_least_float32(image: Tensor) -> Tensor:
    return image if image.dtype == torch.float64 else image.float()


def _item_mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _spectral_angle(target: Tensor, prediction: Tensor) -> Tensor:
    """(B,T,C,H,W) twice to the angle between spectra, degrees, (B,T,H,W); NaN where one of them is zero."""
    product = (target * prediction).sum(dim=2)
    cosine = product / target.square().sum(dim=2).sqrt() / prediction.square().sum(dim=2).sqrt()
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def _ssim(target: Tensor, prediction: Tensor) -> Tensor:
    """(B,T,C,H,W) twice to the mean structural similarity of each item, (B,)."""
    mean_x, mean_y = _blur(target), _blur(prediction)
    variance_x, variance_y = _blur(target * target) - mean_x**2, _blur(prediction * prediction) - mean_y**2
    covariance = _blur(target * prediction) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return _item_mean(luminance * structure)


def _blur(image: Tensor) -> Tensor:
    """Gaussian window along H and W with zeros beyond the border.

    Sums of shifted copies: 26 times faster on a CPU than conv2d with one channel, and on a GPU free of TF32, whose
    10 bits the differences in `_ssim` would not survive.
    """
    weights = [math.exp(-(offset**2) / (2 * _SIGMA**2)) for offset in range(_WINDOW // 2 + 1)]
    norm = weights[0] + 2 * sum(weights[1:])
    for axis in (-1, -2):
        size = image.shape[axis]
        blurred = image * (weights[0] / norm)
        for offset, weight in enumerate(weights[1:size], start=1):
            rest = size - offset
            blurred.narrow(axis, 0, rest).add_(image.narrow(axis, offset, rest), alpha=weight / norm)
            blurred.narrow(axis, offset, rest).add_(image.narrow(axis, 0, rest), alpha=weight / norm)
        image = blurred
    return image
