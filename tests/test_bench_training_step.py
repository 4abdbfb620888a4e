"""The benchmark of a training step, at a size that tells nothing but that it runs; the allocator it speaks of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import training_step

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("variant", ["published fp32", "ours fp32", "ours bf16"])
def test_every_kind_of_step_is_measured(variant, capsys):
    assert training_step.main(["--worker", variant, "--steps", "1", "--size", "32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"wall_s", "cpu_s", "peak_mb"}
    assert found["wall_s"] > 0


def test_the_table_is_relative_to_the_first_variant(monkeypatch, tmp_path, capsys):
    seconds = iter([2.0, 1.0, 4.0, 1.0, 3.0, 2.0])

    def run(*_):
        return {"wall_s": next(seconds), "cpu_s": 1.0, "peak_mb": 10.0}

    monkeypatch.setattr(training_step, "_in_own_process", run)
    out = tmp_path / "results" / "step.json"
    training_step.main(["--rounds", "3", "--variants", "published fp32", "ours fp32", "--out", str(out)])
    table = json.loads(out.read_text(encoding="utf-8"))["median of rounds"]
    assert table["published fp32"]["wall_s"] == 3.0
    assert table["ours fp32"]["wall_s ratio"] == pytest.approx(1 / 3)
    assert "relative to published fp32" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_the_allocator_is_told_to_keep_memory():
    # in a process of its own: it cannot be undone
    code = "from util.memory import keep_freed_memory; assert keep_freed_memory(); b = bytearray(10**8); del b"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
