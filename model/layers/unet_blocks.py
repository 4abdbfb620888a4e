"""Down- and up-sampling blocks of the U-Nets. Attribute names are those of published checkpoints."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from model.layers.conv import ConvLayers, Pointwise, build_norm

KERNEL, STRIDE, PADDING = 4, 2, 1  # halve an even size, or double it when transposed
SKIP_NORM = "batch"  # of skipped and up-sampled maps, whatever the flags of the other norms


class HalvingConv(nn.Module):
    """Strided 4 x 4 convolution of the same width, norm, ReLU."""

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
    """Halve the size, then a 3 x 3 convolution to the new width and a residual one without a last ReLU.

    Args:
        in_width, width: channels in and out.
        norm: name of the norms.
        padding_mode: how convolutions pad the border.
    """

    def __init__(self, in_width: int, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.down = HalvingConv(in_width, norm, padding_mode)
        self.conv1 = ConvLayers([in_width, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, last_relu=False, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H / 2, W / 2)."""
        out = self.conv1(self.down(x))
        return out + self.conv2(out)


class UpBlock(nn.Module):
    """Double the size, concatenate the skipped map, then a 3 x 3 convolution and a residual one without a last ReLU.

    Args:
        in_width, width: channels in and out.
        skip_width: channels of the skipped map.
        norm: name of the norms of the 3 x 3 convolutions.
        padding_mode: how they pad the border.
    """

    def __init__(self, in_width: int, width: int, skip_width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.skip_conv = nn.Sequential(
            Pointwise(skip_width, skip_width), build_norm(SKIP_NORM, skip_width), nn.ReLU(True)
        )
        upsample = nn.ConvTranspose2d(in_width, width, KERNEL, STRIDE, PADDING)
        self.up = nn.Sequential(upsample, build_norm(SKIP_NORM, width), nn.ReLU(True))
        self.conv1 = ConvLayers([width + skip_width, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, last_relu=False, padding_mode=padding_mode)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Maps (B, C, H, W) and the skipped map (B, S, 2 H, 2 W) to (B, K, 2 H, 2 W)."""
        out = self.conv1(torch.cat([self.up(x), self.skip_conv(skip)], dim=1))
        return out + self.conv2(out)


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Reflect the lower and right border up to a multiple of `factor`.

    Args:
        x: (..., H, W), of any size: where torch's reflection would need a larger image, it repeats.
        factor: divisor of both new sizes.

    Returns:
        (..., H', W'), the smallest multiples of `factor` from twice of it, so that convolutions can reflect the border
        of the smallest map; x itself if nothing is added.
    """
    for axis in (-2, -1):
        size = x.shape[axis]
        padded_size = max(-(-size // factor), 2) * factor
        if padded_size != size:
            period = max(2 * (size - 1), 1)
            position = torch.arange(padded_size, device=x.device) % period  # 0, 1, ..., size - 1, size - 2, ..., 1, 0
            x = x.index_select(axis, torch.minimum(position, period - position))
    return x
