"""Weights of the rules against closed forms, scipy and stored values."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from model.fusion import rules
from model.fusion.stacked import fused_mean, fused_variance
from model.nig import sum_beliefs
from tests.support.fusion_cases import pixel_row, stacked_rows

DOUBLE = torch.float64


def rho_matrix(rho, k=2):
    matrix = torch.full((k, k), float(rho), dtype=DOUBLE)
    return matrix.fill_diagonal_(1.0)[:, :, None]


def test_correlated_weights_have_the_stored_values():
    variances = pixel_row([0.01, 0.02])
    weights = rules.correlated_weights(variances, torch.tensor([0.5], dtype=DOUBLE))
    assert weights.flatten().tolist() == pytest.approx([0.8153009687, 0.1846990313], abs=1e-10)
    assert fused_variance(weights, variances, rho_matrix(0.5)).item() == pytest.approx(0.0094590291, abs=1e-10)
    weights = rules.correlated_weights(variances, torch.tensor([0.8], dtype=DOUBLE))
    assert weights.flatten().tolist() == [1.0, 0.0]  # rho beyond sqrt(V1/V2): the better one alone


def test_identical_experts_at_full_correlation_keep_their_variance():
    variances = pixel_row([0.013, 0.013])
    weights = rules.correlated_weights(variances, torch.tensor([1.0], dtype=DOUBLE))
    assert weights.flatten().tolist() == [0.5, 0.5]
    for w in (0.5, 0.2, 1.0):
        fused = fused_variance(pixel_row([w, 1 - w]), variances, rho_matrix(1.0))
        assert fused.item() == pytest.approx(0.013, rel=1e-12)


def test_correlated_weights_are_those_of_least_variance():
    rng = np.random.default_rng(0)
    for _ in range(20):
        v, rho = rng.uniform(0.01, 0.1, 2), rng.uniform(-0.5, 0.95)
        weight = rules.correlated_weights(pixel_row(v), torch.tensor([rho], dtype=DOUBLE))[0].item()
        grid = np.linspace(0, 1, 100001)
        variance = grid**2 * v[0] + (1 - grid) ** 2 * v[1] + 2 * grid * (1 - grid) * rho * np.sqrt(v[0] * v[1])
        assert weight == pytest.approx(grid[variance.argmin()], abs=1e-5)  # the grid's step


def test_inverse_variance_weights():
    weights = rules.inverse_variance_weights(pixel_row([0.01, 0.03]))
    assert weights.flatten().tolist() == pytest.approx([0.75, 0.25])
    three = rules.inverse_variance_weights(pixel_row([0.01, 0.02, 0.02]))
    assert three.flatten().tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_convex_weights_of_two_have_the_closed_form():
    rng = np.random.default_rng(1)
    y = rng.normal(size=500)
    for shift, scale in ((0.3, 0.5), (0.05, 2.0), (0.8, 0.1)):
        d1, d2 = y + rng.normal(0, 0.3, 500) + shift, y + rng.normal(0, scale, 500)
        errors = np.stack([d1 - y, d2 - y])
        weights = rules.convex_weights((errors @ errors.T)[None])[:, 0]
        expected = np.clip(-((d2 - y) * (d1 - d2)).sum() / ((d1 - d2) ** 2).sum(), 0, 1)
        assert weights == pytest.approx([expected, 1 - expected], abs=1e-7)


def test_convex_weights_of_four_are_the_minimum_on_the_simplex():
    rng = np.random.default_rng(2)
    for _ in range(5):
        errors = rng.normal(size=(4, 200)) * rng.uniform(0.5, 2, (4, 1)) + rng.normal(size=200) * 0.7
        gram = errors @ errors.T
        weights = rules.convex_weights(gram[None])[:, 0]
        free = minimize(
            lambda w, g=gram: w @ g @ w, np.full(4, 0.25), bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14},
        )  # fmt: skip
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert (weights >= 0).all()
        assert weights @ gram @ weights <= free.fun * (1 + 1e-7)


def test_convex_weights_of_copies_are_shared():
    gram = np.full((1, 3, 3), 7.0)
    assert rules.convex_weights(gram)[:, 0] == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert rules.convex_weights(np.zeros((2, 3, 3))) == pytest.approx(1 / 3)


def test_a_useless_expert_gets_no_convex_weight():
    gram = np.array([[[1.0, 1.2], [1.2, 9.0]]])  # the sum of products exceeds the sum of squares of the better one
    assert rules.convex_weights(gram)[:, 0] == pytest.approx([1, 0], abs=1e-8)


def test_monig_is_the_summation_exactly():
    experts = stacked_rows([[0.3], [1.0]], [[0.4], [0.9]], gamma=[[0.7], [2.0]], alpha=2.5)
    fused = rules.monig_sum(experts)
    expected = sum_beliefs(experts.expert(0), experts.expert(1))
    for name, field in fused.fields().items():
        assert torch.equal(field, expected.fields()[name]), name
    weights = rules.evidence_weights(experts)
    torch.testing.assert_close(fused_mean(weights, experts.mean), fused.delta)
