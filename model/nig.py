"""Normal-Inverse-Gamma distributions per pixel and band: container and mathematics.

`mu | s2 ~ N(delta, s2/gamma)`, `s2 ~ InvGamma(alpha, beta)`, `y | mu, s2 ~ N(mu, s2)`: the predictive distribution of y
is a Student-t with 2 alpha degrees of freedom. Data determine it through beta (1 + gamma) / gamma alone: how the total
variance divides into an aleatoric and an epistemic part is a convention of the prior that the loss puts on gamma.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.containers import TensorFields, check_target
from model.student_t import student_t_nll, student_t_quantile, student_t_scores


@dataclass(frozen=True, eq=False)
class NIG(TensorFields):
    """A Normal-Inverse-Gamma distribution: four tensors (B, 1, C, H, W).

    | field | meaning | range | unit | Ma et al. 2021 | Amini et al. 2020 |
    |---|---|---|---|---|---|
    | delta | expected mean | | that of the target | delta | gamma |
    | gamma | evidence for the mean | > 0 | | gamma | nu |
    | alpha | evidence for the variance, half of the degrees of freedom | > 1 | | alpha | alpha |
    | beta | scale of the variance | > 0 | that of the target, squared | beta | beta |
    """

    delta: Tensor
    gamma: Tensor
    alpha: Tensor
    beta: Tensor

    @property
    def mean(self) -> Tensor:
        """The predicted value, delta."""
        return self.delta

    @property
    def aleatoric(self) -> Tensor:
        """Expected variance of the data, beta / (alpha - 1)."""
        return self.beta / (self.alpha - 1)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the mean, beta / (gamma (alpha - 1))."""
        return self.beta / (self.gamma * (self.alpha - 1))

    @property
    def total(self) -> Tensor:
        """Predictive variance, aleatoric + epistemic."""
        return self._inflated_beta / (self.alpha - 1)

    @property
    def width(self) -> Tensor:
        """Scale of the predictive Student-t, sqrt(beta (1 + gamma) / (gamma alpha))."""
        return (self._inflated_beta / self.alpha).sqrt()

    @property
    def _inflated_beta(self) -> Tensor:
        """The only combination of beta and gamma that data determine: beta (1 + gamma) / gamma."""
        return self.beta * (1 + 1 / self.gamma)

    def nll(self, target: Tensor) -> Tensor:
        """Negative log-likelihood of the target under the predictive Student-t, per element.

        Source:
            Amini et al. 2020, eq. 8. Changes: written as ln(pi k)/2 + (alpha + 1/2) ln(1 + e^2/k) - lnG(alpha + 1/2) +
            lnG(alpha) with k = 2 beta (1 + gamma) / gamma: the same without differences of large terms in float32.
        """
        check_target(self.delta, target)
        return student_t_nll(self.delta - target, 2 * self._inflated_beta, self.alpha)

    def crps(self, target: Tensor) -> Tensor:
        """Continuous ranked probability score of the predictive Student-t, per element."""
        check_target(self.delta, target)
        return student_t_scores(target - self.delta, self.total, 2 * self.alpha)[1]

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval of probability `level`; ValueError unless 0 < level < 1."""
        reach = student_t_quantile(level, 2 * self.alpha) * self.width
        return self.delta - reach, self.delta + reach

    def unscaled(self, scale_by: float) -> "NIG":
        """From scaled units to reflectance and reflectance squared; the evidence has no unit."""
        return scale(self, 1.0 / scale_by)


def sum_beliefs(a: NIG, b: NIG) -> NIG:
    """Combine two distributions of the same pixels into one.

    Evidence adds up as if both rested on independent data: the sum of two equal ones is more certain.

    Args:
        a: fields (B, 1, C, H, W).
        b: same shape and unit.

    Returns:
        A distribution of the same shape.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Ma et al. 2021 (MoNIG), eq. 9. Changes: the sum of squares is written as one product, which is the same.
    """
    if a.delta.shape != b.delta.shape:
        raise ValueError(f"expected fields of the same shape, got {tuple(a.delta.shape)} and {tuple(b.delta.shape)}")
    gamma = a.gamma + b.gamma
    share = b.gamma / gamma
    difference = b.delta - a.delta
    beta = a.beta + b.beta + 0.5 * a.gamma * share * difference.square()
    return NIG(a.delta + share * difference, gamma, a.alpha + b.alpha + 0.5, beta)


def nig_from_moments(mean: Tensor, variance: Tensor, q: Tensor | float, alpha: Tensor | float) -> NIG:
    """Distribution with a given predictive mean and variance.

    Args:
        mean: (B, 1, C, H, W).
        variance: predictive variance, positive; any shape that broadcasts to the mean's.
        q: epistemic share of the variance, in (0, 1).
        alpha: half of the degrees of freedom, above 1.

    Returns:
        Fields of the mean's shape, with total variance `variance` and epistemic variance `q * variance`.
    """
    share = torch.as_tensor(q, dtype=mean.dtype, device=mean.device).expand_as(mean)
    half_dof = torch.as_tensor(alpha, dtype=mean.dtype, device=mean.device).expand_as(mean)
    beta = (1 - share) * variance * (half_dof - 1)
    return NIG(delta=mean, gamma=(1 - share) / share, alpha=half_dof, beta=beta)


def scale(nig: NIG, factor: float) -> NIG:
    """Distribution of `factor` times the quantity: delta by the factor, beta by its square, evidence unchanged."""
    return replace(nig, delta=nig.delta * factor, beta=nig.beta * factor**2)
