"""The fused prediction of a network: moments, shapes, and its relation to the experts."""

import pytest
import torch

from common.errors import UsageError
from model.compat import rename_key
from model.fusion import rules
from model.fusion.network import FusionNet
from model.fusion.stacked import StackedPredictions, stack_predictions
from model.predictions import NIG
from model.registry import FUSION_RULES
from tests.support.fusion_cases import fusion, pictures

DOUBLE = torch.float64


def test_monig_of_the_stored_beliefs_through_the_network():
    """The stored sum: (.3, .7, 1.8, .4) and (1, 2, 2.5, 1) give (.8185185185, 2.7, 4.8, 1.527037037)."""
    stored = ((0.3, 0.7, 1.8, 0.4), (1, 2, 2.5, 1))
    predictions = [NIG(*(torch.full((1, 1, 13, 1, 1), value, dtype=DOUBLE) for value in fields)) for fields in stored]
    net = fusion("monig", guarded=False)
    fused = net.fuse(stack_predictions(predictions, net.recalibration_dof))
    expected = (0.8185185185, 2.7, 4.8, 1.527037037)
    for field, value in zip(fused.fields().values(), expected, strict=True):
        torch.testing.assert_close(field, torch.full_like(field, value), rtol=1e-9, atol=0)


def prepared(rule, k=2, seed=0, guarded=False) -> FusionNet:
    """A network with fitted numbers that differ between bands."""
    net = fusion(rule, k, guarded)
    rng = torch.Generator().manual_seed(seed)
    positive = torch.rand(net.convex_weights.shape, generator=rng) + 0.1
    net.convex_weights.copy_(positive / positive.sum(0))
    net.recalibration_intercept.copy_(0.3 * torch.randn(net.recalibration_intercept.shape, generator=rng))
    net.variance_factor.copy_(0.5 + torch.rand(net.variance_factor.shape, generator=rng))
    net.recalibration_dof.fill_(6.0)
    net.fused_dof.fill_(8.0)
    rho = 0.3 + 0.3 * torch.rand(13, generator=rng)
    for i in range(k):
        for j in range(k):
            if i != j:
                net.error_correlation[i, j] = rho
    net.fitted.fill_(True)
    return net


def predict(k=2, size=8) -> StackedPredictions:
    x = torch.cat([pictures(n=2, size=size, seed=s).x for s in range((k + 1) // 2)], dim=1)
    net = prepared("average", k)
    with torch.no_grad():
        return net.predict_experts(x[:, : 2 * k])


@pytest.mark.parametrize(("k", "rule"), [(k, rule) for k in (2, 3) for rule in rules.usable_rules(k)])
def test_the_fused_value_lies_between_the_experts(k, rule):
    net, predictions = prepared(rule, k), predict(k)
    fused = net.fuse(predictions)
    low, high = predictions.mean.amin(0), predictions.mean.amax(0)
    slack = 1e-6  # float32 sums
    assert ((fused.delta >= low - slack) & (fused.delta <= high + slack)).all()
    assert all(field.isfinite().all() for field in fused.fields().values())
    assert (fused.total > 0).all()
    assert (fused.alpha > 1).all()


@pytest.mark.parametrize("rule", [rule for rule in FUSION_RULES if rule not in ("monig", "best")])
def test_the_fused_belief_has_the_moments_of_the_rule(rule):
    net, predictions = prepared(rule), predict()
    w, fused = vars(net.apply_rule(rule, predictions)).values()
    v = net.recalibration.apply(predictions.variance)
    n = FUSION_RULES.index(rule)
    shape = (1, 1, 13, 1, 1)
    rho = net.error_correlation[0, 1].reshape(shape)
    spread = w[0] ** 2 * v[0] + w[1] ** 2 * v[1] + 2 * w[0] * w[1] * rho * (v[0] * v[1]).sqrt()
    torch.testing.assert_close(w.sum(0), torch.ones_like(w[0]))
    torch.testing.assert_close(fused.delta, w[0] * predictions.mean[0] + w[1] * predictions.mean[1])
    torch.testing.assert_close(fused.total, net.variance_factor[n].reshape(shape) * spread, rtol=1e-4, atol=0)
    torch.testing.assert_close(fused.alpha, torch.full_like(v[0], 4.0))
    d = (predictions.mean[0] - predictions.mean[1]).square() / 4
    q = (d / (d + w[0] * v[0] + w[1] * v[1])).clamp(0.01, 0.99)
    torch.testing.assert_close(fused.gamma, (1 - q) / q, rtol=1e-4, atol=0)
    torch.testing.assert_close(fused.epistemic, q * fused.total, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", FUSION_RULES)
def test_images_with_and_without_the_dimension_of_dates_agree(rule):
    net, predictions = prepared(rule), predict()
    flat = predictions.map(lambda field: field[:, :, 0])
    five, four = net.fuse(predictions), net.fuse(flat)
    for name, field in five.fields().items():
        torch.testing.assert_close(four.fields()[name], field[:, 0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["average", "convex", "ivw", "ivw_rho", "monig"])
def test_permuting_the_experts_permutes_the_weights(rule):
    net, predictions = prepared(rule), predict()
    order = [1, 0]
    swapped = predictions.map(lambda field: field[order])
    before = net.apply_rule(rule, predictions)
    kept = before.weights.clone()  # those of convex are a view of the network's numbers
    for name in ("recalibration_intercept", "recalibration_slope", "recalibration_dof", "convex_weights"):
        getattr(net, name).copy_(getattr(net, name)[order])
    after = net.apply_rule(rule, swapped)
    torch.testing.assert_close(after.weights[order], kept, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.prediction.delta, before.prediction.delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.prediction.total, before.prediction.total, rtol=1e-4, atol=1e-9)


def test_best_gives_the_better_expert_exactly():
    net, predictions = prepared("best"), predict()
    net.better_expert.fill_(1)
    assert torch.equal(net.fuse(predictions).delta, predictions.mean[1])


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


def test_buffers_of_a_fusion_among_the_experts_have_earlier_names_too():
    names = {"tau": "variance_factor", "gate.centre": "gate.feature_mean", "a": "recalibration_intercept"}
    for earlier, current in names.items():
        for prefix in ("", "netG.", "experts.1.netG.", "netG.experts.0.netG.experts.1.netG."):
            assert rename_key(prefix + earlier) == prefix + current
    assert rename_key("gate.slope") == "gate.slope"
    assert set(map(rename_key, fusion().state_dict())) == set(fusion().state_dict())


def test_a_fusion_that_was_not_fitted_does_not_answer():
    with pytest.raises(ValueError, match="this fusion has not been fitted"):
        fusion("average")(pictures(n=1, size=8).x)


def test_in_joint_training_gradients_reach_the_experts():
    net = fusion("gated")
    net.fitted.fill_(True)
    images = pictures(n=1, size=8)
    factors = [torch.nn.Parameter(torch.ones(())) for _ in net.experts]
    for expert, factor in zip(net.experts, factors, strict=True):
        forward = expert.forward
        expert.forward = lambda x, dates=None, forward=forward, factor=factor: forward(x * factor, dates)
    net.joint = True
    net.train()
    assert all(expert.training for expert in net.experts)
    net(images.x).nll(images.target).mean().backward()
    assert all(factor.grad is not None and factor.grad.abs() > 0 for factor in factors)
    assert len(net.expert_predictions) == 2
    for factor in factors:
        factor.grad = None
    net.joint = False
    net.train()
    assert not any(expert.training for expert in net.experts)
    assert not net(images.x).delta.requires_grad
