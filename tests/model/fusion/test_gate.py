"""The gate: its features, its start, and that it learns what no constant weight can."""

import pytest
import torch

from model.fusion.fit import fit
from model.fusion.gate import FitSettings, Gate, fit_log_linear, gate_loss, region_folds
from model.fusion.network import FusionNet
from model.nig import nig_from_moments
from model.registry import FUSION_RULES
from tests.support.fusion_cases import CPU, fusion, pictures, stacked_rows, statistics_of


@pytest.fixture(scope="module")
def trained() -> FusionNet:
    net = fusion("gated", guarded=False)
    fit(net, statistics_of(net, pictures(n=8, size=32)), FitSettings(epochs=10), CPU)
    return net.eval()


def rmse(net, images, rule):
    with torch.no_grad():
        prediction = net.apply_rule(rule, net.predict_experts(images.x)).prediction
        return (prediction.delta - images.target).square().mean().sqrt().item()


def test_size():
    count = sum(parameter.numel() for parameter in Gate(2, 13).parameters())
    assert 7000 < count < 9000


def test_features_of_two_pixels():
    gate = Gate(2, 1)
    predictions = stacked_rows([[0.3, 0.5], [0.2, 0.1]], [[0.01, 0.02], [0.04, 0.01]], dtype=torch.float32)
    mean, variance = predictions.mean[:, :, 0], predictions.variance[:, :, 0]
    features = gate.features(mean, variance)[0, :, 0]  # (8, pixels)
    d = (mean[0] - mean[1]).flatten()
    v1, v2 = variance.reshape(2, -1)
    box = d.square().mean().expand(2)  # each pixel is in the box of the other
    expected = [v1.log(), mean[0].flatten(), v2.log(), mean[1].flatten(), (v1 / v2).log()]
    expected += [(1 + d.square() / (v1 + v2)).log(), box.log(), d]
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_an_untrained_gate_is_convex(k):
    net = fusion("gated", k)
    rng = torch.Generator().manual_seed(3)
    start = torch.rand(k, 13, generator=rng) + 0.2
    net.convex_weights.copy_(start / start.sum(0))
    means, variances = torch.rand(k, 2, 1, 13, 8, 8, generator=rng), torch.rand(k, 2, 1, 13, 8, 8, generator=rng) + 0.01
    weights, offset = net.compute_weights("gated", means, variances)
    convex, _ = net.compute_weights("convex", means, variances)
    torch.testing.assert_close(weights, convex.expand_as(weights), rtol=1e-5, atol=1e-6)
    assert torch.equal(offset, torch.zeros_like(offset))


def test_from_a_weight_of_zero_the_gate_can_come_back():
    net = fusion("gated")
    net.convex_weights.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 13))
    means = torch.rand(2, 1, 1, 13, 4, 4)
    weights, _ = net.compute_weights("gated", means, means + 0.1)
    assert weights[1].flatten()[0].item() == pytest.approx(0.01 / 1.01, rel=1e-4)


def test_loss_is_squared_error_and_a_quarter_of_the_likelihood():
    torch.manual_seed(0)
    mean = torch.rand(2, 13, 4, 4, requires_grad=True)
    variance = (torch.rand(2, 13, 4, 4) * 0.01 + 1e-3).requires_grad_()
    target, mse, dof = torch.rand(2, 13, 4, 4), torch.rand(13) + 0.1, torch.linspace(2.5, 30, 13)
    half_dof = (dof / 2)[:, None, None].expand(2, 13, 4, 4)
    nig = nig_from_moments(mean, variance, 0.3, half_dof)
    accuracy = ((mean - target).square() / mse[:, None, None]).mean()
    expected = accuracy + 0.25 * nig.nll(target).mean()
    loss = gate_loss(mean, variance, target, mse, dof)
    torch.testing.assert_close(loss, expected)
    (by_mean,) = torch.autograd.grad(accuracy, mean, retain_graph=True)
    (of_loss,) = torch.autograd.grad(loss, mean, retain_graph=True)
    torch.testing.assert_close(of_loss, by_mean)  # the likelihood has no gradient for the mean
    assert torch.autograd.grad(loss, variance)[0].abs().max() > 0


def test_the_gate_learns_where_each_expert_is_better(trained):
    images = pictures(n=4, size=32, seed=9)
    best = min((images.x[:, at : at + 1] - images.target).square().mean().sqrt().item() for at in (0, 2))
    constant, gated = rmse(trained, images, "convex"), rmse(trained, images, "gated")
    assert gated < 0.8 * constant < best  # deviations .05 and .02 are exchanged halfway: the true ratio is about .6


