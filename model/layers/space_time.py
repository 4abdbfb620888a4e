"""Convolutions over space and dates, with norms that look at one pixel of one date only.

A norm over whole images or over dates would let every pixel see all others: an image cut into tiles would change, and
so would a series to which an empty date is added.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.recompute import forgetful_conv


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same; of the dtype of x."""
        pixels = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )
        return pixels.permute(0, 3, 1, 2)


class SpaceTimeBlock(nn.Module):
    """Residual block: norm, GELU, convolution, twice; the first convolution may span three dates.

    A 3 x 3 x 3 convolution is computed as a 3 x 3 convolution over each date stacked with its neighbours: the taps
    along dates lie in the input channels of `conv1`, earlier date first. Missing neighbours count as zero.

    Args:
        width: channels in and out.
        dates: 3, or 1 for a block that treats each date by itself.
        padding_mode: how the border is padded, as torch names it.

    Source:
        He et al. 2016 (pre-activation); Tran et al. 2015 (3-D convolution).
    """

    def __init__(self, width: int, dates: int, padding_mode: str) -> None:
        super().__init__()
        if dates not in (1, 3):
            raise ValueError(f"expected a block over 1 or 3 dates, got {dates}")
        self.dates = dates
        self.padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        self.norm1 = PixelNorm(width)
        self.conv1 = nn.Conv2d(dates * width, width, 3, bias=False)  # the border is padded before
        self.norm2 = PixelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B * T, C, H, W), the dates of an item one after the other.
            present: (B, T), 1 for a date and 0 for padding; needed by a block over three dates.

        Returns:
            The same shape.
        """
        if self.dates == 1:
            enter = partial(_enter, self.norm1, self.padding_mode)
        else:
            assert present is not None, "a block over dates must know which are padding"
            enter = partial(_enter_dates, self.norm1, self.padding_mode, present)
        out = forgetful_conv(x, enter, self.conv1, list(self.norm1.parameters()))
        again = partial(_enter, self.norm2, self.padding_mode)
        return x + forgetful_conv(out, again, self.conv2, list(self.norm2.parameters()))


def _enter(norm: nn.Module, padding_mode: str, x: Tensor, first: bool) -> Tensor:
    return F.pad(F.gelu(norm(x)), (1, 1, 1, 1), mode=padding_mode)


def _enter_dates(norm: nn.Module, padding_mode: str, present: Tensor, x: Tensor, first: bool) -> Tensor:
    active = F.gelu(norm(x)).unflatten(0, present.shape)  # (B, T, C, H, W)
    active = active * present.to(x.dtype)[:, :, None, None, None]
    none = torch.zeros_like(active[:, :1])
    before, after = torch.cat([none, active[:, :-1]], dim=1), torch.cat([active[:, 1:], none], dim=1)
    stacked = torch.cat([before, active, after], dim=2).flatten(0, 1)  # (B * T, 3 C, H, W)
    return F.pad(stacked.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1), mode=padding_mode)
