"""The gate: what it looks at, where it starts, and that it learns what no constant weight can."""

import pytest
import torch

from data.batch import Batch, SampleInfo
from model.fusion.fit import Gathering, fit
from model.fusion.gate import Gate, gate_loss
from model.fusion.gate_training import FitSettings, fit_line, folds
from model.fusion.network import FusionNet
from model.fusion.rules import RULES
from model.nig import nig_from_moments
from tests.support.fusion_cases import Written, experts_of, fusion, pictures

CPU = torch.device("cpu")


def batch_of(seen, rois=None) -> Batch:
    """Pictures as a batch; one region for each image unless told."""
    n = seen.x.shape[0]
    names = rois or [f"ROIs1868/{at}" for at in range(n)]
    info = tuple(SampleInfo(at, roi, str(at), (), None, (), (), "") for at, roi in enumerate(names))
    nothing = torch.zeros(n, 1)
    return Batch(seen.x, seen.target, None, nothing, nothing, info)


def gathered(net, seen, rois=None, seed=1) -> Gathering:
    found = Gathering(len(net.experts), seen.x.shape[0], seed)
    found.add(net.consult(seen.x), batch_of(seen, rois))
    return found


@pytest.fixture(scope="module")
def trained() -> FusionNet:
    net = fusion("gated", guarded=False)
    fit(net, gathered(net, pictures(n=8, size=32)), FitSettings(epochs=10), CPU)
    return net.eval()


def rmse(net, seen, rule):
    with torch.no_grad():
        return (net.apply_rule(rule, net.consult(seen.x)).belief.delta - seen.target).square().mean().sqrt().item()


def test_size():
    count = sum(parameter.numel() for parameter in Gate(2, 13).parameters())
    assert 7000 < count < 9000


def test_features_of_two_pixels():
    gate = Gate(2, 1)
    experts = experts_of([[0.3, 0.5], [0.2, 0.1]], [[0.01, 0.02], [0.04, 0.01]], dtype=torch.float32)
    mean, variance = experts.mean[:, :, 0], experts.variance[:, :, 0]
    seen = gate.features(mean, variance)[0, :, 0]  # (8, pixels)
    d = (mean[0] - mean[1]).flatten()
    v1, v2 = variance.reshape(2, -1)
    box = d.square().mean().expand(2)  # both pixels lie in each other's box
    expected = [v1.log(), mean[0].flatten(), v2.log(), mean[1].flatten(), (v1 / v2).log()]
    expected += [(1 + d.square() / (v1 + v2)).log(), box.log(), d]
    torch.testing.assert_close(seen, torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_an_untrained_gate_is_convex(k):
    net = fusion("gated", k)
    rng = torch.Generator().manual_seed(3)
    start = torch.rand(k, 13, generator=rng) + 0.2
    net.convex.copy_(start / start.sum(0))
    means, variances = torch.rand(k, 2, 1, 13, 8, 8, generator=rng), torch.rand(k, 2, 1, 13, 8, 8, generator=rng) + 0.01
    weights, offset = net.weigh("gated", means, variances)
    convex, _ = net.weigh("convex", means, variances)
    torch.testing.assert_close(weights, convex.expand_as(weights), rtol=1e-5, atol=1e-6)
    assert torch.equal(offset, torch.zeros_like(offset))


def test_from_a_weight_of_zero_the_gate_can_come_back():
    net = fusion("gated")
    net.convex.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 13))
    means = torch.rand(2, 1, 1, 13, 4, 4)
    weights, _ = net.weigh("gated", means, means + 0.1)
    assert weights[1].flatten()[0].item() == pytest.approx(0.01 / 1.01, rel=1e-4)


def test_other_channels_can_be_looked_at():
    gate = Gate(2, 13, extra=3)
    means, masks = torch.rand(2, 2, 13, 6, 6), torch.rand(2, 3, 6, 6)
    assert gate.features(means, means + 0.1, masks).shape == (2, 8 * 13 + 3, 6, 6)
    weights, _ = gate(means, means + 0.1, torch.full((2, 13), 0.5), masks)
    assert torch.equal(weights, torch.full_like(weights, 0.5))


def test_loss_is_squared_error_and_a_quarter_of_the_likelihood():
    torch.manual_seed(0)
    mean = torch.rand(2, 13, 4, 4, requires_grad=True)
    variance = (torch.rand(2, 13, 4, 4) * 0.01 + 1e-3).requires_grad_()
    target, mse, dof = torch.rand(2, 13, 4, 4), torch.rand(13) + 0.1, torch.linspace(2.5, 30, 13)
    half = (dof / 2)[:, None, None].expand(2, 13, 4, 4)
    belief = nig_from_moments(mean, variance, 0.3, half)
    accuracy = ((mean - target).square() / mse[:, None, None]).mean()
    expected = accuracy + 0.25 * belief.nll(target).mean()
    loss = gate_loss(mean, variance, target, mse, dof)
    torch.testing.assert_close(loss, expected)
    (by_mean,) = torch.autograd.grad(accuracy, mean, retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(loss, mean, retain_graph=True)[0], by_mean
    )  # the likelihood does not push the mean
    assert torch.autograd.grad(loss, variance)[0].abs().max() > 0


def test_the_gate_learns_where_each_expert_is_better(trained):
    seen = pictures(n=4, size=32, seed=9)
    best = min((seen.x[:, at : at + 1] - seen.target).square().mean().sqrt().item() for at in (0, 2))
    constant, moved = rmse(trained, seen, "convex"), rmse(trained, seen, "gated")
    assert moved < 0.8 * constant < best  # deviations .05 and .02 trade places halfway: the true ratio is about .6


