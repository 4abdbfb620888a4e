"""When the images of a series were taken: their order, the days between them, the season."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

YEAR = 365.25  # days


@dataclass(frozen=True)
class Calendar:
    """Dates of a batch, in order, padding last.

    Attributes:
        order: (B, T), positions of the images as they came.
        present: (B, T), 1 for a date and 0 for padding.
        since, until: (B, T), ln(1 + days) from the date before and to the date after; 0 where there is none.
        season: (B, T, 2), sine and cosine of the day of the year; 0 where dates are not told.
    """

    order: Tensor
    present: Tensor
    since: Tensor
    until: Tensor
    season: Tensor

    def arrange(self, series: Tensor) -> Tensor:
        """(B, T, ...) as it came, to the same in order."""
        batch = torch.arange(len(self.order), device=series.device)[:, None]
        return series[batch, self.order]


def read_calendar(x: Tensor, dates: Tensor | None, padded: Tensor, told: bool) -> Calendar:
    """Bring the dates of a batch into order.

    Args:
        x: (B, T, C, H, W), the images; of two images of one day, the darker comes first, so that their order does
            not depend on how they came.
        dates: (B, T), days; None for single images, or if they are not told: the order then stays.
        padded: (B, T) bool; a series of padding alone counts as one of dates.
        told: whether the network is told days and season; else it knows the order alone.

    Raises:
        ValueError: if the dates are missing or of another shape.
    """
    shape = x.shape[:2]
    if dates is None:
        if told and shape[1] > 1:
            raise ValueError(f"expected the dates of {shape[1]} images, (B, T) in days, got none")
        dates = torch.arange(shape[1], device=x.device).expand(shape)
        told = False
    elif dates.shape != shape:
        raise ValueError(f"expected dates {tuple(shape)}, as there are images, got {tuple(dates.shape)}")
    present = ~padded | padded.all(dim=1, keepdim=True)
    dates = dates.float().masked_fill(~present, math.inf)
    order = x.detach().flatten(2).mean(dim=2).argsort(dim=1, stable=True)
    order = order.gather(1, dates.gather(1, order).argsort(dim=1, stable=True))
    dates, present = dates.gather(1, order), present.gather(1, order)
    gaps = (dates[:, 1:] - dates[:, :-1]).masked_fill(~present[:, 1:], 0.0).log1p() * told  # (B, T - 1)
    none = gaps.new_zeros(shape[0], 1)
    angle = (dates.masked_fill(~present, 0.0) * (2 * math.pi / YEAR)).unsqueeze(-1)
    season = torch.cat([angle.sin(), angle.cos()], dim=-1) * present.unsqueeze(-1) * told
    return Calendar(order, present.float(), torch.cat([none, gaps], dim=1), torch.cat([gaps, none], dim=1), season)
