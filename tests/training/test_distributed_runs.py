"""Two processes, started by torchrun as a user does, do what one process does: gradients, metrics, files, resuming."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.clouds.mask_record import MaskEntry, write_record
from data.clouds.mask_store import MaskStore, default_store
from data.raster.geotiff import write_geotiff
from data.splits import MONO, rois
from model.weights import load_checkpoint
from tests.support.commands import ROOT, command_line
from tests.support.fake_trees import DETECTOR, SIZE, cloud_mask, patch_transform, triplet_path, write_triplet

PATCHES = {"train": (1, 2, 3, 4), "val": (5, 6, 7), "test": (8, 9, 10, 11)}
BAD = 9  # the second patch of the test split cannot be read
BATCH = 3  # shared as 2 and 1; of the fourth training sample the second process gets none
FLAGS = (
    "--pretrain --encoder_widths 8 --decoder_widths 8 8 --encoder_norm batch --use_sar --loss NIG --scale_by 10 "
    f"--device cpu --batch_size {BATCH} --epochs 1 --lr 0.003 --skip_bad_samples --experiment_name run"
)  # batch norms everywhere and no dropout, which is drawn by each process for itself
ONE_STEP = "--accumulate 2 --clip_grad 0.1 --export_every 1 --plot_every 2"
STRUCTURE = re.compile(r"epoch 1: val loss|all samples|samples: train|run folder:|metrics:|\.tif: ")


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> list:
    """Triplets of noise: flat images have variances of 0, which batch norms blow up."""
    root, rng = tmp_path_factory.mktemp("triplets"), np.random.default_rng(0)
    for split, patches in PATCHES.items():
        roi = rois(MONO, split, "all")[0]
        for patch in patches:
            write_triplet(root, roi, patch)
            for sensor in ("s1", "s2", "s2_cloudy"):
                path = root / triplet_path(roi, sensor, patch)
                image = rng.integers(1, 8000, (13, SIZE, SIZE)).astype(np.uint16)
                if sensor == "s1":
                    image = rng.uniform(-24, -1, (2, SIZE, SIZE)).astype(np.float32)
                write_geotiff(path, image, "EPSG:32633", patch_transform(patch))
                if sensor == "s2_cloudy":
                    cloudy = MaskEntry(0.4, cloud_mask(0.4), path.stat().st_size)
                    record = MaskStore(default_store(root), DETECTOR).folder(root) / triplet_path(roi, sensor, patch)
                    write_record(record.with_suffix(".npz"), {path.name: cloudy})
                if patch == BAD:
                    path.write_bytes(path.read_bytes()[:-2000])
    return ["--root3", root]


class Pair:
    """Two processes that torchrun starts."""

    def __init__(self, log: Path, script: str, *words) -> None:
        self.log = log
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        with log.open("wb") as stream:
            self.torchrun = subprocess.Popen(
                [*line, str(ROOT / script), *command_line(words)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def wait(self, seconds: float = 120) -> int:
        return self.torchrun.wait(seconds)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8").replace("\r", "\n")

    def processes(self) -> list[int]:
        """The ids of the two, in the order of their ranks."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.torchrun.pid:
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    found |= {int(word[5:]): int(entry.name) for word in environment if word.startswith(b"RANK=")}
            except (OSError, IndexError, ValueError):
                continue
        return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def runs(commands, roots, tmp_path_factory) -> dict:
    """The same training by one process and by two; the folder of the run and what was printed."""
    folder = tmp_path_factory.mktemp("trainings")
    pair = Pair(folder / "two.log", "train_reconstruct.py", FLAGS, ONE_STEP, roots, "--res_dir", folder / "two/results")
    alone = commands.run("train_reconstruct.py", FLAGS, ONE_STEP, roots, "--res_dir", folder / "one/results").ok()
    assert pair.wait() == 0, pair.text
    return {"one": (folder / "one/results/run", alone.text), "two": (folder / "two/results/run", pair.text)}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_close(found, expected, rel, where=""):
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_close(found[key], value, rel, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, rel, f"{where}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12, nan_ok=True), where
    else:
        assert found == expected, where


def test_gradients_are_those_of_one_process(runs):
    one, two = (load_checkpoint(runs[name][0] / "model_epoch_1.pth.tar") for name in ("one", "two"))
    assert list(two) == list(one)
    assert list(two["state_dict"]) == list(one["state_dict"])
    assert list(two["state_dict_G"]) == list(one["state_dict_G"])
    assert not any("module." in key for key in two["state_dict"])
    moments = one["optimizer_G"]["state"]
    assert two["optimizer_G"]["state"].keys() == moments.keys()
    gradients = {number: 10 * moment["exp_avg"] for number, moment in moments.items()}  # after one step: 0.1 g
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm == pytest.approx(0.1, rel=1e-3)  # --clip_grad acted, on the gradient of all
    assert {int(moment["step"]) for moment in moments.values()} == {1}
    for number, gradient in gradients.items():
        other = 10 * two["optimizer_G"]["state"][number]["exp_avg"]
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-7)  # 1e-6 of their norm
    for key, value in one["state_dict_G"].items():
        if "running" in key or "num_batches" in key:  # the statistics of batch norms are those of all samples
            torch.testing.assert_close(two["state_dict_G"][key], value, rtol=1e-5, atol=1e-6)


