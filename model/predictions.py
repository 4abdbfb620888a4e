"""What a network says about each pixel and band: a mean, a normal distribution, or a Normal-Inverse-Gamma belief."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

from model import nig
from model.scores import normal_scores
from model.student_t import normal_nll, normal_quantile

Self = TypeVar("Self", bound="_Container")


@dataclass(frozen=True, eq=False)
class _Container:
    """Tensors about the same pixels, (B, 1, C, H, W); (B, C, H, W) is accepted too."""

    def fields(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same container with `fn` applied to every tensor, such as `Tensor.detach` or `Tensor.cpu`."""
        return replace(self, **{name: fn(tensor) for name, tensor in self.fields().items()})

    def item(self: Self, i: int) -> Self:
        """One image of the batch; the batch dimension stays, with size 1."""
        batch = next(iter(self.fields().values())).shape[0]
        if not -batch <= i < batch:
            raise IndexError(f"image {i} of a batch of {batch}")
        start = i % batch
        return self.map(lambda tensor: tensor[start : start + 1])


@dataclass(frozen=True, eq=False)
class Mean(_Container):
    """A prediction without uncertainty: `mean` (B, 1, C, H, W)."""

    mean: Tensor

    @property
    def aleatoric(self) -> None:
        """None: the head has no variance."""
        return None

    @property
    def epistemic(self) -> None:
        """None: the head has no variance."""
        return None

    @property
    def total(self) -> None:
        """None: the head has no variance."""
        return None

    def nll(self, target: Tensor) -> Tensor:
        """Raises ValueError: a mean alone has no likelihood."""
        raise ValueError("a prediction of the mean alone has no likelihood; train with --head nig or gaussian")

    def crps(self, target: Tensor) -> Tensor:
        """The absolute error: the score of a forecast that is certain."""
        return (_aligned(self.mean, target) - target).abs()

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Raises ValueError: a mean alone has no interval."""
        raise ValueError("a prediction of the mean alone has no interval; train with --head nig or gaussian")

    def unscaled(self, scale_by: float) -> "Mean":
        """From scaled units to reflectance."""
        return Mean(self.mean / scale_by)


@dataclass(frozen=True, eq=False)
class Gaussian(_Container):
    """A normal distribution: `mean` (B, 1, C, H, W), `variance` alike or, one for all bands, (B, 1, 1, H, W)."""

    mean: Tensor
    variance: Tensor

    @property
    def aleatoric(self) -> Tensor:
        """The variance, (B, 1, C, H, W)."""
        return self.variance.expand_as(self.mean)

    @property
    def epistemic(self) -> None:
        """None: the head does not know what it does not know."""
        return None

    @property
    def total(self) -> Tensor:
        """The variance, (B, 1, C, H, W)."""
        return self.variance.expand_as(self.mean)

    def nll(self, target: Tensor) -> Tensor:
        """The negative log-likelihood of the target, per element, (B, 1, C, H, W)."""
        return normal_nll(_aligned(self.mean, target) - target, self.variance)

    def crps(self, target: Tensor) -> Tensor:
        """The continuous ranked probability score, per element, in the unit of the mean."""
        return normal_scores(_aligned(self.mean, target) - target, self.variance)[1]

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval of probability `level`; ValueError unless 0 < level < 1."""
        reach = normal_quantile(level) * self.variance.sqrt()
        return self.mean - reach, self.mean + reach

    def unscaled(self, scale_by: float) -> "Gaussian":
        """From scaled units to reflectance and reflectance squared."""
        return Gaussian(self.mean / scale_by, self.variance / scale_by**2)


@dataclass(frozen=True, eq=False)
class NIG(_Container):
    """A Normal-Inverse-Gamma belief: four tensors (B, 1, C, H, W).

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
        """The expected variance of the data, beta / (alpha - 1)."""
        return nig.aleatoric(self)

    @property
    def epistemic(self) -> Tensor:
        """The variance of the mean, beta / (gamma (alpha - 1))."""
        return nig.epistemic(self)

    @property
    def total(self) -> Tensor:
        """The predictive variance, aleatoric + epistemic."""
        return nig.total(self)

    def nll(self, target: Tensor) -> Tensor:
        """The negative log-likelihood of the target under the predictive Student-t, per element."""
        _aligned(self.delta, target)
        return nig.nll(self, target)

    def crps(self, target: Tensor) -> Tensor:
        """The continuous ranked probability score of the predictive Student-t, per element."""
        _aligned(self.delta, target)
        return nig.crps(self, target)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval of probability `level`; ValueError unless 0 < level < 1."""
        return nig.interval(self, level)

    def unscaled(self, scale_by: float) -> "NIG":
        """From scaled units to reflectance and reflectance squared; the evidence has no unit."""
        return nig.scale(self, 1.0 / scale_by)


Prediction = Mean | Gaussian | NIG


def _aligned(mean: Tensor, target: Tensor) -> Tensor:
    """The mean, if the target has its shape: (B, C, H, W) against (B, 1, C, H, W) would broadcast without a word."""
    if mean.shape != target.shape:
        raise ValueError(f"expected a target of shape {tuple(mean.shape)}, got {tuple(target.shape)}")
    return mean
