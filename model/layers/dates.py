"""Acquisition dates of a series: their order, the days between them, the season."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

YEAR = 365.25  # days


@dataclass(frozen=True)
class DateOrder:
    """Dates of a batch in ascending order, padding last.

    Attributes:
        order: (B, T), input position of each sorted image.
        valid: (B, T), 1 for a date and 0 for padding.
        gap_before, gap_after: (B, T), ln(1 + days) from the previous and to the next date; 0 where there is none.
        season: (B, T, 2), sine and cosine of the day of the year; 0 if dates are not used.
    """

    order: Tensor
    valid: Tensor
    gap_before: Tensor
    gap_after: Tensor
    season: Tensor

    def sort(self, series: Tensor) -> Tensor:
        """Series (B, T, ...) in the order of their dates."""
        return _take(series, self.order)

    def unsort(self, series: Tensor) -> Tensor:
        """Sorted series (B, T, ...) in their input order."""
        return _take(series, self.order.argsort(dim=1))


def order_dates(x: Tensor, dates: Tensor | None, padded: Tensor, use_dates: bool) -> DateOrder:
    """Sort the dates of a batch.

    Args:
        x: (B, T, C, H, W), images; of two images of one day the darker comes first, whatever their input order.
        dates: (B, T), days; None keeps the input order, for single images or without `use_dates`.
        padded: (B, T) bool; a series of padding alone counts as dates.
        use_dates: whether gaps and season are set; otherwise the order alone.

    Raises:
        ValueError: if the dates are missing or of another shape.
    """
    shape = x.shape[:2]
    if dates is None:
        if use_dates and shape[1] > 1:
            raise ValueError(f"expected the dates of {shape[1]} images, (B, T) in days, got none")
        dates = torch.arange(shape[1], device=x.device).expand(shape)
        use_dates = False
    elif dates.shape != shape:
        raise ValueError(f"expected dates {tuple(shape)}, one per image, got {tuple(dates.shape)}")
    valid = ~padded | padded.all(dim=1, keepdim=True)
    dates = dates.float().masked_fill(~valid, math.inf)
    order = x.detach().flatten(2).mean(dim=2).argsort(dim=1, stable=True)
    order = order.gather(1, dates.gather(1, order).argsort(dim=1, stable=True))
    dates, valid = dates.gather(1, order), valid.gather(1, order)
    gaps = (dates[:, 1:] - dates[:, :-1]).masked_fill(~valid[:, 1:], 0.0).log1p() * use_dates  # (B, T - 1)
    angle = (dates.masked_fill(~valid, 0.0) * (2 * math.pi / YEAR)).unsqueeze(-1)
    season = torch.cat([angle.sin(), angle.cos()], dim=-1) * valid.unsqueeze(-1) * use_dates
    return DateOrder(order, valid.float(), F.pad(gaps, (1, 0)), F.pad(gaps, (0, 1)), season)


def _take(series: Tensor, positions: Tensor) -> Tensor:
    return series[torch.arange(len(series), device=series.device)[:, None], positions]
