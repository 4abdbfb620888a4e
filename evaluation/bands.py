"""Errors and stated deviations of each band, summed image by image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.constants import S2_BANDS

_N_SUMS = 5  # count, error, absolute error, squared error, variance

Sums = npt.NDArray[np.float64]


class BandMeter:
    """Gathers what a table by band tells; it holds 13 numbers of each kind, whatever the split."""

    def __init__(self) -> None:
        self._sums: Sums = np.zeros((_N_SUMS, len(S2_BANDS)))
        self._has_variance = False

    @torch.no_grad()
    def add(self, target: Tensor, mean: Tensor, variance: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            target: (B,1,13,H,W), reflectance.
            mean: the prediction, alike.
            variance: its total variance, alike, reflectance squared. Elements that are not finite count nowhere.
        """
        if mean.shape[-3] != len(S2_BANDS):
            raise ValueError(f"expected {len(S2_BANDS)} bands, got images of shape {tuple(mean.shape)}")
        error = target.to(mean.device).float() - mean.float()
        spread = None if variance is None else variance.float().expand_as(error)
        self._has_variance |= variance is not None
        sums = _sums(error, spread)
        count = np.full(len(S2_BANDS), error.numel() / len(S2_BANDS))
        if not np.isfinite(sums).all():  # seldom: look for what is to be left out only if there is something
            known = error.isfinite() if spread is None else error.isfinite() & spread.isfinite()
            count = known.sum(dim=(-1, -2)).flatten(0, -2).sum(dim=0).cpu().numpy()
            sums = _sums(error.where(known, 0.0), None if spread is None else spread.where(known, 0.0))
        self._sums += np.concatenate([count[None], sums])

    def parts(self) -> tuple[Sums, bool]:
        """All that was taken in, to be sent elsewhere and joined there."""
        return self._sums, self._has_variance

    def join(self, others: Sequence[tuple[Sums, bool]]) -> None:
        """Become the meter of all that others took in, this one among them."""
        self._sums = np.sum([sums for sums, _ in others], axis=0)
        self._has_variance = any(has for _, has in others)

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each band `RMSE`, `MAE` and `bias` (mean of prediction minus target), reflectance.

        With a variance also `RMV`, the root of its mean: the deviation that the network states.
        """
        found = {}
        for band, (count, error, absolute, squared, variance) in zip(S2_BANDS, self._sums.T, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                figures = {"RMSE": (squared / count) ** 0.5, "MAE": absolute / count, "bias": -error / count}
                if self._has_variance:
                    figures["RMV"] = (variance / count) ** 0.5
            found[band] = {name: float(value) for name, value in figures.items()}
        return found


def _sums(error: Tensor, variance: Tensor | None) -> Sums:
    """Sums over all but the bands, (4,13): of error, absolute and squared error, and variance (0 without one)."""
    pixels = error.flatten(-2)  # (B,1,13,HW)
    columns = [pixels.sum(-1), pixels.abs().sum(-1), torch.linalg.vecdot(pixels, pixels)]
    columns.append(torch.zeros_like(columns[0]) if variance is None else variance.flatten(-2).sum(-1))
    # an image of 256 x 256 sums up in float32 to 1e-6; many images do in float64
    return torch.stack([column.double().flatten(0, -2).sum(dim=0) for column in columns]).cpu().numpy()
