"""uncrtaints: published checkpoints, the plain published graph, every option, any size.

`golden/checkpoints` holds copies of the published checkpoints (the optimiser's state in `iso` alone) with uncropped
inputs and outputs; mean and variance follow from `raw`.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.baselines import PlainUncrtaints, dense_gaussian_nll, plain_moments
from common.errors import UsageError
from config.schema import ModelConfig
from data.constants import N_S2
from model import load_model
from model.build import build_loss, build_model
from model.layers import temporal
from model.layers.conv import Pointwise
from model.registry import BLOCKS, NORMS, PADDING_MODES
from tests.support.network_cases import random_series, read_published, small_network

PUBLISHED = ("diag", "iso", "mono_l2", "residual_use_v")
README = ModelConfig(head="gaussian", use_sar=True, scale_by=10.0)


def small(seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    return small_network(seed=seed, **{"head": "gaussian", "scale_by": 10.0, **changes}).to(dtype)


def without_dropout(model):
    model.netG.temporal_aggregator.attn_dropout.p = 0.0
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_give_their_stored_outputs(golden, name):
    io = read_published(golden, name)
    reconstruct = load_model(golden / "checkpoints" / name)
    scale = reconstruct.model.scale_by
    prediction = reconstruct(io["x"], io["dates"])
    # 1e-5 relative at every pixel, as required; 9e-6 and less were measured (float32 sums in another order)
    torch.testing.assert_close(prediction.mean * scale, io["raw"][:, :, :N_S2], rtol=1e-5, atol=0)
    if name == "mono_l2":
        assert prediction.total is None
    else:
        variance = io["raw"][:, :, N_S2:].expand_as(prediction.mean)  # iso: one for all bands
        torch.testing.assert_close(prediction.total.expand_as(variance) * scale**2, variance, rtol=1e-5, atol=0)
        assert prediction.epistemic is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_and_gradients(golden, name):
    # known issue 1: diag has batch 2, so its stored loss has the published batch bug, which legacy restores
    io = read_published(golden, name)
    reconstruct = load_model(golden / "checkpoints" / name)
    model = reconstruct.model.requires_grad_(True)
    loss = build_loss(ModelConfig(**{**vars(model.config), "legacy": True}))(
        model(io["x"], io["dates"]), io["y"] * model.scale_by
    )
    assert loss.item() == pytest.approx(io["loss"].item(), rel=1e-5)
    loss.backward()
    norms = json.loads((golden / "checkpoints" / name / "grad_norms.json").read_text(encoding="utf-8"))
    gradients = {key: parameter.grad.norm().item() for key, parameter in model.netG.named_parameters()}
    assert gradients.keys() == norms.keys()
    # biases of keys have no effect, softmax ignores them: the stored values are noise, below 1e-8 of the largest
    assert gradients == pytest.approx(norms, rel=1e-5, abs=1e-8 * max(norms.values()))


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_means_and_variances_in_full(shared, name):
    folder = shared / "golden" / "checkpoints" / name
    with np.load(folder / "io.npz") as stored:
        x, dates, mean, var = (torch.from_numpy(stored[key]) for key in ("x", "dates", "mean", "var"))
    prediction = load_model(folder)(x, dates)
    torch.testing.assert_close(prediction.mean, mean, rtol=1e-5, atol=0)
    if var.numel():
        torch.testing.assert_close(prediction.total.expand_as(var), var.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_stand_in_the_published_order(golden, name):
    # the optimiser of a published checkpoint identifies parameters by position
    content = torch.load(golden / "checkpoints" / name / "model.pth.tar", weights_only=True)
    assert list(load_model(golden / "checkpoints" / name).model.state_dict()) == list(content["state_dict"])


def test_the_readme_network_has_570010_parameters():
    model = build_model(README)
    assert sum(parameter.numel() for parameter in model.parameters()) == 570_010
    assert [name for name, _ in model.netG.named_parameters()] == [n for n, _ in PlainUncrtaints().named_parameters()]


@pytest.mark.parametrize("large", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("block_type", BLOCKS)
def test_a_training_step_is_that_of_the_plain_published_graph(block_type, large, monkeypatch):
    # float64: equal but for rounding, so the fast network computes the same mathematics as the plain one
    monkeypatch.setattr(temporal, "LARGE_IMAGE", 0 if large else 10**9)
    torch.manual_seed(0)
    plain = PlainUncrtaints(13, 8, 2, n_head=4, d_model=16, block_type=block_type).double().train()
    plain.training = False  # of the outermost module, where it only switches dropout
    ours = without_dropout(small(dtype=torch.float64, block_type=block_type, low_res_size=32)).train()
    ours.netG.load_state_dict(plain.state_dict())
    plain.temporal_encoder.periods = ours.netG.temporal_encoder.date_encoding.periods  # float64 too
    x, dates = (tensor.double() for tensor in random_series(1, 3, 40, 36))
    target = x[:, :1] * 10
    losses = {}
    for name, model in (("plain", plain), ("ours", ours)):
        if name == "plain":
            losses[name], _ = dense_gaussian_nll(*_with(plain_moments(model(10 * x, dates)), target))
        else:
            losses[name] = build_loss(ours.config)(model(x, dates), target)
        losses[name].backward()
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-9, atol=0)
    gradients = dict(ours.netG.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-7, atol=1e-9, msg=name)
    for name, buffer in plain.named_buffers():  # running statistics were updated once
        torch.testing.assert_close(ours.netG.state_dict()[name], buffer, msg=name)


def _with(moments, target):
    mean, variance = moments
    return mean, target, variance


@pytest.mark.parametrize(
    "changes",
    [
        *({"agg_mode": mode, "use_v": use_v} for mode in ("att_group", "att_mean", "mean") for use_v in (True, False)),
        *({"encoder_norm": norm, "block_type": block} for norm in NORMS for block in BLOCKS),
        *({"decoder_norm": norm} for norm in NORMS),
        *({"padding_mode": mode} for mode in PADDING_MODES),
        *({"separate_out": True, "head": head} for head in ("gaussian", "nig")),
        {"separate_out": True, "head": "mean", "loss": "l2"},
        {"positional_encoding": False},
        {"pretrain": True, "n_head": 1},
        {"encoder_widths": (8, 8), "out_conv": (16, 13)},
        {"encoder_widths": (4, 8), "decoder_widths": (12, 8, 16)},
        {"encoder_widths": (4, 8), "decoder_widths": (12, 8), "block_type": "residual"},
        {"covmode": "iso"},
        {"covmode": "uni", "loss": "GNLL", "var_nonLinearity": "elu"},
        {"var_nonLinearity": "relu", "mean_nonLinearity": False},
        {"low_res_size": 40},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_option_trains_at_any_size(changes):
    # known issue 9: relu crashed when the published network was built
    model = small(**changes).train()
    t = 1 if model.netG.is_mono else 3
    x, dates = random_series(2, t, 19, 34)
    prediction = model(x, dates)
    assert prediction.mean.shape == (2, 1, N_S2, 19, 34)
    build_loss(model.config)(prediction, x[:, :1] * model.scale_by).backward()
    unused = "temporal_encoder" if changes.get("agg_mode") == "mean" and not changes["use_v"] else None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or unused in name, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (7, 40), (33, 5)])
def test_images_smaller_than_the_attention_map(height, width):
    # the published network crashes where the sizes do not divide
    model = small(low_res_size=32).eval()
    x, dates = random_series(1, 2, height, width)
    assert model(x, dates).mean.shape == (1, 1, N_S2, height, width)


def test_separate_layers_give_the_channels_of_one():
    separate, joint = small(separate_out=True).eval(), small().eval()
    state = {key: value for key, value in separate.netG.state_dict().items() if "out_conv" not in key}
    for kind in ("weight", "bias"):
        parts = [separate.netG.state_dict()[f"out_conv_{part}_1.conv.conv.0.{kind}"] for part in ("mean", "var")]
        state[f"out_conv.conv.conv.0.{kind}"] = torch.cat(parts)
    joint.netG.load_state_dict(state)
    x, dates = random_series()
    torch.testing.assert_close(joint.netG(x, dates), separate.netG(x, dates), rtol=1e-5, atol=1e-6)


def test_inputs_that_do_not_fit_are_named():
    model = small()
    x, dates = random_series()
    with pytest.raises(ValueError, match=r"expected dates of shape \(1, 3\).*got none"):
        model(x)
    with pytest.raises(ValueError, match=r"got shape \(1, 2\)"):
        model(x, dates[:, :2])
    with pytest.raises(ValueError, match=r"expected x of shape \(B, T, 13, H, W\).*got \(1, 3, 15, 16, 16\)"):
        model(random_series(channels=15)[0], dates)
    with pytest.raises(ValueError, match="2 x 2 pixels or more for .*, got 1 x 9"):
        model(torch.rand(1, 3, 13, 1, 9), dates)
    with pytest.raises(ValueError, match="expected one date.*got 3"):
        small(pretrain=True)(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agg_mode": "max"}, "unknown --agg_mode 'max'; choose att_group, att_mean, mean"),
        ({"block_type": "conv"}, "unknown block 'conv'; choose --block_type mbconv, residual"),
        ({"encoder_norm": "layer"}, "unknown norm 'layer'; choose group, batch, instance, none"),
        ({"padding_mode": "mirror", "block_type": "residual"}, "unknown --padding_mode 'mirror'"),
        ({"padding_mode": "mirror"}, "unknown --padding_mode 'mirror'"),
        ({"encoder_widths": (6,), "n_head": 2}, "do not divide 6 channels"),
        ({"n_head": 3}, "--n_head 3 must divide --encoder_widths 8"),
        ({"d_model": 18}, "--n_head 4 must divide --d_model 18"),
        ({"encoder_widths": (2,), "encoder_norm": "none", "n_head": 1}, "widths of 4 or more, got 2"),
    ],
)
def test_flags_that_describe_no_network(changes, message):
    with pytest.raises(UsageError, match=message):
        small(**changes)


def test_autocast_applies_to_the_backbone_alone():
    model = without_dropout(small(loss="MGNLL"))
    x, dates = random_series(2, 3, 24, 24)
    exact = model(x, dates)
    dtypes = []
    model.netG.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(x, dates)
    assert dtypes == [torch.bfloat16]
    assert {field.dtype for field in prediction.fields().values()} == {torch.float32}
    # bf16 has 3 significant digits, and the network is some layers deep; means lie in (0, 10)
    assert (prediction.mean - exact.mean).abs().mean() < 0.05
    build_loss(model.config)(prediction, x[:, :1] * 10).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_initialisation_is_torchs_own_or_with_legacy_the_published_one():
    # known issue 18
    def weights(kind, legacy):
        model = small(encoder_widths=(64,), decoder_widths=(64,) * 3, legacy=legacy)
        return [layer for layer in model.modules() if isinstance(layer, kind)]

    for norm in weights(nn.BatchNorm2d, legacy=False):
        assert torch.equal(norm.weight, torch.ones(norm.num_features))
    drawn = torch.cat([norm.weight.detach() for norm in weights(nn.BatchNorm2d, legacy=True)])
    assert 0.9 < drawn.std() < 1.1  # standard normal, 1344 draws
    assert abs(drawn.mean()) < 0.1
    assert all((norm.bias == 0).all() for norm in weights(nn.BatchNorm2d, legacy=True))
    wide = [layer.weight.detach() for layer in weights(Pointwise, legacy=True) if layer.weight.shape[:2] == (128, 64)]
    assert torch.stack(wide).std().item() == pytest.approx((2 / 192) ** 0.5, rel=0.05)  # Xavier
    usual = [layer.weight.detach() for layer in weights(Pointwise, legacy=False) if layer.weight.shape[:2] == (128, 64)]
    assert torch.stack(usual).abs().max() <= 1 / 8  # uniform within 1 / sqrt(64)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("separate_out", [True, False])
def test_the_head_is_initialised_last(legacy, separate_out):
    model = small(head="nig", loss="NIG", legacy=legacy, separate_out=separate_out).eval()
    prediction = model(*random_series()).unscaled(10.0)
    # alike everywhere: sigma 0.1 in reflectance, gamma 1, alpha 3 (docs/fusion.md)
    torch.testing.assert_close(prediction.alpha, torch.full_like(prediction.alpha, 3.0))
    torch.testing.assert_close(prediction.gamma, torch.ones_like(prediction.gamma))
    torch.testing.assert_close(prediction.total.sqrt(), torch.full_like(prediction.total, 0.1))
