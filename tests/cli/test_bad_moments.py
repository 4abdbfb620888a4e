"""What can fail in the middle of a run: disk, memory, loss, a worker; one line each, and what was saved survives."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import ensemble_reconstruct
import test_reconstruct
import train_reconstruct
from evaluation.exports import read_exports
from model.reconstructor import Reconstructor
from model.weights import load_checkpoint
from tests.support.cli_cases import (
    NAME,
    assert_whole,
    call,
    evaluating,
    files_in,
    only_error,
    refused,
    training,
)
from tests.support.commands import ROOT
from util import make_sample_data, pre_compute_data_samples


def checkpoints(runs: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_in(runs).items() if name.endswith(".pth.tar")}


# Disk full


def full_for(monkeypatch, call_name: str, suffix: str) -> None:
    """Let os.replace or os.fsync fail with a full disk for files of this ending."""
    real = getattr(os, call_name)

    def refuse(what, *into):
        name = str(*into) if into else os.readlink(f"/proc/self/fd/{what}")
        if name.endswith(suffix):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(what, *into)

    monkeypatch.setattr(os, call_name, refuse)


@pytest.mark.parametrize("call_name", ["replace", "fsync"])
def test_a_full_disk_while_saving_leaves_the_previous_checkpoints(runs_copy, series, capsys, monkeypatch, call_name):
    before = checkpoints(runs_copy)
    full_for(monkeypatch, call_name, ".tar")
    words = training(series, runs_copy, "--resume_from", "--epochs", 2)
    message = refused(capsys, train_reconstruct.main, *words)
    assert re.search(
        rf"disk full while saving {runs_copy}/{NAME}/model.*\.pth\.tar: make room; what stood there", message
    )
    assert checkpoints(runs_copy) == before
    assert_whole(runs_copy)
    monkeypatch.undo()
    assert call(train_reconstruct.main, *words) == 0  # and the training goes on once there is room
    assert load_checkpoint(runs_copy / NAME / "model_epoch_2.pth.tar")["epoch"] == 2


@pytest.mark.parametrize("what", ["conf.json", "trainlog.json", "metrics.json", ".png", ".npy"])
def test_a_full_disk_at_any_other_file(runs_copy, series, tmp_path, capsys, monkeypatch, what):
    full_for(monkeypatch, "replace", what)
    if what == ".npy":
        words = evaluating(runs_copy, series, tmp_path / "inference")
        message = refused(capsys, test_reconstruct.main, *words)
        assert "img-0_" in message
        assert not list((tmp_path / "inference").rglob("*.npy"))
    else:
        message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "new"))
    assert re.search(rf"disk full while saving {tmp_path}/\S*{re.escape(what)}: make room", message)
    assert_whole(tmp_path)


def limited(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_in_a_process_of_its_own(runs_copy, series):
    """The kernel refuses to let any file grow above 60 KB: checkpoints have 110, the other files of a run less."""
    before = checkpoints(runs_copy)
    words = [str(word) for word in training(series, runs_copy, "--resume_from", "--epochs", 2)]
    command = [sys.executable, "train_reconstruct.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limited(60_000))
    assert done.returncode == 1, done.stderr
    assert re.search(rf"error: disk full while saving {runs_copy}/{NAME}/model.*\.pth\.tar", only_error(done.stderr))
    assert checkpoints(runs_copy) == before
    assert_whole(runs_copy)


def test_a_full_disk_under_tensorboard(series, tmp_path, capsys, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hook = threading.excepthook
    monkeypatch.setattr(RecordWriter, "write", refuse)  # it is called in a thread of its own
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "results"))
    assert f"cannot write the log in {tmp_path}/logs/{NAME}: No space left on device; make room" in message
    assert threading.excepthook is hook
    assert_whole(tmp_path)


def test_logs_that_cannot_be_made(series, tmp_path, capsys):
    (tmp_path / "logs").write_text("")
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "results"))
    assert f"cannot write the log in {tmp_path}/logs/{NAME}: " in message


def test_a_full_disk_under_the_mask_store(series, tmp_path, capsys, monkeypatch):
    full_for(monkeypatch, "replace", ".npz")
    words = ["--root", series, "--out", tmp_path / "store", "--detector", "cloud_cloudshadow_mask"]
    message = refused(capsys, pre_compute_data_samples.main, *words)
    assert f"disk full while saving {tmp_path}/store" in message
    assert_whole(tmp_path)
    full_for(monkeypatch, "fsync", ".tif")
    message = refused(capsys, make_sample_data.main, tmp_path / "data", "--rois", 3, "--patches", 1, "--size", 16)
    assert "disk full while saving" in message
    assert not (tmp_path / "data").exists()
    assert_whole(tmp_path)


def test_a_results_folder_that_is_a_file(series, runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "file"))
    flags = "--experiment_name or --res_dir"
    assert f"cannot write to {tmp_path}/file/{NAME}: Not a directory; choose another {flags}" in message
    message = refused(capsys, test_reconstruct.main, *evaluating(runs, series, tmp_path / "file"))
    assert "choose another --experiment_name or --res_dir" in message
    exports = tmp_path / "inference" / NAME / "export" / "epoch_1" / "test"
    assert call(test_reconstruct.main, *evaluating(runs, series, tmp_path / "inference")) == 0
    message = refused(capsys, ensemble_reconstruct.main, exports, "--res_dir", tmp_path / "file")
    assert f"cannot write to {tmp_path}/file" in message


# Memory


def cuda_is_full(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")


def this_machine_is_full(*_):
    raise MemoryError("Unable to allocate 96.0 GiB for an array with shape (30, 13, 256, 256)")


def processor_is_full(*_):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to")


@pytest.mark.parametrize(
    ("fails", "where"),
    [(cuda_is_full, "on cpu"), (this_machine_is_full, "of this machine"), (processor_is_full, "on cpu")],
)
def test_a_full_memory_names_the_flags_that_lower_the_need(
    runs_copy, series, tmp_path, capsys, monkeypatch, fails, where
):
    before = checkpoints(runs_copy)
    monkeypatch.setattr(Reconstructor, "forward", fails)
    words = training(series, runs_copy, "--resume_from", "--epochs", 2)
    message = refused(capsys, train_reconstruct.main, *words)
    assert f"out of memory {where}: lower --batch_size (--accumulate N" in message
    assert "--input_t" in message
    assert "--precision bf16" in message
    assert checkpoints(runs_copy) == before
    message = refused(capsys, test_reconstruct.main, *evaluating(runs_copy, series, tmp_path / "inference"))
    assert f"out of memory {where}: lower --batch_size, use --precision bf16, or add --device cpu" in message


@pytest.mark.parametrize("place", ["zero_grad", "step"])
def test_a_full_memory_outside_the_network(series, tmp_path, capsys, monkeypatch, place):
    monkeypatch.setattr(torch.optim.Adam, place, cuda_is_full)
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path))
    assert "out of memory on cpu: lower --batch_size" in message


def test_other_failures_of_torch_are_not_taken_for_a_full_memory(series, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Reconstructor, "forward", fails)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        call(train_reconstruct.main, *training(series, tmp_path))


# Loss


def test_a_loss_that_is_not_finite_stops_and_leaves_what_is_needed_to_look_into_it(runs_copy, series, capsys):
    words = training(series, runs_copy, "--resume_from", "--epochs", 2)
    state = load_checkpoint(runs_copy / NAME / "model_epoch_1.pth.tar")
    state["optimizer_G"]["param_groups"][0]["lr"] = 1e30  # a resumed training keeps its own rate
    torch.save(state, runs_copy / NAME / "model_epoch_1.pth.tar")
    before = checkpoints(runs_copy)
    message = refused(capsys, train_reconstruct.main, *words)
    path = runs_copy / NAME / "nan_epoch_2_batch_1.pth.tar"
    assert re.search(rf"the loss is (nan|inf) in epoch 2, batch 1; the samples and the weights are in {path}", message)
    assert message.endswith("try a lower --lr, --clip_grad 1, or --precision fp32")
    found = torch.load(path, weights_only=True)
    assert found["x"].shape == (1, 2, 13, 32, 32)
    assert found["target"].shape == (1, 1, 13, 32, 32)
    assert found["samples"][0]["roi"] == "ROIs1970/21"
    assert not np.isfinite(found["loss"])
    assert "netG.in_conv.conv.conv.0.weight" in found["state_dict"]
    after = checkpoints(runs_copy)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{NAME}/{path.name}"}
    assert_whole(runs_copy)


def test_a_device_that_runs_ahead_names_the_first_bad_batch(series, tmp_path, monkeypatch):
    """On a GPU losses are checked every display_step batches: the first bad one is reported, not the last."""
    from common.errors import DataError
    from data.batch import Batch, SampleInfo
    from model.runtime import Compute
    from training.engine import TrainState, train_one_epoch

    class Device(str):
        type = "elsewhere"

    class Model(torch.nn.Module):
        scale_by = 1.0

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

    class Ahead(Compute):
        def predict(self, model, batch):
            return model.weight * batch.x

    def batch_of(number):
        info = SampleInfo(number, "ROIs1970/21", str(number), (1,), 2, ("a",), ("b",), "c")
        x = torch.full((1, 1, 13, 2, 2), float("nan") if number == 2 else 0.5)
        return Batch(x, x, None, x[:, :, 0], x[:, :, 0, 0, 0], (info,))

    monkeypatch.setattr(Batch, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.tensor(0.0))
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainState(model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0))
    with pytest.raises(DataError, match="the loss is nan in epoch 1, batch 2; the samples"):
        train_one_epoch(
            state,
            [batch_of(number) for number in range(5)],
            lambda prediction, target, valid: (prediction - target).square().mean(),
            Ahead(Device("elsewhere")),
            steps=5,
            display_step=5,
            rescue=tmp_path,
        )
    found = torch.load(tmp_path / "nan_epoch_1_batch_2.pth.tar", weights_only=True)
    assert (found["batch"], found["noticed_at_batch"], found["samples"][0]["patch"]) == (2, 4, "2")
    assert "x" not in found


def test_weights_that_broke_in_the_last_step_of_all(series, tmp_path, capsys):
    words = training(series, tmp_path / "results", "--lr", 1e30, "--max_samples_count", 1)
    message = refused(capsys, train_reconstruct.main, *words)
    path = tmp_path / "results" / NAME / "model_epoch_1.pth.tar"
    assert f"the validation loss is NaN after epoch 1, whose weights are in {path}; try a lower --lr" in message
    assert load_checkpoint(path)["epoch"] == 1
    assert not (path.parent / "model.pth.tar").exists()
    assert np.isnan(json.loads((path.parent / "val_epoch_1_metrics.json").read_text())["loss"])


# Exports and ensembles


def test_fewer_exports_than_before_leave_none_of_an_older_model(runs, series, tmp_path, capsys):
    words = evaluating(runs, series, tmp_path)
    assert call(test_reconstruct.main, *words) == 0
    exports = tmp_path / NAME / "export" / "epoch_1" / "test"
    assert read_exports(exports).ids == (0, 1)
    assert call(test_reconstruct.main, *words, "--max_samples_count", 1) == 0
    assert read_exports(exports).ids == (0,)
    assert {path.name.split("_")[0] for path in exports.glob("*.npy")} == {"img-0"}


def test_an_ensemble_that_fails_says_why_and_leaves_nothing_half_written(runs, series, tmp_path, capsys):
    exports = tmp_path / NAME / "export" / "epoch_1" / "test"
    assert call(test_reconstruct.main, *evaluating(runs, series, tmp_path)) == 0
    out = tmp_path / "out"
    damaged = exports / "img-1_pred.npy"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:1000])
    message = refused(capsys, ensemble_reconstruct.main, exports, "--res_dir", out)
    assert f"{damaged} is not a readable .npy file" in message
    assert not (out / "test_metrics.json").exists()
    assert_whole(out)
    damaged.write_bytes(content)
    (exports / "manifest.json").write_text('{"samples": {')
    message = refused(capsys, ensemble_reconstruct.main, exports, "--res_dir", tmp_path / "other")
    assert "manifest.json is not valid JSON" in message
    assert "no folder" in refused(capsys, ensemble_reconstruct.main, tmp_path / "nowhere")
    (exports / "manifest.json").unlink()
    for path in exports.glob("*_target.npy"):
        path.unlink()
    message = refused(capsys, ensemble_reconstruct.main, exports, "--res_dir", tmp_path / "other")
    assert "sample 0 has no exported target" in message
    assert not (tmp_path / "other").exists() or files_in(tmp_path / "other") == {}


# Workers


def test_a_worker_that_is_killed_is_told_in_one_line(series, tmp_path, capsys, monkeypatch):
    from data.datasets.sen12mscrts import SEN12MSCRTS

    monkeypatch.setattr(SEN12MSCRTS, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path, "--num_workers", 2))
    assert "a data loading process was killed from outside" in message
    assert "lower --num_workers or --batch_size" in message
