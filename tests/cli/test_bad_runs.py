"""Flags, devices, checkpoints and configurations that cannot be used: one line each, and nothing is written."""

import json
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import ensemble_reconstruct
import test_reconstruct
import train_reconstruct
from config.schema import COMMAND_FLAGS, RESUME_FLAGS, Config, ModelConfig
from model import registry
from model.runtime import choose_device
from model.weights import load_checkpoint
from tests.support.cli_cases import NAME, call, evaluating, files_in, refused, training
from tests.support.commands import ROOT

# Flags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--loss l2 --head nig", "--loss l2 with --head nig: the loss trains no variance; use --head mean"),
        (
            "--loss NIG --head gaussian",
            "--loss NIG with --head gaussian: the loss needs evidence parameters; use --head nig",
        ),
        ("--loss fusion", "--loss fusion belongs to --model fusion_net, got --model uncrtaints"),
        (
            "--model conv3d_mamba --encoder_widths 8 8 --decoder_widths 8 8 --ssm_backend triton",
            "--ssm_backend triton needs a CUDA device, and this is cpu; take --ssm_backend auto, or torch, which runs",
        ),
        ("--min_cov 0.6 --max_cov 0.5", "expected --min_cov <= --max_cov, got 0.6 and 0.5"),
        ("--encoder_widths 8 --decoder_widths 8 4", "--encoder_widths ends in 8, --decoder_widths in 4"),
        ("--n_head 3", "--n_head 3 must divide --encoder_widths 8"),
        ("--sample_type generic", "--sample_type generic has no target to train or test on"),
        ("--out_conv 20", "--out_conv ends in 20, but --head nig needs 52"),
        ("--input_t 30", "input_t must lie between 1 and 29"),
        ("--lr nan", "--lr must be above 0, got nan"),
        ("--lr inf", "--lr must be at most 1e+30, got inf"),
        ("--lr 1e38", "--lr must be at most 1e+30, got 1e+38"),
        ("--gamma -1", "--gamma must be at least 0, got -1.0"),
        ("--gamma 1e300", "--gamma must be at most 10, got 1e+300"),
        ("--gamma 2 --epochs 200", "--gamma 2.0 over --epochs 200 raises --lr 0.01 beyond all bounds"),
        ("--d_k 1000000000000000000000000", "--d_k must be at most 65536, got 1000000000000000000000000"),
        ("--pad_value nan", "--pad_value must be at least -1e+30, got nan"),
        ("--rdm_seed -1", "--rdm_seed must be at least 0, got -1"),
        ("--max_samples_frac 1.5", "--max_samples_frac must be at most 1, got 1.5"),
        ("--ref_date 2014-13-01", "--ref_date must be YYYY-MM-DD, got '2014-13-01'"),
        ("--experiment_name .", "--experiment_name must name a folder below --res_dir, got '.'"),
        ("--device tpu", "--device takes cuda, cuda:N or cpu, got 'tpu'"),
        ("--device cuda:x", "--device takes cuda, cuda:N or cpu, got 'cuda:x'"),
        ("--precomputed SELF", "neither a folder nor an .npy file"),
    ],
)
def test_flags_that_cannot_be_followed(series, tmp_path, capsys, words, message):
    words = words.replace("SELF", str(ROOT / "parse_args.py")).split()
    code = 1 if words[0] == "--precomputed" else 2
    assert message in refused(capsys, train_reconstruct.main, *training(series, tmp_path / "res", *words), code=code)
    assert not (tmp_path / "res").exists()


