"""Blocks of the U-Nets: to half the size and back. Names are those of checkpoints."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from model.layers.conv import ConvLayers, build_norm
from model.layers.recompute import Pointwise

KERNEL, STRIDE, PADDING = 4, 2, 1  # halve an even size, or double it when transposed
SKIP_NORM = "batch"  # of skipped and of enlarged maps, whatever the flags say of the other norms


class HalvingConv(nn.Module):
    """A strided 4 x 4 convolution at the same width, norm, ReLU."""

    def __init__(self, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        mode = cast(Literal["reflect"], padding_mode)
        layers: list[nn.Module] = [nn.Conv2d(width, width, KERNEL, STRIDE, PADDING, padding_mode=mode)]
        if norm != "none":
            layers.append(build_norm(norm, width))
        self.conv = nn.Sequential(*layers, nn.ReLU(inplace=norm != "none"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x)


class DownBlock(nn.Module):
    """To half the size, then a 3 x 3 convolution to the new width and a residual one without a last ReLU.

    Args:
        before, width: channels in and out.
        norm: name of the norms.
        padding_mode: how convolutions pad the border.
    """

    def __init__(self, before: int, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.down = HalvingConv(before, norm, padding_mode)
        self.conv1 = ConvLayers([before, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, last_relu=False, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H / 2, W / 2)."""
        out = self.conv1(self.down(x))
        return out + self.conv2(out)


class UpBlock(nn.Module):
    """To twice the size, beside the skipped map, then a 3 x 3 convolution and a residual one without a last ReLU.

    Args:
        before, width: channels in and out.
        skipped: channels of the skipped map.
        norm: name of the norms of the 3 x 3 convolutions.
        padding_mode: how they pad the border.
    """

    def __init__(self, before: int, width: int, skipped: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.skip_conv = nn.Sequential(Pointwise(skipped, skipped), build_norm(SKIP_NORM, skipped), nn.ReLU(True))
        enlarge = nn.ConvTranspose2d(before, width, KERNEL, STRIDE, PADDING)
        self.up = nn.Sequential(enlarge, build_norm(SKIP_NORM, width), nn.ReLU(True))
        self.conv1 = ConvLayers([width + skipped, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, last_relu=False, padding_mode=padding_mode)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W), and the skipped map (B, S, 2 H, 2 W), to (B, K, 2 H, 2 W)."""
        out = self.conv1(torch.cat([self.up(x), self.skip_conv(skip)], dim=1))
        return out + self.conv2(out)


def fit(x: Tensor, factor: int) -> Tensor:
    """Mirror the lower and right border until height and width suit `factor`.

    Args:
        x: (..., H, W), of any size.
        factor: what both sizes must be divisible by.

    Returns:
        (..., H', W'), the smallest sizes divisible by `factor` that are at least twice as large, so that convolutions
        find something to reflect on the smallest map; x itself where it suits.
    """
    for axis in (-2, -1):
        size = x.shape[axis]
        wanted = max(-(-size // factor), 2) * factor
        if wanted != size:
            x = x.index_select(axis, _mirrored(size, wanted).to(x.device))
    return x


def _mirrored(size: int, wanted: int) -> Tensor:
    """The first `wanted` places of 0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ..."""
    period = max(2 * (size - 1), 1)
    place = torch.arange(wanted) % period
    return torch.minimum(place, period - place)


def pairs(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Each width with the next one."""
    return list(zip(widths[:-1], widths[1:], strict=True))
