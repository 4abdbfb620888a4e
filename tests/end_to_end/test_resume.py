"""Resuming: killed trainings end with the same bits, changed flags act, later epochs are set aside."""

import json
import shutil
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.weights import load_checkpoint
from tests.support.commands import TINY

EPOCHS = 3


def flags(sample_data, folder, workers=0):
    """Dropout is on and dates vary, as by default; the rate falls, so that the schedule has to be restored as well."""
    options = "--use_sar --scale_by 10 --lr 0.01 --gamma 0.7 --export_every 1 --rdm_seed 3 --experiment_name run"
    run = ["--epochs", EPOCHS, "--num_workers", workers, "--res_dir", folder]
    return [TINY, options, sample_data.roots, run]


def losses(folder):
    log = json.loads((folder / "trainlog.json").read_text())
    return {epoch: {name: value for name, value in row.items() if "time" not in name} for epoch, row in log.items()}


def assert_same_run(found, expected):
    names = ["model.pth.tar", *(f"model_epoch_{epoch}.pth.tar" for epoch in range(1, EPOCHS + 1))]
    for name in names:
        one, other = load_checkpoint(found / name), load_checkpoint(expected / name)
        assert one["epoch"] == other["epoch"], name
        assert one["state_dict_G"].keys() == other["state_dict_G"].keys()
        for key, value in other["state_dict_G"].items():
            assert torch.equal(one["state_dict_G"][key], value), (name, key)
        for number, moments in other["optimizer_G"]["state"].items():
            for key, value in moments.items():
                assert torch.equal(one["optimizer_G"]["state"][number][key], value), (name, number, key)
        assert one["scheduler_G"]["_last_lr"] == other["scheduler_G"]["_last_lr"]
        assert torch.equal(one["rng"]["torch"], other["rng"]["torch"])
        assert one["best_loss"] == other["best_loss"]
    assert losses(found) == losses(expected)
    for metrics in ("test_metrics.json", f"val_epoch_{EPOCHS}_metrics.json"):
        assert json.loads((found / metrics).read_text()) == json.loads((expected / metrics).read_text())
    assert files(found) == files(expected)  # nothing half-written is left


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def uninterrupted(commands, sample_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "results"
    commands.run("train_reconstruct.py", *flags(sample_data, folder)).ok()
    return folder / "run"


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(["before", "conf.json", 1], id="before anything is written"),
        pytest.param(["step", 2], id="in epoch 1, before the first checkpoint"),
        pytest.param(["after", "model.pth.tar", 1], id="between the best and the first checkpoint"),
        pytest.param(["step", 4], id="in the middle of epoch 2"),
        pytest.param(["before", "model_epoch_2.pth.tar", 1], id="while a checkpoint is being written"),
        pytest.param(["after", "model_epoch_2.pth.tar", 1], id="right after an epoch"),
        pytest.param(["before", "test_metrics.json", 1], id="in the final test"),
    ],
)
def test_killed_training_ends_with_the_same_bits(commands, sample_data, uninterrupted, tmp_path, moment):
    # known issue 10: epoch, best loss, random states, optimiser and rate go on, nothing is initialised again
    words = flags(sample_data, tmp_path / "results")
    assert commands.run("train_reconstruct.py", *words, kill_at=moment).code == -signal.SIGKILL
    assert not (tmp_path / "results" / "run" / "test_metrics.json").exists()
    commands.run("train_reconstruct.py", *words, "--resume_from").ok()
    assert_same_run(tmp_path / "results" / "run", uninterrupted)


def kill_once(commands, words, seen):
    """Start a training, and kill it from outside as soon as `seen` says so; what ended it."""
    running = commands.start("train_reconstruct.py", *words)
    deadline = time.monotonic() + 60
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert seen(), running.text
    return running.kill().code


def test_killed_again_and_again_with_two_workers(commands, sample_data, uninterrupted, tmp_path):
    run = tmp_path / "results" / "run"
    words = [*flags(sample_data, tmp_path / "results", workers=2), "--resume_from"]  # as in a script that is requeued
    ended = [
        kill_once(commands, words, (run / "conf.json").exists),
        kill_once(commands, words, (run / "model_epoch_1.pth.tar").exists),
        kill_once(commands, words, lambda: any(run.glob("export/epoch_*/test/*.npy"))),
    ]
    assert ended[0] == -signal.SIGKILL  # the others may have been over before they were seen on a busy machine
    brief = "--experiment_name run --resume_from --device cpu --res_dir"
    commands.run("train_reconstruct.py", brief, tmp_path / "results").ok()  # conf.json knows the rest
    assert_same_run(run, uninterrupted)