@pytest.mark.parametrize("words", ["--loss MGNNL", "--epochs many", "--colour red", "--encoder_widths 8,x"])
def test_what_the_parser_refuses_is_a_usage_error(series, tmp_path, capsys, words):
    assert call(train_reconstruct.main, *training(series, tmp_path / "res", *words.split())) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last
    assert words.split()[0] in last
    assert not (tmp_path / "res").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_names_device_cpu(series, runs, exports, tmp_path, capsys):
    for device in ("cuda", "cuda:1"):
        expected = f"--device {device}: there is no CUDA device here; add --device cpu"
        words = training(series, tmp_path / "res", "--device", device)
        assert expected in refused(capsys, train_reconstruct.main, *words, code=2)
        words = evaluating(runs, series, tmp_path / "res", "--device", device)
        assert expected in refused(capsys, test_reconstruct.main, *words, code=2)
        words = [exports, "--res_dir", tmp_path / "res", "--device", device]
        assert expected in refused(capsys, ensemble_reconstruct.main, *words, code=2)
    assert not (tmp_path / "res").exists()


def test_a_cuda_device_too_many_and_one_of_another_name(monkeypatch, exports, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = [exports, "--res_dir", tmp_path / "res", "--device"]
    message = refused(capsys, ensemble_reconstruct.main, *words, "cuda:2", code=2)
    assert "--device cuda:2: there are 2 CUDA devices, numbered from 0; or use --device cpu" in message
    message = refused(capsys, ensemble_reconstruct.main, *words, "gpu", code=2)
    assert "--device takes cuda, cuda:N or cpu, got 'gpu'" in message
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_a_backbone_that_this_version_lacks_lists_those_it_has(monkeypatch, series, tmp_path, capsys):
    assert "utae" in registry.BACKBONES
    monkeypatch.delitem(registry.BACKBONES, "uncrtaints")
    words = training(series, tmp_path / "res", "--model", "uncrtaints")
    message = refused(capsys, train_reconstruct.main, *words, code=2)
    assert "'uncrtaints'" in message
    assert f"choose --model {', '.join(registry.MODELS)}" in message
    assert not (tmp_path / "res").exists()


# Checkpoints


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def hostile(path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {}, "x": Hostile(path.parent / "executed")}, path)


def with_epoch_of_text(path: Path) -> None:
    torch.save({**load_checkpoint(path), "epoch": "one"}, path)


SPOIL = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read as a checkpoint; is it"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint; is it complete?"),
    "web page": (lambda path: path.write_text("<html>not found</html>"), "could run code, or it is not a checkpoint"),
    "hostile": (hostile, "is refused: it holds posix.system, neither tensor nor plain value, which could run code"),
    "list": (lambda path: torch.save([1, 2], path), "expected a dict with 'state_dict', got a list"),
    "other dict": (lambda path: torch.save({"a": 1}, path), "expected weights under 'state_dict', got ['a']"),
    "epoch": (with_epoch_of_text, "expected a number of epochs under 'epoch', got 'one'"),
    "missing": (lambda path: path.unlink(), "there is no checkpoint"),
}


@pytest.mark.parametrize("how", SPOIL)
def test_a_checkpoint_that_cannot_be_used(runs_copy, series, tmp_path, capsys, how):
    damage, expected = SPOIL[how]
    best, epoch = (runs_copy / NAME / name for name in ("model.pth.tar", "model_epoch_1.pth.tar"))
    damage(best)
    damage(epoch)
    before = files_in(runs_copy)
    cases = {
        best: (test_reconstruct.main, evaluating(runs_copy, series, tmp_path / "inference")),
        epoch: (
            train_reconstruct.main,
            training(series, runs_copy, "--resume_from", "--resume_at", 1, "--epochs", 2),
        ),
    }
    for path, (main, words) in cases.items():
        message = refused(capsys, main, *words)
        assert str(path) in message
        assert expected in message
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "new", "--trained_checkp", best))
    assert expected in message
    assert not (runs_copy / NAME / "executed").exists()
    assert files_in(runs_copy) == before
    assert not (tmp_path / "inference").exists()
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_architecture_is_listed_by_name_and_shape(runs_copy, series, tmp_path, capsys):
    words = evaluating(runs_copy, series, tmp_path / "inference", "--use_sar")
    message = refused(capsys, test_reconstruct.main, *words)
    assert "of another architecture than the flags describe" in message
    assert "in_conv.conv.conv.0.weight 8x13x1x1 instead of 8x15x1x1" in message
    assert "check --model, --use_sar" in message
    widths = ["--encoder_widths", 16, "--decoder_widths", 16, "--n_head", 4, "--d_model", 16]
    checkpoint = runs_copy / NAME / "model.pth.tar"
    words = training(series, tmp_path / "new", *widths, "--trained_checkp", checkpoint)
    message = refused(capsys, train_reconstruct.main, *words)
    assert f"{checkpoint} is of another architecture" in message
    assert "was it trained with another --model" in message
    assert not (tmp_path / "inference").exists()
    assert not (tmp_path / "new").exists()


