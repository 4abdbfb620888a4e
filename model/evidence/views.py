"""What evidence describes a pixel by: the darkest spectrum of its dates, and its mean radar."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.constants import N_S1, N_S2, band_index
from model.evidence.leverage import quadratic

BANDS = [index for index in range(N_S2) if index != band_index("B10")]  # B10 sees clouds, hardly ever the ground
FLOOR = 0.02  # added to reflectances: the sensor's noise in dark water should not decide
CENTRE = math.log(0.1)  # about that of land: centred features keep digits in float32
WINDOW = 7  # pixels across the neighbourhood over which leverages are averaged; predictions depend on one too


def describe_pixels(x: Tensor, padded: Tensor | None = None) -> dict[str, Tensor]:
    """Features by view, for leverages.

    Args:
        x: (B, T, C, H, W) in [0, 1]; radar (VV, VH) first if there is any, then the 13 bands.
        padded: bool (B, T), dates that are padding; None for none.

    Returns:
        `spectrum`: quadratic features (B, 91, H, W) of the log of each band on the darkest date;
        with radar `radar`: (B, 6, H, W), of the means over dates.
    """
    optical = x[:, :, -N_S2:][:, :, BANDS]
    absent = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if padded is None else padded
    absent = absent[:, :, None, None, None]
    darkest = optical.masked_fill(absent, math.inf).amin(dim=1)
    views = {"spectrum": quadratic((darkest.clamp(0, 1) + FLOOR).log() - CENTRE)}
    if x.shape[2] == N_S1 + N_S2:
        total = x[:, :, :N_S1].masked_fill(absent, 0.0).sum(dim=1)
        views["radar"] = quadratic(total / (~absent).sum(dim=1) - 0.5)
    return views


def average(leverage: Tensor) -> Tensor:
    """Mean over the pixels of a window that lie in the image, (B, 1, H, W) to the same shape."""
    return F.avg_pool2d(leverage, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
