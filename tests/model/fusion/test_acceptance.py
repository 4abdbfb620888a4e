"""The guard: what it accepts, what it falls back to, and what it tells."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.holdout import FitSplit
from model.fusion import settling
from model.fusion.acceptance import choose_clusters, clustered_gain
from model.fusion.fit import fit
from model.fusion.gate_training import FitSettings
from model.fusion.judging import Judge
from model.fusion.network import FUSED, OWN, FusionNet
from model.fusion.rules import RULES
from model.nig import sum_beliefs
from tests.model.fusion.test_gate import CPU, batch_of, gathered
from tests.support.fusion_cases import Written, fusion, pictures
from training.engine import Compute

NAMES = ("first", "second")


def judged(net, seen, rois=None):
    """The verdict on pictures, one region for each image unless told."""
    judge = Judge(net, NAMES)
    n = seen.x.shape[0]
    with torch.no_grad():
        experts = net.consult(seen.x)
    judge.add(experts, seen.target, rois or [f"ROIs1868/{at}" for at in range(n)], [str(at) for at in range(n)])
    return judge.verdict()


def fitted(seen, rule="gated", epochs=10, **options) -> FusionNet:
    net = fusion(rule, **options)
    fit(net, gathered(net, seen), FitSettings(epochs=epochs), CPU)
    return net.eval()


def twins(n=8, size=32, seed=0):
    """Pictures of which the second expert says what the first does."""
    seen = pictures(n, size, seed)
    return replace(seen, x=seen.x[:, [0, 1, 0, 1]])


def useless(n=8, size=32, seed=0):
    """Pictures of which the second expert is the first plus noise, and knows it only roughly."""
    seen, rng = pictures(n, size, seed), torch.Generator().manual_seed(seed + 100)
    noise = 0.2 * torch.randn(seen.x[:, :1].shape, generator=rng)
    return replace(seen, x=torch.cat([seen.x[:, :2], seen.x[:, :1] + noise, seen.x[:, 1:2] + 0.1], dim=1))


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


def test_where_experts_are_hardly_apart_less_is_enough():
    """A gain of two standard errors: more than the lead of the expert that would answer instead, or less."""
    noise = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    error = noise.std(ddof=1) / math.sqrt(6)
    before = noise + 2 * error + 10
    gain = clustered_gain(before, np.full(6, 10.0), list("abcdef"))
    assert gain.units == pytest.approx(2)
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
    one = clustered_gain(before, before - 1e-3, ["a"] * 6)
    assert not one.accepted
    assert math.isnan(one.error)


def test_what_counts_as_independent():
    rois, patches = [f"r{at % 5}" for at in range(10)], [str(at) for at in range(10)]
    assert choose_clusters(rois, patches) == (rois, "region", "")
    found, kind, remark = choose_clusters(["r"] * 10, patches)
    assert (len(set(found)), kind) == (10, "patch")
    assert remark.startswith("1 region to judge by, fewer than 5: patches are taken for independent")
    _, _, remark = choose_clusters(["r", "s"], ["1", "1"])
    assert remark == "2 regions to judge by, fewer than 5, and only 2 patches: no fusion can be accepted"


def test_a_fusion_that_helps_is_accepted(complementary):
    net, fresh = complementary, pictures(n=8, seed=5)
    verdict = judged(net, fresh)
    rows = {row.name: row for row in verdict.rows}
    assert verdict.accepted
    assert rows["gated"].ratio < 0.8
    assert (
        rows["gated"].auc > 0.7 > 0.6 > rows["convex"].auc
    )  # .76 for who knows the side; constant weights know nothing
    assert rows["gated"].coverage == pytest.approx(0.9, abs=0.03)
    assert verdict.r == pytest.approx(1, abs=0.05)  # alike overall
    assert verdict.rho == pytest.approx(2 * 0.36 * 0.05 * 0.02 / (0.05**2 + 0.02**2), abs=0.03)
    with torch.no_grad():
        answer, rule = net(fresh.x), net.apply_rule("gated", net.consult(fresh.x)).belief
    assert torch.equal(answer.delta, rule.delta)


def test_variance_is_chosen_apart_from_the_mean(complementary):
    net, fresh = complementary, pictures(n=8, seed=5)
    verdict = judged(net, fresh)
    number = RULES.index("gated")
    assert (verdict.variance, int(net.choice[number])) == ("fused", FUSED)
    last = net.gate.net[-1]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        last.weight[13:].normal_(0, 3)  # a fused variance that jumps from pixel to pixel
    verdict = judged(net, fresh)
    assert verdict.accepted
    assert verdict.variance == "recalibrated"
    with torch.no_grad():
        answer, experts = net(fresh.x), net.consult(fresh.x)
        alone = net.of_expert(experts, int(net.better), 1)
        torch.testing.assert_close(answer.total, alone.total, rtol=1e-5, atol=0)
        assert torch.equal(answer.delta, net.apply_rule("gated", experts).belief.delta)
    net.load_state_dict(before)


@pytest.mark.parametrize("rule", ["gated", "convex", "ivw", "average", "monig"])
def test_an_expert_that_is_the_other_plus_noise_adds_nothing(rule):
    net = fitted(useless(), rule, epochs=3)
    fresh = useless(seed=5)
    verdict = judged(net, fresh)
    assert (verdict.accepted, verdict.better) == (False, "first")
    assert verdict.lead > 10  # no doubt which expert is better
    with torch.no_grad():
        assert torch.equal(net(fresh.x).delta, net.consult(fresh.x).mean[0])
    assert verdict.sentence().startswith(f"the guard does not accept {rule}: first answers, with its ")


def test_twins_keep_their_variance():
    net = fitted(twins(), epochs=3)
    fresh = twins(seed=5)
    verdict = judged(net, fresh)
    with torch.no_grad():
        experts = net.consult(fresh.x)
        recalibrated = net.of_expert(experts, 0, 1).total
        for rule in ("gated", "convex", "ivw", "ivw_rho", "average"):
            ratio = (net.apply_rule(rule, experts).belief.total.mean() / recalibrated.mean()).item()
            assert ratio > 0.98, rule
            assert ratio < 1.1, rule  # tau is that of images which no fit has seen, the recalibrated expert's is not
        monig = net.apply_rule("monig", experts).belief
        expected = sum_beliefs(experts.belief(0), experts.belief(1))
        assert torch.equal(monig.total, expected.total)
        assert (monig.total.mean() / experts.variance[0].mean()).item() < 0.6  # 0.545 at alpha 3, gamma 1
        assert torch.equal(net(fresh.x).delta, experts.mean[0])
    assert not verdict.accepted


def test_the_better_of_two_is_found_on_either_side():
    seen = useless()
    swapped = replace(seen, x=seen.x[:, [2, 3, 0, 1]])
    verdict = judged(fitted(swapped, "convex"), swapped)
    assert verdict.better == "second"
    assert {row.name: row.ratio for row in verdict.rows}["second"] == 1.0


def test_too_few_images_fall_back_and_say_so():
    seen = pictures(n=8)
    net = fitted(seen, "convex")
    few = replace(seen, x=seen.x[:3], target=seen.target[:3])
    verdict = judged(net, few)
    assert not verdict.accepted
    assert "only 3 patches: no fusion can be accepted" in verdict.markdown()
    assert verdict.n_clusters == 3
    none = Judge(net, NAMES).verdict()
    assert (none.accepted, none.variance, int(net.choice[0])) == (False, "own", OWN)
    assert "no images to judge by" in none.markdown()


def test_spread_and_tails_are_those_of_images_that_no_fit_has_seen():
    """Errors twice those of the fit: tau grows to four times, whatever the fit thought."""
    seen, fresh = pictures(n=6, size=16), pictures(n=6, size=16, seed=5)
    worse = replace(fresh, target=fresh.target, x=fresh.x.clone())
    for at in (0, 2):
        worse.x[:, at : at + 1] = fresh.target + 2 * (fresh.x[:, at : at + 1] - fresh.target)
    net = fitted(seen, "convex")
    judged(net, fresh)
    alike = net.tau[RULES.index("convex")].clone()
    judged(net, worse)
    torch.testing.assert_close(net.tau[RULES.index("convex")], 4 * alike, rtol=1e-3, atol=0)
    monig = RULES.index("monig")
    assert torch.equal(net.tau[monig], torch.ones(13))  # its variance is that of the sum
    with torch.no_grad():
        belief = net.apply_rule("convex", net.consult(worse.x)).belief
    low, high = belief.interval(0.9)
    inside = ((worse.target > low) & (worse.target < high)).float().mean().item()
    assert inside == pytest.approx(0.9, abs=0.01)


def test_without_the_guard_the_rule_is_followed():
    seen = useless()
    net = fitted(seen, "average", guarded=False)
    judged(net, seen)
    with torch.no_grad():
        answer = net(seen.x)
    torch.testing.assert_close(answer.delta, (seen.x[:, 0:1] + seen.x[:, 2:3]) / 2, rtol=1e-5, atol=1e-6)


def test_verdicts_of_all_rules_are_kept(complementary):
    fresh = pictures(n=8, seed=5)
    judged(complementary, fresh)
    again = FusionNet([Written(0), Written(1)], "average")
    again.load_state_dict(complementary.state_dict())
    with torch.no_grad():
        for rule in RULES:
            complementary.rule = again.rule = rule
            for name, field in complementary(fresh.x).fields().items():
                assert torch.equal(field, again(fresh.x).fields()[name])
    complementary.rule = "gated"


def test_variances_are_in_reflectance_and_of_each_image(complementary):
    """Twice the scale of an expert's units changes nothing; one image's variance does not depend on its neighbours."""
    fresh = pictures(n=8, seed=5)
    other = FusionNet([Written(0, scale_by=1.0), Written(1, scale_by=20.0)], "gated")
    other.load_state_dict(complementary.state_dict())
    with torch.no_grad():
        together = complementary(fresh.x)
        torch.testing.assert_close(other(fresh.x).total, together.total, rtol=1e-4, atol=0)
        torch.testing.assert_close(complementary(fresh.x[2:3]).total, together.total[2:3], rtol=1e-5, atol=0)
    spread = (together.delta - fresh.target).square().mean().item()
    assert together.total.mean().item() == pytest.approx(spread, rel=0.15)


def test_the_verdict_is_plain_json_and_a_table(complementary):
    verdict = judged(complementary, pictures(n=8, seed=5))
    stored = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert stored["rule"] == "gated"
    assert [row["name"] for row in stored["rows"]] == [*NAMES, *(rule for rule in RULES if rule != "best")]
    assert stored["rows"][0]["gain"] is None
    assert stored["rows"][2]["gain"]["accepted"] is True
    text = verdict.markdown()
    lines = text.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "8 images of 8 regions that nothing was fitted on" in text
    assert lines[-1] == "Verdict: the guard accepts gated: its mean is used, with the fused variance."


def test_bands_in_which_no_constant_weight_helps():
    """Experts of unlike errors that share most of them: rho at or above sqrt(r)."""
    seen = pictures(n=4)
    first = seen.x[:, :1] - seen.target
    doubled = replace(seen, x=torch.cat([seen.x[:, :2], seen.target + 2 * first, seen.x[:, 1:2]], dim=1))
    verdict = judged(fitted(doubled, "convex"), doubled)
    assert verdict.r == pytest.approx(0.25, rel=1e-3)
    assert verdict.rho == pytest.approx(1, abs=1e-4)
    assert len(verdict.hopeless) == 13
    assert not verdict.accepted


def test_an_image_is_judged_by_the_numbers_that_it_is_shown_with(complementary):
    seen, plain = pictures(n=6), fusion("convex")
    plain.convex[0], plain.convex[1], plain.fitted = 1.0, 0.0, torch.tensor(True)
    judge = Judge(complementary, NAMES)
    with torch.no_grad():
        experts = plain.consult(seen.x)
        places = [str(at) for at in range(6)]
        judge.add(experts, seen.target, places, places, plain)
        errors = (experts.mean[0] - seen.target).square().flatten(1).double().mean(1).sqrt()
    np.testing.assert_allclose(judge.rmse["convex"], errors.tolist(), rtol=1e-5)


class Model(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.netG = net


class Loader(list):
    """One batch, and as many patches."""

    @property
    def patches(self):
        return self[0].info


@pytest.mark.parametrize(("guard_rois", "crosswise"), [(3, True), (9, True), (10, False)])
def test_with_few_regions_those_of_the_fit_judge_too(monkeypatch, guard_rois, crosswise):
    """Fitting and judging are exchanged, and in the end all images are fitted on, whatever the verdict."""
    seen, fresh = pictures(n=4, size=16), pictures(n=guard_rois, size=16, seed=5)
    split = FitSplit(
        Loader([batch_of(seen, [f"fit {at}" for at in range(4)])]),
        Loader([batch_of(fresh, [f"guard {at}" for at in range(guard_rois)])]),
        (),
    )
    config = SimpleNamespace(
        fusion="convex", expert_configs=[{"name": name} for name in NAMES], fusion_epochs=0, fusion_lr=1e-3, rdm_seed=1
    )
    fits = []

    def noted(net, found, *rest):
        fits.append((net, sorted(set(found.rois))))
        return fit(net, found, *rest)

    monkeypatch.setattr(settling, "fit", noted)
    net = fusion("convex")
    judge, verdict, _ = settling.settle(Model(net), split, config, Compute(CPU, None))
    fit_rois, guard = ([f"{name} {at}" for at in range(n)] for name, n in (("fit", 4), ("guard", guard_rois)))
    everything = sorted([*fit_rois, *guard])
    expected = [fit_rois, sorted(guard), everything] if crosswise else [fit_rois, everything]
    assert [rois for _, rois in fits] == expected
    assert fits[0][0] is net
    assert fits[-1][0] is net
    assert sorted(set(judge.rois)) == (everything if crosswise else sorted(guard))
    if crosswise:
        assert fits[1][0] is not net  # the second fit leaves the first as it is
        errors = judge.rmse["convex"][-4:]  # of the images of the fit: by the numbers of the second fit
        with torch.no_grad():
            other = fits[1][0].apply_rule("convex", net.consult(seen.x)).belief.delta - seen.target
        np.testing.assert_allclose(errors, other.square().flatten(1).double().mean(1).sqrt().tolist(), rtol=1e-5)
    again = fusion("convex")
    fit(again, gathered(again, seen, fit_rois).with_those_of(gathered(again, fresh, guard)), FitSettings(), CPU)
    assert torch.equal(again.a, net.a)
    assert not torch.equal(again.tau, net.tau)  # which is of images that were not fitted on
    judge.set_spreads(again)
    assert torch.equal(again.tau, net.tau)
    assert verdict.notes[-1].startswith(f"after the verdict all numbers were fitted again, on {4 + guard_rois} images")


def test_a_guard_of_which_nothing_could_be_read_accepts_nothing():
    seen = pictures(n=4, size=16)
    nothing = replace(batch_of(seen), x=seen.x[:0], info=())
    config = SimpleNamespace(
        fusion="convex", expert_configs=[{"name": name} for name in NAMES], fusion_epochs=0, fusion_lr=1e-3, rdm_seed=1
    )
    split = FitSplit(Loader([batch_of(seen)]), Loader([nothing]), ())
    net = fusion("convex")
    _, verdict, _ = settling.settle(Model(net), split, config, Compute(CPU, None))
    assert not verdict.accepted
    assert verdict.notes == ("there are no images to judge by beside those of the fit: no fusion can be accepted",)
    alone = fusion("convex")
    fit(alone, gathered(alone, seen), FitSettings(), CPU)
    assert torch.equal(alone.convex, net.convex)
