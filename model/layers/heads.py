"""Heads: from the channels of the last convolution to a prediction in scaled units.

The only module with activations and eps of the uncertainties.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from data.constants import N_S2
from model.layers.recompute import full_precision
from model.predictions import NIG, Gaussian, Mean, Prediction
from model.registry import HEADS

N_VARIANCES = {"diag": N_S2, "iso": 1, "uni": N_S2}  # covmode -> variance channels of the Gaussian head

MIN_SIGMA = 1e-3  # scaled units: bounds the likelihood of a pixel; at scale_by 10 one digital number of the sensor
START_SIGMA = 0.1  # reflectance, about the standard deviation of targets; a smaller start costs accuracy
START_ALPHA, START_GAMMA = 3.0, 1.0
ALPHA_FLOOR, ALPHA_SPAN = 1.05, 100.0  # alpha lies in (1.05, 101.05): the variance is always finite
LOG_GAMMA_SPAN = 3.0  # ln gamma lies in (-3, 3)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # of variances
    "softplus": F.softplus,
    "relu": F.relu,
    "elu": lambda logits: F.elu(logits) + 1,
}


class Head(nn.Module):
    """Maps raw channels to a prediction; without parameters, so that checkpoints hold those of the network alone.

    Args:
        channels: output channels of the last convolution.
        scale_by: scaled units per reflectance.
        bounded: whether means are scale_by * sigmoid(logit), else the logits themselves.
    """

    def __init__(self, channels: int, scale_by: float, bounded: bool) -> None:
        super().__init__()
        self.channels = channels
        self.scale_by = float(scale_by)
        self.bounded = bounded

    def forward(self, raw: Tensor) -> Prediction:
        """Prediction from raw channels.

        Args:
            raw: (B, 1, K, H, W) or (B, K, H, W), K = `channels`; any float type.

        Returns:
            Fields (B, 1, 13, H, W), scaled units, float32 (float64 for float64): likelihoods need the digits.

        Raises:
            ValueError: if K is not `channels`.
        """
        if raw.shape[-3] != self.channels:
            raise ValueError(f"expected {self.channels} channels from the last convolution, got {raw.shape[-3]}")
        return self._predict(full_precision(raw))

    def initialise(self, last_conv: nn.Conv2d) -> None:
        """Initialise the uncertainties in the last convolution; does nothing by default."""

    def _predict(self, raw: Tensor) -> Prediction:
        raise NotImplementedError

    def _mean(self, logits: Tensor) -> Tensor:
        return self.scale_by * logits.sigmoid() if self.bounded else logits

    def extra_repr(self) -> str:
        """Attributes in `repr`."""
        return f"channels={self.channels}, scale_by={self.scale_by}, bounded={self.bounded}"


class MeanHead(Head):
    """13 means."""

    def _predict(self, raw: Tensor) -> Mean:
        return Mean(self._mean(raw))


class GaussianHead(Head):
    """13 means, then 13 variances or one for all bands: the published layout.

    Source:
        UnCRtainTS (Ebel et al. 2023). Changes: `relu` works.
    """

    def __init__(self, variances: int, scale_by: float, bounded: bool, nonlinearity: str) -> None:
        super().__init__(N_S2 + variances, scale_by, bounded)
        self.nonlinearity = nonlinearity
        self.eps = 1e-9 if scale_by == 1 else 1e-3

    def _predict(self, raw: Tensor) -> Gaussian:
        mean, variance = raw.split([N_S2, self.channels - N_S2], dim=-3)
        return Gaussian(self._mean(mean), ACTIVATIONS[self.nonlinearity](variance) + self.eps)

    def extra_repr(self) -> str:
        """Attributes in `repr`."""
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity}, eps={self.eps}"


class NIGHead(Head):
    """13 means, 13 logits of the standard deviation, 13 of gamma, 13 of alpha; beta follows from the total variance.

    The network outputs the total variance, which data determine; gamma divides it into aleatoric and epistemic, without
    a gradient from the likelihood. Every map is smooth and strictly monotonic: no clamp stops a gradient.
    """

    def __init__(self, scale_by: float, bounded: bool) -> None:
        super().__init__(4 * N_S2, scale_by, bounded)

    def _predict(self, raw: Tensor) -> NIG:
        delta, sigma, gamma, alpha = raw.split(N_S2, dim=-3)
        variance = (MIN_SIGMA + F.softplus(sigma)).square()
        gamma = (LOG_GAMMA_SPAN * torch.tanh(gamma / LOG_GAMMA_SPAN)).exp()
        alpha = ALPHA_FLOOR - ALPHA_SPAN * torch.expm1(-F.softplus(alpha) / ALPHA_SPAN)
        beta = variance * (alpha - 1) * (gamma / (1 + gamma))
        return NIG(self._mean(delta), gamma, alpha, beta)

    def initialise(self, last_conv: nn.Conv2d) -> None:
        """Initialise the uncertainties to constants: sigma 0.1 in reflectance, gamma 1, alpha 3.

        Args:
            last_conv: gives all channels, or those after the means where these have a separate convolution. Its rows
                for the uncertainties get zero weights and constant biases; rows of the means stay as they are.

        Raises:
            ValueError: if it gives another number of channels or has no bias.
        """
        first = {self.channels: N_S2, self.channels - N_S2: 0}.get(last_conv.out_channels)
        if first is None or last_conv.bias is None:
            raise ValueError(
                f"expected a convolution with bias to {self.channels} channels, or {self.channels - N_S2} without the "
                f"means; got {last_conv.out_channels}{'' if last_conv.bias is not None else ' without bias'}"
            )
        starts = (
            _inverse_softplus(START_SIGMA * self.scale_by - MIN_SIGMA),
            LOG_GAMMA_SPAN * math.atanh(math.log(START_GAMMA) / LOG_GAMMA_SPAN),
            _inverse_softplus(-ALPHA_SPAN * math.log1p(-(START_ALPHA - ALPHA_FLOOR) / ALPHA_SPAN)),
        )
        with torch.no_grad():
            last_conv.weight[first:] = 0.0
            last_conv.bias[first:] = torch.tensor(starts).repeat_interleave(N_S2)


def _inverse_softplus(value: float) -> float:
    """Argument whose softplus is `value` > 0."""
    return value + math.log(-math.expm1(-value))


def build_head(head: str, covmode: str, scale_by: float, mean_nonLinearity: bool, var_nonLinearity: str) -> Head:
    """Head of that name.

    Args:
        head: `nig`, `gaussian` or `mean`.
        covmode: `diag` or `uni` (one variance per band) or `iso` (one for all); of the Gaussian head only.
        scale_by: scaled units per reflectance, above 0.01.
        mean_nonLinearity: whether means are scale_by * sigmoid(logit), else the logits themselves.
        var_nonLinearity: `softplus`, `relu` or `elu`; of the Gaussian head only.

    Raises:
        UsageError: if a name is unknown or the scale too small; the message lists the choices.
    """
    if head not in HEADS:
        raise UsageError(f"unknown head {head!r}; choose --head {', '.join(HEADS)}")
    if not scale_by > MIN_SIGMA / START_SIGMA:
        raise UsageError(f"expected a --scale_by above {MIN_SIGMA / START_SIGMA:g}, got {scale_by}")
    if head == "mean":
        return MeanHead(N_S2, scale_by, mean_nonLinearity)
    if head == "nig":
        return NIGHead(scale_by, mean_nonLinearity)
    if covmode not in N_VARIANCES:
        raise UsageError(f"unknown covmode {covmode!r}; choose --covmode {', '.join(N_VARIANCES)}")
    if var_nonLinearity not in ACTIVATIONS:
        raise UsageError(
            f"unknown variance nonlinearity {var_nonLinearity!r}; choose --var_nonLinearity {', '.join(ACTIVATIONS)}"
        )
    return GaussianHead(N_VARIANCES[covmode], scale_by, mean_nonLinearity, var_nonLinearity)