def test_resuming_a_finished_training_tests_it_again(commands, sample_data, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "results" / "run")
    (tmp_path / "results" / "run" / "test_metrics.json").unlink()
    commands.run("train_reconstruct.py", *flags(sample_data, tmp_path / "results"), "--resume_from").ok()
    assert_same_run(tmp_path / "results" / "run", uninterrupted)


def test_more_epochs_go_on_from_the_last(commands, sample_data, uninterrupted, tmp_path):
    words = flags(sample_data, tmp_path / "results")
    commands.run("train_reconstruct.py", *words, "--epochs 2").ok()
    commands.run("train_reconstruct.py", *words, "--resume_from").ok()
    run = tmp_path / "results" / "run"
    assert json.loads((run / "conf.json").read_text())["epochs"] == EPOCHS
    shutil.rmtree(run / "export")  # that of the test after two epochs is there as well
    shutil.copytree(uninterrupted / "export", run / "export")
    assert_same_run(run, uninterrupted)


def test_an_earlier_training_of_the_name_is_set_aside(commands, sample_data, uninterrupted, tmp_path):
    """Else a resumed run goes on from the other's later epochs, or tests the other's best weights."""
    shutil.copytree(uninterrupted, tmp_path / "results" / "run")
    words = [*flags(sample_data, tmp_path / "results"), "--val_after 9 --epochs 1"]  # no best one of its own
    said = commands.run("train_reconstruct.py", *words).ok().text
    earlier = tmp_path / "results" / "run_earlier_1"
    assert f"an earlier training of this name is now in {earlier}" in said
    assert_same_run(earlier, uninterrupted)
    content = load_checkpoint(tmp_path / "results" / "run" / "model.pth.tar")
    assert (content["epoch"], content["config"]["val_after"]) == (1, 9)
    assert not (tmp_path / "results" / "run" / "model_epoch_2.pth.tar").exists()


def copied(uninterrupted, folder):
    """A copy of the run and its logs, in results/run and logs/run."""
    shutil.copytree(uninterrupted, folder / "results" / "run")
    shutil.copytree(uninterrupted.parents[1] / "logs" / "run", folder / "logs" / "run")
    return folder / "results" / "run"


