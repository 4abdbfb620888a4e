"""What the experts say about the same pixels, side by side, and the moments of what is made of them.

Everything is in reflectance and reflectance squared. The first dimension counts the experts, K; fields are
(K, B, 1, C, H, W), and (K, B, C, H, W) is accepted too. Numbers of a band are (C,), of an expert and band (K, C).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.nig import nig_from_moments
from model.predictions import NIG, Gaussian, Prediction

LEAST_SHARE, LARGEST_SHARE = 0.01, 0.99  # of the variance that counts as epistemic
GAUSSIAN_GAMMA = 1.0  # a Gaussian expert says nothing about it


@dataclass(frozen=True, eq=False)
class Experts:
    """Beliefs of K experts about the same pixels.

    Attributes:
        mean: (K, B, 1, C, H, W), reflectance.
        variance: total predictive variances as the experts state them, same shape, reflectance squared.
        gamma: evidence for the mean, same shape.
        alpha: half of the degrees of freedom, same shape.
    """

    mean: Tensor
    variance: Tensor
    gamma: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return self.mean.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Experts":
        """The same about other pixels: each field changed alike."""
        return Experts(*(change(field) for field in (self.mean, self.variance, self.gamma, self.alpha)))

    def belief(self, index: int) -> NIG:
        """The belief of one expert, as it came."""
        share = 1 / (1 + self.gamma[index])
        return nig_from_moments(self.mean[index], self.variance[index], share, self.alpha[index])


def stack(predictions: Sequence[Prediction], dof: Tensor) -> Experts:
    """Lay beliefs side by side.

    Args:
        predictions: of each expert, in reflectance, fields (B, 1, C, H, W).
        dof: degrees of freedom that were fitted to each expert and band, (K, C); given to Gaussian experts, which
            have none of their own.

    Raises:
        ValueError: if an expert has no variance.
    """
    gammas, alphas, variances = [], [], []
    for one, of_expert in zip(predictions, dof, strict=True):
        if isinstance(one, NIG):
            gammas.append(one.gamma)
            alphas.append(one.alpha)
        elif isinstance(one, Gaussian):
            gammas.append(torch.full_like(one.mean, GAUSSIAN_GAMMA))
            alphas.append((by_band(of_expert.to(one.mean)) / 2).expand_as(one.mean))
        else:
            raise ValueError("an expert without a variance cannot be fused; train it with --head nig or gaussian")
        variances.append(one.total)
    means = torch.stack([one.mean for one in predictions])
    return Experts(means, torch.stack(variances), torch.stack(gammas), torch.stack(alphas))


def by_band(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Numbers for each band laid along the band dimension of images.

    Args:
        values: (C,), or (K, C) for the fields of K experts.
        like: those fields, (K, B, ..., C, H, W); only needed for (K, C).

    Returns:
        (C, 1, 1), or (K, 1, ..., C, 1, 1), which broadcasts.
    """
    if values.dim() == 1:
        return values[:, None, None]
    assert like is not None
    return values.reshape(values.shape[0], *[1] * (like.dim() - 4), values.shape[1], 1, 1).to(like)


def fused_mean(weights: Tensor, means: Tensor) -> Tensor:
    """The weighted mean of K experts, (K, ...) to (...); exact where they agree or the first has all the weight."""
    first = means[0]
    total = first
    for weight, mean in zip(weights[1:], means[1:], strict=True):
        total = total + weight * (mean - first)
    return total


def fused_variance(weights: Tensor, variances: Tensor, correlation: Tensor) -> Tensor:
    """The variance of a weighted mean of correlated errors.

    Args:
        weights: (K, B, 1, C, H, W), adding up to 1.
        variances: same shape.
        correlation: of the experts' errors, (K, K, C).

    Returns:
        (B, 1, C, H, W): sum over i and j of w_i w_j rho_ij sqrt(V_i V_j).
    """
    parts = weights * variances.sqrt()
    total = parts.square().sum(0)
    for i in range(len(parts)):
        for j in range(i + 1, len(parts)):
            total = total + 2 * by_band(correlation[i, j].to(parts)) * parts[i] * parts[j]
    # errors that cancel (correlation -1) leave no variance at all, which no expert can promise
    return torch.maximum(total, 1e-6 * variances.amin(0))


def epistemic_share(weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """The share of the fused variance that is put down to the experts' disagreement, (B, 1, C, H, W).

    The spread of their means over that plus the weighted mean of their variances, kept within [0.01, 0.99]; of two
    experts the spread is a quarter of the squared difference.
    """
    spread = (means - means.mean(0)).square().mean(0)
    share = spread / (spread + (weights * variances).sum(0))
    return share.clamp(LEAST_SHARE, LARGEST_SHARE)
