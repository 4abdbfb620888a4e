"""Heads: from raw channels to predictions in scaled units."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UsageError
from model.layers.heads import build_head
from model.losses import get_loss, nig_loss
from model.predictions import NIG, Gaussian, Mean


def head_of(head, covmode="diag", scale_by=10.0, mean=True, var="softplus"):
    return build_head(head, covmode, scale_by, mean, var)


def logits(channels, low=-4.0, high=4.0, dtype=torch.float64, seed=0):
    values = np.random.default_rng(seed).uniform(low, high, (2, 1, channels, 5, 6))
    return torch.from_numpy(values).to(dtype)


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize(
    ("head", "covmode", "channels", "kind"),
    [
        ("nig", "diag", 52, NIG),
        ("nig", "iso", 52, NIG),
        ("gaussian", "diag", 26, Gaussian),
        ("gaussian", "uni", 26, Gaussian),
        ("gaussian", "iso", 14, Gaussian),
        ("mean", "diag", 13, Mean),
    ],
)
def test_channels_and_kinds(head, covmode, channels, kind):
    built = head_of(head, covmode)
    assert built.channels == channels
    p = built(logits(channels))
    assert type(p) is kind
    assert p.mean.shape == (2, 1, 13, 5, 6)
    assert not list(built.parameters())  # published checkpoints must load strictly
    assert not built.state_dict()
    flat = built(logits(channels).squeeze(1))
    for name, tensor in flat.fields().items():
        assert torch.equal(tensor, p.fields()[name].squeeze(1))


def test_iso_gives_one_variance():
    assert head_of("gaussian", "iso")(logits(14)).variance.shape == (2, 1, 1, 5, 6)


@pytest.mark.parametrize("head", ["nig", "gaussian", "mean"])
@pytest.mark.parametrize("scale_by", [1.0, 10.0])
def test_means(head, scale_by):
    bounded, free = head_of(head, scale_by=scale_by), head_of(head, scale_by=scale_by, mean=False)
    raw = logits(bounded.channels)
    torch.testing.assert_close(bounded(raw).mean, scale_by / (1 + torch.exp(-raw[:, :, :13])))
    assert torch.equal(free(raw).mean, raw[:, :, :13])


@pytest.mark.parametrize(("scale_by", "eps"), [(1.0, 1e-9), (10.0, 1e-3)])
@pytest.mark.parametrize("var", ["softplus", "relu", "elu"])  # known issue 9: relu crashed
def test_gaussian_variances(var, scale_by, eps):
    raw = logits(26)
    z = raw[:, :, 13:].numpy()
    expected = {
        "softplus": softplus(z),
        "relu": np.maximum(z, 0),
        "elu": np.where(z > 0, z + 1, np.exp(np.minimum(z, 0))),
    }[var]
    got = head_of("gaussian", scale_by=scale_by, var=var)(raw).variance
    np.testing.assert_allclose(got.numpy(), expected + eps, rtol=1e-12)
    assert (got > 0).all()


def test_the_gaussian_head_reproduces_stored_outputs(shared):
    # the inverse of its activations gives the raw channels of stored outputs
    with np.load(shared / "golden" / "checkpoints" / "diag" / "io.npz") as stored:
        out = torch.from_numpy(stored["raw"]).double()
        mean, var = stored["mean"], stored["var"]
    before = torch.cat([torch.logit(out[:, :, :13] / 10), torch.log(torch.expm1(out[:, :, 13:] - 1e-3))], dim=2)
    p = head_of("gaussian")(before.float())
    np.testing.assert_allclose(p.mean.numpy(), out[:, :, :13].numpy(), rtol=1e-5)
    np.testing.assert_allclose(p.variance.numpy(), out[:, :, 13:].numpy(), rtol=1e-5)
    np.testing.assert_allclose(p.unscaled(10.0).mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(p.unscaled(10.0).variance.numpy(), var, rtol=1e-5)


def test_nig_parameterisation():
    raw = logits(52)
    p = head_of("nig")(raw)
    sigma, gamma, alpha = (raw[:, :, 13 * i : 13 * (i + 1)].numpy() for i in (1, 2, 3))
    variance = (1e-3 + softplus(sigma)) ** 2
    np.testing.assert_allclose(p.gamma.numpy(), np.exp(3 * np.tanh(gamma / 3)), rtol=1e-12)
    expected_alpha = 1.05 + 100 * (1 - np.exp(-softplus(alpha) / 100))
    np.testing.assert_allclose(p.alpha.numpy(), expected_alpha, rtol=1e-12)
    np.testing.assert_allclose(p.total.numpy(), variance, rtol=1e-12)
    np.testing.assert_allclose(p.epistemic.numpy(), variance / (1 + p.gamma.numpy()), rtol=1e-12)


@pytest.mark.parametrize("scale_by", [1.0, 10.0])
@pytest.mark.parametrize("separate", [False, True])
def test_evidence_starts_equal_everywhere(scale_by, separate):
    torch.manual_seed(0)
    head = head_of("nig", scale_by=scale_by)
    features = torch.randn(2, 8, 5, 6)
    means, rest = nn.Conv2d(8, 13, 1), nn.Conv2d(8, 39, 1)
    joint = nn.Conv2d(8, 52, 1)
    before = joint.weight[:13].clone(), joint.bias[:13].clone()
    if separate:
        head.initialise(rest)
        raw = torch.cat([means(features), rest(features)], dim=1)
    else:
        head.initialise(joint)
        assert torch.equal(joint.weight[:13], before[0])
        assert torch.equal(joint.bias[:13], before[1])
        raw = joint(features)
    p = head(raw.unsqueeze(1)).unscaled(scale_by)
    assert p.delta.std() > 0  # the rows of the means stay as they are
    # exact but for float32: 1e-6
    torch.testing.assert_close(p.total.sqrt(), torch.full_like(p.delta, 0.1), rtol=2e-6, atol=0)
    torch.testing.assert_close(p.gamma, torch.ones_like(p.gamma), rtol=0, atol=0)
    torch.testing.assert_close(p.alpha, torch.full_like(p.alpha, 3.0), rtol=1e-6, atol=0)


def test_initialise_refuses_another_convolution():
    with pytest.raises(ValueError, match="bias to 52 channels, or 39 without the means; got 26"):
        head_of("nig").initialise(nn.Conv2d(8, 26, 1))
    with pytest.raises(ValueError, match="got 52 without bias"):
        head_of("nig").initialise(nn.Conv2d(8, 52, 1, bias=False))


@pytest.mark.parametrize("head", ["gaussian", "mean"])
def test_other_heads_do_not_change_the_convolution(head):
    built = head_of(head)
    conv = nn.Conv2d(8, built.channels, 1)
    before = conv.weight.clone()
    built.initialise(conv)
    assert torch.equal(conv.weight, before)


def test_the_likelihood_gives_gamma_no_gradient():
    raw = logits(52).requires_grad_()
    y = 10 * torch.rand(2, 1, 13, 5, 6, dtype=torch.float64)
    nig_loss(head_of("nig")(raw), y, evidence_reg="none").backward()
    groups = raw.grad.abs().split(13, dim=2)
    assert groups[2].max() < 1e-15  # rounding: the others are of order 1e-3
    for i in (0, 1, 3):
        assert groups[i].median() > 1e-6


def test_gradcheck_of_the_nig_head():
    raw = logits(52)[:1, :, :, :1, :2].clone().requires_grad_()
    y = torch.full((1, 1, 13, 1, 2), 4.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: nig_loss(head_of("nig")(r), y), (raw,))


@pytest.mark.parametrize(
    ("head", "loss"), [("nig", "NIG"), ("nig", "MGNLL"), ("nig", "GNLL"), ("gaussian", "MGNLL"), ("gaussian", "GNLL")]
)
@pytest.mark.parametrize("scale_by", [1.0, 10.0])
def test_finite_for_logits_from_minus_60_to_60(head, loss, scale_by):
    corners = torch.tensor([-60.0, -20.0, 0.0, 20.0, 60.0])
    built = head_of(head, scale_by=scale_by)
    groups = built.channels // 13
    grid = torch.cartesian_prod(*[corners] * groups)  # every combination of the groups' logits
    raw = grid.T.repeat_interleave(13, dim=0).reshape(1, 1, built.channels, 1, -1).contiguous().requires_grad_()
    for target in (0.0, 1.0):
        p = built(raw)
        y = torch.full_like(p.mean, target * scale_by)
        value = get_loss(loss)(p, y)
        (gradient,) = torch.autograd.grad(value, raw)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(p.nll(y)).all()
        for values in (*p.interval(0.95), p.total, p.crps(y)):
            assert torch.isfinite(values).all()
        assert (p.total > 0).all()


@pytest.mark.parametrize("evidence_reg", ["amini", "meinert", "none"])
def test_other_regularisers_stay_finite(evidence_reg):
    raw = logits(52, -60, 60, torch.float32).requires_grad_()
    nig_loss(head_of("nig")(raw), torch.full((2, 1, 13, 5, 6), 5.0), evidence_reg=evidence_reg).backward()
    assert torch.isfinite(raw.grad).all()


def test_no_clamp_and_a_margin_above_one():  # known issue 16: clamped parameters had no gradient, alpha came down to 1
    z = torch.linspace(-12, 12, 97).repeat(52, 1).reshape(1, 1, 52, 1, 97).requires_grad_()
    p = head_of("nig")(z)
    for group, field in ((1, p.total), (2, p.gamma), (3, p.alpha)):
        assert (field.diff(dim=-1) >= 0).all()
        (gradient,) = torch.autograd.grad(field.sum(), z, retain_graph=True)
        assert (gradient.split(13, dim=2)[group] > 0).all()
    far = head_of("nig")(torch.full((1, 1, 52, 1, 1), -60.0))
    assert far.alpha.min() >= 1.0499


@pytest.mark.parametrize("head", ["nig", "gaussian", "mean"])
def test_float32_under_autocast(head):
    built = head_of(head)
    conv = nn.Conv2d(4, built.channels, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = conv(torch.randn(1, 4, 3, 3)).unsqueeze(1)
        assert raw.dtype == torch.bfloat16
        p = built(raw)
        y = torch.rand(1, 1, 13, 3, 3)
        loss = get_loss({"nig": "NIG", "gaussian": "MGNLL", "mean": "l2"}[head])(p, y)
    assert {t.dtype for t in p.fields().values()} == {torch.float32}
    assert loss.dtype == torch.float32
    outside = built(raw.float())
    for name, tensor in p.fields().items():
        assert torch.equal(tensor, outside.fields()[name])


def test_scale_by_moves_the_start_with_the_data():
    # the same network in another unit starts with the same uncertainty in reflectance
    starts = []
    for scale_by in (1.0, 10.0, 100.0):
        head, conv = head_of("nig", scale_by=scale_by), nn.Conv2d(2, 52, 1)
        head.initialise(conv)
        starts.append(head(conv(torch.zeros(1, 2, 1, 1)).unsqueeze(1)).unscaled(scale_by).total[..., 0, 0])
    for start in starts[1:]:
        torch.testing.assert_close(start, starts[0], rtol=1e-5, atol=0)


def test_unknown_names_and_scales_are_named():
    with pytest.raises(UsageError, match="unknown head 'laplace'; choose --head nig, gaussian, mean"):
        head_of("laplace")
    with pytest.raises(UsageError, match="unknown covmode 'full'; choose --covmode diag, iso, uni"):
        head_of("gaussian", covmode="full")
    with pytest.raises(UsageError, match="'exp'; choose --var_nonLinearity softplus, relu, elu"):
        head_of("gaussian", var="exp")
    with pytest.raises(UsageError, match="--scale_by above 0.01, got 0"):
        head_of("nig", scale_by=0.0)
    with pytest.raises(ValueError, match="expected 52 channels from the last convolution, got 26"):
        head_of("nig")(logits(26))
    assert "channels=26" in repr(head_of("gaussian"))


def test_a_start_below_the_targets_spread_is_avoided():
    head, conv = head_of("nig"), nn.Conv2d(2, 52, 1)
    head.initialise(conv)
    assert F.softplus(conv.bias[13]).item() + 1e-3 == pytest.approx(1.0, rel=1e-6)  # 0.1 of reflectance, times 10
    assert math.isfinite(conv.bias.sum().item())
