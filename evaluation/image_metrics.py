"""Metrics of images in reflectance, and their mean over a split."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGE_METRICS = ("RMSE", "MAE", "PSNR", "SAM", "SSIM")

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, pixels
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for a range of 1


def image_metrics(target: Any, prediction: Any, variance: Any = None) -> dict[str, float]:
    """The published metrics of one image.

    Args:
        target: (T,13,H,W) or (13,H,W), reflectance; tensor or array.
        prediction: same shape.
        variance: reflectance squared; only its mean is used.

    Returns:
        RMSE, MAE, PSNR (dB, peak 1), SAM (degrees), SSIM; with a variance also `error` (mean of target minus
        prediction), `mean ae`, `mean se` and `mean var`. PSNR is infinite for a perfect image; SAM is NaN if a pixel is
        zero in every band.

    Raises:
        ValueError: if target and prediction differ in shape.

    Source:
        Ebel et al. 2023; SSIM: Wang et al. 2004, Gaussian window, zero padding.
    """

    def batch_of_one(image: Any) -> Tensor:
        tensor = torch.as_tensor(image)
        return tensor.reshape(1, -1, *tensor.shape[-3:])  # (1,T,13,H,W)

    spread = None if variance is None else batch_of_one(variance)
    return batch_metrics(batch_of_one(target), batch_of_one(prediction), spread)[0]


class Reference:
    """Targets for the metrics of several methods; terms that depend on the targets alone are computed once.

    Args:
        target: (B,T,C,H,W), reflectance.
        valid: pixels that count, bool (B,T,H,W); None for all. For SSIM the others are as those beyond the border.
    """

    @torch.no_grad()
    def __init__(self, target: Tensor, valid: Tensor | None = None) -> None:
        self.valid = None if valid is None or bool(valid.all()) else valid[:, :, None]  # (B,T,1,H,W)
        self.target = self._without_missing(at_least_float32(target))
        self._norm = _spectral_norm(self.target)  # (B,T,1,H,W)
        self._blurred, self._blurred_square = _blur(self.target), _blur(self.target.square())

    @torch.no_grad()
    def metrics(self, prediction: Tensor, variance: Tensor | None = None) -> list[dict[str, float]]:
        """`image_metrics` of each item of a batch, with one transfer from the device.

        Args:
            prediction: of the shape of the targets.
            variance: (B,...), reflectance squared; only its mean over an item is used.
        """
        target, prediction = self.target, self._without_missing(at_least_float32(prediction))
        if target.shape != prediction.shape:
            raise ValueError(f"target {tuple(target.shape)} and prediction {tuple(prediction.shape)} differ in shape")
        error = target - prediction
        mean_se, mean_ae = self.mean(error.square()), self.mean(error.abs())
        rmse = mean_se.sqrt()
        columns = {
            "RMSE": rmse,
            "MAE": mean_ae,
            "PSNR": -20 * torch.log10(rmse),
            "SAM": self.mean(self._spectral_angle(prediction)),
            "SSIM": self._ssim(prediction),
        }
        if variance is not None:
            mean_variance = self.mean(at_least_float32(variance))
            columns |= {"error": self.mean(error), "mean ae": mean_ae, "mean se": mean_se, "mean var": mean_variance}
        rows = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the valid pixels of each item of (B,T,C,H,W), (B,)."""
        if self.valid is None:
            return item_mean(values)
        share = item_mean(self.valid.to(values.dtype))
        return item_mean(values.where(self.valid, 0.0)) / share

    def _without_missing(self, image: Tensor) -> Tensor:
        """(B,T,C,H,W) with 0 at the pixels that do not count."""
        return image if self.valid is None else image.where(self.valid, 0.0)

    def _spectral_angle(self, prediction: Tensor) -> Tensor:
        """Angle between spectra, degrees, (B,T,1,H,W); NaN where one of them is zero."""
        cosine = (self.target * prediction).sum(dim=2, keepdim=True) / self._norm / _spectral_norm(prediction)
        return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))

    def _ssim(self, prediction: Tensor) -> Tensor:
        """Mean structural similarity of each item, (B,)."""
        mean_x, mean_y = self._blurred, _blur(prediction)
        product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        luminance = product.mul(2).add_(_C1) / (squares + _C1)
        covariance = _blur(self.target * prediction).sub_(product)
        variances = _blur(prediction.square()).add_(self._blurred_square).sub_(squares)
        return self.mean(luminance.mul_(covariance.mul_(2).add_(_C2)).div_(variances.add_(_C2)))


def batch_metrics(target: Tensor, prediction: Tensor, variance: Tensor | None = None) -> list[dict[str, float]]:
    """`image_metrics` of each item of a batch (B,T,C,H,W) of one method; see `Reference` for several."""
    return Reference(target).metrics(prediction, variance)


def average_metrics(per_image: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """The mean of each metric over images, and the number of values left out of it.

    Args:
        per_image: as from `batch_metrics`.

    Returns:
        The mean over finite values (if there are none, that of the others: infinite or NaN), and for each metric
        with other values the number of `nan` and of `inf`, such as the PSNR of a perfect image.
    """
    means, left_out = {}, {}
    for name in dict.fromkeys(name for metrics in per_image for name in metrics):
        values = np.array([metrics[name] for metrics in per_image if name in metrics], dtype=np.float64)
        finite = values[np.isfinite(values)]
        means[name] = float((finite if finite.size else values).mean())
        if finite.size < values.size:
            left_out[name] = {"nan": int(np.isnan(values).sum()), "inf": int(np.isinf(values).sum())}
    return means, left_out


def at_least_float32(image: Tensor) -> Tensor:
    """The image in float32; unchanged if it is float64."""
    return image if image.dtype == torch.float64 else image.float()


def item_mean(values: Tensor) -> Tensor:
    """Mean of each item of (B, ...), (B,)."""
    return values.flatten(1).mean(dim=1)


def _spectral_norm(image: Tensor) -> Tensor:
    """Length of the spectra of (B,T,C,H,W), (B,T,1,H,W)."""
    return image.square().sum(dim=2, keepdim=True).sqrt_()


def _blur(image: Tensor) -> Tensor:
    """Gaussian window along H and W with zeros beyond the border.

    Sums of shifted copies are 26 times faster on a CPU than conv2d with one channel, and avoid TF32 on a GPU, whose
    10 bits are too few for the differences in `_ssim`.
    """
    weights = [math.exp(-(offset**2) / (2 * _SIGMA**2)) for offset in range(_WINDOW // 2 + 1)]
    norm = weights[0] + 2 * sum(weights[1:])
    for axis in (-1, -2):
        size = image.shape[axis]
        blurred = image * (weights[0] / norm)
        for offset, weight in enumerate(weights[1:size], start=1):
            length = size - offset
            blurred.narrow(axis, 0, length).add_(image.narrow(axis, offset, length), alpha=weight / norm)
            blurred.narrow(axis, offset, length).add_(image.narrow(axis, 0, length), alpha=weight / norm)
        image = blurred
    return image