def scalars(logs):
    """The steps of every figure that TensorBoard shows."""
    events = EventAccumulator(str(logs)).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_flags_named_on_resuming_act_and_are_recorded(commands, sample_data, uninterrupted, tmp_path):
    run = copied(uninterrupted, tmp_path)
    changes = "--epochs 4 --lr 0.00001 --gamma 0.1 --batch_size 2 --clip_grad 1 --val_every 4 --display_step 1"
    words = [*flags(sample_data, tmp_path / "results"), changes, "--resume_from"]
    assert "learning rate 1e-05 from epoch 4 on" in commands.run("train_reconstruct.py", *words).ok().text
    before, after = (load_checkpoint(run / f"model_epoch_{epoch}.pth.tar") for epoch in (3, 4))
    assert before["optimizer_G"]["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.7**3)
    assert after["optimizer_G"]["param_groups"][0]["lr"] == pytest.approx(0.00001 * 0.1)
    weight = "in_conv.conv.conv.0.weight"
    assert (after["state_dict_G"][weight] - before["state_dict_G"][weight]).abs().max() < 1e-4
    assert [row["train_steps"] for row in losses(run).values()] == [2, 2, 2, 1]  # two samples
    conf = json.loads((run / "conf.json").read_text())
    recorded = {"epochs": [3, 4], "lr": [0.01, 0.00001], "gamma": [0.7, 0.1], "batch_size": [1, 2]}
    recorded |= {"clip_grad": [0.0, 1.0], "val_every": [1, 4], "display_step": [10, 1]}
    assert conf["history"] == [{"epoch": 4, **recorded}]
    assert {name: conf[name] for name in recorded} == {name: new for name, (_, new) in recorded.items()}
    content = (run / "conf.json").read_text()
    commands.run("train_reconstruct.py", *words).ok()  # the same line again changes nothing
    assert (run / "conf.json").read_text() == content
    back = "--experiment_name run --resume_from --resume_at 3 --device cpu --res_dir"
    commands.run("train_reconstruct.py", back, tmp_path / "results").ok()  # before the change
    assert_same_weights(run / "model_epoch_3.pth.tar", uninterrupted / "model_epoch_3.pth.tar")
    conf = json.loads((run / "conf.json").read_text())
    assert (conf["lr"], conf["gamma"], conf["batch_size"], conf["epochs"]) == (0.01, 0.7, 1, 4)
    assert conf["history"] == [{"epoch": 4, "epochs": [3, 4]}]


def assert_same_weights(one, other):
    first, second = (load_checkpoint(path)["state_dict_G"] for path in (one, other))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_going_back_sets_later_epochs_aside(commands, sample_data, uninterrupted, tmp_path):
    """Else the best of the abandoned epochs is tested, and the next --resume_from goes on after the last of them."""
    run, earlier = copied(uninterrupted, tmp_path), tmp_path / "results" / "run_earlier_1"
    words = [*flags(sample_data, tmp_path / "results"), "--resume_from --resume_at 1 --lr 0.3 --epochs 2"]
    text = commands.run("train_reconstruct.py", *words).ok().text
    assert f"note: what came after epoch 1 is now in {earlier}" in text
    assert sorted(path.name for path in run.glob("*_epoch_*")) == [
        *("model_epoch_1.pth.tar", "model_epoch_2.pth.tar"),
        *("val_epoch_1_metrics.json", "val_epoch_2_metrics.json"),
    ]
    log = losses(run)
    assert log["1"] == losses(uninterrupted)["1"]
    assert list(log) == ["1", "2"]
    best = max(log, key=lambda epoch: (-log[epoch]["val_loss"], epoch))
    assert_same_weights(run / "model.pth.tar", run / f"model_epoch_{best}.pth.tar")
    assert load_checkpoint(run / "model.pth.tar")["epoch"] == int(best)
    # what was set aside is a whole run: its best weights, its test, its logs, and its first epoch in the log
    assert_same_weights(earlier / "model.pth.tar", uninterrupted / "model.pth.tar")
    for name in ("conf.json", "trainlog.json", "test_metrics.json", "val_epoch_3_metrics.json", "report.html"):
        assert (earlier / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert (earlier / "model_epoch_3.pth.tar").is_file()
    assert (earlier / "export" / "epoch_2" / "val").is_dir()
    assert scalars(tmp_path / "logs" / "run_earlier_1")["val/loss"] == [1, 3, 5]
    commands.run("train_reconstruct.py", *flags(sample_data, tmp_path / "results"), "--epochs 2 --resume_from").ok()
    assert load_checkpoint(run / "model_epoch_2.pth.tar")["epoch"] == 2
    assert not (tmp_path / "results" / "run_earlier_2").exists()


def test_every_figure_is_once_in_tensorboard(commands, sample_data, uninterrupted, tmp_path):
    run = copied(uninterrupted, tmp_path)
    words = [*flags(sample_data, tmp_path / "results"), "--resume_from --display_step 1"]
    expected = scalars(tmp_path / "logs" / "run")
    assert (expected["train/loss"], expected["val/loss"], expected["test/loss"]) == ([1, 3, 5], [1, 3, 5], [6])
    commands.run("train_reconstruct.py", *words).ok()  # tests again
    assert scalars(tmp_path / "logs" / "run") == expected
    commands.run("train_reconstruct.py", *words, "--resume_at 2 --epochs 4").ok()
    steps = scalars(tmp_path / "logs" / "run")
    assert (steps["train/loss"], steps["val/loss"], steps["test/loss"]) == ([1, 3, 4, 5, 6, 7], [1, 3, 5, 7], [8])
    assert run.is_dir()


def test_without_validation_the_last_weights_are_tested_after_resuming_too(commands, sample_data, tmp_path):
    words = [*flags(sample_data, tmp_path / "results"), "--val_after 9"]
    commands.run("train_reconstruct.py", *words, "--epochs 1").ok()
    assert load_checkpoint(tmp_path / "results" / "run" / "model.pth.tar")["epoch"] == 1
    commands.run("train_reconstruct.py", *words, "--epochs 2 --resume_from").ok()
    assert load_checkpoint(tmp_path / "results" / "run" / "model.pth.tar")["epoch"] == 2


def test_profile_leaves_no_trace(commands, sample_data, tmp_path):
    said = commands.run("train_reconstruct.py", *flags(sample_data, tmp_path / "results"), "--profile").ok().text
    assert "gflops_forward" in said
    assert "forward_backward_s" in said
    assert not (tmp_path / "results").exists()
