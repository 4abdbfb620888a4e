"""The mathematics of Normal-Inverse-Gamma beliefs: pure functions of a belief about each pixel and band.

`mu | s2 ~ N(delta, s2/gamma)`, `s2 ~ InvGamma(alpha, beta)`, `y | mu, s2 ~ N(mu, s2)`: the predictive distribution of y
is a Student-t with 2 alpha degrees of freedom. Data determine it through beta (1 + gamma) / gamma alone: how the total
variance divides into an aleatoric and an epistemic part is a convention of the prior that the loss puts on gamma.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.scores import student_t_scores
from model.student_t import student_t_nll, student_t_quantile

if TYPE_CHECKING:
    from model.predictions import NIG


def aleatoric(belief: "NIG") -> Tensor:
    """The expected variance of the data, beta / (alpha - 1)."""
    return belief.beta / (belief.alpha - 1)


def epistemic(belief: "NIG") -> Tensor:
    """The variance of the mean, beta / (gamma (alpha - 1))."""
    return belief.beta / (belief.gamma * (belief.alpha - 1))


def total(belief: "NIG") -> Tensor:
    """The predictive variance, aleatoric + epistemic."""
    return _inflated_beta(belief) / (belief.alpha - 1)


def width(belief: "NIG") -> Tensor:
    """The scale of the predictive Student-t, sqrt(beta (1 + gamma) / (gamma alpha))."""
    return (_inflated_beta(belief) / belief.alpha).sqrt()


def _inflated_beta(belief: "NIG") -> Tensor:
    """The one combination of beta and gamma that data determine: beta (1 + gamma) / gamma."""
    return belief.beta * (1 + 1 / belief.gamma)


def nll(belief: "NIG", target: Tensor) -> Tensor:
    """The negative log-likelihood of the target under the predictive Student-t, per element.

    Args:
        belief: fields (B, 1, C, H, W).
        target: same shape and unit as `delta`.

    Returns:
        Same shape.

    Source:
        Amini et al. 2020, eq. 8. Changes: written as ln(pi k)/2 + (alpha + 1/2) ln(1 + e^2/k) - lnG(alpha + 1/2) +
        lnG(alpha) with k = 2 beta (1 + gamma) / gamma, the same value without differences of large terms in float32.
    """
    return student_t_nll(belief.delta - target, 2 * _inflated_beta(belief), belief.alpha)


def interval(belief: "NIG", level: float) -> tuple[Tensor, Tensor]:
    """The central predictive interval.

    Args:
        belief: fields (B, 1, C, H, W).
        level: probability of the interval, in (0, 1).

    Returns:
        Lower and upper end, each of the shape of `delta`.

    Raises:
        ValueError: if the level is not between 0 and 1.
    """
    reach = student_t_quantile(level, 2 * belief.alpha) * width(belief)
    return belief.delta - reach, belief.delta + reach


def crps(belief: "NIG", target: Tensor) -> Tensor:
    """The continuous ranked probability score of the predictive Student-t, per element; alpha above 1."""
    return student_t_scores(target - belief.delta, total(belief), 2 * belief.alpha)[1]


def sum_beliefs(a: "NIG", b: "NIG") -> "NIG":
    """Combine two beliefs about the same pixels into one.

    Evidence adds up as if the two rested on independent data: two identical beliefs give a more certain one.

    Args:
        a: fields (B, 1, C, H, W).
        b: the same shape and unit.

    Returns:
        A belief of the same shape.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Ma et al. 2021 (MoNIG), eq. 9. Changes: the sum of squares is written as one product, which is the same.
    """
    if a.delta.shape != b.delta.shape:
        raise ValueError(
            f"beliefs about the same pixels have one shape; got {tuple(a.delta.shape)} and {tuple(b.delta.shape)}"
        )
    gamma = a.gamma + b.gamma
    share = b.gamma / gamma
    apart = b.delta - a.delta
    beta = a.beta + b.beta + 0.5 * a.gamma * share * apart.square()
    return replace(a, delta=a.delta + share * apart, gamma=gamma, alpha=a.alpha + b.alpha + 0.5, beta=beta)


def nig_from_moments(mean: Tensor, variance: Tensor, q: Tensor | float, alpha: Tensor | float) -> "NIG":
    """The belief with a given predictive mean and variance.

    Args:
        mean: (B, 1, C, H, W).
        variance: predictive variance, positive; any shape that broadcasts to the mean's.
        q: epistemic share of the variance, in (0, 1).
        alpha: half of the degrees of freedom, above 1.

    Returns:
        A belief of the mean's shape with total variance `variance` and epistemic variance `q * variance`.
    """
    from model.predictions import NIG  # here, because the container's methods are this module's functions

    share = torch.as_tensor(q, dtype=mean.dtype, device=mean.device).expand_as(mean)
    half_dof = torch.as_tensor(alpha, dtype=mean.dtype, device=mean.device).expand_as(mean)
    beta = (1 - share) * variance * (half_dof - 1)
    return NIG(delta=mean, gamma=(1 - share) / share, alpha=half_dof, beta=beta)


def scale(belief: "NIG", factor: float) -> "NIG":
    """The belief about `factor` times the quantity: delta by the factor, beta by its square, evidence unchanged."""
    return replace(belief, delta=belief.delta * factor, beta=belief.beta * factor**2)
