"""Losses of the Gaussian head: univariate and multivariate negative log-likelihood."""

import math

import torch
from torch import Tensor

from model.containers import check_target

EPS = 1e-8  # smallest variance, in scaled units squared, as published


def _terms(mean: Tensor, target: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all pixels and bands: of the log-variance, and of the squared error over the variance."""
    check_target(mean, target)
    shapes = tuple(mean.shape), (*mean.shape[:-3], 1, *mean.shape[-2:])
    if tuple(variance.shape) not in shapes:
        raise ValueError(f"expected a variance of shape {shapes[0]} or {shapes[1]}, got {tuple(variance.shape)}")
    variance = variance.clone()
    with torch.no_grad():  # the gradient passes below the floor too, so that a variance can recover
        variance.clamp_(min=EPS)
    return variance.log().mean(), ((mean - target).square() / variance).mean()


def gaussian_nll(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of a normal distribution, averaged over images, bands and pixels.

    Args:
        mean: (B, 1, C, H, W), scaled reflectance.
        target: same shape.
        variance: same shape or (B, 1, 1, H, W), scaled reflectance squared; values below 1e-8 count as 1e-8.

    Returns:
        A scalar, with the constant ln(2 pi)/2.

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        Nix and Weigend 1994; GNLL of UnCRtainTS (Ebel et al. 2023). Changes: one variance for all bands works.
    """
    log_variance, distance = _terms(mean, target, variance)
    return 0.5 * (log_variance + distance + math.log(2 * math.pi))


def multivariate_gaussian_nll(
    mean: Tensor, target: Tensor, variance: Tensor, legacy: bool = False, n_images: int | None = None
) -> Tensor:
    """Negative log-likelihood of a normal distribution over bands, averaged over images and pixels.

    Args:
        mean: (B, 1, C, H, W), scaled reflectance.
        target: same shape.
        variance: diagonal of the covariance, same shape (diag) or (B, 1, 1, H, W) (iso, one for all bands), scaled
            reflectance squared; values below 1e-8 count as 1e-8.
        legacy: weight the log-determinant by the batch size, as the published code does.
        n_images: the batch size for `legacy`, if pixels of all images are in one row (default: B).

    Returns:
        A scalar, summed over bands: the mean over images, each as if it were alone.

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        MGNLL of UnCRtainTS (Ebel et al. 2023). Changes: the log-determinant is not summed over the batch (that made
        the best variance at batch size 4 a quarter of the truth), and the covariance is never built.
    """
    log_variance, distance = _terms(mean, target, variance)
    weight = (n_images or mean.shape[0]) if legacy else 1
    return 0.5 * mean.shape[-3] * (weight * log_variance + distance + math.log(2 * math.pi))
