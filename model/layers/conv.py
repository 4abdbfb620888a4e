"""Convolution blocks, shared over dates: 1 x 1 convolution, norms by name, MBConv, residual block.

Attribute names are those of published checkpoints.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from model.layers.recompute import apply_norm, convolve, pixel_means, recomputed_conv

N_GROUPS = 4  # of group norms
EXPANSION = 2  # hidden channels of MBConv per input channel
SQUEEZE = 0.25  # channels of squeeze-excite per input channel
PADDING_MODES = ("reflect", "zeros", "replicate", "circular")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": partial(nn.GroupNorm, N_GROUPS),
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "none": nn.Identity,
}


def build_norm(kind: str, width: int) -> nn.Module:
    """Norm of that name over maps of `width` channels.

    Raises:
        UsageError: if the name is unknown or the groups do not divide the width.
    """
    if kind not in NORMS:
        raise UsageError(f"unknown norm {kind!r}; choose {', '.join(NORMS)} for --encoder_norm and --decoder_norm")
    if kind == "group" and width % N_GROUPS:
        raise UsageError(
            f"a group norm has {N_GROUPS} groups, which do not divide {width} channels; choose other widths"
        )
    return NORMS[kind](width)


class Pointwise(nn.Conv2d):
    """1 x 1 convolution; on a CPU with channels innermost, a matrix product that keeps them innermost."""

    def __init__(self, in_width: int, width: int, bias: bool = True) -> None:
        super().__init__(in_width, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return convolve(x, self.weight, self.bias)


def conv3x3(in_width: int, width: int, padding_mode: str, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """3 x 3 convolution that keeps the size; `padding_mode` says how the border is padded."""
    mode = cast(Literal["reflect"], padding_mode)
    return nn.Conv2d(in_width, width, 3, padding=1, padding_mode=mode, groups=groups, bias=bias)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of (B, C, H, W) to (height, width)."""
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)


