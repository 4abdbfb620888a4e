"""Variances that fit the errors: a straight line in the logarithm for each expert and band, and the tails."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import gammaln, psi
from torch import Tensor

from model.fusion.beliefs import by_band

Array = npt.NDArray[np.float64]

LEAST_DOF, LARGEST_DOF = 2.1, 200.0  # the variance exists; beyond 200 a Student-t is a normal
LARGEST_SLOPE = 1.0  # contrasts may be drawn together, not stretched: a steeper line did not hold in other regions
SEEN = (0.005, 0.995)  # quantiles of ln V between which the line holds
START_DOF = 8.0
_LEAST = 1e-20  # of a squared error or a variance: their logarithms stay finite


@dataclass(frozen=True, eq=False)
class Recalibration:
    """ln V' = a + c ln V with a number of degrees of freedom, each (K, C) or (C,).

    c lies in [0, 1], and the line is not continued beyond `low` and `high`, the range of ln V that the fit has seen: a
    network may state absurd variances at a few pixels of another region.
    """

    a: Tensor
    c: Tensor
    dof: Tensor
    low: Tensor
    high: Tensor

    def apply(self, variances: Tensor) -> Tensor:
        """The variances V' for the stated ones, (K, B, 1, C, H, W) or, without K, (B, 1, C, H, W)."""
        numbers = (self.a, self.c, self.low, self.high)
        a, c, low, high = (by_band(values.to(variances), variances) for values in numbers)
        return torch.exp(a + c * torch.minimum(torch.maximum(variances.log(), low), high))


def fit_recalibration(variance: Tensor, error: Tensor, *, slope: bool = True) -> Recalibration:
    """Fit the line and the tails by the likelihood of a Student-t.

    Args:
        variance: (..., N), stated variances of N pixels for each expert and band.
        error: same shape, target minus mean.
        slope: whether c is fitted; else it is 1, and exp(a) is one factor on the variance.

    Returns:
        Float32 numbers of the leading shape.

    Raises:
        ValueError: if the shapes differ or there are no pixels.
    """
    if variance.shape != error.shape or not variance.shape[-1]:
        raise ValueError(f"expected variances and errors of the same pixels, got {variance.shape} and {error.shape}")
    rows = zip(*(t.detach().double().cpu().reshape(-1, t.shape[-1]).numpy() for t in (variance, error)), strict=True)
    found = np.array([_fit_line(np.log(np.maximum(v, _LEAST)), e, slope) for v, e in rows])
    return Recalibration(*(torch.from_numpy(column.copy()).float().reshape(variance.shape[:-1]) for column in found.T))


def _fit_line(log_variance: Array, error: Array, slope: bool) -> tuple[float, float, float, float, float]:
    """The best a, c and dof for one row of pixels, and the range of ln V in which they hold."""
    usable = np.isfinite(log_variance) & np.isfinite(error)
    log_variance, error = log_variance[usable], error[usable]
    if not error.size:
        return 0.0, 1.0, LARGEST_DOF, -np.inf, np.inf
    low, high = np.quantile(log_variance, SEEN) if slope else (-np.inf, np.inf)
    log_variance = log_variance.clip(low, high)
    centre = float(log_variance.mean())
    x, squared = log_variance - centre, np.maximum(error**2, _LEAST)
    level = np.log(np.mean(squared))
    start = np.array([level + np.log((START_DOF - 2) / START_DOF), 1.0, np.log(START_DOF - 2)])
    bounds = [
        (level - 20.0, level + 5.0),
        (0.0, LARGEST_SLOPE) if slope else (1.0, 1.0),
        (np.log(LEAST_DOF - 2), np.log(LARGEST_DOF - 2)),
    ]
    found = minimize(student_t_objective(x, squared), start, jac=True, method="L-BFGS-B", bounds=bounds)
    scale, c, tail = found.x
    dof = 2 + np.exp(tail)
    return float(scale + np.log(dof / (dof - 2)) - c * centre), float(c), float(dof), float(low), float(high)


def student_t_objective(x: Array, squared: Array) -> Callable[[Array], tuple[float, Array]]:
    """The mean negative log-likelihood of errors and its gradient, for an optimiser.

    Args:
        x: (N,), centred logarithms of the stated variances.
        squared: (N,), squared errors.

    Returns:
        A function of (s, c, t): the Student-t has scale^2 = exp(s + c x) and 2 + exp(t) degrees of freedom. Scale and
        tails move almost independently in these coordinates, unlike variance and tails.
    """

    def objective(parameters: Array) -> tuple[float, Array]:
        s, c, t = parameters
        dof = 2 + np.exp(t)
        log_spread = s + c * x + np.log(dof)  # of dof * scale^2
        ratio = squared * np.exp(-log_spread)
        far, pull = np.log1p(ratio), (dof + 1) / 2 * ratio / (1 + ratio)
        constant = 0.5 * np.log(np.pi) - gammaln((dof + 1) / 2) + gammaln(dof / 2)
        value = np.mean(0.5 * log_spread + (dof + 1) / 2 * far) + constant
        by_scale = 0.5 - pull
        by_dof = np.mean(by_scale) / dof + 0.5 * (np.mean(far) - psi((dof + 1) / 2) + psi(dof / 2))
        return float(value), np.array([np.mean(by_scale), np.mean(by_scale * x), by_dof * (dof - 2)])

    return objective
