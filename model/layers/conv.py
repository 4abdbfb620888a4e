"""Convolution blocks, shared over dates: norms by name, MBConv, the residual block. Names are those of checkpoints."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from model.layers.recompute import Pointwise, forgetful_conv, full_precision

NORMS = ("group", "batch", "instance", "none")
PADDING_MODES = ("reflect", "zeros", "replicate", "circular")
BLOCKS = ("mbconv", "residual")
N_GROUPS = 4  # of group norms
EXPANSION = 2  # hidden channels of MBConv per input channel
SQUEEZE = 0.25  # channels of squeeze-excite per input channel


def build_norm(kind: str, width: int) -> nn.Module:
    """A norm over maps of `width` channels: group (four groups), batch, instance or none.

    Raises:
        UsageError: if the name is unknown or the groups do not divide the width.
    """
    if kind not in NORMS:
        raise UsageError(f"unknown norm {kind!r}; choose {', '.join(NORMS)} for --encoder_norm and --decoder_norm")
    if kind == "group" and width % N_GROUPS:
        raise UsageError(
            f"a group norm has {N_GROUPS} groups, which do not divide {width} channels; choose other widths"
        )
    return {
        "group": lambda: nn.GroupNorm(N_GROUPS, width),
        "batch": lambda: nn.BatchNorm2d(width),
        "instance": lambda: nn.InstanceNorm2d(width),
        "none": nn.Identity,
    }[kind]()


class ConvLayers(nn.Module):
    """Convolutions of stride 1 that keep the size, each followed by norm and ReLU.

    Args:
        widths: channels, input first.
        kernel: 1 or 3.
        norm: name of the norm; `none` leaves it out.
        last_relu: whether a ReLU follows the last convolution too.
        padding_mode: how the border is padded.
    """

    def __init__(
        self, widths: Sequence[int], kernel: int, norm: str, last_relu: bool = True, padding_mode: str = "reflect"
    ) -> None:
        super().__init__()
        mode = cast(Literal["reflect"], padding_mode)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            wide = nn.Conv2d(before, after, kernel, padding=kernel // 2, padding_mode=mode) if kernel > 1 else None
            layers.append(wide or Pointwise(before, after))
            if norm != "none":
                layers.append(build_norm(norm, after))
            if last_relu or i < len(widths) - 2:
                layers.append(nn.ReLU(inplace=norm != "none"))  # norms do not look at their output again
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return self.conv(x)


class ConvBlock(nn.Module):
    """1 x 1 `ConvLayers`, one name deeper, as checkpoints have the first and the last layer."""

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


class ResidualBlock(nn.Module):
    """Three 3 x 3 convolutions, each with norm and ReLU, added to the input."""

    def __init__(self, before: int, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        self.conv1 = ConvLayers([before, width], 3, norm, padding_mode=padding_mode)
        self.conv2 = ConvLayers([width, width], 3, norm, padding_mode=padding_mode)
        self.conv3 = ConvLayers([width, width], 3, norm, padding_mode=padding_mode)
        if before != width:
            self.proj = Pointwise(before, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        shortcut = self.proj(x) if hasattr(self, "proj") else x
        return self.conv3(self.conv2(self.conv1(x))) + shortcut


class SqueezeExcite(nn.Module):
    """A weight in (0, 1) for each channel, from the channels' means.

    Args:
        width: channels of the map.
        squeezed: channels in between.
    """

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed, bias=False), nn.GELU(), nn.Linear(squeezed, width, bias=False), nn.Sigmoid()
        )

    def forward(self, means: Tensor) -> Tensor:
        """Means over pixels (B, C) to weights (B, C)."""
        return self.fc(means)


class PreNorm(nn.Module):
    """Holds a norm and the layers behind it."""

    def __init__(self, norm: nn.Module, fn: nn.Sequential) -> None:
        super().__init__()
        self.norm = norm
        self.fn = fn


class MBConv(nn.Module):
    """Inverted bottleneck: norm, 1 x 1 expansion, depthwise 3 x 3, squeeze-excite, 1 x 1 projection, residual sum.

    Args:
        before, width: channels in and out; where they differ, the sum goes over a 1 x 1 projection.
        norm: name of the norms.
        padding_mode: how the depthwise convolution pads the border.
    """

    def __init__(self, before: int, width: int, norm: str, padding_mode: str) -> None:
        super().__init__()
        hidden, squeezed = EXPANSION * before, int(SQUEEZE * before)
        if not squeezed:
            raise UsageError(f"mbconv blocks need widths of 4 or more, got {before}")
        self.padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        layers = nn.Sequential(
            Pointwise(before, hidden, bias=False),
            build_norm(norm, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, groups=hidden, bias=False),  # the border is padded before
            build_norm(norm, hidden),
            nn.GELU(),
            SqueezeExcite(hidden, squeezed),
            Pointwise(hidden, width, bias=False),
            build_norm(norm, width),
        )
        self.conv = PreNorm(build_norm(norm, before), layers)
        if before != width:
            self.proj = Pointwise(before, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        expand, norm_1, _, depthwise, norm_2, _, squeeze, project, norm_3 = self.conv.fn  # GELUs are in the chains
        enter = partial(normalise, self.conv.norm, self.conv.norm.training)
        out = forgetful_conv(x, enter, expand, list(self.conv.norm.parameters()))
        enter = partial(normalise, norm_1, norm_1.training)
        out = forgetful_conv(out, enter, depthwise, list(norm_1.parameters()), True, self.padding_mode)
        enter = partial(normalise, norm_2, norm_2.training)
        out = forgetful_conv(out, enter, project, [*norm_2.parameters(), *squeeze.parameters()], True, excite=squeeze)
        with torch.autocast(x.device.type, enabled=False):
            out = normalise(norm_3, norm_3.training, out, True)
        shortcut = self.proj(x) if hasattr(self, "proj") else x
        overwrite = isinstance(norm_3, nn.GroupNorm | nn.BatchNorm2d) and out.dtype == shortcut.dtype
        return out.add_(shortcut) if overwrite else out + shortcut


def normalise(norm: nn.Module, training: bool, x: Tensor, first: bool) -> Tensor:
    """Apply a norm; `first` is false where a training step walks the same way again.

    Args:
        norm: from `build_norm`.
        training: whether statistics are those of x.
        x: (B, C, H, W).
        first: whether running statistics take notice of x.

    Returns:
        (B, C, H, W), of the dtype of x.
    """
    if isinstance(norm, nn.BatchNorm2d):
        if training and first and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        notice = first or not training
        return F.batch_norm(
            x,
            norm.running_mean if notice else None,
            norm.running_var if notice else None,
            norm.weight,
            norm.bias,
            training,
            0.1 if norm.momentum is None else norm.momentum,
            norm.eps,
        )
    if x.is_cuda and x.dtype != torch.float32 and isinstance(norm, nn.GroupNorm):
        return norm(full_precision(x)).to(x.dtype)  # as autocast does: the CUDA kernel takes no mixed dtypes
    return norm(x)


def build_block(kind: str, before: int, width: int, norm: str, padding_mode: str) -> nn.Module:
    """The block of that name.

    Raises:
        UsageError: if the name is unknown.
    """
    if kind not in BLOCKS:
        raise UsageError(f"unknown block {kind!r}; choose --block_type {', '.join(BLOCKS)}")
    if padding_mode not in PADDING_MODES:
        raise UsageError(f"unknown --padding_mode {padding_mode!r}; choose {', '.join(PADDING_MODES)}")
    return (MBConv if kind == "mbconv" else ResidualBlock)(before, width, norm, padding_mode)