# Flags on resuming


@pytest.mark.parametrize(
    "words",
    [
        *("--model conv3d_mamba", "--head gaussian", "--encoder_widths 16", "--decoder_widths 16 8", "--out_conv 4 13"),
        *("--mean_nonLinearity", "--agg_mode mean", "--encoder_norm batch", "--decoder_norm group"),
        *("--block_type residual", "--padding_mode zeros", "--n_head 4", "--d_model 16", "--d_k 8", "--use_v"),
        *("--low_res_size 8", "--separate_out", "--positional_encoding", "--pad_value 1", "--scale_by 10"),
        *("--use_sar", "--pretrain", "--loss MGNLL", "--loss l2", "--loss l2 --head mean", "--covmode iso"),
        *("--weight_reg 0.5", "--evidence_reg none", "--legacy", "--rdm_seed 2", "--unfreeze_after 1"),
        *("--fit_rois 1", "--region america", "--input_t 3", "--vary_samples", "--min_cov 0.1", "--max_cov 0.5"),
        *("--ref_date 2014-04-04", "--max_samples_count 1", "--max_samples_frac 0.5", "--var_nonLinearity elu"),
    ],
)
def test_a_flag_that_makes_another_experiment_is_refused_on_resuming(runs_copy, series, capsys, words):
    before = files_in(runs_copy)
    words = words.split()
    message = refused(
        capsys, train_reconstruct.main, *training(series, runs_copy, "--resume_from", "--epochs", 2, *words), code=2
    )
    assert re.search(rf"--resume_from: .*{words[0]} .*\(it has .*\) would make this training another exp", message)
    assert message.count("(it has ") == sum(
        word.startswith("--") for word in words
    )  # those of `training` are the run's
    assert files_in(runs_copy) == before


def test_every_flag_may_change_or_is_refused_on_resuming():
    fixed = {entry.name for entry in fields(Config) if entry.metadata["group"]} - RESUME_FLAGS - COMMAND_FLAGS
    assert not RESUME_FLAGS & COMMAND_FLAGS
    assert fixed == {entry.name for entry in fields(ModelConfig)} - {
        *("compile", "ssm_backend", "fusion", "unguarded", "expert_configs"),
    } | {
        *("rdm_seed", "unfreeze_after", "experts", "fit_rois", "region", "input_t", "sample_type", "vary_samples"),
        *("min_cov", "max_cov", "ref_date", "max_samples_count", "max_samples_frac"),
    }


def test_fewer_epochs_than_there_are_is_refused(runs_copy, series, capsys):
    shutil.copy(runs_copy / NAME / "model_epoch_1.pth.tar", runs_copy / NAME / "model_epoch_2.pth.tar")
    content = load_checkpoint(runs_copy / NAME / "model_epoch_2.pth.tar")
    torch.save(content | {"epoch": 2}, runs_copy / NAME / "model_epoch_2.pth.tar")
    before = files_in(runs_copy)
    message = refused(capsys, train_reconstruct.main, *training(series, runs_copy, "--resume_from"), code=2)
    assert f"--epochs 1: {NAME} has 2 epochs already; give as many or more, or go back with --resume_at 1" in message
    assert files_in(runs_copy) == before