def test_an_inclined_gate_is_inverse_variance():
    net = fusion("gated", 3)
    rng = torch.Generator().manual_seed(3)
    net.convex.copy_(torch.rand(3, 13, generator=rng))  # wherever the gate moves from
    means, variances = torch.rand(3, 2, 1, 13, 8, 8, generator=rng), torch.rand(3, 2, 1, 13, 8, 8, generator=rng) + 0.01
    net.gate.incline(net.convex)
    torch.testing.assert_close(net.weigh("gated", means, variances)[0], net.weigh("ivw", means, variances)[0])


def line_of(seen, recalibrated=True) -> FusionNet:
    """A fusion whose gate has its line only."""
    net = fusion("gated")
    found = gathered(net, seen)
    fit(net, found, FitSettings(epochs=0), CPU)
    if not recalibrated:
        net.c.fill_(1.0)
        net.a.zero_()
        fit_line(net, found.pixels.samples(), CPU)
    return net


def test_experts_that_know_their_variance_are_weighed_by_it():
    net = line_of(pictures(n=8, size=32))
    assert net.gate.slope > 1  # their errors share a part: the better one deserves more than inverse variance gives
    fresh = pictures(n=4, size=32, seed=9)
    assert rmse(net, fresh, "gated") <= 1.01 * min(rmse(net, fresh, "ivw"), rmse(net, fresh, "convex"))


def test_variances_that_say_nothing_are_not_followed():
    """Stated variances that are noise, as they come: the slope leaves 1 for 0, and the weights are near constant."""
    seen = pictures(n=6, size=16, bad=0.03, good=0.03)
    seen.x[:, 1::2] = 0.03 * torch.exp(torch.randn(seen.x[:, 1::2].shape, generator=torch.Generator().manual_seed(3)))
    net = line_of(seen, recalibrated=False)
    assert abs(net.gate.slope) < 0.05
    assert rmse(net, seen, "gated") <= 1.01 * rmse(net, seen, "convex")
    assert rmse(net, seen, "ivw") > 1.02 * rmse(net, seen, "convex")  # which follows them


def test_an_expert_that_is_always_better_gets_the_weight():
    """It states the variance of the other one: only the shift can tell them apart."""
    seen = pictures(n=6, size=16)
    noise = torch.randn(seen.target.shape, generator=torch.Generator().manual_seed(3))
    spread = torch.full_like(seen.target, 0.03)
    seen.x = torch.cat([seen.target + 0.01 * noise, spread, seen.target + 0.09 * noise.flip(-1), spread], dim=1)
    net = line_of(seen, recalibrated=False)
    assert rmse(net, seen, "gated") < 1.2 * 0.01 < rmse(net, seen, "ivw")


def test_tau_and_tails_are_fitted_last(trained):
    seen = pictures(n=4, size=32, seed=11)
    with torch.no_grad():
        for rule in ("gated", "convex", "ivw", "average"):
            belief = trained.apply_rule(rule, trained.consult(seen.x)).belief
            low, high = belief.interval(0.9)
            inside = ((seen.target > low) & (seen.target < high)).float().mean().item()
            assert inside == pytest.approx(0.9, abs=0.02), rule
            assert not torch.equal(trained.tau[RULES.index(rule)], torch.ones(13))


def test_fitting_is_seeded():
    seen = pictures(n=3, size=16)
    found = []
    for seed in (1, 1, 2):
        net = fusion("gated")
        rows = fit(net, gathered(net, seen, seed=seed), FitSettings(epochs=2, seed=seed), CPU)
        found.append((rows, net.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][key], value) for key, value in found[1][1].items())
    assert found[0][0] != found[2][0]


def test_fitting_leaves_the_experts_as_they_are():
    net = FusionNet([Written(0), Written(1, gaussian=True)], "gated")
    before = {key: value.clone() for key, value in net.experts.state_dict().items()}
    net.train()
    assert not any(module.training for module in net.experts.modules())
    fit(net, gathered(net, pictures(n=3, size=16)), FitSettings(epochs=2), CPU)
    assert all(torch.equal(before[key], value) for key, value in net.experts.state_dict().items())
    assert not any(parameter.requires_grad for parameter in net.experts.parameters())


def test_regions_are_held_back_in_turn():
    group = torch.arange(10).repeat_interleave(2)
    rois = [f"roi {at % 4}" for at in range(10)]
    found = folds(group, rois)
    assert len(found) == 3
    assert torch.stack(found).sum(0).tolist() == [1] * 20  # every window once
    for held in found:
        inside = {rois[image] for image in group[held].tolist()}
        assert not inside & {rois[image] for image in group[~held].tolist()}
    by_image = folds(group, ["one region"] * 10)
    assert [int(held.sum()) for held in by_image] == [8, 6, 6]
    assert len(folds(torch.arange(4), ["a", "a", "b", "b"])) == 2
    assert folds(torch.zeros(5, dtype=torch.int64), ["one region"]) == []


def test_an_epoch_that_makes_it_worse_is_not_kept():
    net = fusion("gated")
    seen = pictures(n=6, size=16, bad=0.03, good=0.03)
    rows = fit(net, gathered(net, seen), FitSettings(epochs=3, lr=30.0), CPU)
    assert all(row.held_back_loss > rows[0].held_back_loss for row in rows[1:])
    last = net.gate.net[-1]
    assert not last.weight.any()
    assert not last.bias.any()


def test_a_fusion_that_was_not_fitted_does_not_answer():
    with pytest.raises(ValueError, match="this fusion has not been fitted"):
        fusion("average")(pictures(n=1, size=8).x)
