"""The rules of fusion: how much weight each expert gets at each pixel and band.

| rule | weight of an expert |
|---|---|
| average | the same for all |
| convex | one number for each band: the non-negative weights, adding up to 1, of least squared error on the fit split |
| ivw | inverse to its recalibrated variance |
| ivw_rho | the same for errors with the measured correlation; two experts only |
| monig | its evidence gamma: the summation of MoNIG on the experts' own beliefs, for comparison |
| gated | convex, moved from pixel to pixel by a small trained network |
| best | all for the better expert |
"""

from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

from common.errors import UsageError
from model.fusion.beliefs import Experts, by_band
from model.nig import sum_beliefs
from model.predictions import NIG
from model.registry import FUSION_RULES

Array = npt.NDArray[np.float64]

_SAME = 1e-6  # errors whose difference has less than this share of their variance are one error
_RIDGE = 1e-9  # of the mean square: shares the weight among experts that are copies of each other


def check_rule(rule: str, n_experts: int) -> None:
    """Raise `UsageError` if there is no such rule or it cannot fuse so many experts."""
    if rule not in FUSION_RULES:
        raise UsageError(f"unknown rule {rule!r}; choose --fusion {', '.join(FUSION_RULES)}")
    if n_experts < 2:
        raise UsageError(f"--experts names {n_experts} run; a fusion needs at least two, as uncrtaints=RUN utae=RUN")
    if rule == "ivw_rho" and n_experts != 2:
        raise UsageError(f"--fusion ivw_rho fuses two experts, got {n_experts}; choose ivw, convex or gated")


def usable_rules(n_experts: int) -> tuple[str, ...]:
    """The rules that can fuse so many experts."""
    return tuple(rule for rule in FUSION_RULES if n_experts == 2 or rule != "ivw_rho")


def equal_weights(like: Tensor) -> Tensor:
    """The same weight for each of K experts, of the shape of `like`, (K, ...)."""
    return torch.full_like(like, 1 / like.shape[0])


def one_expert(index: int, like: Tensor) -> Tensor:
    """All weight for one expert, of the shape of `like`, (K, ...)."""
    weights = torch.zeros_like(like)
    weights[index] = 1
    return weights


def inverse_variance_weights(variances: Tensor) -> Tensor:
    """Weights inverse to variances (K, ...); of two experts the first gets V2 / (V1 + V2)."""
    return torch.softmax(-variances.log(), dim=0)


def correlated_weights(variances: Tensor, rho: Tensor) -> Tensor:
    """The weights of least variance for two experts whose errors correlate, kept within [0, 1].

    Args:
        variances: (2, B, 1, C, H, W).
        rho: correlation in each band, (C,).

    Returns:
        Same shape as the variances: w = (V2 - C) / (V1 + V2 - 2 C) with C = rho sqrt(V1 V2), and 1 - w; half and half
        where both errors are the same.
    """
    first, second = variances
    shared = by_band(rho.to(variances)) * (first * second).sqrt()
    apart = first + second - 2 * shared
    same = apart <= _SAME * (first + second)
    weight = ((second - shared) / torch.where(same, 1.0, apart)).clamp(0, 1)
    weight = torch.where(same, 0.5, weight)
    return torch.stack([weight, 1 - weight])


def convex_weights(gram: Array) -> Array:
    """The weights of least squared error that are not negative and add up to 1.

    Args:
        gram: sums of products of the experts' errors in each band, (C, K, K).

    Returns:
        (K, C). Of two experts the first gets clip(-sum (d2 - y)(d1 - d2) / sum (d1 - d2)^2, 0, 1).

    Source:
        Minimising w'Gw on the simplex is least squares with non-negative unknowns: u of least |Lu|^2 + (1 - sum u)^2,
        L'L = G, is a multiple of it (Lawson and Hanson 1974, chapter 23, least distance programming).
    """
    return np.stack([_simplex_minimum(one) for one in gram], axis=1)


def _simplex_minimum(gram: Array) -> Array:
    k = len(gram)
    level = np.trace(gram) / k
    if not level > 0:
        return np.full(k, 1 / k)
    values, vectors = np.linalg.eigh(gram / level + _RIDGE * np.eye(k))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    found, _ = nnls(np.vstack([root, np.ones(k)]), np.concatenate([np.zeros(k), [1.0]]))
    return found / found.sum()


def evidence_weights(experts: Experts) -> Tensor:
    """The weights that the summation of MoNIG gives: each expert's share of the evidence gamma, (K, ...)."""
    return experts.gamma / experts.gamma.sum(0)


def summed_belief(experts: Experts) -> NIG:
    """The summation of MoNIG on the experts' own beliefs, with its own variance."""
    return reduce(sum_beliefs, [experts.belief(index) for index in range(len(experts))])
