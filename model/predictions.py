"""What a network predicts per pixel and band: a mean, a normal or a Normal-Inverse-Gamma distribution.

Fields are (B, 1, C, H, W); (B, C, H, W) is accepted too.
"""

from dataclasses import dataclass

from torch import Tensor

from model.containers import TensorFields, check_target
from model.nig import NIG
from model.student_t import normal_nll, normal_quantile, normal_scores

__all__ = ["NIG", "Gaussian", "Mean", "Prediction"]


@dataclass(frozen=True, eq=False)
class Mean(TensorFields):
    """A prediction without uncertainty."""

    mean: Tensor
    aleatoric = epistemic = total = None  # the head has no variance

    def nll(self, target: Tensor) -> Tensor:
        """Raises ValueError: a mean alone has no likelihood."""
        raise ValueError("a prediction of the mean alone has no likelihood; train with --head nig or gaussian")

    def crps(self, target: Tensor) -> Tensor:
        """The absolute error: the score of a forecast that is certain."""
        check_target(self.mean, target)
        return (self.mean - target).abs()

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Raises ValueError: a mean alone has no interval."""
        raise ValueError("a prediction of the mean alone has no interval; train with --head nig or gaussian")

    def unscaled(self, scale_by: float) -> "Mean":
        """From scaled units to reflectance."""
        return Mean(self.mean / scale_by)


@dataclass(frozen=True, eq=False)
class Gaussian(TensorFields):
    """A normal distribution; the variance may be one for all bands, (B, 1, 1, H, W)."""

    mean: Tensor
    variance: Tensor
    epistemic = None  # the head has no variance of the mean

    @property
    def aleatoric(self) -> Tensor:
        """The variance, (B, 1, C, H, W)."""
        return self.variance.expand_as(self.mean)

    @property
    def total(self) -> Tensor:
        """The variance, (B, 1, C, H, W)."""
        return self.aleatoric

    def nll(self, target: Tensor) -> Tensor:
        """Negative log-likelihood of the target, per element, (B, 1, C, H, W)."""
        check_target(self.mean, target)
        return normal_nll(self.mean - target, self.variance)

    def crps(self, target: Tensor) -> Tensor:
        """Continuous ranked probability score, per element, in the unit of the mean."""
        check_target(self.mean, target)
        return normal_scores(self.mean - target, self.variance)[1]

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval of probability `level`; ValueError unless 0 < level < 1."""
        reach = normal_quantile(level) * self.variance.sqrt()
        return self.mean - reach, self.mean + reach

    def unscaled(self, scale_by: float) -> "Gaussian":
        """From scaled units to reflectance and reflectance squared."""
        return Gaussian(self.mean / scale_by, self.variance / scale_by**2)


Prediction = Mean | Gaussian | NIG
