"""Errors and predicted deviations of each band."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.constants import S2_BANDS
from evaluation.accumulator import Accumulator, EvaluatedBatch

_N_SUMS = 5  # count, error, absolute error, squared error, variance

Sums = npt.NDArray[np.float64]


class BandMeter(Accumulator):
    """Accumulates errors and variances by band; its size does not grow with the split."""

    def __init__(self) -> None:
        self._sums: Sums = np.zeros((_N_SUMS, len(S2_BANDS)))
        self._has_variance = False

    @torch.no_grad()
    def update(self, batch: EvaluatedBatch) -> None:
        """Take a batch into account, except target pixels without data, and errors and variances that are not finite.

        Raises:
            ValueError: if the images do not have 13 bands.
        """
        mean, variance = batch.prediction.mean, batch.prediction.total
        if mean.shape[-3] != len(S2_BANDS):
            raise ValueError(f"expected {len(S2_BANDS)} bands, got images of shape {tuple(mean.shape)}")
        error = batch.target.float() - mean.float()
        if batch.valid is not None:
            error = error.where(batch.valid[:, :, None], torch.nan)
        variance = None if variance is None else variance.float()
        self._has_variance |= variance is not None
        sums = _sums(error, variance)
        count = np.full(len(S2_BANDS), error.numel() / len(S2_BANDS))
        if not np.isfinite(sums).all():  # rare, so that elements are only then checked one by one
            finite = error.isfinite() if variance is None else error.isfinite() & variance.isfinite()
            count = finite.sum(dim=(-1, -2)).flatten(0, -2).sum(dim=0).cpu().numpy()
            sums = _sums(error.where(finite, 0.0), None if variance is None else variance.where(finite, 0.0))
        self._sums += np.concatenate([count[None], sums])

    def state(self) -> tuple[Sums, bool]:
        """All that was accumulated so far, for `merge`."""
        return self._sums, self._has_variance

    def merge(self, states: Sequence[tuple[Sums, bool]]) -> None:
        """Replace the own state by that of all processes."""
        self._sums = np.sum([sums for sums, _ in states], axis=0)
        self._has_variance = any(has_variance for _, has_variance in states)

    def compute(self) -> dict[str, dict[str, float]]:
        """Of each band `RMSE`, `MAE` and `bias` (mean of prediction minus target), reflectance.

        With a variance also `RMV`, the root mean variance: the predicted standard deviation.
        """
        by_band = {}
        for band, (count, error, absolute, squared, variance) in zip(S2_BANDS, self._sums.T, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                figures = {"RMSE": (squared / count) ** 0.5, "MAE": absolute / count, "bias": -error / count}
                if self._has_variance:
                    figures["RMV"] = (variance / count) ** 0.5
            by_band[band] = {name: float(value) for name, value in figures.items()}
        return by_band


def _sums(error: Tensor, variance: Tensor | None) -> Sums:
    """Sums over all but the bands, (4,13): of error, absolute and squared error, and variance (0 without one)."""
    pixels = error.flatten(-2)  # (B,1,13,HW)
    columns = [pixels.sum(-1), pixels.abs().sum(-1), torch.linalg.vecdot(pixels, pixels)]
    columns.append(torch.zeros_like(columns[0]) if variance is None else variance.flatten(-2).sum(-1))
    # float32 sums of one image of 256 x 256 are good to 1e-6; sums of many images need float64
    return torch.stack([column.double().flatten(0, -2).sum(dim=0) for column in columns]).cpu().numpy()
