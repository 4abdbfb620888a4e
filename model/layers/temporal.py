"""What backbones do with a series of dates: check its bands, find padding, sum features over dates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.constants import N_S2


def check_series(x: Tensor, in_channels: int, smallest: int = 1) -> None:
    """Refuse what no network can take.

    Args:
        x: what should be (B, T, C, H, W).
        in_channels: C, 13 or 15 with radar.
        smallest: pixels along a side.

    Raises:
        ValueError: if the shape is another one, or the image too small.
    """
    if x.dim() != 5 or x.shape[2] != in_channels:
        bands = "13 bands" if in_channels == N_S2 else "VV, VH, then 13 bands"
        raise ValueError(
            f"expected x of shape (B, T, {in_channels}, H, W) ({bands}), got {tuple(x.shape)}; "
            "--use_sar says whether radar goes in"
        )
    if min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"expected images of {smallest} x {smallest} pixels or more, got {x.shape[-2]} x {x.shape[-1]}"
        )


def find_padding(x: Tensor, pad_value: float, scale_by: float) -> Tensor:
    """The dates whose every value is padding.

    Args:
        x: (B, T, C, H, W), scaled.
        pad_value: before it was scaled.
        scale_by: scaled units per reflectance.

    Returns:
        (B, T) bool.
    """
    scaled = torch.tensor(pad_value, device=x.device) * scale_by  # rounds as x * scale_by did
    return (x == scaled).flatten(2).all(dim=-1)


def sum_over_dates(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Weighted sum, each group of channels by its own weights.

    Args:
        maps: (B, C, H, W) of each date.
        weights: (B, T, G, H, W), or 1 in place of H and W; G groups, which divide C.

    Returns:
        (B, C, H, W), of the dtype of the maps.
    """
    weights, first = weights.to(maps[0].dtype), maps[0]
    innermost = first.device.type == "cpu" and not first.is_contiguous() and weights.shape[3:] == first.shape[2:]
    if innermost and not torch.compiler.is_compiling():
        return _SumOverDates.apply(weights, *maps)
    by_date = weights.unsqueeze(3).unbind(1)  # (B, G, 1, H, W) of each date
    groups = [one.unflatten(1, (weights.shape[2], -1)) for one in maps]  # (B, G, C / G, H, W)
    out = groups[0] * by_date[0]
    for of_date, weight in zip(groups[1:], by_date[1:], strict=True):
        out = torch.addcmul(out, of_date, weight)
    return out.flatten(1, 2)


class _SumOverDates(torch.autograd.Function):
    """`sum_over_dates` where channels are innermost: weights are repeated for each channel, one date at a time.

    Left to broadcasting, a processor's inner loop is no longer than one group: six times as slow.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *maps)
        out = maps[0] * _repeat(weights[:, 0], maps[0].shape[1])
        for date, of_date in enumerate(maps[1:], start=1):
            out.addcmul_(of_date, _repeat(weights[:, date], of_date.shape[1]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *maps = ctx.saved_tensors
        n_groups, channels = weights.shape[2], grad.shape[1]
        groups = torch.eye(n_groups, dtype=grad.dtype).repeat_interleave(channels // n_groups, dim=0)  # (C, G)
        of_maps = [
            grad * _repeat(weights[:, date], channels) if needed else None
            for date, needed in enumerate(ctx.needs_input_grad[1:])
        ]
        if not ctx.needs_input_grad[0]:
            return None, *of_maps
        sums = [(grad * of_date).permute(0, 2, 3, 1) @ groups for of_date in maps]  # (B, H, W, G) of each date
        return torch.stack(sums, dim=1).permute(0, 1, 4, 2, 3), *of_maps


def _repeat(weights: Tensor, channels: int) -> Tensor:
    """(B, G, H, W) to (B, C, H, W) with channels innermost, the same for all channels of a group."""
    innermost = weights.permute(0, 2, 3, 1).unsqueeze(-1)  # (B, H, W, G, 1)
    return innermost.expand(*innermost.shape[:4], channels // weights.shape[1]).flatten(3).permute(0, 3, 1, 2)
