"""The acceptance test: what it accepts, what it falls back to, and its report."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.fusion.acceptance import AcceptanceResult, choose_clusters, clustered_gain
from model.fusion.fit import fit
from model.fusion.gate import FitSettings
from model.fusion.network import FUSED, OWN, RECALIBRATED, FusionNet
from model.nig import sum_beliefs
from model.registry import FUSION_RULES
from tests.support.fusion_cases import (
    CPU,
    EXPERT_NAMES,
    WrittenExpert,
    batch_of,
    evaluator_of,
    fusion,
    pictures,
    statistics_of,
)


def decide(net, images, rois=None) -> AcceptanceResult:
    """The decision on pictures; by default each image has its own region."""
    evaluator = evaluator_of(net)
    with torch.no_grad():
        evaluator.update(net.predict_experts(images.x), batch_of(images, rois))
    return evaluator.decide()


def fitted(images, rule="gated", epochs=10, **options) -> FusionNet:
    net = fusion(rule, **options)
    fit(net, statistics_of(net, images), FitSettings(epochs=epochs), CPU)
    return net.eval()


def twins(n=8, size=32, seed=0):
    """Pictures of two identical experts."""
    images = pictures(n, size, seed)
    return replace(images, x=images.x[:, [0, 1, 0, 1]])


def useless(n=8, size=32, seed=0):
    """Pictures of which the second expert is the first plus noise, with a variance that is only roughly right."""
    images, rng = pictures(n, size, seed), torch.Generator().manual_seed(seed + 100)
    noise = 0.2 * torch.randn(images.x[:, :1].shape, generator=rng)
    return replace(images, x=torch.cat([images.x[:, :2], images.x[:, :1] + noise, images.x[:, 1:2] + 0.1], dim=1))


@pytest.fixture(scope="module")
def complementary() -> FusionNet:
    return fitted(pictures(n=8))


def test_standard_error_is_that_of_clusters():
    rng = np.random.default_rng(0)
    clusters = [name for name in "abcdefgh" for _ in range(5)]
    before = rng.normal(1.0, 0.1, 40)
    by_cluster = before.reshape(8, 5)
    gain = clustered_gain(before, np.zeros(40), clusters)
    means = by_cluster.mean(1)  # clusters of equal size: the error of a mean of their means
    assert gain.mean == pytest.approx(before.mean())
    assert gain.error == pytest.approx(means.std(ddof=1) / math.sqrt(8), rel=1e-12)
    alone = clustered_gain(before, np.zeros(40), [str(at) for at in range(40)])
    assert alone.error == pytest.approx(before.std(ddof=1) / math.sqrt(40), rel=1e-12)


@pytest.mark.parametrize(("factor", "accepted"), [(2.4, False), (2.6, True)])
def test_a_gain_must_exceed_two_and_a_half_standard_errors(factor, accepted):
    noise = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    error = noise.std(ddof=1) / math.sqrt(6)
    gain = clustered_gain(noise + factor * error + 10, np.full(6, 10.0), list("abcdef"))
    assert gain.mean == pytest.approx(factor * error)
    assert gain.accepted is accepted


def test_where_experts_hardly_differ_less_is_enough():
    """A gain of two standard errors: more than the lead of the better expert, or less."""
    noise = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    error = noise.std(ddof=1) / math.sqrt(6)
    before = noise + 2 * error + 10
    gain = clustered_gain(before, np.full(6, 10.0), list("abcdef"))
    assert gain.standard_errors == pytest.approx(2)
    assert (gain.outweighs(0.5), gain.outweighs(math.nan), gain.outweighs(2.1)) == (True, True, False)
    assert not clustered_gain(before - 0.5 * error, np.full(6, 10.0), list("abcdef")).outweighs(0.5)  # 1.5: too little
    assert not clustered_gain(before[:4], np.full(4, 10.0), list("abcd")).outweighs(-1.0)
    strong = clustered_gain(noise + 3 * error + 10, np.full(6, 10.0), list("abcdef"))
    assert strong.outweighs(20.0)


def test_rounding_and_few_clusters_accept_nothing():
    before = np.full(6, 0.03)
    assert not clustered_gain(before, before - 1e-9, list("abcdef")).accepted  # no noise at all, a gain of rounding
    assert clustered_gain(before, before - 1e-3, list("abcdef")).accepted
    assert not clustered_gain(before[:4], before[:4] - 1e-3, list("abcd")).accepted
    single = clustered_gain(before, before - 1e-3, ["a"] * 6)
    assert not single.accepted
    assert math.isnan(single.error)


def test_which_images_count_as_independent():
    rois, patches = [f"r{at % 5}" for at in range(10)], [str(at) for at in range(10)]
    assert choose_clusters(rois, patches) == (rois, "region", "")
    clusters, kind, remark = choose_clusters(["r"] * 10, patches)
    assert (len(set(clusters)), kind) == (10, "patch")
    assert remark.startswith("1 region to test on, fewer than 5: patches are treated as independent")
    _, _, remark = choose_clusters(["r", "s"], ["1", "1"])
    assert remark == "2 regions to test on, fewer than 5, and only 2 patches: no fusion can be accepted"


def test_a_fusion_that_helps_is_accepted(complementary):
    net, fresh = complementary, pictures(n=8, seed=5)
    result = decide(net, fresh)
    rows = {row.name: row for row in result.rows}
    assert result.accepted
    assert rows["gated"].ratio < 0.8
    # 0.76 for weights that depend on the side; constant weights have no skill
    assert rows["gated"].auc > 0.7 > 0.6 > rows["convex"].auc
    assert rows["gated"].coverage == pytest.approx(0.9, abs=0.03)
    assert result.r == pytest.approx(1, abs=0.05)  # alike overall
    assert result.rho == pytest.approx(2 * 0.36 * 0.05 * 0.02 / (0.05**2 + 0.02**2), abs=0.03)
    with torch.no_grad():
        fused, rule = net(fresh.x), net.apply_rule("gated", net.predict_experts(fresh.x)).prediction
    assert torch.equal(fused.delta, rule.delta)


def test_variance_is_chosen_independently_of_the_mean(complementary):
    net, fresh = complementary, pictures(n=8, seed=5)
    result = decide(net, fresh)
    number = FUSION_RULES.index("gated")
    assert (result.variance, int(net.variance_source[number])) == ("fused", FUSED)
    last = net.gate.net[-1]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        last.weight[13:].normal_(0, 3)  # a fused variance that jumps from pixel to pixel
    result = decide(net, fresh)
    assert result.accepted
    assert result.variance == "recalibrated"
    with torch.no_grad():
        fused, predictions = net(fresh.x), net.predict_experts(fresh.x)
        alone = net.recalibrate_expert(predictions, int(net.better_expert), RECALIBRATED)
        torch.testing.assert_close(fused.total, alone.total, rtol=1e-5, atol=0)
        assert torch.equal(fused.delta, net.apply_rule("gated", predictions).prediction.delta)
    net.load_state_dict(before)


@pytest.mark.parametrize("rule", ["gated", "convex", "ivw", "average", "monig"])
def test_an_expert_that_is_the_other_plus_noise_adds_nothing(rule):
    net = fitted(useless(), rule, epochs=3)
    fresh = useless(seed=5)
    result = decide(net, fresh)
    assert (result.accepted, result.better) == (False, "first")
    assert result.lead > 10  # it is clear which expert is better
    with torch.no_grad():
        assert torch.equal(net(fresh.x).delta, net.predict_experts(fresh.x).mean[0])
    assert result.sentence().startswith(f"the guard does not accept {rule}: first is used, with its ")


def test_twins_keep_their_variance():
    net = fitted(twins(), epochs=3)
    fresh = twins(seed=5)
    result = decide(net, fresh)
    with torch.no_grad():
        predictions = net.predict_experts(fresh.x)
        recalibrated = net.recalibrate_expert(predictions, 0, RECALIBRATED).total
        for rule in ("gated", "convex", "ivw", "ivw_rho", "average"):
            ratio = (net.apply_rule(rule, predictions).prediction.total.mean() / recalibrated.mean()).item()
            assert ratio > 0.98, rule
            assert ratio < 1.1, rule  # tau is fitted to images that no fit has seen
        monig = net.apply_rule("monig", predictions).prediction
        expected = sum_beliefs(predictions.expert(0), predictions.expert(1))
        assert torch.equal(monig.total, expected.total)
        assert (monig.total.mean() / predictions.variance[0].mean()).item() < 0.6  # 0.545 at alpha 3, gamma 1
        assert torch.equal(net(fresh.x).delta, predictions.mean[0])
    assert not result.accepted


def test_the_better_of_two_is_found_on_either_side():
    images = useless()
    swapped = replace(images, x=images.x[:, [2, 3, 0, 1]])
    result = decide(fitted(swapped, "convex"), swapped)
    assert result.better == "second"
    assert {row.name: row.ratio for row in result.rows}["second"] == 1.0


def test_too_few_images_fall_back_and_say_so():
    images = pictures(n=8)
    net = fitted(images, "convex")
    few = replace(images, x=images.x[:3], target=images.target[:3])
    result = decide(net, few)
    assert not result.accepted
    assert "only 3 patches: no fusion can be accepted" in result.markdown()
    assert result.n_clusters == 3
    none = evaluator_of(net).decide()
    assert (none.accepted, none.variance, int(net.variance_source[0])) == (False, "own", OWN)
    assert "no images to test on" in none.markdown()


def test_spread_and_tails_are_those_of_images_that_no_fit_has_seen():
    """Errors twice those of the fit: tau is four times as large, whatever the fit gave."""
    images, fresh = pictures(n=6, size=16), pictures(n=6, size=16, seed=5)
    worse = replace(fresh, target=fresh.target, x=fresh.x.clone())
    for at in (0, 2):
        worse.x[:, at : at + 1] = fresh.target + 2 * (fresh.x[:, at : at + 1] - fresh.target)
    net = fitted(images, "convex")
    decide(net, fresh)
    first_factor = net.variance_factor[FUSION_RULES.index("convex")].clone()
    decide(net, worse)
    torch.testing.assert_close(net.variance_factor[FUSION_RULES.index("convex")], 4 * first_factor, rtol=1e-3, atol=0)
    monig = FUSION_RULES.index("monig")
    assert torch.equal(net.variance_factor[monig], torch.ones(13))  # its variance is that of the sum
    with torch.no_grad():
        prediction = net.apply_rule("convex", net.predict_experts(worse.x)).prediction
    low, high = prediction.interval(0.9)
    inside = ((worse.target > low) & (worse.target < high)).float().mean().item()
    assert inside == pytest.approx(0.9, abs=0.01)


def test_without_the_guard_the_rule_is_followed():
    images = useless()
    net = fitted(images, "average", guarded=False)
    decide(net, images)
    with torch.no_grad():
        fused = net(images.x)
    torch.testing.assert_close(fused.delta, (images.x[:, 0:1] + images.x[:, 2:3]) / 2, rtol=1e-5, atol=1e-6)


def test_decisions_of_all_rules_are_kept(complementary):
    fresh = pictures(n=8, seed=5)
    decide(complementary, fresh)
    again = FusionNet([WrittenExpert(0), WrittenExpert(1)], "average")
    again.load_state_dict(complementary.state_dict())
    with torch.no_grad():
        for rule in FUSION_RULES:
            complementary.rule = again.rule = rule
            for name, field in complementary(fresh.x).fields().items():
                assert torch.equal(field, again(fresh.x).fields()[name])
    complementary.rule = "gated"


def test_variances_are_in_reflectance_and_of_each_image(complementary):
    """The scale of an expert's units has no effect; the variance of an image does not depend on the others."""
    fresh = pictures(n=8, seed=5)
    rescaled = FusionNet([WrittenExpert(0, scale_by=1.0), WrittenExpert(1, scale_by=20.0)], "gated")
    rescaled.load_state_dict(complementary.state_dict())
    with torch.no_grad():
        together = complementary(fresh.x)
        torch.testing.assert_close(rescaled(fresh.x).total, together.total, rtol=1e-4, atol=0)
        torch.testing.assert_close(complementary(fresh.x[2:3]).total, together.total[2:3], rtol=1e-5, atol=0)
    spread = (together.delta - fresh.target).square().mean().item()
    assert together.total.mean().item() == pytest.approx(spread, rel=0.15)


