"""Sums over dates, weighted by attention, and the memory format that makes them fast."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UsageError
from model.layers.conv import resize
from model.registry import AGGREGATIONS

ATTENTION_DROPOUT = 0.1
LARGE_IMAGE = 64 * 64  # pixels


def channels_last(maps: Tensor) -> Tensor:
    """Large maps (B, C, H, W) with channels innermost on a CPU: norms and 1 x 1 convolutions are faster.

    Smaller maps stay as they are: they gain little, and sums in the published order resolve near-ties of the max-pool
    as in published float32 gradients. Otherwise always a copy: torch takes a view of a single image for channels-last
    where later layers do not.
    """
    large = maps.shape[-2] * maps.shape[-1] >= LARGE_IMAGE
    return maps.clone(memory_format=torch.channels_last) if large and maps.device.type == "cpu" else maps


class TemporalAggregator(nn.Module):
    """Sum over dates, weighted by attention.

    Args:
        mode: `att_group` (each head weights its group of channels), `att_mean` (all channels by the mean of the heads)
            or `mean` (equal weights of all dates but padded ones; attention unused).
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        if mode not in AGGREGATIONS:
            raise UsageError(f"unknown --agg_mode {mode!r}; choose {', '.join(AGGREGATIONS)}")
        self.mode = mode
        self.attn_dropout = nn.Dropout(ATTENTION_DROPOUT)

    def forward(self, maps: Sequence[Tensor], attention: Tensor, padded: Tensor) -> Tensor:
        """Weighted sum.

        Args:
            maps: (B, C, H, W) of each date.
            attention: (N, B, T, h, w), of lower resolution (or higher, where H or W is small).
            padded: (B, T) bool.

        Returns:
            (B, C, H, W).
        """
        b, _, h, w = maps[0].shape
        valid = (~padded).to(attention.dtype)[:, :, None, None, None]  # (B, T, 1, 1, 1)
        if self.mode == "mean":
            return sum_over_dates(maps, valid / valid.sum(dim=1, keepdim=True).clamp(min=1))
        heads = attention if self.mode == "att_group" else attention.mean(dim=0, keepdim=True)
        by_date = heads.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (B * T, N, h, w)
        if not maps[0].is_contiguous():
            by_date = by_date.contiguous(memory_format=torch.channels_last)
        resized = resize(by_date, (h, w)).unflatten(0, (b, -1))  # (B, T, N, H, W)
        return sum_over_dates(maps, self.attn_dropout(resized) * valid)


def sum_over_dates(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Weighted sum, with separate weights for each group of channels.

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
    weights_by_date = weights.unsqueeze(3).unbind(1)  # (B, G, 1, H, W) of each date
    groups = [date_maps.unflatten(1, (weights.shape[2], -1)) for date_maps in maps]  # (B, G, C / G, H, W) of each date
    out = groups[0] * weights_by_date[0]
    for date_groups, date_weights in zip(groups[1:], weights_by_date[1:], strict=True):
        out = torch.addcmul(out, date_groups, date_weights)
    return out.flatten(1, 2)


class _SumOverDates(torch.autograd.Function):
    """`sum_over_dates` for channels innermost: weights are repeated for each channel, one date at a time.

    With broadcasting, the inner loop on a CPU is no longer than one group: six times as slow.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *maps)
        out = maps[0] * _repeat(weights[:, 0], maps[0].shape[1])
        for date, date_maps in enumerate(maps[1:], start=1):
            out.addcmul_(date_maps, _repeat(weights[:, date], date_maps.shape[1]))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *maps = ctx.saved_tensors
        n_groups, channels = weights.shape[2], grad.shape[1]
        groups = torch.eye(n_groups, dtype=grad.dtype).repeat_interleave(channels // n_groups, dim=0)  # (C, G)
        grad_maps = [
            grad * _repeat(weights[:, date], channels) if needed else None
            for date, needed in enumerate(ctx.needs_input_grad[1:])
        ]
        if not ctx.needs_input_grad[0]:
            return None, *grad_maps
        sums = [(grad * date_maps).permute(0, 2, 3, 1) @ groups for date_maps in maps]  # (B, H, W, G) of each date
        return torch.stack(sums, dim=1).permute(0, 1, 4, 2, 3), *grad_maps


def _repeat(weights: Tensor, channels: int) -> Tensor:
    """(B, G, H, W) to (B, C, H, W) with channels innermost, equal within a group."""
    innermost = weights.permute(0, 2, 3, 1).unsqueeze(-1)  # (B, H, W, G, 1)
    return innermost.expand(*innermost.shape[:4], channels // weights.shape[1]).flatten(3).permute(0, 3, 1, 2)
