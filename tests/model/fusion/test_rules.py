"""Weights and moments of a fusion against closed forms, scipy and stored values."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from common.errors import UsageError
from model.fusion import rules
from model.fusion.beliefs import Experts, epistemic_share, fused_mean, fused_variance, stack
from model.fusion.network import FusionNet
from model.fusion.statistics import ErrorGram, WeightSkill
from model.nig import sum_beliefs
from model.predictions import NIG, Gaussian, Mean
from tests.support.fusion_cases import experts_of, fusion, pictures

DOUBLE = torch.float64


def row(values):
    """(K, 1) numbers as fields (K, 1, 1, 1, 1, 1) of one pixel."""
    return torch.tensor(values, dtype=DOUBLE).reshape(-1, 1, 1, 1, 1, 1)


def rho_matrix(rho, k=2):
    matrix = torch.full((k, k), float(rho), dtype=DOUBLE)
    return matrix.fill_diagonal_(1.0)[:, :, None]


def test_correlated_weights_have_the_stored_values():
    variances = row([0.01, 0.02])
    weights = rules.correlated_weights(variances, torch.tensor([0.5], dtype=DOUBLE))
    assert weights.flatten().tolist() == pytest.approx([0.8153009687, 0.1846990313], abs=1e-10)
    assert fused_variance(weights, variances, rho_matrix(0.5)).item() == pytest.approx(0.0094590291, abs=1e-10)
    weights = rules.correlated_weights(variances, torch.tensor([0.8], dtype=DOUBLE))
    assert weights.flatten().tolist() == [1.0, 0.0]  # rho beyond sqrt(V1/V2): the better one alone


def test_identical_experts_at_full_correlation_keep_their_variance():
    variances = row([0.013, 0.013])
    weights = rules.correlated_weights(variances, torch.tensor([1.0], dtype=DOUBLE))
    assert weights.flatten().tolist() == [0.5, 0.5]
    for w in (0.5, 0.2, 1.0):
        fused = fused_variance(row([w, 1 - w]), variances, rho_matrix(1.0))
        assert fused.item() == pytest.approx(0.013, rel=1e-12)


def test_correlated_weights_are_those_of_least_variance():
    rng = np.random.default_rng(0)
    for _ in range(20):
        v, rho = rng.uniform(0.01, 0.1, 2), rng.uniform(-0.5, 0.95)
        found = rules.correlated_weights(row(v), torch.tensor([rho], dtype=DOUBLE))[0].item()
        grid = np.linspace(0, 1, 100001)
        variance = grid**2 * v[0] + (1 - grid) ** 2 * v[1] + 2 * grid * (1 - grid) * rho * np.sqrt(v[0] * v[1])
        assert found == pytest.approx(grid[variance.argmin()], abs=1e-5)  # the grid's step


def test_inverse_variance_weights():
    weights = rules.inverse_variance_weights(row([0.01, 0.03]))
    assert weights.flatten().tolist() == pytest.approx([0.75, 0.25])
    three = rules.inverse_variance_weights(row([0.01, 0.02, 0.02]))
    assert three.flatten().tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_convex_weights_of_two_have_the_closed_form():
    rng = np.random.default_rng(1)
    y = rng.normal(size=500)
    for shift, scale in ((0.3, 0.5), (0.05, 2.0), (0.8, 0.1)):
        d1, d2 = y + rng.normal(0, 0.3, 500) + shift, y + rng.normal(0, scale, 500)
        errors = np.stack([d1 - y, d2 - y])
        found = rules.convex_weights((errors @ errors.T)[None])[:, 0]
        expected = np.clip(-((d2 - y) * (d1 - d2)).sum() / ((d1 - d2) ** 2).sum(), 0, 1)
        assert found == pytest.approx([expected, 1 - expected], abs=1e-7)


def test_convex_weights_of_four_are_the_minimum_on_the_simplex():
    rng = np.random.default_rng(2)
    for _ in range(5):
        errors = rng.normal(size=(4, 200)) * rng.uniform(0.5, 2, (4, 1)) + rng.normal(size=200) * 0.7
        gram = errors @ errors.T
        found = rules.convex_weights(gram[None])[:, 0]
        free = minimize(
            lambda w, g=gram: w @ g @ w, np.full(4, 0.25), bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14},
        )  # fmt: skip
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert (found >= 0).all()
        assert found @ gram @ found <= free.fun * (1 + 1e-7)


def test_convex_weights_of_copies_are_shared():
    gram = np.full((1, 3, 3), 7.0)
    assert rules.convex_weights(gram)[:, 0] == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert rules.convex_weights(np.zeros((2, 3, 3))) == pytest.approx(1 / 3)


def test_a_useless_expert_gets_no_convex_weight():
    gram = np.array([[[1.0, 1.2], [1.2, 9.0]]])  # what the errors share exceeds the better one's own square
    assert rules.convex_weights(gram)[:, 0] == pytest.approx([1, 0], abs=1e-8)


def test_monig_is_the_summation_exactly():
    experts = experts_of([[0.3], [1.0]], [[0.4], [0.9]], gamma=[[0.7], [2.0]], alpha=2.5)
    fused = rules.summed_belief(experts)
    expected = sum_beliefs(experts.belief(0), experts.belief(1))
    for name, field in fused.fields().items():
        assert torch.equal(field, expected.fields()[name]), name
    weights = rules.evidence_weights(experts)
    torch.testing.assert_close(fused_mean(weights, experts.mean), fused.delta)


def test_monig_of_the_stored_beliefs_through_the_network():
    """The stored sum: (.3, .7, 1.8, .4) and (1, 2, 2.5, 1) give (.8185185185, 2.7, 4.8, 1.527037037)."""
    stored = ((0.3, 0.7, 1.8, 0.4), (1, 2, 2.5, 1))
    one = [NIG(*(torch.full((1, 1, 13, 1, 1), value, dtype=DOUBLE) for value in fields)) for fields in stored]
    net = fusion("monig", guarded=False)
    fused = net.fuse(stack(one, net.dof))
    expected = (0.8185185185, 2.7, 4.8, 1.527037037)
    for field, value in zip(fused.fields().values(), expected, strict=True):
        torch.testing.assert_close(field, torch.full_like(field, value), rtol=1e-9, atol=0)


def test_epistemic_share_of_two_is_a_quarter_of_the_squared_difference():
    means, variances, weights = row([0.2, 0.3]), row([0.01, 0.03]), row([0.25, 0.75])
    spread = 0.1**2 / 4
    expected = spread / (spread + 0.25 * 0.01 + 0.75 * 0.03)
    assert epistemic_share(weights, means, variances).item() == pytest.approx(expected, rel=1e-12)
    assert epistemic_share(weights, row([0.3, 0.3]), variances).item() == 0.01
    assert epistemic_share(weights, row([0.0, 9.0]), variances).item() == 0.99


def prepared(rule, k=2, seed=0, guarded=False) -> FusionNet:
    """A network with numbers that differ from band to band."""
    net = fusion(rule, k, guarded)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.rand(net.convex.shape, generator=rng) + 0.1
    net.convex.copy_(drawn / drawn.sum(0))
    net.a.copy_(0.3 * torch.randn(net.a.shape, generator=rng))
    net.tau.copy_(0.5 + torch.rand(net.tau.shape, generator=rng))
    net.dof.fill_(6.0)
    net.fused_dof.fill_(8.0)
    rho = 0.3 + 0.3 * torch.rand(13, generator=rng)
    for i in range(k):
        for j in range(k):
            if i != j:
                net.correlation[i, j] = rho
    net.fitted.fill_(True)
    return net


def some_experts(k=2, size=8) -> Experts:
    seen = [pictures(n=2, size=size, seed=s).x for s in range((k + 1) // 2)]
    net = prepared("average", k)
    with torch.no_grad():
        return net.consult(torch.cat(seen, dim=1)[:, : 2 * k])


@pytest.mark.parametrize(("k", "rule"), [(k, rule) for k in (2, 3) for rule in rules.usable_rules(k)])
def test_the_fused_value_lies_between_the_experts(k, rule):
    net, experts = prepared(rule, k), some_experts(k)
    fused = net.fuse(experts)
    low, high = experts.mean.amin(0), experts.mean.amax(0)
    slack = 1e-6  # float32 sums
    assert ((fused.delta >= low - slack) & (fused.delta <= high + slack)).all()
    assert all(field.isfinite().all() for field in fused.fields().values())
    assert (fused.total > 0).all()
    assert (fused.alpha > 1).all()


@pytest.mark.parametrize("rule", [rule for rule in rules.RULES if rule not in ("monig", "best")])
def test_the_fused_belief_has_the_moments_of_the_rule(rule):
    net, experts = prepared(rule), some_experts()
    fused = net.apply_rule(rule, experts)
    v = net.recalibration.apply(experts.variance)
    w, n = fused.weights, rules.RULES.index(rule)
    shape = (1, 1, 13, 1, 1)
    rho = net.correlation[0, 1].reshape(shape)
    spread = w[0] ** 2 * v[0] + w[1] ** 2 * v[1] + 2 * w[0] * w[1] * rho * (v[0] * v[1]).sqrt()
    torch.testing.assert_close(w.sum(0), torch.ones_like(w[0]))
    torch.testing.assert_close(fused.belief.delta, w[0] * experts.mean[0] + w[1] * experts.mean[1])
    torch.testing.assert_close(fused.belief.total, net.tau[n].reshape(shape) * spread, rtol=1e-4, atol=0)
    torch.testing.assert_close(fused.belief.alpha, torch.full_like(v[0], 4.0))
    d = (experts.mean[0] - experts.mean[1]).square() / 4
    q = (d / (d + w[0] * v[0] + w[1] * v[1])).clamp(0.01, 0.99)
    torch.testing.assert_close(fused.belief.gamma, (1 - q) / q, rtol=1e-4, atol=0)
    torch.testing.assert_close(fused.belief.epistemic, q * fused.belief.total, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", rules.RULES)
def test_images_with_and_without_the_dimension_of_dates_agree(rule):
    net, experts = prepared(rule), some_experts()
    flat = Experts(*(field[:, :, 0] for field in (experts.mean, experts.variance, experts.gamma, experts.alpha)))
    five, four = net.fuse(experts), net.fuse(flat)
    for name, field in five.fields().items():
        torch.testing.assert_close(four.fields()[name], field[:, 0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["average", "convex", "ivw", "ivw_rho", "monig"])
def test_permuting_the_experts_permutes_the_weights(rule):
    net, experts = prepared(rule), some_experts()
    order = [1, 0]
    swapped = Experts(*(field[order] for field in (experts.mean, experts.variance, experts.gamma, experts.alpha)))
    before = net.apply_rule(rule, experts)
    kept = before.weights.clone()  # those of convex are a view of the network's numbers
    for name in ("a", "c", "dof", "convex"):
        getattr(net, name).copy_(getattr(net, name)[order])
    after = net.apply_rule(rule, swapped)
    torch.testing.assert_close(after.weights[order], kept, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.belief.delta, before.belief.delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.belief.total, before.belief.total, rtol=1e-4, atol=1e-9)


def test_best_gives_the_better_expert_exactly():
    net, experts = prepared("best"), some_experts()
    net.better.fill_(1)
    assert torch.equal(net.fuse(experts).delta, experts.mean[1])


def test_statistics_of_errors():
    seen = pictures(n=3, size=16)
    means = seen.x[:, 0::2].movedim(1, 0)[:, :, None]
    gram = ErrorGram(2, 13)
    for part in (slice(0, 2), slice(2, 3)):
        gram.add(means[:, part], seen.target[part])
    errors = (means - seen.target).double()
    np.testing.assert_allclose(gram.mse, errors.square().mean((1, 2, 4, 5)).numpy(), rtol=1e-9)
    band = errors[:, :, 0, 4].flatten(1).numpy()
    expected = (band[0] * band[1]).sum() / np.sqrt((band[0] ** 2).sum() * (band[1] ** 2).sum())
    assert gram.correlation[0, 1, 4] == pytest.approx(expected, rel=1e-9)
    assert gram.overall()[0] == pytest.approx(errors.square().flatten(1).mean(1).numpy(), rel=1e-9)


def test_skill_of_a_weight_is_the_area_under_the_curve():
    errors = torch.tensor([[0.1, 0.2, 0.5, 0.4], [0.3, 0.1, 0.1, 0.4]])
    for weights, expected in (([0.9, 0.2, 0.1, 0.5], 1.0), ([0.3, 0.3, 0.3, 0.9], 0.5), ([0.15, 0.2, 0.1, 0.5], 0.5)):
        skill = WeightSkill()
        skill.add(torch.tensor(weights), errors)
        assert skill.auc == pytest.approx(expected)
    assert np.isnan(WeightSkill().auc)


def test_a_gaussian_expert_gets_the_fitted_tails():
    shape = (2, 1, 13, 3, 3)
    dof = torch.full((1, 13), 7.0)
    experts = stack([Gaussian(torch.rand(shape), torch.rand(shape) + 0.1)], dof)
    belief = experts.belief(0)
    assert torch.equal(belief.gamma, torch.ones(shape))
    assert torch.equal(belief.alpha, torch.full(shape, 3.5))
    torch.testing.assert_close(belief.total, experts.variance[0])
    with pytest.raises(ValueError, match="an expert without a variance cannot be fused"):
        stack([Mean(torch.rand(shape))], dof)


@pytest.mark.parametrize(
    ("rule", "k", "match"),
    [
        ("mean", 2, "unknown rule 'mean'; choose --fusion gated, convex"),
        ("gated", 1, "names 1 run; a fusion needs at least two"),
        ("ivw_rho", 3, "--fusion ivw_rho fuses two experts, got 3; choose ivw, convex or gated"),
    ],
)
def test_rules_that_cannot_be_followed(rule, k, match):
    with pytest.raises(UsageError, match=match):
        fusion(rule, k)
