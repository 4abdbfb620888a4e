"""What backbones do with a series of dates: check its bands, find padding, sum features over dates."""

from collections.abc import Sequence

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
    by_date = weights.to(maps[0].dtype).unsqueeze(3).unbind(1)  # (B, G, 1, H, W) of each date
    groups = [one.unflatten(1, (weights.shape[2], -1)) for one in maps]  # (B, G, C / G, H, W)
    out = groups[0] * by_date[0]
    for of_date, weight in zip(groups[1:], by_date[1:], strict=True):
        out = torch.addcmul(out, of_date, weight)
    return out.flatten(1, 2)
