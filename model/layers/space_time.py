"""Convolutions over space and dates."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.conv import build_norm, normalise
from model.layers.recompute import forgetful_conv


class SpaceTimeBlock(nn.Module):
    """Residual block: norm, GELU, convolution, twice; the first convolution spans three dates.

    The 3 x 3 x 3 convolution is computed as a 3 x 3 convolution over each date stacked with its neighbours: the taps
    along dates lie in the input channels of `conv1`, earlier date first. Missing neighbours count as zero. Norms look
    at one date at a time, so that a padded date does not change the others.

    Args:
        width: channels in and out.
        norm: name of the norms.
        padding_mode: how the border is padded.

    Source:
        He et al. 2016 (pre-activation); Tran et al. 2015 (3-D convolution).
    """

    def __init__(self, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        self.norm1 = build_norm(norm, width)
        self.conv1 = nn.Conv2d(3 * width, width, 3, bias=False)  # the border is padded before
        self.norm2 = build_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B * T, C, H, W), the dates of an item one after the other.
            present: (B, T), 1 for a date and 0 for padding.

        Returns:
            The same shape.
        """
        enter = partial(_enter_dates, self.norm1, self.norm1.training, present)
        out = forgetful_conv(x, enter, self.conv1, list(self.norm1.parameters()), padding_mode=self.padding_mode)
        again = partial(normalise, self.norm2, self.norm2.training)
        return x + forgetful_conv(out, again, self.conv2, list(self.norm2.parameters()), True, self.padding_mode)


def _enter_dates(norm: nn.Module, training: bool, present: Tensor, x: Tensor, first: bool) -> Tensor:
    active = F.gelu(normalise(norm, training, x, first)).unflatten(0, present.shape)  # (B, T, C, H, W)
    active = active * present.to(x.dtype)[:, :, None, None, None]
    none = torch.zeros_like(active[:, :1])
    before, after = torch.cat([none, active[:, :-1]], dim=1), torch.cat([active[:, 1:], none], dim=1)
    stacked = torch.cat([before, active, after], dim=2).flatten(0, 1)  # (B * T, 3 C, H, W)
    return stacked.contiguous(memory_format=torch.channels_last)
