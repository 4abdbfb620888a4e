"""`from model import load_model`: a folder becomes a function; errors name what is wrong with it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from config.stored import model_config
from model import load_model
from model.build import build_model
from model.restore import restore_model
from model.weights import save_checkpoint
from tests.support.network_cases import random_series

FLAGS = {
    "encoder_widths": [8],
    "decoder_widths": [8, 8],
    "n_head": 4,
    "d_model": 16,
    "low_res_size": 8,
    "scale_by": 10.0,
}


def write_run(folder: Path, *, seed: int = 0, name: str = "model.pth.tar", **changes):
    """A run of ours with random weights; returns its network."""
    conf = {"model": "uncrtaints", "head": "nig", "loss": "NIG", **FLAGS, **changes}
    torch.manual_seed(seed)
    model = build_model(model_config(conf))
    folder.mkdir(exist_ok=True)
    (folder / "conf.json").write_text(json.dumps(conf), encoding="utf-8")
    save_checkpoint(folder / name, {"state_dict_G": model.netG.state_dict(), "epoch": 7, "version": 1})
    return model.eval()


def series(channels: int = 13, t: int = 3):
    return random_series(2, t, 12, 12, channels)


def test_a_run_becomes_a_function_in_reflectance(tmp_path):
    model = write_run(tmp_path / "run")
    reconstruct = load_model(tmp_path / "run", device="cpu")
    x, dates = series()
    prediction = reconstruct(x, dates)
    expected = model(x, dates)
    torch.testing.assert_close(prediction.mean, expected.mean / 10)
    torch.testing.assert_close(prediction.total, expected.total / 100)
    torch.testing.assert_close(prediction.aleatoric + prediction.epistemic, prediction.total)
    assert prediction.mean.shape == (2, 1, 13, 12, 12)
    assert prediction.nll(x[:, :1]).shape == prediction.mean.shape
    low, high = prediction.interval(0.9)
    assert (low < prediction.mean).all()
    assert (prediction.mean < high).all()
    assert reconstruct.epoch == 7


def test_it_stays_in_eval_mode_without_gradients(tmp_path):
    write_run(tmp_path / "run")
    reconstruct = load_model(tmp_path / "run")
    x, dates = series()
    before = reconstruct(x, dates).mean
    state = {key: value.clone() for key, value in reconstruct.state_dict().items()}
    after = reconstruct.train()(x.requires_grad_(), dates).mean
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not reconstruct.training
    assert not any(module.training for module in reconstruct.modules())
    assert all(torch.equal(value, state[key]) for key, value in reconstruct.state_dict().items())


def test_a_file_next_to_its_configuration(tmp_path):
    write_run(tmp_path / "run", seed=1, name="model_epoch_3.pth.tar")
    model = write_run(tmp_path / "run", seed=2)
    x, dates = series()
    best, third = load_model(tmp_path / "run"), load_model(str(tmp_path / "run" / "model_epoch_3.pth.tar"))
    torch.testing.assert_close(best(x, dates).mean * 10, model(x, dates).mean)
    assert not torch.equal(best(x, dates).mean, third(x, dates).mean)


@pytest.mark.parametrize(
    ("name", "head", "fields"),
    [
        ("diag", "gaussian", {"mean", "variance"}),
        ("iso", "gaussian", {"mean", "variance"}),
        ("mono_l2", "mean", {"mean"}),
    ],
)
def test_published_runs_load_as_they_are(golden, name, head, fields):
    # a published conf.json has no `head`: MGNLL and GNLL mean Gaussian, l1 and l2 the mean alone
    reconstruct = load_model(golden / "checkpoints" / name)
    assert reconstruct.model.config.head == head
    assert reconstruct.epoch == 3
    x, dates = series(15, 1 if name == "mono_l2" else 3)
    prediction = reconstruct(x, None if name == "mono_l2" else dates)
    assert set(prediction.fields()) == fields
    assert prediction.epistemic is None
    assert (prediction.total is None) == (head == "mean")


def test_flags_that_the_published_network_ignored_have_no_effect_on_its_weights(golden, tmp_path):
    # known issue 17: low_res_size and padding_mode; a published run ignored them
    folder = tmp_path / "diag"
    shutil.copytree(golden / "checkpoints" / "diag", folder)
    conf = json.loads((folder / "conf.json").read_text(encoding="utf-8"))
    (folder / "conf.json").write_text(
        json.dumps({**conf, "low_res_size": 8, "padding_mode": "zeros"}), encoding="utf-8"
    )
    x, dates = series(15)
    expected = load_model(golden / "checkpoints" / "diag")(x, dates).mean
    assert torch.equal(load_model(folder)(x, dates).mean, expected)
    # the test script passes resolved flags, with a `head`; the checkpoint shows that it is a published one
    flags = replace(model_config(conf), low_res_size=8, padding_mode="zeros")
    model, epoch = restore_model(flags, folder / "model.pth.tar")
    assert epoch == 3
    torch.testing.assert_close(model.eval()(x, dates).mean / 10, expected)


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({"loss": "GNLL", "covmode": "diag", "out_conv": [26]}, {"head": "gaussian", "covmode": "uni"}),
        ({"loss": "MGNLL", "covmode": "iso", "out_conv": [14]}, {"head": "gaussian", "covmode": "iso"}),
        ({"loss": "l1", "covmode": "diag", "out_conv": [13]}, {"head": "mean"}),
        ({}, {"head": "gaussian", "covmode": "diag"}),
        ({"out_conv": [64, 26]}, {"out_conv": (64, 13)}),
        ({"pad_value": 0, "scale_by": 1}, {"pad_value": 0, "scale_by": 1}),
        ({"head": "nig", "loss": "MGNLL", "low_res_size": 16}, {"head": "nig", "low_res_size": 16}),
    ],
)
def test_what_a_configuration_means(conf, expected):
    flags = vars(model_config({"model": "uncrtaints", **conf}))
    assert {key: flags[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"encoder_widths": "128"}, "encoder_widths must be array, got '128'"),
        ({"encoder_widths": [0]}, r"encoder_widths\[0\] must be bigger than or equal to 1, got 0"),
        ({"n_head": True}, "n_head must be integer, got True"),
        ({"scale_by": "10"}, "scale_by must be number, got '10'"),
        ({"n_head": 0}, "n_head must be at least 1, got 0"),
        ({"n_head": 3}, "--n_head 3 must divide --encoder_widths 128"),
        ({"scale_by": float("nan")}, "scale_by must be above 0, got nan"),
        ({"expert_configs": [{"name": 1}]}, r"expert_configs\[0\] must contain .*'flags'"),
        ({"use_sar": 1}, "use_sar must be boolean, got 1"),
    ],
)
def test_values_of_another_type_are_named(value, message):
    with pytest.raises(DataError, match=message):
        model_config({"model": "uncrtaints", "head": "nig", **value})


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no .*absent; give a run's folder or a .pth.tar file"):
        load_model(tmp_path / "absent")
    run = tmp_path / "run"
    write_run(run)
    (run / "model.pth.tar").unlink()
    with pytest.raises(DataError, match=r"there is no checkpoint .*model.pth.tar"):
        load_model(run)
    write_run(run)
    (run / "conf.json").unlink()
    with pytest.raises(DataError, match="there is no conf.json in .*run"):
        load_model(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"conf.json is not valid JSON"),
        ("[1]", "conf.json: the content must be object, got"),
        ('{"lr": 1}', r"conf.json: the content must contain \['model'\]"),
        ('{"model": "uncrtaints", "head": "nig", "d_k": "four"}', "conf.json: d_k must be integer, got 'four'"),
    ],
)
def test_an_unreadable_configuration(tmp_path, text, message):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "conf.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_model(tmp_path / "run")


def test_weights_of_another_architecture(tmp_path):
    write_run(tmp_path / "run", decoder_widths=[16, 8])
    (tmp_path / "run" / "conf.json").write_text(
        json.dumps({"model": "uncrtaints", "head": "nig", "loss": "NIG", **FLAGS}), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"out_block\.0.* instead of .*check .*--decoder_widths"):
        load_model(tmp_path / "run")


def test_inputs_that_do_not_fit(tmp_path):
    write_run(tmp_path / "run", use_sar=True)
    reconstruct = load_model(tmp_path / "run")
    x, dates = series(15)
    with pytest.raises(
        ValueError, match=r"expected x of shape \(B, T, 15, H, W\) \(VV, VH, then 13 bands\), got \(2, 3, 13"
    ):
        reconstruct(x[:, :, 2:], dates)
    with pytest.raises(ValueError, match="expected x of shape"):
        reconstruct(x[0], dates)
    with pytest.raises(ValueError, match=r"expected dates of shape \(2, 3\)"):
        reconstruct(x, dates[0])


def test_the_package_itself_is_light():
    code = "import sys, model; from model import load_model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_evidence_in_a_checkpoint_is_restored(tmp_path):
    model = write_run(tmp_path / "run")
    x, dates = series()
    plain = load_model(tmp_path / "run")(x, dates)
    views = {"spectrum": {"whitening": torch.eye(91, dtype=torch.float64), "count": 5}}
    bands = dict.fromkeys(("noise", "prior_mean", "prior_variance", "aleatoric"), torch.ones(13, dtype=torch.float64))
    evidence = {"views": views, "n_effective": 3.0, "power": 1.0, **bands, "alpha": bands["noise"] * 4}
    content = {"state_dict_G": model.netG.state_dict(), "epoch": 7, "version": 1, "evidence": evidence}
    save_checkpoint(tmp_path / "run" / "model.pth.tar", content)
    reconstruct = load_model(tmp_path / "run")
    prediction = reconstruct(x, dates)
    assert reconstruct.model.evidence is not None
    assert torch.equal(prediction.mean, plain.mean)
    torch.testing.assert_close(prediction.alpha, torch.full_like(prediction.alpha, 4.0))
    torch.testing.assert_close(prediction.aleatoric, plain.total)


def test_damaged_evidence_is_refused(tmp_path):
    model = write_run(tmp_path / "run")
    content = {"state_dict_G": model.netG.state_dict(), "epoch": 7, "version": 1, "evidence": {"views": 3}}
    save_checkpoint(tmp_path / "run" / "model.pth.tar", content)
    with pytest.raises(DataError, match="evidence in a checkpoint is damaged"):
        load_model(tmp_path / "run")
