"""Recalibrated variances: a log-linear map per expert and band, and degrees of freedom, fitted to errors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import gammaln, psi
from torch import Tensor

from model.fusion.stacked import broadcast_bands

Array = npt.NDArray[np.float64]

MIN_DOF, MAX_DOF = 2.1, 200.0  # the variance exists; beyond 200 a Student-t is a normal
MAX_SLOPE = 1.0  # contrasts may be reduced, not stretched: a steeper line did not hold in other regions
FITTED_RANGE = (0.005, 0.995)  # quantiles of ln V between which the line holds
START_DOF = 8.0
_MIN_SQUARE = 1e-20  # of an error or a deviation: its logarithm stays finite


@dataclass(frozen=True, eq=False)
class Recalibration:
    """ln V' = intercept + slope ln V, and degrees of freedom; each (K, C) or (C,).

    The slope lies in [0, 1], and ln V is clamped to [low, high], the range that was fitted: a network may predict
    absurd variances at a few pixels of another region.
    """

    intercept: Tensor
    slope: Tensor
    dof: Tensor
    low: Tensor
    high: Tensor

    def apply(self, variances: Tensor) -> Tensor:
        """Variances V' for predicted ones, (K, B, 1, C, H, W) or, without K, (B, 1, C, H, W)."""
        numbers = (self.intercept, self.slope, self.low, self.high)
        intercept, slope, low, high = (broadcast_bands(values.to(variances), variances) for values in numbers)
        return torch.exp(intercept + slope * torch.minimum(torch.maximum(variances.log(), low), high))


def fit_recalibration(variance: Tensor, error: Tensor, *, fit_slope: bool = True) -> Recalibration:
    """Fit line and tails by the likelihood of a Student-t.

    Args:
        variance: (..., N), predicted variances of N pixels for each expert and band.
        error: same shape, target minus mean.
        fit_slope: whether the slope is fitted; else it is 1, and exp(intercept) is a factor on the variance.

    Returns:
        Float32 numbers of the leading shape.

    Raises:
        ValueError: if the shapes differ or there are no pixels.
    """
    if variance.shape != error.shape or not variance.shape[-1]:
        raise ValueError(f"expected variances and errors of the same pixels, got {variance.shape} and {error.shape}")
    rows = zip(*(t.detach().double().cpu().reshape(-1, t.shape[-1]).numpy() for t in (variance, error)), strict=True)
    lines = np.array([_fit_line(np.log(np.maximum(v, _MIN_SQUARE)), e, fit_slope) for v, e in rows])
    return Recalibration(*(torch.from_numpy(column.copy()).float().reshape(variance.shape[:-1]) for column in lines.T))


def _fit_line(log_variance: Array, error: Array, fit_slope: bool) -> tuple[float, float, float, float, float]:
    """Intercept, slope, dof, and the range of ln V in which they hold, for one row of pixels."""
    finite = np.isfinite(log_variance) & np.isfinite(error)
    log_variance, error = log_variance[finite], error[finite]
    if not error.size:
        return 0.0, 1.0, MAX_DOF, -np.inf, np.inf
    low, high = np.quantile(log_variance, FITTED_RANGE) if fit_slope else (-np.inf, np.inf)
    log_variance = log_variance.clip(low, high)
    centre = float(log_variance.mean())
    x, squared = log_variance - centre, np.maximum(error**2, _MIN_SQUARE)
    level = np.log(np.mean(squared))
    start = np.array([level + np.log((START_DOF - 2) / START_DOF), 1.0, np.log(START_DOF - 2)])
    bounds = [
        (level - 20.0, level + 5.0),
        (0.0, MAX_SLOPE) if fit_slope else (1.0, 1.0),
        (np.log(MIN_DOF - 2), np.log(MAX_DOF - 2)),
    ]
    optimum = minimize(student_t_objective(x, squared), start, jac=True, method="L-BFGS-B", bounds=bounds)
    log_scale, slope, tail = optimum.x
    dof = 2 + np.exp(tail)
    intercept = log_scale + np.log(dof / (dof - 2)) - slope * centre
    return float(intercept), float(slope), float(dof), float(low), float(high)


def student_t_objective(x: Array, squared: Array) -> Callable[[Array], tuple[float, Array]]:
    """Mean negative log-likelihood of errors and its gradient, for an optimiser.

    Args:
        x: (N,), centred logarithms of the predicted variances.
        squared: (N,), squared errors.

    Returns:
        A function of (s, c, t): the Student-t has scale^2 = exp(s + c x) and 2 + exp(t) degrees of freedom. Scale and
        tails are almost independent in these coordinates, unlike variance and tails.
    """

    def objective(parameters: Array) -> tuple[float, Array]:
        s, c, t = parameters
        dof = 2 + np.exp(t)
        log_spread = s + c * x + np.log(dof)  # of dof * scale^2
        ratio = squared * np.exp(-log_spread)
        log_kernel, pull = np.log1p(ratio), (dof + 1) / 2 * ratio / (1 + ratio)
        constant = 0.5 * np.log(np.pi) - gammaln((dof + 1) / 2) + gammaln(dof / 2)
        value = np.mean(0.5 * log_spread + (dof + 1) / 2 * log_kernel) + constant
        by_scale = 0.5 - pull
        by_dof = np.mean(by_scale) / dof + 0.5 * (np.mean(log_kernel) - psi((dof + 1) / 2) + psi(dof / 2))
        return float(value), np.array([np.mean(by_scale), np.mean(by_scale * x), by_dof * (dof - 2)])

    return objective
