"""The benchmark of a training step, at a tiny size; the allocator setting that it measures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import training_step
from common.errors import UsageError
from config.schema import ModelConfig
from model.build import build_loss, build_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("variant", ["published fp32", "ours fp32", "ours bf16", "ours bf16+last"])
def test_every_kind_of_step_is_measured(variant, capsys):
    words = ["--worker", variant, "--steps", "1", "--size", "32", "--batch", "2"]
    assert training_step.main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"wall_s", "cpu_s", "peak_mb"}
    assert figures["wall_s"] > 0


@pytest.mark.parametrize("variant", ["theirs fp32", "ours fp8", "ours bf16+fast", "published fp32+compile"])
def test_unknown_variants_are_an_error(variant):
    with pytest.raises(UsageError, match="unknown variant|as it is, eager"):
        training_step.main(["--variants", variant])


def test_ratios_are_taken_within_a_round(monkeypatch, tmp_path, capsys):
    seconds = iter([2.0, 1.0, 4.0, 1.0, 3.0, 2.0])
    megabytes = iter([10.0, 5.0] * 3)

    def run(*_, **__):
        return {"wall_s": next(seconds), "cpu_s": 1.0, "peak_mb": next(megabytes)}

    monkeypatch.setattr(training_step, "_measure_in_worker", run)
    out = tmp_path / "results" / "step.json"
    training_step.main(["--rounds", "3", "--variants", "published fp32", "ours bf16+keep", "--out", str(out)])
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["median of rounds"]["published fp32"]["wall_s"] == 3.0
    assert report["median of rounds"]["ours bf16+keep"]["wall_s ratio"] == pytest.approx(1 / 3)
    faster = {"median": 2.0, "least": 1.5, "most": 4.0}
    assert report["times faster"]["ours bf16+keep"] == faster
    assert report["of auto"]["times faster"] == {**faster, "goal": 4.0}
    assert report["of auto"]["share of peak"] == {"median": 0.5, "least": 0.5, "most": 0.5, "goal": 0.5}
    assert "times faster than published fp32" in capsys.readouterr().out


def test_traffic_is_what_products_read_and_write():
    a, b = torch.rand(8, 16, requires_grad=True), torch.rand(16, 4)
    forward = 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert training_step.traffic(lambda: (a.detach() @ b).relu()) == forward
    # backward: the gradient (8, 4) and b make that of a (8, 16); a transposed view counts as its tensor
    assert training_step.traffic(lambda: (a @ b).sum().backward()) == 2 * forward
    seconds = training_step.bandwidth_limit(lambda: a.detach() @ b, torch.device("cpu"))
    assert 1e8 < forward / seconds < 1e13  # bytes a second of any memory there is


@pytest.mark.parametrize("head", ["gaussian", "nig"])
def test_network_and_loss_read_no_number_from_the_device(head):
    # each such read would wait for a GPU at every step
    class Watch(TorchDispatchMode):
        seen: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    config = ModelConfig(head=head, loss="MGNLL" if head == "gaussian" else "NIG", use_sar=True, scale_by=10.0)
    model, criterion = build_model(config).train(), build_loss(config)
    x, dates, target = torch.rand(2, 3, 15, 32, 32), torch.rand(2, 3) * 90, torch.rand(2, 1, 13, 32, 32) * 10
    with Watch() as watch, torch.autocast("cpu", torch.bfloat16):
        criterion(model(x, dates), target).backward()
    assert {"convolution_backward", "native_batch_norm_backward"} <= watch.seen  # forward and backward are watched
    assert not watch.seen & {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_the_allocator_keeps_freed_memory():
    # in a process of its own: it cannot be undone
    code = "from common.memory import keep_freed_memory; assert keep_freed_memory(); b = bytearray(10**8); del b"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
