"""Commands beside each other in one folder, interrupted, and short of disk or shared memory."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import test_reconstruct
from data.clouds.mask_store import MaskStore
from tests.support.cli_cases import NAME, assert_whole, call, evaluating, only_error, training
from tests.support.commands import ROOT
from tests.support.hard_use import processes_of_session, start_two, wait_until
from tests.support.scene_cases import write_scene
from util import pack_dataset

RULES = "cloud_cloudshadow_mask"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"), 200, 200)


@pytest.fixture(scope="module")
def two_tests(series, runs, tmp_path_factory) -> list[Path]:
    """The folders of two tests of the run."""
    out = tmp_path_factory.mktemp("tests")
    for name in ("a", "b"):
        assert call(test_reconstruct.main, *evaluating(runs, series, out / name)) == 0
    return [out / name / NAME for name in ("a", "b")]


def scene_words(scene, scene_run, out: Path, workers: int) -> list:
    words = ["--weights", scene_run, *scene.words(), "--tile", 64, "--overlap", 16, "--detector", "none"]
    return [*words, "--device", "cpu", "--workers", workers, "--out", out / "maps"]


# Two commands in one folder


@pytest.mark.parametrize(
    "command", ["train", "test", "ensemble", "comparison", "hdf5", "sample data", "scene", "pack", "masks"]
)
def test_of_two_commands_in_one_folder_one_works(
    command, commands, series, runs, two_tests, scene, scene_run, tmp_path
):
    out = tmp_path / "out"
    exports = two_tests[0] / "export" / "epoch_1" / "test"
    record = out / "masks" / MaskStore(out, RULES).folder(series).name
    lines = {  # script, words, lock
        "train": ("train_reconstruct.py", training(series, out), out / f".{NAME}.lock"),
        "test": ("test_reconstruct.py", evaluating(runs, series, out), out / f".{NAME}.lock"),
        "ensemble": ("ensemble_reconstruct.py", [exports, "--res_dir", out], out / ".lock"),
        "comparison": ("util.compare_runs", [*two_tests, "--out", out / "page.html"], out / ".page.html.lock"),
        "hdf5": ("util.export_hdf5", ["--root", series, "--out", out, "--split", "test"], out / "test" / ".lock"),
        "sample data": ("util.make_sample_data", [out / "data", "--rois 3 --size 32"], out / ".data.lock"),
        "scene": ("reconstruct_scene.py", scene_words(scene, scene_run, out, 1), out / "maps" / ".lock"),
        "pack": ("util.pack_dataset", ["--root", series, "--out", out], out / "ROIs1868" / ".17.h5.lock"),
        "masks": (
            "util.pre_compute_data_samples",
            ["--root", series, "--out", out / "masks", "--detector", RULES],
            record / "settings.json",
        ),
    }
    script, words, lock = lines[command]
    if command == "masks":  # several may fill one store, which has no lock
        first, second = (commands.start(script, *words) for _ in range(2))
        assert (first.wait().code, second.wait().code) == (0, 0)
        assert MaskStore(out / "masks", RULES).folder(series).is_dir()
        return
    first, second = start_two(commands, script, words, lock)
    assert first.code == 0, first.text
    if command == "pack":  # several may fill one pack: a region that another packs is waited for
        assert second.code == 0, second.text
        assert re.search(rf"note: \S+\.h5 is in use by \S+ \(process {first.pid} on ", second.text)
        assert call(pack_dataset.main, "--root", series, "--out", out, "--verify") == 0
    else:
        assert second.code == 1, second.text
        holder = rf"is in use by {script} \(process {first.pid} on \S+, since .*\); wait for it"
        assert re.search(holder, only_error(second.text))
    assert_whole(out)
    assert [path for path in out.rglob("*.lock")] == []


def test_a_test_into_the_folder_of_a_running_training_is_refused(commands, series, runs_copy):
    words = training(series, runs_copy, "--resume_from", "--epochs", 2)
    running = commands.start("train_reconstruct.py", *words)
    lock = runs_copy / f".{NAME}.lock"
    assert wait_until(lambda: lock.exists() and lock.stat().st_size)  # a process stopped before cannot name itself
    os.kill(running.pid, signal.SIGSTOP)
    test = commands.run("test_reconstruct.py", *evaluating(runs_copy, series, runs_copy))
    os.kill(running.pid, signal.SIGCONT)
    assert test.code == 1
    assert f"{runs_copy / NAME} is in use by train_reconstruct.py (process {running.pid}" in only_error(test.text)
    running.ok()


# Ctrl-C


def interrupted(line: list, moment: Path, times: int = 1, wait_s: float = 0) -> str:
    """The output of a command to which Ctrl-C is sent, as by a terminal to all its processes, after a path appears."""
    words = [sys.executable, *map(str, line)]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert wait_until(moment.exists)
    time.sleep(wait_s)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    text, _ = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT), text  # the latter while the interpreter ends
    assert wait_until(lambda: not processes_of_session(process.pid), 5)
    assert "Traceback" not in text
    assert text.strip().splitlines()[-1] == "interrupted"
    return text


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_training_with_workers(series, tmp_path, times):
    words = training(series, tmp_path, "--num_workers", 2, "--epochs", 999)
    text = interrupted(["train_reconstruct.py", *words], tmp_path / NAME / "model_epoch_2.pth.tar", times)
    assert "epoch 2" in text
    if times == 1:
        assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("moment", "wait_s"), [("job.json", 0), ("job.json", 0.4), ("tiles/0000/00000/00000.npz", 0)]
)  # before the cluster starts, while it does, and after
def test_an_interrupted_scene_on_several_processes(scene_run, tmp_path, moment, wait_s):
    scene = write_scene(tmp_path, 400, 400)
    line = ["reconstruct_scene.py", *scene_words(scene, scene_run, tmp_path, 2), "--overlap", 32]
    interrupted(line, tmp_path / "maps" / ".work" / moment, wait_s=wait_s)
    assert not (tmp_path / "maps" / "reconstruction.json").exists()


# Full disks and shared memory


def small_files(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [1000, 30_000])
@pytest.mark.parametrize(
    ("module", "name"), [("util.export_hdf5", r"ROIs1868_73\.hdf5"), ("util.pack_dataset", r"ROIs1868/73\.h5")]
)
def test_a_full_disk_under_hdf5_is_an_error_not_a_crash(series, tmp_path, module, name, size):
    line = [sys.executable, "-m", module, "--root", series, "--out", tmp_path, "--split", "test"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=small_files(size))
    assert done.returncode == 1, done.stderr
    assert re.search(rf"disk full while saving {tmp_path}/\S*{name}: make room", only_error(done.stderr))
    assert_whole(tmp_path)
    assert list(tmp_path.rglob("*.h*5")) == []


def has_private_mounts() -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


SHARED_MEMORY = {
    "training, small": ("size=64k", "shared memory is full: .*--shm-size.*lower --num_workers or --batch_size"),
    "training, read-only": ("size=64k,ro", "cannot start worker processes: .*Read-only.*or use --num_workers 0"),
    "scene, read-only": ("size=64k,ro", "cannot start worker processes: .*Read-only.*or use --workers 1"),
}


@pytest.mark.skipif(not has_private_mounts(), reason="no permission to mount another /dev/shm")
@pytest.mark.parametrize("case", SHARED_MEMORY)
def test_shared_memory_that_is_small_or_read_only(case, series, scene, scene_run, tmp_path):
    options, message = SHARED_MEMORY[case]
    line = ["reconstruct_scene.py", *scene_words(scene, scene_run, tmp_path, 2)]
    if case.startswith("training"):
        line = ["train_reconstruct.py", *training(series, tmp_path, "--num_workers", 1)]
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, *map(str, line)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(message, only_error(done.stderr))
