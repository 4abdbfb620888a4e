"""From predictions and leverages to beliefs whose epistemic variance grows away from the training data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import DataError
from model.evidence.leverage import Leverage
from model.evidence.views import average, describe_pixels
from model.nig import NIG
from model.predictions import Gaussian

SHARPNESS = 4.0  # of the maximum over views


@dataclass(frozen=True, eq=False)
class Evidence:
    """Statistics of the training pixels, and numbers fitted to errors. All in reflectance, (13,) per band, float64.

    Attributes:
        leverages: by view, see `describe_pixels`.
        n_effective: independent training observations that the pixels count as, per feature (n_eff / C): neighbouring
            pixels and dates repeat each other.
        power: of novelty / n_effective in the epistemic variance; 1 in linear regression, more where the errors of a
            network grow faster with the distance from its data.
        noise: mean squared error on images that no weight saw, the noise of the regression.
        prior_mean: mean of the training targets.
        prior_variance: their variance.
        aleatoric: factor on the predicted variance.
        alpha: half of the degrees of freedom.
    """

    leverages: Mapping[str, Leverage]
    n_effective: float
    power: float
    noise: Tensor
    prior_mean: Tensor
    prior_variance: Tensor
    aleatoric: Tensor
    alpha: Tensor

    def novelty(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        """How unlike the training pixels each pixel is, (B, 1, H, W); see `pixel_novelty`."""
        return pixel_novelty(self.leverages, x, padded)

    def believe(self, prediction: Gaussian | NIG, novelty: Tensor, scale_by: float = 1.0) -> NIG:
        """The belief about a prediction's pixels.

        The mean stays. gamma = aleatoric / epistemic: in conjugate regression the number of training observations like
        this pixel.

        Args:
            prediction: fields (B, 1, 13, H, W), with a total variance.
            novelty: (B, 1, H, W).
            scale_by: the prediction's units per reflectance.
        """
        band = {
            name: getattr(self, name).to(prediction.mean).view(-1, 1, 1)
            for name in ("noise", "prior_mean", "prior_variance", "aleatoric", "alpha")
        }
        square = scale_by**2
        aleatoric = band["aleatoric"] * prediction.total
        epistemic = epistemic_variance(
            band["noise"] * square * (novelty.unsqueeze(2) / self.n_effective) ** self.power,
            prediction.mean,
            band["prior_mean"] * scale_by,
            band["prior_variance"] * square,
        )
        alpha = band["alpha"].expand_as(aleatoric)
        return NIG(prediction.mean, aleatoric / epistemic, alpha.contiguous(), aleatoric * (alpha - 1))

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        fields = {name: getattr(self, name) for name in ("n_effective", "power", *BAND_FIELDS)}
        views = {name: {"whitening": view.whitening, "count": view.count} for name, view in self.leverages.items()}
        return {"views": views, **fields}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Evidence":
        """The evidence that `state` describes.

        Raises:
            DataError: if an entry is missing or of another type.
        """
        try:
            views = {
                name: Leverage(view["whitening"].double(), int(view["count"])) for name, view in state["views"].items()
            }
            bands = {name: state[name].double() for name in BAND_FIELDS}
            return cls(views, float(state["n_effective"]), float(state["power"]), **bands)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"the evidence in a checkpoint is damaged ({error}); fit it again") from error


BAND_FIELDS = ("noise", "prior_mean", "prior_variance", "aleatoric", "alpha")


@torch.no_grad()
def pixel_novelty(leverages: Mapping[str, Leverage], x: Tensor, padded: Tensor | None = None) -> Tensor:
    """How unlike the training pixels each pixel is; 1 is usual.

    Args:
        leverages: by view.
        x: (B, T, C, H, W) in [0, 1]; radar first if there is any.
        padded: bool (B, T), dates that are padding; None for none.

    Returns:
        (B, 1, H, W): the largest leverage of all views (a smooth maximum), each averaged over a window.
    """
    views = describe_pixels(x, padded)
    return soft_maximum(torch.stack([average(leverage(views[name])) for name, leverage in leverages.items()]))


def soft_maximum(leverages: Tensor) -> Tensor:
    """A smooth maximum over the first dimension: the norm of order `SHARPNESS`."""
    return torch.logsumexp(SHARPNESS * leverages.log(), dim=0).div(SHARPNESS).exp()


def epistemic_variance(variance: Tensor, mean: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Variance of the mean, bounded by what is known without looking: the expected squared error under the prior.

    Args:
        variance: of the mean by regression, unbounded.
        mean: the prediction.
        prior_mean: of the targets.
        prior_variance: of the targets.

    Returns:
        v p / (v + p) with p = prior_variance + (mean - prior_mean)^2: v where it is small, p far from all data.
    """
    bound = prior_variance + (mean - prior_mean).square()
    return variance * bound / (variance + bound)
