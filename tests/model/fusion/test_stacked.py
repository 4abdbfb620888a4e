"""Stacked predictions, and the epistemic share of their fusion."""

import pytest
import torch

from model.fusion.stacked import epistemic_share, stack_predictions
from model.predictions import Gaussian, Mean
from tests.support.fusion_cases import pixel_row


def test_epistemic_share_of_two_is_a_quarter_of_the_squared_difference():
    means, variances, weights = pixel_row([0.2, 0.3]), pixel_row([0.01, 0.03]), pixel_row([0.25, 0.75])
    spread = 0.1**2 / 4
    expected = spread / (spread + 0.25 * 0.01 + 0.75 * 0.03)
    assert epistemic_share(weights, means, variances).item() == pytest.approx(expected, rel=1e-12)
    assert epistemic_share(weights, pixel_row([0.3, 0.3]), variances).item() == 0.01
    assert epistemic_share(weights, pixel_row([0.0, 9.0]), variances).item() == 0.99


def test_a_gaussian_expert_gets_the_fitted_tails():
    shape = (2, 1, 13, 3, 3)
    dof = torch.full((1, 13), 7.0)
    predictions = stack_predictions([Gaussian(torch.rand(shape), torch.rand(shape) + 0.1)], dof)
    prediction = predictions.expert(0)
    assert torch.equal(prediction.gamma, torch.ones(shape))
    assert torch.equal(prediction.alpha, torch.full(shape, 3.5))
    torch.testing.assert_close(prediction.total, predictions.variance[0])
    with pytest.raises(ValueError, match="an expert without a variance cannot be fused"):
        stack_predictions([Mean(torch.rand(shape))], dof)
