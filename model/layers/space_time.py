"""Convolutions over space and dates."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.conv import build_norm, conv3x3
from model.layers.recompute import recomputed_conv


class SpaceTimeBlock(nn.Module):
    """Residual block of norm, GELU, convolution, twice; the first convolution spans three dates.

    The 3 x 3 x 3 convolution is a 3 x 3 convolution over each date stacked with its neighbours: the input channels of
    `conv1` are the taps along dates, earlier date first. Missing neighbours are zero. Norms take one date at a time, so
    that a padded date does not change the others.

    Args:
        width: channels in and out.
        norm: name of the norms.
        padding_mode: how the border is padded.

    Source:
        He et al. 2016 (pre-activation); Tran et al. 2015 (3-D convolution).
    """

    def __init__(self, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.norm1 = build_norm(norm, width)
        self.conv1 = conv3x3(3 * width, width, padding_mode, bias=False)
        self.norm2 = build_norm(norm, width)
        self.conv2 = conv3x3(width, width, padding_mode, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B * T, C, H, W), the dates of each item in order.
            valid: (B, T), 1 for a date and 0 for padding.

        Returns:
            The same shape.
        """
        out = recomputed_conv(x, self.conv1, self.norm1, post_norm=partial(_stack_neighbours, valid))
        return x + recomputed_conv(out, self.conv2, self.norm2, gelu=True)


def _stack_neighbours(valid: Tensor, maps: Tensor) -> Tensor:
    """GELU of normed maps (B * T, C, H, W), each date stacked with the previous and the next: (B * T, 3 C, H, W)."""
    active = F.gelu(maps).unflatten(0, valid.shape)  # (B, T, C, H, W)
    active = active * valid.to(maps.dtype)[:, :, None, None, None]
    zeros = torch.zeros_like(active[:, :1])
    before, after = torch.cat([zeros, active[:, :-1]], dim=1), torch.cat([active[:, 1:], zeros], dim=1)
    stacked = torch.cat([before, active, after], dim=2).flatten(0, 1)
    return stacked.contiguous(memory_format=torch.channels_last)
