"""The fit of a fusion, and two-fold cross-fitting by region for its acceptance test."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.holdout import FitSplit
from model.fusion import fit as fit_module
from model.fusion.fit import fit, fit_with_acceptance_test
from model.fusion.gate import FitSettings
from model.fusion.network import FusionNet
from model.runtime import Compute
from tests.support.fusion_cases import CPU, WrittenExpert, batch_of, evaluator_of, fusion, pictures, statistics_of


def test_fitting_is_seeded():
    images = pictures(n=3, size=16)
    fits = []
    for seed in (1, 1, 2):
        net = fusion("gated")
        rows = fit(net, statistics_of(net, images, seed=seed), FitSettings(epochs=2, seed=seed), CPU)
        fits.append((rows, net.state_dict()))
    assert fits[0][0] == fits[1][0]
    assert all(torch.equal(fits[0][1][key], value) for key, value in fits[1][1].items())
    assert fits[0][0] != fits[2][0]


def test_fitting_leaves_the_experts_as_they_are():
    net = FusionNet([WrittenExpert(0), WrittenExpert(1, gaussian=True)], "gated")
    before = {key: value.clone() for key, value in net.experts.state_dict().items()}
    net.train()
    assert not any(module.training for module in net.experts.modules())
    fit(net, statistics_of(net, pictures(n=3, size=16)), FitSettings(epochs=2), CPU)
    assert all(torch.equal(before[key], value) for key, value in net.experts.state_dict().items())
    assert not any(parameter.requires_grad for parameter in net.experts.parameters())


class Loader(list):
    """One batch, and as many patches (or `n`)."""

    n = 0

    @property
    def patches(self):
        return range(self.n or self[0].n)


def fit_and_test(net, fit_batch, guard_batch):
    evaluator = evaluator_of(net)
    split = FitSplit(Loader([fit_batch]), Loader([guard_batch]), ())
    settings = FitSettings(epochs=0, lr=1e-3, seed=1)
    result, _ = fit_with_acceptance_test(net, split, evaluator, settings, Compute(CPU, None))
    return evaluator, result


@pytest.mark.parametrize(("guard_rois", "crosswise"), [(3, True), (9, True), (10, False)])
def test_with_few_regions_those_of_the_fit_are_tested_too(monkeypatch, guard_rois, crosswise):
    """Both halves are exchanged, and in the end all images are fitted on, whatever the decision."""
    fit_images, guard_images = pictures(n=4, size=16), pictures(n=guard_rois, size=16, seed=5)
    rois, guard = ([f"{name} {at}" for at in range(n)] for name, n in (("fit", 4), ("guard", guard_rois)))
    fits = []

    def recorded_fit(net, statistics, *rest):
        fits.append((net, sorted(set(statistics.rois))))
        return fit(net, statistics, *rest)

    monkeypatch.setattr(fit_module, "fit", recorded_fit)
    net = fusion("convex")
    evaluator, result = fit_and_test(net, batch_of(fit_images, rois), batch_of(guard_images, guard))
    everything = sorted([*rois, *guard])
    expected = [rois, sorted(guard), everything] if crosswise else [rois, everything]
    assert [fitted_rois for _, fitted_rois in fits] == expected
    assert fits[0][0] is net
    assert fits[-1][0] is net
    assert sorted(set(evaluator.rois)) == (everything if crosswise else sorted(guard))
    if crosswise:
        crossed = fits[1][0]
        assert crossed is not net  # the second fit leaves the first as it is
        errors = evaluator.rmse["convex"][-4:]  # of the images of the fit: with the numbers of the second fit
        with torch.no_grad():
            delta = crossed.apply_rule("convex", net.predict_experts(fit_images.x)).prediction.delta
        expected_errors = (delta - fit_images.target).square().flatten(1).double().mean(1).sqrt()
        np.testing.assert_allclose(errors, expected_errors.tolist(), rtol=1e-5)
    again = fusion("convex")
    statistics = statistics_of(again, fit_images, rois)
    statistics.merge(statistics_of(again, guard_images, guard))
    fit(again, statistics, FitSettings(), CPU)
    assert torch.equal(again.recalibration_intercept, net.recalibration_intercept)
    assert not torch.equal(again.variance_factor, net.variance_factor)  # which is of images that were not fitted on
    evaluator.fit_variances(again)
    assert torch.equal(again.variance_factor, net.variance_factor)
    assert result.notes[-1].startswith(f"after the decision all numbers were fitted again, on {4 + guard_rois} images")


def test_a_guard_of_which_nothing_could_be_read_accepts_nothing():
    images = pictures(n=4, size=16)
    empty = replace(batch_of(images), x=images.x[:0], info=())
    net = fusion("convex")
    _, result = fit_and_test(net, batch_of(images), empty)
    assert not result.accepted
    assert result.notes == ("there are no images to test on besides those of the fit: no fusion can be accepted",)
    alone = fusion("convex")
    fit(alone, statistics_of(alone, images), FitSettings(), CPU)
    assert torch.equal(alone.convex_weights, net.convex_weights)


def test_images_whose_targets_lack_pixels_are_left_out():
    fit_images, guard_images = pictures(n=4, size=16), pictures(n=5, size=16, seed=5)
    rois, guard = ([f"{name} {at}" for at in range(n)] for name, n in (("fit", 4), ("guard", 5)))
    whole = [batch_of(fit_images, rois), batch_of(guard_images, guard)]
    valid = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    valid[1, 0, 8:] = False
    damaged = replace(whole[0], valid=valid, target=whole[0].target.where(valid[:, :, None], 0.0))
    rest = damaged.without_missing()
    assert [info.roi for info in rest.info] == ["fit 0", "fit 2", "fit 3"]
    states, decisions = [], []
    for batch in (damaged, rest):
        net, loader = fusion("convex"), Loader([batch])
        loader.n = 4  # the damaged patch counts among the expected ones
        evaluator = evaluator_of(net)
        split = FitSplit(loader, Loader([whole[1]]), ())
        result, _ = fit_with_acceptance_test(
            net, split, evaluator, FitSettings(epochs=0, lr=1e-3, seed=1), Compute(CPU, None)
        )
        states.append(net.state_dict())
        decisions.append(result)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert decisions[0] == decisions[1]
