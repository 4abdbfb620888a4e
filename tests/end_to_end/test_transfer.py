"""Train on single dates first, then start the network of series from those weights, frozen for a while."""

import json
import signal

import pytest
import torch

from model.weights import load_checkpoint
from tests.support.commands import TINY

NETWORK = TINY + " --use_sar --scale_by 10 --lr 0.01"


@pytest.fixture(scope="module")
def mono(commands, sample_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mono") / "results"
    options = "--pretrain --loss l2 --epochs 1 --experiment_name mono"
    commands.run("train_reconstruct.py", NETWORK, sample_data.roots, options, "--res_dir", folder).ok()
    return folder / "mono" / "model.pth.tar"


def transfer(sample_data, mono, folder):
    options = "--loss NIG --epochs 2 --unfreeze_after 1 --gamma 0.5 --experiment_name series"
    return [NETWORK, options, sample_data.roots, "--trained_checkp", mono, "--res_dir", folder]


@pytest.fixture(scope="module")
def series(commands, sample_data, mono, tmp_path_factory):
    folder = tmp_path_factory.mktemp("series") / "results"
    return commands.run("train_reconstruct.py", *transfer(sample_data, mono, folder)).ok(), folder / "series"


def parameters(path):
    state = load_checkpoint(path)["state_dict_G"]
    moved_by_data = ("running_mean", "running_var", "num_batches_tracked")
    return {key: value for key, value in state.items() if not key.endswith(moved_by_data)}


def test_pretraining_knows_a_single_date(mono):
    conf = json.loads((mono.parent / "conf.json").read_text())
    assert (conf["input_t"], conf["n_head"], conf["positional_encoding"], conf["head"]) == (1, 1, False, "mean")
    assert not [key for key in parameters(mono) if key.startswith("temporal_encoder")]
    assert (mono.parent / "test_metrics.json").is_file()


def test_what_was_loaded_is_told(mono, series):
    said = series[0].text
    loaded = len(load_checkpoint(mono)["state_dict_G"]) - 2  # the last layer has other rows
    assert f"{mono}: {loaded} tensors loaded" in said
    assert "in part: out_conv.conv.conv.0.weight (the 13 rows of the means" in said
    assert "start fresh: temporal_encoder." in said  # known issue 10: nothing stays random without a word
    assert "left in the checkpoint" not in said
    assert "epoch 2:" in said
    assert "frozen weights train from now on" in said


def test_loaded_weights_wait_and_then_move(mono, series):
    run = series[1]
    start, first, second = (
        parameters(path) for path in (mono, run / "model_epoch_1.pth.tar", run / "model_epoch_2.pth.tar")
    )
    frozen = [key for key in start if not key.startswith("out_conv")]
    assert len(frozen) > 20
    assert all(torch.equal(start[key], first[key]) for key in frozen)
    # a bias before a batch norm has no gradient but rounding: weights are what must move
    assert all(not torch.equal(first[key], second[key]) for key in frozen if key.endswith("weight"))
    free = [key for key in first if key not in frozen]
    assert any(key.startswith("temporal_encoder") for key in free)
    assert not torch.equal(start["out_conv.conv.conv.0.weight"], first["out_conv.conv.conv.0.weight"][:13])
    assert load_checkpoint(run / "model_epoch_1.pth.tar")["frozen"] == ["netG." + key for key in frozen]
    assert load_checkpoint(run / "model_epoch_2.pth.tar")["frozen"] == []


@pytest.mark.parametrize("moment", [["step", 2], ["step", 3]], ids=["before the first checkpoint", "once unfrozen"])
def test_the_same_line_with_resume_from_goes_on(commands, sample_data, mono, series, tmp_path, moment):
    """--trained_checkp names the start of this run: typed again it is not what to go on from."""
    words = transfer(sample_data, mono, tmp_path / "results")
    assert commands.run("train_reconstruct.py", *words, kill_at=moment).code == -signal.SIGKILL
    resumed = commands.run("train_reconstruct.py", *words, "--resume_from").ok()
    assert ("no epoch is complete yet" in resumed.text) == (moment == ["step", 2])
    found, expected = (
        parameters(run / "model_epoch_2.pth.tar") for run in (tmp_path / "results" / "series", series[1])
    )
    assert all(torch.equal(found[key], expected[key]) for key in expected)
