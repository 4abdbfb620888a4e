"""Statistics and samples accumulated over a split."""

import numpy as np
import pytest
import torch

from model.fusion.statistics import ErrorGram, WeightAUC, WindowSampler
from tests.support.fusion_cases import fusion, pictures


def test_statistics_of_errors():
    images = pictures(n=3, size=16)
    means = images.x[:, 0::2].movedim(1, 0)[:, :, None]
    gram = ErrorGram(2, 13)
    for part in (slice(0, 2), slice(2, 3)):
        gram.update(means[:, part], images.target[part])
    errors = (means - images.target).double()
    np.testing.assert_allclose(gram.mse, errors.square().mean((1, 2, 4, 5)).numpy(), rtol=1e-9)
    band = errors[:, :, 0, 4].flatten(1).numpy()
    expected = (band[0] * band[1]).sum() / np.sqrt((band[0] ** 2).sum() * (band[1] ** 2).sum())
    assert gram.correlation[0, 1, 4] == pytest.approx(expected, rel=1e-9)
    assert gram.overall()[0] == pytest.approx(errors.square().flatten(1).mean(1).numpy(), rel=1e-9)


def test_skill_of_a_weight_is_the_area_under_the_curve():
    errors = torch.tensor([[0.1, 0.2, 0.5, 0.4], [0.3, 0.1, 0.1, 0.4]])
    for weights, expected in (([0.9, 0.2, 0.1, 0.5], 1.0), ([0.3, 0.3, 0.3, 0.9], 0.5), ([0.15, 0.2, 0.1, 0.5], 0.5)):
        auc = WeightAUC()
        auc.update(torch.tensor(weights), errors)
        assert auc.compute() == pytest.approx(expected)
    assert np.isnan(WeightAUC().compute())


def test_samples_are_seeded_bounded_and_spread():
    net, images = fusion("average"), pictures(n=5, size=32)
    predictions = net.predict_experts(images.x)

    def draw(seed, windows=12, size=8):
        sampler = WindowSampler(5, windows, size, seed)
        for part in (slice(0, 3), slice(3, 5)):
            sampler.update(predictions.map(lambda field, part=part: field[:, part]), images.target[part])
        return sampler.samples()

    first, repeated, other_seed = draw(1), draw(1), draw(2)
    assert torch.equal(first.mean, repeated.mean)
    assert not torch.equal(first.mean, other_seed.mean)
    assert first.mean.shape == (12, 2, 13, 8, 8)
    assert sorted(torch.bincount(first.image).tolist()) == [2, 2, 2, 3, 3]
    complete = draw(1, windows=1000, size=16)
    assert len(complete) == 5 * 4  # all windows, none twice
    total = complete.target[complete.image == 0].sum()
    torch.testing.assert_close(total, images.target[0].sum(), rtol=1e-5, atol=0)
    pixels = draw(1, windows=50, size=1)
    assert pixels.target.shape == (50, 13, 1, 1)