def test_the_inverse_variance_start_gives_the_weights_of_ivw():
    net = fusion("gated", 3)
    rng = torch.Generator().manual_seed(3)
    net.convex_weights.copy_(torch.rand(3, 13, generator=rng))  # any start weights
    means, variances = torch.rand(3, 2, 1, 13, 8, 8, generator=rng), torch.rand(3, 2, 1, 13, 8, 8, generator=rng) + 0.01
    net.gate.start_at_inverse_variance(net.convex_weights)
    torch.testing.assert_close(
        net.compute_weights("gated", means, variances)[0], net.compute_weights("ivw", means, variances)[0]
    )


def log_linear_gate(images, recalibrated=True) -> FusionNet:
    """A fusion whose gate has its log-linear term only."""
    net = fusion("gated")
    statistics = statistics_of(net, images)
    fit(net, statistics, FitSettings(epochs=0), CPU)
    if not recalibrated:
        net.recalibration_slope.fill_(1.0)
        net.recalibration_intercept.zero_()
        pixels = statistics.pixels.samples()
        mean, variance, target = pixels.take(torch.arange(len(pixels)), CPU)
        fit_log_linear(net.gate, net.convex_weights, mean, variance, target, net.expert_mse.amin(0))
    return net


def test_experts_with_correct_variances_are_weighted_by_them():
    net = log_linear_gate(pictures(n=8, size=32))
    assert net.gate.slope > 1  # errors correlate: the better expert deserves more weight than inverse variance gives
    fresh = pictures(n=4, size=32, seed=9)
    assert rmse(net, fresh, "gated") <= 1.01 * min(rmse(net, fresh, "ivw"), rmse(net, fresh, "convex"))


def test_variances_without_information_are_not_followed():
    """Predicted variances are noise, not recalibrated: the slope moves from 1 to 0, weights are near constant."""
    images = pictures(n=6, size=16, bad=0.03, good=0.03)
    images.x[:, 1::2] = 0.03 * torch.exp(
        torch.randn(images.x[:, 1::2].shape, generator=torch.Generator().manual_seed(3))
    )
    net = log_linear_gate(images, recalibrated=False)
    assert abs(net.gate.slope) < 0.05
    assert rmse(net, images, "gated") <= 1.01 * rmse(net, images, "convex")
    assert rmse(net, images, "ivw") > 1.02 * rmse(net, images, "convex")  # which follows them


def test_an_expert_that_is_always_better_gets_the_weight():
    """It predicts the variance of the other one: only the shift can distinguish them."""
    images = pictures(n=6, size=16)
    noise = torch.randn(images.target.shape, generator=torch.Generator().manual_seed(3))
    spread = torch.full_like(images.target, 0.03)
    images.x = torch.cat([images.target + 0.01 * noise, spread, images.target + 0.09 * noise.flip(-1), spread], dim=1)
    net = log_linear_gate(images, recalibrated=False)
    assert rmse(net, images, "gated") < 1.2 * 0.01 < rmse(net, images, "ivw")


def test_regions_are_held_out_in_turn():
    image = torch.arange(10).repeat_interleave(2)
    rois = [f"roi {at % 4}" for at in range(10)]
    folds = region_folds(image, rois)
    assert len(folds) == 3
    assert torch.stack(folds).sum(0).tolist() == [1] * 20  # every window once
    for held_out in folds:
        validation = {rois[index] for index in image[held_out].tolist()}
        assert not validation & {rois[index] for index in image[~held_out].tolist()}
    by_image = region_folds(image, ["one region"] * 10)
    assert [int(held_out.sum()) for held_out in by_image] == [8, 6, 6]
    assert len(region_folds(torch.arange(4), ["a", "a", "b", "b"])) == 2
    assert region_folds(torch.zeros(5, dtype=torch.int64), ["one region"]) == []


def test_an_epoch_that_makes_it_worse_is_not_kept():
    net = fusion("gated")
    images = pictures(n=6, size=16, bad=0.03, good=0.03)
    rows = fit(net, statistics_of(net, images), FitSettings(epochs=3, lr=30.0), CPU)
    assert all(row.val_loss > rows[0].val_loss for row in rows[1:])
    last = net.gate.net[-1]
    assert not last.weight.any()
    assert not last.bias.any()


def test_tau_and_tails_are_fitted_last(trained):
    images = pictures(n=4, size=32, seed=11)
    with torch.no_grad():
        for rule in ("gated", "convex", "ivw", "average"):
            prediction = trained.apply_rule(rule, trained.predict_experts(images.x)).prediction
            low, high = prediction.interval(0.9)
            inside = ((images.target > low) & (images.target < high)).float().mean().item()
            assert inside == pytest.approx(0.9, abs=0.02), rule
            assert not torch.equal(trained.variance_factor[FUSION_RULES.index(rule)], torch.ones(13))
