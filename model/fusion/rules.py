"""Rules of fusion: the weight of each expert at each pixel and band.

| rule | weight of an expert |
|---|---|
| average | equal |
| convex | one per band: the non-negative weights, summing to 1, of least squared error on the fit split |
| ivw | inverse to its recalibrated variance |
| ivw_rho | the same for errors with the measured correlation; two experts only |
| monig | its evidence gamma: the summation of MoNIG on the experts' unchanged predictions, for comparison |
| gated | convex, adapted to each pixel by a small trained network |
| best | 1 for the better expert, 0 for others |
"""

from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

from common.errors import UsageError
from model.fusion.stacked import StackedPredictions, broadcast_bands
from model.nig import NIG, sum_beliefs
from model.registry import FUSION_RULES

Array = npt.NDArray[np.float64]

_EQUAL_ERRORS = 1e-6  # largest share of their variances that the difference of two equal errors has
_RIDGE = 1e-9  # of the mean square: equal weights for experts that are copies of each other


def check_rule(rule: str, n_experts: int) -> None:
    """Raise `UsageError` if the rule does not exist or cannot fuse that number of experts."""
    if rule not in FUSION_RULES:
        raise UsageError(f"unknown rule {rule!r}; choose --fusion {', '.join(FUSION_RULES)}")
    if n_experts < 2:
        raise UsageError(f"--experts names {n_experts} run; a fusion needs at least two, as uncrtaints=RUN utae=RUN")
    if rule == "ivw_rho" and n_experts != 2:
        raise UsageError(f"--fusion ivw_rho fuses two experts, got {n_experts}; choose ivw, convex or gated")


def usable_rules(n_experts: int) -> tuple[str, ...]:
    """The rules that can fuse that number of experts."""
    return tuple(rule for rule in FUSION_RULES if n_experts == 2 or rule != "ivw_rho")


def equal_weights(like: Tensor) -> Tensor:
    """Equal weights of K experts, of the shape of `like`, (K, ...)."""
    return torch.full_like(like, 1 / like.shape[0])


def one_hot_weights(index: int, like: Tensor) -> Tensor:
    """All weight for one expert, of the shape of `like`, (K, ...)."""
    weights = torch.zeros_like(like)
    weights[index] = 1
    return weights


def inverse_variance_weights(variances: Tensor) -> Tensor:
    """Weights inverse to variances (K, ...); of two experts the first gets V2 / (V1 + V2)."""
    return torch.softmax(-variances.log(), dim=0)


def correlated_weights(variances: Tensor, rho: Tensor) -> Tensor:
    """Minimum-variance weights for two experts with correlated errors, clamped to [0, 1].

    Args:
        variances: (2, B, 1, C, H, W).
        rho: correlation in each band, (C,).

    Returns:
        Same shape as the variances: w = (V2 - C) / (V1 + V2 - 2 C) with C = rho sqrt(V1 V2), and 1 - w; 1/2 where both
        errors are equal.
    """
    first, second = variances
    covariance = broadcast_bands(rho.to(variances)) * (first * second).sqrt()
    of_difference = first + second - 2 * covariance
    equal = of_difference <= _EQUAL_ERRORS * (first + second)
    weight = ((second - covariance) / torch.where(equal, 1.0, of_difference)).clamp(0, 1)
    weight = torch.where(equal, 0.5, weight)
    return torch.stack([weight, 1 - weight])


def convex_weights(gram: Array) -> Array:
    """Weights of least squared error that are not negative and sum to 1.

    Args:
        gram: sums of products of the experts' errors in each band, (C, K, K).

    Returns:
        (K, C). Of two experts the first gets clip(-sum (d2 - y)(d1 - d2) / sum (d1 - d2)^2, 0, 1).

    Source:
        Minimising w'Gw on the simplex is least squares with non-negative unknowns: u of least |Lu|^2 + (1 - sum u)^2,
        L'L = G, is a multiple of it (Lawson and Hanson 1974, chapter 23, least distance programming).
    """
    return np.stack([_simplex_minimum(band) for band in gram], axis=1)


def _simplex_minimum(gram: Array) -> Array:
    k = len(gram)
    level = np.trace(gram) / k
    if not level > 0:
        return np.full(k, 1 / k)
    values, vectors = np.linalg.eigh(gram / level + _RIDGE * np.eye(k))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    solution, _ = nnls(np.vstack([root, np.ones(k)]), np.concatenate([np.zeros(k), [1.0]]))
    return solution / solution.sum()


def evidence_weights(predictions: StackedPredictions) -> Tensor:
    """Weights of the MoNIG summation: each expert's share of the evidence gamma, (K, ...)."""
    return predictions.gamma / predictions.gamma.sum(0)


def monig_sum(predictions: StackedPredictions) -> NIG:
    """MoNIG summation of the experts' unchanged predictions, with its own variance."""
    return reduce(sum_beliefs, [predictions.expert(index) for index in range(len(predictions))])
