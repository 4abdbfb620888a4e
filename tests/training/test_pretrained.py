"""Weights of one network as the start of another: what is loaded, what is not, what waits."""

from types import SimpleNamespace

import pytest
import torch

from common.errors import DataError
from model.build import build_loss, build_optimizer
from tests.support.network_cases import small_network
from training.pretrained import freeze, load_pretrained, unfreeze

RATES = SimpleNamespace(lr=0.01, gamma=0.9, to_json=lambda: {"model": "uncrtaints", "encoder_widths": [8]})
GOLDEN = {"encoder_widths": (32,), "decoder_widths": (32, 32, 32), "n_head": 4, "d_model": 64, "use_sar": True}


def build(seed: int = 0, **changes):
    return small_network(seed=seed, **{"head": "gaussian", "scale_by": 10.0, **changes})


def same(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(key == name and torch.equal(a, b) for (key, a), (name, b) in pairs)


@pytest.mark.parametrize(("head", "loss", "rows"), [("nig", "NIG", 52), ("gaussian", "MGNLL", 26)])
def test_a_network_of_single_images_starts_one_of_series(golden, head, loss, rows):
    path = golden / "checkpoints" / "mono_l2" / "model.pth.tar"
    model = build(**{**GOLDEN, "head": head, "loss": loss})
    fresh = {key: value.clone() for key, value in model.netG.state_dict().items()}
    report = load_pretrained(model, path)
    given = torch.load(path, weights_only=True)["state_dict_G"]
    now = model.netG.state_dict()
    assert set(report.loaded) == set(given) - {"out_conv.conv.conv.0.weight", "out_conv.conv.conv.0.bias"}
    assert all(torch.equal(now[key], given[key]) for key in report.loaded)
    assert set(report.partly) == {"out_conv.conv.conv.0.weight", "out_conv.conv.conv.0.bias"}
    for key in report.partly:
        assert now[key].shape[0] == rows
        assert torch.equal(now[key][:13], given[key])
        assert torch.equal(now[key][13:], fresh[key][13:])
    assert set(report.missing) == {key for key in now if key.startswith("temporal_encoder")}
    assert all(torch.equal(now[key], fresh[key]) for key in report.missing)
    assert not report.extra
    assert not report.complete
    text = str(report)
    assert (
        "in part: out_conv.conv.conv.0.weight (the 13 rows of the means, from out_conv.conv.conv.0.weight; the other "
        in text
    )
    assert "start fresh: temporal_encoder.attention_heads.Q (not in the checkpoint)" in text


@pytest.mark.parametrize("separate_out", [True, False])
def test_the_means_find_their_layer(tmp_path, separate_out):
    path = tmp_path / "model.pth.tar"
    teacher = build(seed=1, separate_out=not separate_out)
    torch.save({"state_dict_G": teacher.netG.state_dict()}, path)
    pupil = build(seed=2, separate_out=separate_out)
    report = load_pretrained(pupil, path)
    name = "out_conv_mean_1" if separate_out else "out_conv"
    assert set(report.partly) == {f"{name}.conv.conv.0.weight", f"{name}.conv.conv.0.bias"}
    rows = [
        getattr(m.netG, n).last.weight[:13]
        for m, n in ((pupil, name), (teacher, {"out_conv": "out_conv_mean_1"}.get(name, "out_conv")))
    ]
    assert torch.equal(*rows)


def test_a_checkpoint_of_the_same_network_is_loaded_whole(tmp_path):
    path = tmp_path / "model.pth.tar"
    teacher = build(seed=1)
    torch.save({"state_dict_G": teacher.netG.state_dict()}, path)
    pupil = build(seed=2)
    report = load_pretrained(pupil, path)
    assert report.complete
    assert same(teacher, pupil)
    assert all(parameter.requires_grad for parameter in pupil.parameters())  # nothing is frozen unless asked
    assert "all of them" in str(report)


def test_weights_of_another_architecture_are_refused(tmp_path):
    # known issue 10: random weights are never passed off as loaded ones
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict_G": build(encoder_widths=(16,), decoder_widths=(16, 16)).netG.state_dict()}, path)
    pupil = build()
    before = {key: value.clone() for key, value in pupil.state_dict().items()}
    with pytest.raises(DataError, match="model.pth.tar is of another architecture: .* weights fit this network"):
        load_pretrained(pupil, path)
    assert all(torch.equal(value, before[key]) for key, value in pupil.state_dict().items())


def test_loaded_weights_freeze_but_for_the_last_layer(golden):
    model = build(**{**GOLDEN, "head": "nig", "loss": "NIG"})
    report = load_pretrained(model, golden / "checkpoints" / "mono_l2" / "model.pth.tar")
    frozen = freeze(model, report)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        n for n, _ in model.named_parameters() if n.startswith(("netG.out_conv", "netG.temporal_encoder"))
    }
    assert set(frozen) | trained == {name for name, _ in model.named_parameters()}
    x = torch.rand(1, 2, 15, 16, 16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, RATES.lr)
    build_loss(model.config)(model(x, torch.tensor([[1.0, 9.0]])), x[:, :1, 2:] * 10).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained
    assert "netG.out_conv.conv.conv.0.weight" in moved
    unfreeze(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
