"""Leverages against the algebra of Bayesian linear regression."""

import pytest
import torch

from model.evidence.leverage import FeatureMoments, quadratic
from model.evidence.views import describe_pixels


def features(seed: int, b: int = 4, c: int = 5, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(c, c, generator=generator, dtype=torch.float64)
    return torch.einsum("kc,bchw->bkhw", mix, torch.randn(b, c, size, size, generator=generator, dtype=torch.float64))


def moments(*batches):
    result = FeatureMoments(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


def rows(maps):
    return maps.movedim(1, -1).flatten(0, -2)


def test_gamma_is_that_of_conjugate_bayesian_regression():
    phi, noise = features(0), 0.04
    new = features(1, b=1)
    design = rows(phi)
    posterior = torch.linalg.inv(design.T @ design / noise)  # covariance of the weights, flat prior
    epistemic = (rows(new) @ posterior * rows(new)).sum(dim=1)
    leverage = moments(phi).leverage()
    gamma = len(design) / (leverage.rank * leverage(new).flatten())
    torch.testing.assert_close(gamma, noise / epistemic, rtol=1e-10, atol=0)


def test_the_mean_leverage_of_the_training_pixels_is_one():
    phi = features(0)
    leverage = moments(phi).leverage()
    assert leverage.rank == 5
    assert leverage(phi).mean().item() == pytest.approx(1, abs=1e-12)


def test_leverages_are_invariant_to_invertible_linear_maps():
    phi, new = features(0), features(1)
    linear = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3

    def mapped(maps):
        return torch.einsum("kc,bchw->bkhw", linear, maps)

    plain = moments(phi).leverage()(new)
    torch.testing.assert_close(moments(mapped(phi)).leverage()(mapped(new)), plain, rtol=1e-9, atol=0)


def test_quadratic_leverages_are_invariant_to_affine_maps():
    phi, new = features(0, c=3), features(1, c=3)
    linear = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def mapped(maps):
        return quadratic(torch.einsum("kc,bchw->bkhw", linear, maps) + 0.7)

    plain = moments(quadratic(phi)).leverage()(quadratic(new))
    torch.testing.assert_close(moments(mapped(phi)).leverage()(mapped(new)), plain, rtol=1e-8, atol=0)


def test_streamed_moments_equal_those_in_memory():
    phi = features(0, b=12)
    streamed = moments(*phi.split([1, 5, 2, 4]))
    design = rows(phi)
    torch.testing.assert_close(streamed.products, design.T @ design, rtol=1e-12, atol=1e-10)
    assert streamed.count == len(design)


def test_two_processes_equal_one():
    phi = features(0, b=6)
    first, second = moments(phi[:2]), moments(phi[2:])
    first.merge([moments(phi[:2]), second])
    alone = moments(phi)
    assert first.count == alone.count
    torch.testing.assert_close(first.products, alone.products, rtol=1e-12, atol=1e-10)


def test_more_data_of_one_kind_raise_the_evidence_there_and_nowhere_else():
    # two kinds of pixels with features of their own
    left, right = features(0), features(1)
    left[:, 2:] = 0
    right[:, :2] = 0

    def gamma(training, new):
        leverage = moments(*training).leverage()
        return leverage.count / (leverage.rank * leverage(new))

    once, twice = (left, right), (left, left, right)
    torch.testing.assert_close(gamma(twice, left), 2 * gamma(once, left), rtol=1e-9, atol=0)
    torch.testing.assert_close(gamma(twice, right), gamma(once, right), rtol=1e-9, atol=0)


def test_dependent_features_count_once():
    phi = features(0)
    doubled = torch.cat([phi, phi[:, :2] * 3], dim=1)
    leverage = moments(doubled).leverage()
    assert leverage.rank == 5
    torch.testing.assert_close(leverage(doubled), moments(phi).leverage()(phi), rtol=1e-6, atol=0)


def test_float32_is_enough_for_the_spectra_of_real_ground():
    generator = torch.Generator().manual_seed(0)
    brightness = torch.rand(4, 1, 1, 16, 16, generator=generator) * 0.4 + 0.03
    x = (brightness * (1 + 0.02 * torch.randn(4, 1, 13, 16, 16, generator=generator))).clamp(0, 1)  # bands correlate
    views = describe_pixels(x.double())["spectrum"]
    leverage = moments(views).leverage()
    torch.testing.assert_close(leverage(describe_pixels(x)["spectrum"]).double(), leverage(views), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("count", [0, 3])
def test_features_of_zeros_have_no_leverage(count):
    with pytest.raises(ValueError, match="leverage is relative to training pixels"):
        moments(torch.zeros(1, 2, 1, count)).leverage()


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        moments(torch.tensor([[[[torch.nan]]]]))
