"""The containers of predictions: the same interface for every head."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from model.predictions import NIG, Gaussian, Mean

SHAPE = (2, 1, 13, 4, 5)


def make(kind, dtype=torch.float64):
    rng = np.random.default_rng(0)

    def draw(low, high, shape=SHAPE):
        return torch.from_numpy(rng.uniform(low, high, shape)).to(dtype)

    return {
        "mean": lambda: Mean(draw(0, 1)),
        "gaussian": lambda: Gaussian(draw(0, 1), draw(0.001, 0.1)),
        "iso": lambda: Gaussian(draw(0, 1), draw(0.001, 0.1, (2, 1, 1, 4, 5))),
        "nig": lambda: NIG(draw(0, 1), draw(0.1, 5), draw(1.1, 9), draw(0.001, 0.1)),
    }[kind]()


KINDS = ["mean", "gaussian", "iso", "nig"]
UNCERTAIN = KINDS[1:]


def target():
    return torch.from_numpy(np.random.default_rng(1).uniform(0, 1, SHAPE))


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_every_result_has_the_shape_of_the_mean(kind):
    p, y = make(kind), target()
    for result in (p.mean, p.aleatoric, p.total, p.nll(y), p.crps(y), *p.interval(0.9)):
        assert result.shape == SHAPE
    assert (p.epistemic is None) == (kind != "nig")


def test_a_mean_has_no_uncertainty():
    p = make("mean")
    assert p.aleatoric is None
    assert p.epistemic is None
    assert p.total is None
    with pytest.raises(ValueError, match="no likelihood"):
        p.nll(target())
    with pytest.raises(ValueError, match="no interval"):
        p.interval(0.9)
    torch.testing.assert_close(p.crps(target()), (p.mean - target()).abs())


def test_gaussian_results_are_those_of_the_normal():
    p, y = make("gaussian"), target()
    normal = stats.norm(p.mean.numpy(), p.variance.sqrt().numpy())
    np.testing.assert_allclose(p.nll(y).numpy(), -normal.logpdf(y.numpy()), rtol=1e-12, atol=1e-12)
    for got, expected in zip(p.interval(0.9), normal.interval(0.9), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)
    scoringrules = pytest.importorskip("scoringrules", reason="the oracle for CRPS is not installed")
    exact = scoringrules.crps_normal(y.numpy(), p.mean.numpy(), p.variance.sqrt().numpy())
    np.testing.assert_allclose(p.crps(y).numpy(), exact, rtol=1e-9)


def test_nig_results_are_those_of_the_student_t():
    p, y = make("nig"), target()
    delta, gamma, alpha, beta = (t.numpy() for t in p.fields().values())
    student = stats.t(2 * alpha, delta, np.sqrt(beta * (1 + gamma) / gamma / alpha))
    np.testing.assert_allclose(p.nll(y).numpy(), -student.logpdf(y.numpy()), rtol=1e-11, atol=1e-11)
    for got, expected in zip(p.interval(0.5), student.interval(0.5), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert p.mean is p.delta
    torch.testing.assert_close(p.aleatoric + p.epistemic, p.total)


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_four_and_five_dimensions_agree(kind):
    p, y = make(kind), target()
    flat = p.map(lambda t: t.squeeze(1))
    assert torch.equal(flat.nll(y.squeeze(1)), p.nll(y).squeeze(1))
    assert torch.equal(flat.total, p.total.squeeze(1))
    assert torch.equal(flat.interval(0.9)[1], p.interval(0.9)[1].squeeze(1))


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_a_target_of_another_shape_is_refused(kind):
    # (2, 13, 4, 5) against (2, 1, 13, 4, 5) would broadcast to (2, 2, 13, 4, 5)
    with pytest.raises(ValueError, match=r"target of shape \(2, 1, 13, 4, 5\), got \(2, 13, 4, 5\)"):
        make(kind).nll(target().squeeze(1))
    with pytest.raises(ValueError, match="target of shape"):
        make(kind).crps(target().squeeze(1))


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_unscaled_is_reflectance_and_reflectance_squared(kind):
    p, y = make(kind), target()
    small = p.unscaled(10.0)
    torch.testing.assert_close(small.mean, p.mean / 10)
    torch.testing.assert_close(small.total, p.total / 100)
    torch.testing.assert_close(small.nll(y / 10), p.nll(y) - np.log(10), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(small.crps(y / 10), p.crps(y) / 10)
    if kind == "nig":
        torch.testing.assert_close(small.epistemic, p.epistemic / 100)


def test_unscaled_mean():
    torch.testing.assert_close(make("mean").unscaled(10.0).mean, make("mean").mean / 10)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_map_and_item(kind):
    p = make(kind)
    names = {"mean": ["mean"], "nig": ["delta", "gamma", "alpha", "beta"]}.get(kind, ["mean", "variance"])
    assert list(p.fields()) == names
    doubled = p.map(lambda t: t * 2)
    assert type(doubled) is type(p)
    for name in names:
        assert torch.equal(doubled.fields()[name], p.fields()[name] * 2)
    last = p.item(-1)
    assert torch.equal(last.mean, p.mean[1:])
    assert torch.equal(p.item(0).mean, p.mean[:1])
    with pytest.raises(IndexError, match="item 2 of a batch of 2"):
        p.item(2)


@pytest.mark.parametrize("kind", KINDS)
def test_containers_are_frozen(kind):
    p = make(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(p, next(iter(p.fields())), torch.zeros(1))


def test_the_names_of_the_papers_are_documented():
    assert "Amini" in NIG.__doc__  # where gamma is the mean
