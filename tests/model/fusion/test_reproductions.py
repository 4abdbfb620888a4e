"""Why the first fusion was worse than its experts: each reason as a small seeded experiment (docs/fusion.md)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.fusion import rules
from model.fusion.stacked import fused_mean, fused_variance
from model.fusion.statistics import WeightAUC
from model.losses.evidential import amini_penalty, nig_loss, prior_penalty
from model.nig import NIG, nig_from_moments, sum_beliefs
from tests.support.fusion_cases import stacked_rows

DOUBLE = torch.float64


def belief(delta, gamma, alpha, beta) -> NIG:
    fields = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=DOUBLE) for v in (delta, gamma, alpha, beta)))
    return NIG(*(field.clone() for field in fields))


def errors_of(deviation, rng):
    return torch.from_numpy(rng.normal(size=len(deviation)) * deviation.numpy())


# 1. It weighed by gamma, which no datum determines


def test_along_a_curve_gamma_changes_everything_but_the_likelihood():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.normal(0.3, 0.1, 1000))
    variance = 0.01
    results = {}
    for gamma in (0.05, 1.0, 20.0):
        b = nig_from_moments(torch.full_like(y, 0.3), torch.full_like(y, variance), 1 / (1 + gamma), 3.0)
        results[gamma] = b.nll(y).mean().item(), (b.epistemic / b.total).mean().item()
    likelihoods, shares = zip(*results.values(), strict=True)
    assert max(likelihoods) - min(likelihoods) < 1e-12
    assert shares == pytest.approx((1 / 1.05, 1 / 2, 1 / 21))


def test_training_by_likelihood_leaves_gamma_where_it_started():
    """Two starts, one likelihood, the same data: the total variance is learned, gamma is what it was."""
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.normal(0.0, 0.2, 2000))
    ends = []
    for start in (0.2, 5.0):
        log_gamma = torch.tensor(math.log(start), dtype=DOUBLE, requires_grad=True)
        log_variance = torch.tensor(0.0, dtype=DOUBLE, requires_grad=True)
        optimizer = torch.optim.Adam([log_gamma, log_variance], lr=0.05)
        for _ in range(300):
            share = 1 / (1 + log_gamma.exp())
            b = nig_from_moments(torch.zeros_like(y), log_variance.exp().expand_as(y), share, 3.0)
            optimizer.zero_grad()
            b.nll(y).mean().backward()
            optimizer.step()
        ends.append((log_gamma.exp().item(), log_variance.exp().item()))
    (low, first), (high, second) = ends
    assert low == pytest.approx(0.2, rel=1e-3)
    assert high == pytest.approx(5.0, rel=1e-3)
    assert first == pytest.approx(second, rel=1e-3)


def test_weights_by_gamma_have_no_skill_where_weights_by_variance_do():
    """Two experts with correct variances at each pixel; gamma varies at random, as no datum determines it."""
    rng = np.random.default_rng(2)
    n = 20000
    deviation = torch.from_numpy(np.exp(rng.normal(-3, 0.7, (2, n))))
    errors = torch.stack([errors_of(row, rng) for row in deviation])
    gamma = np.exp(rng.normal(0, 1, (2, n)))
    predictions = stacked_rows(errors, deviation.square(), gamma=torch.from_numpy(gamma))
    auc, mse = {}, {}
    for name, weights in {
        "gamma": rules.evidence_weights(predictions),
        "variance": rules.inverse_variance_weights(predictions.variance),
        "none": rules.equal_weights(predictions.mean),
    }.items():
        weight_auc = WeightAUC()
        weight_auc.update(weights.reshape(2, n)[0], errors)
        auc[name] = weight_auc.compute()
        mse[name] = (weights.reshape(2, n) * errors).sum(0).square().mean().item()
    assert auc["gamma"] == pytest.approx(0.5, abs=0.015)  # three standard errors: 0.012
    assert auc["variance"] > 0.7
    assert mse["variance"] < 0.75 * mse["none"] < mse["none"] < mse["gamma"]


# 2. It added the evidence of experts whose errors are much the same


def test_two_copies_of_a_belief_shrink_its_variance_to_a_quarter():
    b = belief(0.3, 0.5, 1.5, 0.02)
    factor = (sum_beliefs(b, b).total / b.total).item()
    assert factor == pytest.approx((2 * 1.5 - 2) / (2 * 1.5 - 0.5) * (2 * 0.5 + 1) / (2 * 0.5 + 2), rel=1e-12)
    assert factor == pytest.approx(0.27, abs=0.005)


def test_correlated_errors_are_covered_less_than_promised():
    """Calibrated experts with errors correlated at 0.8: summed evidence covers too little, moments with rho do not."""
    rng = np.random.default_rng(3)
    n, rho, sigma, dof = 20000, 0.8, 0.05, 6.0
    normal = rng.normal(size=(3, n)) * np.array([math.sqrt(rho), math.sqrt(1 - rho), math.sqrt(1 - rho)])[:, None]
    tails = np.sqrt(dof / rng.chisquare(dof, n)) * sigma * math.sqrt((dof - 2) / dof)
    errors = torch.from_numpy((normal[0] + normal[1:]) * tails)
    predictions = stacked_rows(errors, np.full((2, n), sigma**2), alpha=dof / 2)

    def inside(b):
        low, high = b.interval(0.9)
        return ((low < 0) & (high > 0)).double().mean().item()

    assert inside(predictions.expert(0)) == pytest.approx(0.9, abs=0.01)  # four standard errors: 0.0085
    assert inside(rules.monig_sum(predictions)) < 0.85
    weights = rules.equal_weights(predictions.mean)
    correlation = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=DOUBLE)[:, :, None]
    variance = fused_variance(weights, predictions.variance, correlation)
    honest = nig_from_moments(fused_mean(weights, predictions.mean), variance, 0.2, dof / 2)
    assert inside(honest) == pytest.approx(0.9, abs=0.01)


# 4. The terms of its loss were of unlike size


def gradients_at_the_start(scale_by, error):
    """How strongly each term pulls on the prediction at |e| = `error`, per unit of reflectance, gamma 1, alpha 3."""
    delta = torch.tensor(0.3 * scale_by, dtype=DOUBLE, requires_grad=True)
    target = torch.tensor((0.3 - error) * scale_by, dtype=DOUBLE)
    b = nig_from_moments(delta, torch.tensor(scale_by**2 * 0.1**2, dtype=DOUBLE), 0.5, 3.0)
    terms = {
        "likelihood": b.nll(target),
        "smooth l1": F.smooth_l1_loss(delta, target),
        "evidence": amini_penalty(b, target),
    }
    return {
        name: abs(torch.autograd.grad(term, delta, retain_graph=True)[0].item()) * scale_by
        for name, term in terms.items()
    }


def test_error_times_evidence_drowns_the_likelihood_at_scale_10():
    """Per unit of reflectance the likelihood pulls alike at every scale; the others grow with it, or its square."""
    small, large = gradients_at_the_start(1.0, 0.05), gradients_at_the_start(10.0, 0.05)
    assert large["likelihood"] == pytest.approx(small["likelihood"], rel=1e-9)
    assert large["evidence"] == pytest.approx(10 * small["evidence"], rel=1e-9)
    assert large["smooth l1"] == pytest.approx(100 * small["smooth l1"], rel=1e-9)
    assert large["evidence"] > 5 * large["likelihood"]
    assert small["smooth l1"] < small["likelihood"]


def test_error_times_evidence_takes_away_the_evidence():
    """One pixel after the other, minimised over gamma at the best variance: it falls to nothing, the prior keeps it."""
    rng = np.random.default_rng(4)
    y = torch.from_numpy(rng.normal(0, 0.2 * 10, 2000))  # scale_by 10

    def minimum(penalty):
        log_gamma = torch.tensor(0.0, dtype=DOUBLE, requires_grad=True)
        optimizer = torch.optim.Adam([log_gamma], lr=0.1)
        for _ in range(300):
            share = 1 / (1 + log_gamma.exp())
            b = nig_from_moments(torch.zeros_like(y), torch.full_like(y, y.var().item()), share, 3.0)
            optimizer.zero_grad()
            (b.nll(y).mean() + 0.05 * penalty(b, y)).backward()
            optimizer.step()
        return log_gamma.exp().item()

    assert minimum(amini_penalty) < 0.01
    assert minimum(prior_penalty) == pytest.approx(1.0, abs=1e-6)


def test_the_loss_that_replaced_it_does_not_depend_on_the_scale():
    rng = np.random.default_rng(5)
    y = torch.from_numpy(rng.normal(0.3, 0.1, 100))
    values = []
    for scale_by in (1.0, 10.0):
        delta = torch.full_like(y, 0.25 * scale_by).requires_grad_()
        b = nig_from_moments(delta, torch.full_like(y, 0.01 * scale_by**2), 0.3, 2.0)
        loss = nig_loss(b, y * scale_by)
        (slope,) = torch.autograd.grad(loss, delta)
        values.append((loss.item() - math.log(scale_by), slope.sum().item() * scale_by))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_clamped_parameter_never_comes_back():
    """The first head cut alpha off at a floor, where no gradient passes; a softplus over the floor lets one through."""
    logit = torch.tensor(-3.0, dtype=DOUBLE, requires_grad=True)
    y, one = torch.tensor(0.1, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    NIG(0 * one, one, logit.clamp(min=1.05), one).nll(y).backward()
    assert logit.grad.item() == 0
    logit.grad = None
    NIG(0 * one, one, 1.05 + F.softplus(logit), one).nll(y).backward()
    assert abs(logit.grad.item()) > 1e-3


# 6. Even perfect constant weights may not help


@pytest.mark.parametrize(("r", "rho"), [(0.7, 0.5), (0.7, 0.75), (0.7, 0.9), (0.4, 0.3), (0.4, 0.5), (0.4, 0.7)])
def test_when_a_weight_can_help(r, rho):
    """Of variances V1 = r V2 and correlation rho: ivw loses beyond sqrt(r)(1+r)/2, every weight beyond sqrt(r)."""
    covariance = np.array([[r, rho * math.sqrt(r)], [rho * math.sqrt(r), 1.0]])

    def variance(w):
        return np.array([w, 1 - w]) @ covariance @ np.array([w, 1 - w])

    assert (variance(1 / (1 + r)) > r) == (rho > math.sqrt(r) * (1 + r) / 2)
    best = rules.convex_weights(covariance[None])[:, 0]
    helps = variance(best[0]) < r * (1 - 1e-9)
    assert helps == (rho < math.sqrt(r))


def test_both_uncertainties_of_a_fusion_add_up():
    b = nig_from_moments(torch.tensor([0.3]), torch.tensor([0.01]), 0.25, 3.0)
    assert [field.item() for field in b.fields().values()] == pytest.approx([0.3, 3, 3, 0.015])
    assert (b.aleatoric + b.epistemic).item() == pytest.approx(0.01)
