"""Predictions of K experts for the same pixels, stacked, and the moments of their fusion.

Units are reflectance and reflectance squared. The first dimension is that of the experts: fields are
(K, B, 1, C, H, W), and (K, B, C, H, W) is accepted too. Numbers per band are (C,), per expert and band (K, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.containers import TensorFields
from model.nig import nig_from_moments
from model.predictions import NIG, Gaussian, Prediction

MIN_SHARE, MAX_SHARE = 0.01, 0.99  # epistemic share of the variance
GAUSSIAN_GAMMA = 1.0  # of a Gaussian expert, which predicts none


@dataclass(frozen=True, eq=False)
class StackedPredictions(TensorFields):
    """Predictions of K experts for the same pixels.

    Attributes:
        mean: (K, B, 1, C, H, W), reflectance.
        variance: total predictive variances as the experts predict them, same shape, reflectance squared.
        gamma: evidence for the mean, same shape.
        alpha: half of the degrees of freedom, same shape.
    """

    mean: Tensor
    variance: Tensor
    gamma: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return self.mean.shape[0]

    def expert(self, index: int) -> NIG:
        """The prediction of one expert, unchanged."""
        share = 1 / (1 + self.gamma[index])
        return nig_from_moments(self.mean[index], self.variance[index], share, self.alpha[index])


def stack_predictions(predictions: Sequence[Prediction], dof: Tensor) -> StackedPredictions:
    """Stack the predictions of several experts.

    Args:
        predictions: of each expert, in reflectance, fields (B, 1, C, H, W).
        dof: degrees of freedom fitted to each expert and band, (K, C); used for Gaussian experts, which predict none.

    Raises:
        ValueError: if an expert has no variance.
    """
    gammas, alphas, variances = [], [], []
    for prediction, expert_dof in zip(predictions, dof, strict=True):
        if isinstance(prediction, NIG):
            gammas.append(prediction.gamma)
            alphas.append(prediction.alpha)
        elif isinstance(prediction, Gaussian):
            gammas.append(torch.full_like(prediction.mean, GAUSSIAN_GAMMA))
            alphas.append((broadcast_bands(expert_dof.to(prediction.mean)) / 2).expand_as(prediction.mean))
        else:
            raise ValueError("an expert without a variance cannot be fused; train it with --head nig or gaussian")
        variances.append(prediction.total)
    means = torch.stack([prediction.mean for prediction in predictions])
    return StackedPredictions(means, torch.stack(variances), torch.stack(gammas), torch.stack(alphas))


def broadcast_bands(values: Tensor, like: Tensor | None = None) -> Tensor:
    """A view of numbers per band that broadcasts over images.

    Args:
        values: (C,), or (K, C) for the fields of K experts.
        like: those fields, (K, B, ..., C, H, W); only needed for (K, C).

    Returns:
        (C, 1, 1), or (K, 1, ..., C, 1, 1).
    """
    if values.dim() == 1:
        return values[:, None, None]
    assert like is not None
    return values.reshape(values.shape[0], *[1] * (like.dim() - 4), values.shape[1], 1, 1).to(like)


def fused_mean(weights: Tensor, means: Tensor) -> Tensor:
    """Weighted mean of K experts, (K, ...) to (...); exact where they agree or the first has all the weight."""
    first = means[0]
    total = first
    for weight, mean in zip(weights[1:], means[1:], strict=True):
        total = total + weight * (mean - first)
    return total


def fused_variance(weights: Tensor, variances: Tensor, correlation: Tensor) -> Tensor:
    """Variance of a weighted mean with correlated errors.

    Args:
        weights: (K, B, 1, C, H, W), summing to 1.
        variances: same shape.
        correlation: of the experts' errors, (K, K, C).

    Returns:
        (B, 1, C, H, W): sum over i and j of w_i w_j rho_ij sqrt(V_i V_j).
    """
    parts = weights * variances.sqrt()
    total = parts.square().sum(0)
    for i in range(len(parts)):
        for j in range(i + 1, len(parts)):
            total = total + 2 * broadcast_bands(correlation[i, j].to(parts)) * parts[i] * parts[j]
    # errors that cancel (correlation -1) would leave no variance at all
    return torch.maximum(total, 1e-6 * variances.amin(0))


def epistemic_share(weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Share of the fused variance that is attributed to the experts' disagreement, (B, 1, C, H, W).

    The spread of their means, over itself plus the weighted mean of their variances, clamped to [0.01, 0.99]; of two
    experts the spread is a quarter of the squared difference.
    """
    spread = (means - means.mean(0)).square().mean(0)
    share = spread / (spread + (weights * variances).sum(0))
    return share.clamp(MIN_SHARE, MAX_SHARE)