def test_an_epoch_to_resume_from_without_resuming_is_refused(series, tmp_path, capsys):
    words = training(series, tmp_path / "new", "--resume_at", 2)
    message = refused(capsys, train_reconstruct.main, *words, code=2)
    assert "--resume_at 2 belongs to --resume_from; add it, or leave both out" in message


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ({"epoch": 2}, "history must be array, got"),
        ([{"lr": [0.1, 0.2]}], "history[0] must contain ['epoch']"),
        ([{"epoch": 0}], "history[0].epoch must be bigger than or equal to 1"),
        ([{"epoch": 2, "lr": 0.1}], "history[0].lr must be array"),
        ([{"epoch": 2, "lr": ["fast", 0.1]}], "history[0].lr[0] must be number, got 'fast'"),
        ([{"epoch": 2, "model": ["utae", "unet"]}], "history[0] must not contain"),
    ],
)
def test_a_history_that_cannot_be_read(runs_copy, series, capsys, history, expected):
    conf = runs_copy / NAME / "conf.json"
    conf.write_text(json.dumps(json.loads(conf.read_text()) | {"history": history}))
    words = training(series, runs_copy, "--resume_from", "--resume_at", 1)
    message = refused(capsys, train_reconstruct.main, *words)
    assert expected in message
    assert str(conf) in message


# Configurations


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ("[1]", "the content must be object, got [1]"),
        ({"lr": "fast"}, "lr must be number, got 'fast'"),
        ({"epochs": None}, "epochs must be integer, got None"),
        ({"use_sar": 1}, "use_sar must be boolean, got 1"),
        ({"root2": 5}, "root2 must be string or null or boolean, got 5"),
        ({"model": "utea"}, "model must be one of ['uncrtaints', "),
        ({"encoder_widths": ["wide"]}, "encoder_widths[0] must be integer, got 'wide'"),
    ],
)
def test_a_configuration_that_cannot_be_read(runs_copy, series, tmp_path, capsys, content, expected):
    conf = runs_copy / NAME / "conf.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(conf.read_text()) | content)
    conf.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = files_in(runs_copy)
    cases = (
        (test_reconstruct.main, evaluating(runs_copy, series, tmp_path / "inference")),
        (train_reconstruct.main, ["--res_dir", runs_copy, "--resume_from", "--device", "cpu"]),
    )
    for main, words in cases:
        message = refused(capsys, main, *words)
        assert expected in message
        assert str(conf) in message
    assert files_in(runs_copy) == before
    assert not (tmp_path / "inference").exists()


def test_a_run_that_is_not_there(series, tmp_path, capsys):
    message = refused(capsys, test_reconstruct.main, *evaluating(tmp_path / "none", series, tmp_path), code=2)
    assert f"there is no configuration {tmp_path}/none/{NAME}/conf.json; --weight_folder and --experiment" in message
    words = ["--res_dir", tmp_path, "--resume_from", "--device", "cpu"]
    assert "nothing to resume" in refused(capsys, train_reconstruct.main, *words, code=2)
    words = training(series, tmp_path / "new", "--trained_checkp", tmp_path / "none.pth.tar")
    assert f"there is no checkpoint {tmp_path}/none.pth.tar" in refused(capsys, train_reconstruct.main, *words)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "list.json: No such file"),
        ("[", "is not valid JSON"),
        ("[]", "a JSON list of samples"),
        ('[{"target": ["a.tif"], "inputs": ["first"]}]', "custom sample 1: inputs[0] must be integer, got 'first'"),
        ('[{"target": ["a.tif"], "inputs": [0]}]', "a.tif is no file of SEN12MS-CR-TS"),
        ('[{"target": []}]', "custom sample 1: the content must contain"),
    ],
)
def test_a_custom_list_that_cannot_be_used(runs, series, tmp_path, capsys, content, expected):
    given = tmp_path / "list.json"
    if content is not None:
        given.write_text(content)
    words = evaluating(runs, series, tmp_path / "inference", "--use_custom", given)
    assert expected in refused(capsys, test_reconstruct.main, *words)
    assert not (tmp_path / "inference").exists()
