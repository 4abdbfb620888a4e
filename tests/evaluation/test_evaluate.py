"""The figures of an evaluation in TensorBoard."""

import torch

from evaluation.accumulator import EvaluatedBatch
from evaluation.evaluate import tensorboard_scalars
from evaluation.split_metrics import SplitMetrics
from model.predictions import Gaussian, Mean

FIGURES = (
    "NLL",
    "CRPS",
    "UCE",
    "ENCE",
    "AUSE",
    "sharpness",
    "coverage 50",
    "coverage 90",
    "coverage 95",
    "RMSE",
    "MAE",
)
DATES = ("at no date", "at some dates", "at all dates")


def test_calibration_is_logged_for_all_pixels_and_by_cloudiness():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, 13, 16, 16, generator=generator) * 0.3
    masks = torch.zeros(2, 2, 16, 16)
    masks[:, 0, 4:], masks[:, 1, 8:] = 1, 1
    mean, deviation = target.clone(), torch.full_like(target, 0.02)
    noise = 0.02 * torch.randn(target.shape, generator=generator)
    noise[..., 8:, :] *= 3  # over-confident where every date is clouded
    split_metrics = SplitMetrics()
    split_metrics.update(EvaluatedBatch(target, Gaussian(mean + noise, deviation**2), masks))
    metrics = {"loss": 0.5, "samples": 2, "precision": "float32", "legacy": False, **split_metrics.compute()}
    scalars = tensorboard_scalars("val", metrics)
    for figure in FIGURES:
        assert scalars[f"val/{figure}"] == metrics[figure]
        for dates in DATES:
            name = f"val by cloud/{figure}, {dates}"
            assert scalars[name] == metrics["strata"][f"clouded {dates}"][figure]
    assert scalars["val/loss"] == 0.5
    assert all(isinstance(value, float) for value in scalars.values())  # no counts, words or curves
    assert scalars["val by cloud/ENCE, at all dates"] > 1.9  # 3,328 elements in 20 bins: 3 - 1, less 0.1
    assert scalars["val by cloud/ENCE, at no date"] < 0.15
    assert 0.9 < scalars["val/ENCE"] < 1.4  # what the average hides


def test_without_a_variance_there_are_errors_only():
    image = torch.full((1, 1, 13, 16, 16), 0.2)
    metrics = SplitMetrics()
    metrics.update(EvaluatedBatch(image, Mean(image + 0.1), torch.zeros(1, 2, 16, 16)))
    scalars = tensorboard_scalars("test", metrics.compute())
    assert {name for name in scalars if name.startswith("test by cloud/")} == {
        "test by cloud/RMSE, at no date",
        "test by cloud/MAE, at no date",
    }
