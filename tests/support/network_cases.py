"""Small networks with seeded weights, random series, and inputs and outputs of published checkpoints."""

from pathlib import Path

import numpy as np
import torch

from config.schema import ModelConfig
from data.constants import N_S2
from model.build import build_model
from model.reconstructor import Reconstructor

SMALL = {
    "uncrtaints": {"encoder_widths": (8,), "decoder_widths": (8, 8)},
    "conv3d_mamba": {"encoder_widths": (8, 16), "decoder_widths": (8, 16)},
    "utae": {"encoder_widths": (8, 8, 16), "decoder_widths": (8, 8, 16)},
    "unet": {"encoder_widths": (8, 8, 16), "decoder_widths": (8, 8, 16), "pretrain": True},
}


def small_network(model: str = "uncrtaints", seed: int = 0, **flags) -> Reconstructor:
    """A network of a few thousand weights."""
    torch.manual_seed(seed)
    defaults = {"n_head": 4, "d_model": 16, "low_res_size": 8, **SMALL[model]}
    return build_model(ModelConfig(**{"model": model, **defaults, **flags}))


def random_series(b: int = 1, t: int = 3, height: int = 16, width: int = 16, channels: int = N_S2):
    """Noise (B, T, C, H, W) in [0, 1] and dates (B, T) within 90 days, in no order."""
    generator = torch.Generator().manual_seed(b + 10 * t)
    x = torch.rand(b, t, channels, height, width, generator=generator)
    return x, torch.rand(b, t, generator=generator) * 90 + 1200


def read_published(golden: Path, name: str) -> dict[str, torch.Tensor]:
    """x, dates, y, and the published outputs and loss of a checkpoint.

    x and y are stored as the three bytes of 24-bit integers, being multiples of 2^-24.
    """
    with np.load(golden / "checkpoints" / name / "io.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in ("dates", "raw", "loss")}
        for key in ("x", "y"):
            low, middle, high = stored[key].astype(np.float64)
            arrays[key] = torch.from_numpy((low + 256 * middle + 65536 * high) / 2**24).float()
    return arrays
