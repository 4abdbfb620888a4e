"""Losses against stored values of the published code, single-item calls, and closed forms."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UsageError
from config.validation import check_loss
from model.losses import gaussian_nll, get_loss, multivariate_gaussian_nll, nig_loss
from model.losses.evidential import PENALTIES
from model.losses.fusion import fusion_loss
from model.nig import nig_from_moments, scale
from model.predictions import NIG, Gaussian, Mean

SHAPE = (2, 1, 13, 6, 7)


@pytest.fixture
def stored(golden):
    with np.load(golden / "losses.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def with_gradients(loss, mean, target, variance):
    mean, variance = mean.clone().requires_grad_(), variance.clone().requires_grad_()
    value = loss(mean, target, variance)
    value.backward()
    return value.item(), mean.grad, variance.grad


def predictions_and_target(seed=0, requires_grad=False):
    rng = np.random.default_rng(seed)
    draws = rng.uniform(0, 1, SHAPE), np.exp(rng.uniform(-2, 2, SHAPE)), rng.uniform(1.1, 20, SHAPE)
    tensors = [torch.from_numpy(a) for a in (*draws, rng.uniform(0.001, 0.1, SHAPE))]
    return NIG(*(t.requires_grad_(requires_grad) for t in tensors)), torch.from_numpy(rng.uniform(0, 1, SHAPE))


@pytest.mark.parametrize("mode", ["diag", "iso"])
def test_legacy_mgnll_is_the_published_one(stored, mode):
    def loss(mean, target, variance):
        return multivariate_gaussian_nll(mean, target, variance, legacy=True)

    value, mean, variance = with_gradients(loss, stored["mean"], stored["target"], stored[f"var_{mode}"])
    assert value == pytest.approx(stored[f"mgnll_{mode}_loss"].item(), rel=1e-5)
    torch.testing.assert_close(mean, stored[f"mgnll_{mode}_grad_mean"], rtol=1e-5, atol=1e-6)
    # float32 sums over bands of both signs: rounding up to 1e-5 of the largest term
    torch.testing.assert_close(variance, stored[f"mgnll_{mode}_grad_var"], rtol=1e-5, atol=1e-4)


def test_gnll_is_the_published_one(stored):
    value, mean, variance = with_gradients(gaussian_nll, stored["mean"], stored["target"], stored["var_diag"])
    assert value == pytest.approx(stored["gnll_loss"].item(), rel=1e-5)
    torch.testing.assert_close(mean, stored["gnll_grad_mean"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(variance, stored["gnll_grad_var"], rtol=1e-5, atol=1e-6)
    theirs = F.gaussian_nll_loss(stored["mean"], stored["target"], stored["var_diag"], full=True, eps=1e-8)
    assert value == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["diag", "iso"])
def test_mgnll_is_the_mean_of_single_items(stored, mode):  # known issue 1
    arguments = stored["mean"], stored["target"], stored[f"var_{mode}"]
    singles = [multivariate_gaussian_nll(*(t[i : i + 1] for t in arguments)).item() for i in range(2)]
    assert multivariate_gaussian_nll(*arguments).item() == pytest.approx(np.mean(singles), rel=1e-6)
    published = multivariate_gaussian_nll(*arguments, legacy=True).item()
    assert published != pytest.approx(np.mean(singles), rel=1e-2)
    # a batch of one has no bug: both agree
    single = [t[:1] for t in arguments]
    assert multivariate_gaussian_nll(*single).item() == multivariate_gaussian_nll(*single, legacy=True).item()


def test_mgnll_is_best_at_the_true_variance_whatever_the_batch():  # known issue 1
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(0, 0.3, (4, 1, 13, 24, 24)))
    mean, truth = torch.zeros_like(target), torch.full_like(target, 0.09)
    factors = (2.0, 1.0, 0.5, 0.25, 0.125)
    ours = [multivariate_gaussian_nll(mean, target, f * truth).item() for f in factors]
    published = [multivariate_gaussian_nll(mean, target, f * truth, legacy=True).item() for f in factors]
    assert factors[int(np.argmin(ours))] == 1.0
    assert factors[int(np.argmin(published))] == 0.25  # over-confident by the batch size


def test_mgnll_sums_gnll_over_bands(stored):
    arguments = stored["mean"], stored["target"], stored["var_diag"]
    assert multivariate_gaussian_nll(*arguments).item() == pytest.approx(13 * gaussian_nll(*arguments).item(), rel=1e-6)
    spread = stored["var_iso"].expand_as(stored["mean"])
    iso = multivariate_gaussian_nll(stored["mean"], stored["target"], stored["var_iso"]).item()
    assert iso == pytest.approx(multivariate_gaussian_nll(stored["mean"], stored["target"], spread).item(), rel=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_dense_covariance_is_built(stored):  # known issue 8
    with LargestTensor() as largest:
        with_gradients(multivariate_gaussian_nll, stored["mean"], stored["target"], stored["var_diag"])
    assert largest.elements == stored["mean"].numel()  # a dense one would have 13 times as many


def test_tiny_variances_keep_their_gradient(stored):  # known issue 16
    mean, target = stored["mean"], stored["target"]
    small = torch.full_like(mean, 1e-12)
    value, _, gradient = with_gradients(gaussian_nll, mean, target, small)
    theirs, _, expected = with_gradients(lambda *a: F.gaussian_nll_loss(*a, full=True, eps=1e-8), mean, target, small)
    assert value == pytest.approx(theirs, rel=1e-6)
    torch.testing.assert_close(gradient, expected)
    assert (gradient < 0).float().mean() > 0.99  # the gradient increases the variance; that of a clamp would be zero


@pytest.mark.parametrize("loss", [gaussian_nll, multivariate_gaussian_nll])
def test_gaussian_losses_refuse_shapes_that_would_broadcast(loss, stored):
    mean, target, variance = stored["mean"], stored["target"], stored["var_diag"]
    with pytest.raises(ValueError, match="expected a target of shape"):
        loss(mean, target.squeeze(1), variance)
    with pytest.raises(ValueError, match="expected a variance of shape"):
        loss(mean, target, variance[:, :, :4])


def test_gradcheck_of_gaussian_losses():
    rng = np.random.default_rng(1)
    mean, target = (torch.from_numpy(rng.uniform(0, 1, (2, 1, 3, 2, 2))) for _ in range(2))
    mean.requires_grad_()
    for shape in ((2, 1, 3, 2, 2), (2, 1, 1, 2, 2)):
        variance = torch.from_numpy(rng.uniform(0.1, 1, shape)).requires_grad_()
        for loss in (gaussian_nll, multivariate_gaussian_nll):
            assert torch.autograd.gradcheck(lambda m, v, f=loss: f(m, target, v), (mean, variance))


def test_nig_loss_is_likelihood_plus_prior():
    p, y = predictions_and_target()
    prior = p.gamma.log().square().mean() + 0.25 * ((p.alpha - 1) / 2).log().square().mean()
    expected = p.nll(y).mean() + 0.05 * prior
    torch.testing.assert_close(nig_loss(p, y), expected)
    torch.testing.assert_close(nig_loss(p, y, weight_reg=0.0), p.nll(y).mean())
    torch.testing.assert_close(nig_loss(p, y, evidence_reg="none"), p.nll(y).mean())
    at_prior = NIG(p.delta, torch.ones_like(y), torch.full_like(y, 3.0), p.beta)
    torch.testing.assert_close(nig_loss(at_prior, y), at_prior.nll(y).mean())


def test_other_evidence_regularisers():
    p, y = predictions_and_target()
    error, evidence = (p.delta - y).abs(), 2 * p.gamma + p.alpha
    amini = nig_loss(p, y, weight_reg=1.0, evidence_reg="amini") - p.nll(y).mean()
    torch.testing.assert_close(amini, (error * evidence).mean())
    meinert = nig_loss(p, y, weight_reg=1.0, evidence_reg="meinert") - p.nll(y).mean()
    torch.testing.assert_close(meinert, (error / p.width * evidence).mean())


@pytest.mark.parametrize("evidence_reg", list(PENALTIES))
def test_a_change_of_unit_adds_a_constant_to_the_nig_loss(evidence_reg):
    p, y = predictions_and_target()
    change = nig_loss(scale(p, 10.0), 10 * y, evidence_reg=evidence_reg) - nig_loss(p, y, evidence_reg=evidence_reg)
    if evidence_reg == "amini":  # this penalty is in the unit of the error
        assert change.item() > math.log(10) + 0.01
    else:
        assert change.item() == pytest.approx(math.log(10), rel=1e-10)


@pytest.mark.parametrize("evidence_reg", list(PENALTIES))
def test_gradcheck_of_the_nig_loss(evidence_reg):
    p, y = predictions_and_target()
    small = p.map(lambda t: t[:1, :, :3, :2, :2].clone().requires_grad_())
    y = y[:1, :, :3, :2, :2]
    assert torch.autograd.gradcheck(
        lambda *fields: nig_loss(NIG(*fields), y, evidence_reg=evidence_reg), tuple(small.fields().values())
    )


def test_the_prior_decides_gamma():
    p, y = predictions_and_target(requires_grad=True)
    along = NIG(p.delta, p.gamma, p.alpha, p.total * (p.alpha - 1) * p.gamma / (1 + p.gamma))
    (free,) = torch.autograd.grad(nig_loss(along, y, evidence_reg="none"), p.gamma, retain_graph=True)
    (held,) = torch.autograd.grad(nig_loss(along, y), p.gamma)
    pull = torch.autograd.grad(0.05 * p.gamma.log().square().mean(), p.gamma)[0]
    torch.testing.assert_close(held - free, pull)


@pytest.mark.parametrize("name", ["l1", "l2", "GNLL", "MGNLL", "gnll", "mgnll"])
def test_losses_by_name_on_their_heads(name):
    p, y = predictions_and_target()
    gaussian = Gaussian(p.delta, p.total)
    loss = get_loss(name)
    expected = {
        "l1": (p.delta - y).abs().mean(),
        "l2": (p.delta - y).square().mean(),
        "gnll": gaussian_nll(p.delta, y, p.total),
        "mgnll": multivariate_gaussian_nll(p.delta, y, p.total),
    }[name.lower()]
    if name in ("l1", "l2"):
        torch.testing.assert_close(loss(Mean(p.delta), y), expected)
    torch.testing.assert_close(loss(gaussian, y), expected)
    torch.testing.assert_close(loss(p, y), expected)  # on a NIG prediction: delta and the total variance


def test_mgnll_with_one_variance_for_each_band_alone_works():  # known issue 9: covmode uni with MGNLL crashed
    p, y = predictions_and_target()
    assert torch.isfinite(get_loss("MGNLL")(Gaussian(p.delta, p.total), y))
    iso = Gaussian(p.delta, p.total[:, :, :1])
    assert torch.isfinite(get_loss("GNLL")(iso, y))  # and GNLL with iso


def test_legacy_reaches_the_loss():
    p, y = predictions_and_target()
    gaussian = Gaussian(p.delta, p.total)
    published = multivariate_gaussian_nll(p.delta, y, p.total, legacy=True)
    torch.testing.assert_close(get_loss("MGNLL", legacy=True)(gaussian, y), published)


def test_options_reach_the_nig_loss():
    p, y = predictions_and_target()
    loss = get_loss("NIG", weight_reg=0.3, evidence_reg="amini")
    torch.testing.assert_close(loss(p, y), nig_loss(p, y, 0.3, "amini"))


def test_invalid_losses_are_errors():
    p, y = predictions_and_target()
    with pytest.raises(UsageError, match="unknown loss 'mse'; choose --loss l1, l2, GNLL, MGNLL, NIG"):
        get_loss("mse")
    with pytest.raises(UsageError, match="unknown evidence regulariser 'kl'; choose --evidence_reg prior, amini"):
        get_loss("NIG", evidence_reg="kl")
    with pytest.raises(UsageError, match="--weight_reg of 0 or more, got nan"):
        get_loss("NIG", weight_reg=math.nan)
    with pytest.raises(UsageError, match="--loss MGNLL needs a variance"):
        get_loss("MGNLL")(Mean(p.delta), y)
    with pytest.raises(UsageError, match="--loss NIG needs a NIG prediction, which --head gaussian does not give"):
        get_loss("NIG")(Gaussian(p.delta, p.total), y)
    with pytest.raises(ValueError, match="expected a target of shape"):
        get_loss("l2")(p, y.squeeze(1))
    with pytest.raises(ValueError, match="expected a target of shape"):
        get_loss("NIG")(p, y.squeeze(1))


def test_combinations_are_checked_before_anything_is_built():
    for loss, head in (("l2", "mean"), ("GNLL", "gaussian"), ("MGNLL", "nig"), ("NIG", "nig")):
        check_loss(loss, head)
    with pytest.raises(UsageError, match="--loss NIG with --head gaussian: .*use --head nig"):
        check_loss("NIG", "gaussian")
    with pytest.raises(UsageError, match="--loss l2 with --head nig: the loss trains no variance; use --head mean"):
        check_loss("l2", "nig")
    with pytest.raises(UsageError, match="--loss MGNLL with --head mean: .*use --head gaussian or nig"):
        check_loss("MGNLL", "mean")


def test_joint_loss_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    shape = (2, 1, 13, 4, 4)
    target, variance = torch.rand(shape), torch.rand(shape) * 0.01 + 1e-3
    nig = nig_from_moments(torch.rand(shape), variance, 0.5, 3.0)  # gamma 1, alpha 3: the prior adds nothing
    normal = Gaussian(torch.rand(shape), variance)
    fused = nig_from_moments(torch.rand(shape), variance, 0.5, 3.0)
    loss = fusion_loss(fused, [nig, normal], [1.0, 1.0], [0.3, 2.0], target, 1.0)
    expected = fused.nll(target).mean() + 0.3 * nig.nll(target).mean()
    expected = expected + 2.0 * gaussian_nll(normal.mean, target, normal.variance)
    torch.testing.assert_close(loss, expected)
    alone = fusion_loss(fused, [nig, normal], [1.0, 1.0], [0.0, 0.0], target, 1.0)
    torch.testing.assert_close(alone, fused.nll(target).mean())


def test_joint_loss_moves_by_a_constant_with_the_units():
    torch.manual_seed(1)
    shape = (1, 1, 13, 4, 4)
    target, variance = torch.rand(shape), torch.rand(shape) * 0.01 + 1e-3
    nig, fused = (nig_from_moments(torch.rand(shape), variance, 0.4, 2.5) for _ in "ab")
    reflectance = fusion_loss(fused, [nig], [1.0], [1.0], target, 1.0)
    scaled = fusion_loss(scale(fused, 10), [scale(nig, 4)], [4.0], [1.0], 10 * target, 10.0)
    torch.testing.assert_close(
        scaled - reflectance, torch.tensor(10.0).log() + torch.tensor(4.0).log(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", ["diag", "iso", "residual_use_v", "mono_l2", "utae_l2", "unet_mono_l2"])
def test_losses_of_published_checkpoints(shared, name):
    folder = shared / "golden" / "checkpoints" / name
    config = json.loads((folder / "conf.json").read_text(encoding="utf-8"))
    with np.load(folder / "io.npz") as stored:
        raw, y, expected = torch.from_numpy(stored["raw"]), torch.from_numpy(stored["y"]), float(stored["loss"])
    prediction = Gaussian(raw[:, :, :13], raw[:, :, 13:]) if raw.shape[2] > 13 else Mean(raw)
    value = get_loss(config["loss"], legacy=True)(prediction, y * config["scale_by"]).item()
    assert value == pytest.approx(expected, rel=1e-5)
    ours = get_loss(config["loss"])(prediction, y * config["scale_by"]).item()
    assert (ours == pytest.approx(expected, rel=1e-5)) == (name != "diag")  # known issue 1: only diag has batch 2


@pytest.mark.parametrize("name", ["l1", "l2", "GNLL", "MGNLL", "NIG", "fusion"])
def test_losses_are_means_over_valid_pixels(name):
    p, y = predictions_and_target()
    valid = torch.ones(len(y), 1, *y.shape[-2:], dtype=torch.bool)
    loss = get_loss(name)
    assert loss(p, y) == loss(p, y, None) == get_loss(name)(p, y)
    torch.testing.assert_close(loss(p, y, valid), loss(p, y))
    half = y.shape[-2] // 2
    valid[..., half:, :] = False
    damaged = y.clone()
    damaged[..., half:, :] = 0
    expected = loss(p.map(lambda field: field[..., :half, :]), y[..., :half, :])
    torch.testing.assert_close(loss(p, damaged, valid), expected)
    assert not torch.isclose(loss(p, damaged), expected)
    valid[1:] = True  # of one image only: every pixel has the same weight, whichever image it is of
    crops = [(slice(0, 1), slice(0, half)), (slice(1, None), slice(None))]
    parts = [(p.map(lambda field, at=at: field[at[0], ..., at[1], :]), y[at[0], ..., at[1], :]) for at in crops]
    counts = [float(target.numel()) for _, target in parts]
    expected = sum(loss(*part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(loss(p, y, valid), expected)


def test_one_variance_for_all_bands_is_masked_too():
    p, y = predictions_and_target()
    valid = torch.zeros(len(y), 1, *y.shape[-2:], dtype=torch.bool)
    valid[..., :2, :] = True
    iso = Gaussian(p.delta, p.total[:, :, :1])
    for name, legacy in (("GNLL", False), ("MGNLL", False), ("MGNLL", True)):
        loss = get_loss(name, legacy=legacy)  # legacy: the weight of the log-determinant is the batch size all the same
        expected = loss(iso.map(lambda field: field[..., :2, :]), y[..., :2, :])
        torch.testing.assert_close(loss(iso, y, valid), expected)


def test_gradients_of_pixels_without_data_are_zero():
    p, y = predictions_and_target(requires_grad=True)
    valid = torch.ones(len(y), 1, *y.shape[-2:], dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    (grad,) = torch.autograd.grad(get_loss("NIG")(p, y, valid), p.delta)
    assert (grad[0, ..., 0, 0] == 0).all()
    assert (grad != 0).sum() == grad.numel() - grad.shape[2]
