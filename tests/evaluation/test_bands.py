"""Errors and deviations by band against numpy."""

import numpy as np
import pytest
import torch

from data.constants import S2_BANDS
from evaluation.accumulator import EvaluatedBatch
from evaluation.bands import BandMeter
from model.predictions import Gaussian, Mean


def test_bands_equal_numpy_over_batches_and_processes():
    rng = np.random.default_rng(0)
    target, mean = rng.random((2, 5, 1, 13, 8, 8), np.float32)
    variance = rng.random(mean.shape, np.float32)
    target[1, 0, 4, 2, 3] = np.nan  # is ignored
    meters = [BandMeter(), BandMeter()]
    for meter, part in zip(meters, (slice(0, 3), slice(3, 5)), strict=True):
        rows = (torch.from_numpy(image[part]) for image in (target, mean, variance))
        meter.update(EvaluatedBatch(next(rows), Gaussian(*rows)))
    meters[0].merge([meter.state() for meter in meters])
    by_band = meters[0].compute()
    assert tuple(by_band) == S2_BANDS
    error = np.moveaxis(mean.astype(np.float64) - target, 2, 0).reshape(13, -1)
    finite = np.isfinite(error)
    spread = np.moveaxis(variance.astype(np.float64), 2, 0).reshape(13, -1)
    for band, (name, figures) in enumerate(by_band.items()):
        kept = error[band][finite[band]]
        expected = {
            "RMSE": np.sqrt(np.mean(kept**2)),
            "MAE": np.abs(kept).mean(),
            "bias": kept.mean(),
            "RMV": np.sqrt(spread[band][finite[band]].mean()),
        }
        assert figures == pytest.approx(expected, rel=1e-5, abs=1e-8), name  # float32 sums of 64 pixels; biases cancel
    alone = BandMeter()
    alone.update(EvaluatedBatch(torch.zeros(1, 1, 13, 4, 4), Mean(torch.ones(1, 1, 13, 4, 4))))
    assert alone.compute()["B01"] == {"RMSE": 1.0, "MAE": 1.0, "bias": 1.0}
    with pytest.raises(ValueError, match="expected 13 bands"):
        alone.update(EvaluatedBatch(torch.zeros(1, 1, 3, 4, 4), Mean(torch.zeros(1, 1, 3, 4, 4))))
