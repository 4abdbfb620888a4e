"""What the tests of fusion share: experts whose answers are written in their input, and images of two of them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.constants import N_S2
from model.fusion.beliefs import Experts
from model.fusion.network import FusionNet
from model.nig import nig_from_moments
from model.predictions import NIG, Gaussian


class Written(nn.Module):
    """An expert that reads mean and deviation off its dates: `x[:, 2k]` and `x[:, 2k + 1]`."""

    def __init__(self, place: int, scale_by: float = 10.0, gaussian: bool = False, gamma: float = 1.0) -> None:
        super().__init__()
        self.place, self.scale_by, self.gaussian, self.gamma = place, scale_by, gaussian, gamma
        self.layer = nn.Linear(2, 2)  # weights, to see whether they move

    def forward(self, x: Tensor, dates: Tensor | None = None) -> NIG | Gaussian:
        mean, deviation = (x[:, at : at + 1] * self.scale_by for at in (2 * self.place, 2 * self.place + 1))
        if self.gaussian:
            return Gaussian(mean, deviation.square())
        return nig_from_moments(mean, deviation.square(), 1 / (1 + self.gamma), 3.0)


@dataclass
class Pictures:
    """Images of a truth and of experts: `x` (B, 2K, 13, H, W) for `Written`, `target` (B, 1, 13, H, W)."""

    x: Tensor
    target: Tensor


def pictures(n: int = 8, size: int = 32, seed: int = 0, bad: float = 0.05, good: float = 0.02) -> Pictures:
    """Two experts with deviations that trade places from the left half to the right, and errors that share a part.

    Every expert knows its own deviation, on average: a factor that it ignores moves it from pixel to pixel.
    """
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    target = 0.3 + 0.05 * noise(n, 1, N_S2, size, size)
    left = (torch.arange(size) < size // 2).float()
    shared = noise(n, 1, N_S2, size, size)
    deviations = [bad * left + good * (1 - left), good * left + bad * (1 - left)]
    layers = []
    for deviation in deviations:
        error = deviation * (0.6 * shared + 0.8 * noise(n, 1, N_S2, size, size))
        stated = deviation * torch.exp(0.2 * noise(n, 1, N_S2, size, size))
        layers += [target + error, stated]
    return Pictures(torch.cat(layers, dim=1), target)


def fusion(rule: str = "gated", k: int = 2, guarded: bool = True, **options) -> FusionNet:
    torch.manual_seed(0)
    return FusionNet([Written(place, **options) for place in range(k)], rule, guarded)


def experts_of(mean, variance, gamma=1.0, alpha=3.0, dtype=torch.float64) -> Experts:
    """Beliefs about a row of pixels: mean and variance (K, W) to fields (K, 1, 1, 1, 1, W)."""
    mean, variance = (torch.as_tensor(v, dtype=dtype) for v in (mean, variance))
    fields = torch.broadcast_tensors(mean, variance, torch.as_tensor(gamma, dtype=dtype), torch.tensor(alpha).to(dtype))
    return Experts(*(f.clone().reshape(f.shape[0], 1, 1, 1, 1, -1) for f in fields))