def test_one_process_writes_and_prints(runs):
    (one, one_text), (two, two_text) = runs["one"], runs["two"]
    assert files(two) == files(one)
    assert len(list((two.parents[1] / "logs" / "run").glob("events*"))) == 1
    assert STRUCTURE.findall(two_text) == STRUCTURE.findall(one_text)
    assert "2 processes share each batch of 3" in two_text
    one_log, two_log = read(one / "trainlog.json")["1"], read(two / "trainlog.json")["1"]
    assert (two_log["train_samples"], one_log["train_samples"]) == (4, 4)
    assert two_log["train_loss"] == pytest.approx(one_log["train_loss"], rel=1e-6)


def test_metrics_and_exports_are_those_of_one_process(runs, commands, roots, tmp_path):
    weights = runs["one"][0].parent
    words = [roots, f"--device cpu --batch_size {BATCH} --experiment_name run --plot_every 2 --weight_folder", weights]
    pair = Pair(tmp_path / "two.log", "test_reconstruct.py", words, "--skip_bad_samples --res_dir", tmp_path / "two")
    commands.run("test_reconstruct.py", words, "--skip_bad_samples --res_dir", tmp_path / "one").ok()
    assert pair.wait() == 0, pair.text
    assert "1 unreadable patches were skipped" in pair.text
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert files(two) == files(one)
    manifests = [read(folder / "export/epoch_1/test/manifest.json") for folder in (one, two)]
    assert list(manifests[0]["samples"]) == ["0", "1", "2"]  # of four patches one cannot be read
    assert manifests[1] == manifests[0]
    for number in range(3):
        images = [np.load(folder / f"export/epoch_1/test/img-{number}_pred.npy") for folder in (one, two)]
        np.testing.assert_allclose(images[1], images[0], rtol=0, atol=1e-6)  # another batch, other rounding
    metrics = [read(folder / "test_metrics.json") for folder in (one, two)]
    assert metrics[0]["images"] == 3
    for figures in metrics:  # counts of pixels: a rounding may move one over an edge, of 3 x 13 x 32 x 32
        del figures["coverage curve"], figures["reliability"]
        figures["strata"] = {name: {"RMSE": row["RMSE"]} for name, row in figures["strata"].items()}
        for name in [name for name in figures if name.startswith("coverage ")]:
            figures[name] = round(figures[name], 3)
    assert_close(metrics[1], metrics[0], rel=1e-5)
    assert_close(read(two / "comparison.json"), read(one / "comparison.json"), rel=1e-6)
    samples = [read(folder / "test_samples.json")["samples"] for folder in (one, two)]
    assert [(row["id"], row["index"], row["patch"]) for row in samples[0]] == [(0, 0, "8"), (1, 2, "10"), (2, 3, "11")]
    assert_close(samples[1], samples[0], rel=1e-5)
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in (one, two)]
    for row in samples[0]:  # all three are shown: the best, the median, the worst
        assert all(f"Sample {row['id']}, region {row['roi']}, patch {row['patch']}<" in page for page in pages)
    assert pair.text.count("report: ") == 1


def test_resumed_by_one_then_by_two_of_which_one_is_killed(runs, commands, roots, tmp_path):
    folder = runs["two"][0]
    on = ["--experiment_name run --resume_from --device cpu --res_dir", folder.parent]
    alone = commands.run("train_reconstruct.py", on, "--epochs 2").ok()
    assert "resuming after epoch 1" in alone.text
    before = load_checkpoint(folder / "model_epoch_2.pth.tar")
    pair = Pair(tmp_path / "killed.log", "train_reconstruct.py", on, "--epochs 1000")
    deadline = time.monotonic() + 60
    while not (folder / "model_epoch_3.pth.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (folder / "model_epoch_3.pth.tar").exists(), pair.text
    since = time.monotonic()
    os.kill(pair.processes()[1], signal.SIGKILL)
    assert pair.wait(40) != 0
    assert time.monotonic() - since < 30  # a process that ends is noticed at once
    errors = [line for line in pair.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, pair.text
    assert re.search("process.*(exited|was lost).*--resume_from", errors[0])
    assert "Traceback" not in pair.text.split("error: ")[0]
    assert "resuming after epoch 2" in pair.text
    after = load_checkpoint(folder / "model_epoch_3.pth.tar")
    assert after["trainlog"]["2"] == before["trainlog"]["2"]
    steps = [next(iter(state["optimizer_G"]["state"].values()))["step"] for state in (before, after)]
    assert [int(step) for step in steps] == [2, 3]
    last = max(int(path.name.split("_")[2].split(".")[0]) for path in folder.glob("model_epoch_*"))
    commands.run("train_reconstruct.py", on, "--epochs", last + 1).ok()
    losses = [row["train_loss"] for row in read(folder / "trainlog.json").values()]
    assert losses[-1] < losses[0]
    assert not [name for name in files(folder) if ".tmp" in name]


SILENT = """
import time
from datetime import timedelta
import torch
from common import process_group
from common.cli import run_command

process_group.TIMEOUT = timedelta(seconds=3)

def main(argv):
    with process_group.session():
        process_group.init_process_group(torch.device("cpu"))
        print(process_group.all_gather_object(process_group.rank()), flush=True)
        if process_group.rank():
            time.sleep(60)
        process_group.barrier()

raise SystemExit(run_command(main, []))
"""


def test_a_silent_process_ends_the_run():
    """Started by hand, as schedulers do; what torchrun would end then is ended here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SILENT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | meeting | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        out, err = processes[0].communicate(timeout=60)
    finally:
        processes[1].kill()
    assert out == "[0, 1]\n"
    assert processes[0].returncode == 1
    last_line = err.strip().splitlines()[-1]
    assert re.match("error: process 1 of the 2 of this run has exited or stopped answering", last_line), err
    assert processes[1].communicate()[0] == ""  # only the first prints
