"""Shifts of the inputs with known truth, to fit how doubt grows with novelty.

None of them is a shift that benchmarks/shift.py evaluates.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from data.constants import N_S2

Shift = Callable[[Tensor, Generator], Tensor]

GAIN_SPREAD = 0.35  # standard deviation of the logarithm
CURVES = (0.7, 1.4)  # exponents
MAX_HAZE, HAZE = 0.25, 0.4  # share, and reflectance
COARSE = 8  # pixels across


def random_gains(optical: Tensor, rng: Generator) -> Tensor:
    """Each band times a factor of its own."""
    factors = torch.randn(len(optical), 1, N_S2, 1, 1, generator=rng).mul(GAIN_SPREAD).exp()
    return optical * factors.to(optical)


def curves(optical: Tensor, rng: Generator) -> Tensor:
    """A power of the reflectance."""
    brighter = torch.rand(len(optical), 1, 1, 1, 1, generator=rng) < 0.5
    return optical ** torch.where(brighter, *CURVES).to(optical)


def shuffled_bands(optical: Tensor, rng: Generator) -> Tensor:
    """Bands in a random order."""
    return torch.stack([image[:, torch.randperm(N_S2, generator=rng).to(image.device)] for image in optical])


def haze(optical: Tensor, rng: Generator) -> Tensor:
    """A grey veil over all dates."""
    share = (torch.rand(len(optical), 1, 1, 1, 1, generator=rng) * MAX_HAZE).to(optical)
    return torch.lerp(optical, torch.full_like(optical, HAZE), share)


def coarse_pixels(optical: Tensor, rng: Generator) -> Tensor:
    """Pixels of 8 x 8."""
    coarse = F.avg_pool2d(optical.flatten(0, 1), COARSE, ceil_mode=True)
    fine = F.interpolate(coarse, scale_factor=COARSE)[..., : optical.shape[-2], : optical.shape[-1]]
    return fine.unflatten(0, optical.shape[:2])


def mirrored_radar(radar: Tensor, rng: Generator) -> Tensor:
    """Radar of another place: that of the next image of the batch, mirrored."""
    return radar.roll(1, dims=0).flip(-1)


OPTICAL: dict[str, Shift] = {
    "gains": random_gains,
    "curves": curves,
    "shuffled bands": shuffled_bands,
    "haze": haze,
    "coarse pixels": coarse_pixels,
}
RADAR: dict[str, Shift] = {"mirrored radar": mirrored_radar}


def shift_inputs(kind: str, x: Tensor, rng: Generator) -> Tensor:
    """Inputs (B, T, C, H, W) in [0, 1] after the pseudo-shift `kind`; radar first, if there is any."""
    radar, optical = x[:, :, :-N_S2], x[:, :, -N_S2:]
    if kind in RADAR:
        radar = RADAR[kind](radar, rng)
    else:
        optical = OPTICAL[kind](optical, rng)
    return torch.cat([radar, optical], dim=2).clamp(0, 1)


def shift_kinds(use_sar: bool) -> tuple[str, ...]:
    """The names of the pseudo-shifts."""
    return (*OPTICAL, *(RADAR if use_sar else ()))