def test_the_result_is_plain_json_and_a_table(complementary):
    result = decide(complementary, pictures(n=8, seed=5))
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["rule"] == "gated"
    assert [row["name"] for row in stored["rows"]] == [
        *EXPERT_NAMES,
        *(rule for rule in FUSION_RULES if rule != "best"),
    ]
    assert stored["rows"][0]["gain"] is None
    assert stored["rows"][2]["gain"]["accepted"] is True
    text = result.markdown()
    lines = text.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "8 images of 8 regions that nothing was fitted on" in text
    assert lines[-1] == "Decision: the guard accepts gated: its mean is used, with the fused variance."


def test_bands_in_which_no_constant_weight_helps():
    """Experts with highly correlated errors of different size: rho at or above sqrt(r)."""
    images = pictures(n=4)
    first = images.x[:, :1] - images.target
    doubled = replace(images, x=torch.cat([images.x[:, :2], images.target + 2 * first, images.x[:, 1:2]], dim=1))
    result = decide(fitted(doubled, "convex"), doubled)
    assert result.r == pytest.approx(0.25, rel=1e-3)
    assert result.rho == pytest.approx(1, abs=1e-4)
    assert len(result.hopeless) == 13
    assert not result.accepted


def test_an_image_is_tested_with_the_fit_that_it_is_given_with(complementary):
    images, plain = pictures(n=6), fusion("convex")
    plain.convex_weights[0], plain.convex_weights[1], plain.fitted = 1.0, 0.0, torch.tensor(True)
    evaluator = evaluator_of(complementary)
    with torch.no_grad():
        predictions = plain.predict_experts(images.x)
        evaluator.update(predictions, batch_of(images), plain)
        errors = (predictions.mean[0] - images.target).square().flatten(1).double().mean(1).sqrt()
    np.testing.assert_allclose(evaluator.rmse["convex"], errors.tolist(), rtol=1e-5)