class ConvLayers(nn.Module):
    """Convolutions of stride 1 and the same size, each with norm and ReLU.

    Args:
        widths: channels, input first.
        kernel: 1 or 3.
        norm: name of the norm.
        last_relu: whether a ReLU follows the last convolution too.
        padding_mode: how the border is padded.
    """

    def __init__(
        self, widths: Sequence[int], kernel: int, norm: str, last_relu: bool = True, padding_mode: str = "reflect"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (in_width, width) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers.append(Pointwise(in_width, width) if kernel == 1 else conv3x3(in_width, width, padding_mode))
            if norm != "none":
                layers.append(build_norm(norm, width))
            if last_relu or i < len(widths) - 2:
                layers.append(nn.ReLU(inplace=norm != "none"))  # the backward pass of norms does not need their output
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return self.conv(x)


class ConvBlock(nn.Module):
    """1 x 1 `ConvLayers`, nested as the first and the last layer are in checkpoints."""

    def __init__(self, widths: Sequence[int], norm: str, last_relu: bool = True) -> None:
        super().__init__()
        self.conv = ConvLayers(widths, 1, norm, last_relu)

    @property
    def last(self) -> nn.Conv2d:
        """The last convolution."""
        return [layer for layer in self.conv.conv if isinstance(layer, nn.Conv2d)][-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return self.conv(x)


def _projection(in_width: int, width: int) -> nn.Module:
    """Shortcut of a residual sum: 1 x 1 projection where widths differ."""
    return nn.Identity() if in_width == width else Pointwise(in_width, width, bias=False)


class ResidualBlock(nn.Module):
    """Three 3 x 3 convolutions, each with norm and ReLU, and a residual sum.

    Args:
        in_width, width: channels in and out; a 1 x 1 projection joins them where they differ.
        norm: name of the norms.
        padding_mode: how the border is padded.
    """

    def __init__(self, in_width: int, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.conv1 = ConvLayers([in_width, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, padding_mode=padding_mode)
        self.conv3 = ConvLayers([width, width], 3, norm, padding_mode=padding_mode)
        self.proj = _projection(in_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return self.conv3(self.conv2(self.conv1(x))) + self.proj(x)


class SqueezeExcite(nn.Module):
    """Channels scaled by weights in (0, 1) that follow from their means.

    Args:
        width: channels of the maps.
        squeezed: channels in between.
    """

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed, bias=False), nn.GELU(), nn.Linear(squeezed, width, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * self.fc(pixel_means(x))[:, :, None, None]


class PreNorm(nn.Module):
    """A norm and the layers that follow it."""

    def __init__(self, norm: nn.Module, fn: nn.Sequential) -> None:
        super().__init__()
        self.norm = norm
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return self.fn(self.norm(x))


class MBConv(nn.Module):
    """Inverted bottleneck with pre-norm, depthwise convolution, squeeze-excite and residual sum.

    Args:
        in_width, width: channels in and out; a 1 x 1 projection joins them where they differ.
        norm: name of the norms.
        padding_mode: how the depthwise convolution pads the border.
        recompute: keep only inputs of norms for the backward pass and recompute norms and GELUs there: the same values,
            in float32 with less than half of the memory. False leaves the layers to autograd.

    Source:
        Ebel et al. 2023, after Sandler et al. 2018 (MobileNetV2). Changes: `recompute`.
    """

    def __init__(self, in_width: int, width: int, norm: str, padding_mode: str, recompute: bool = True) -> None:
        super().__init__()
        hidden, squeezed = EXPANSION * in_width, int(SQUEEZE * in_width)
        if not squeezed:
            raise UsageError(f"mbconv blocks need widths of 4 or more, got {in_width}")
        layers = nn.Sequential(
            Pointwise(in_width, hidden, bias=False),
            build_norm(norm, hidden),
            nn.GELU(),
            conv3x3(hidden, hidden, padding_mode, groups=hidden, bias=False),
            build_norm(norm, hidden),
            nn.GELU(),
            SqueezeExcite(hidden, squeezed),
            Pointwise(hidden, width, bias=False),
            build_norm(norm, width),
        )
        self.conv = PreNorm(build_norm(norm, in_width), layers)
        self.proj = _projection(in_width, width)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        out = self._recomputed(x) if self.recompute else self.conv(x)
        shortcut = self.proj(x)
        # in place after norms whose backward pass does not need their output
        overwrite = isinstance(self.conv.fn[-1], nn.GroupNorm | nn.BatchNorm2d) and out.dtype == shortcut.dtype
        return out.add_(shortcut) if overwrite else out + shortcut

    def _recomputed(self, x: Tensor) -> Tensor:
        """The layers of `conv`, in three convolutions that each recompute their norm and GELU."""
        expand, norm_1, _, depthwise, norm_2, _, squeeze_excite, project, norm_3 = self.conv.fn
        out = recomputed_conv(x, expand, self.conv.norm)
        out = recomputed_conv(out, depthwise, norm_1, gelu=True)
        out = recomputed_conv(out, project, norm_2, gelu=True, excite=squeeze_excite.get_submodule("fc"))
        with torch.autocast(x.device.type, enabled=False):
            return apply_norm(norm_3, out, norm_3.training, update_stats=True)


BLOCKS: dict[str, Callable[[int, int, str, str], nn.Module]] = {"mbconv": MBConv, "residual": ResidualBlock}


def build_block(kind: str, in_width: int, width: int, norm: str, padding_mode: str) -> nn.Module:
    """Block of that name.

    Raises:
        UsageError: if a name is unknown.
    """
    if kind not in BLOCKS:
        raise UsageError(f"unknown block {kind!r}; choose --block_type {', '.join(BLOCKS)}")
    if padding_mode not in PADDING_MODES:
        raise UsageError(f"unknown --padding_mode {padding_mode!r}; choose {', '.join(PADDING_MODES)}")
    return BLOCKS[kind](in_width, width, norm, padding_mode)
