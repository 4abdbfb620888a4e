"""A scene on a Dask cluster of two workers, one of which dies; and errors without a cluster."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from reconstruct_scene import main
from scenes.prediction import dask_cluster as cluster
from scenes.prediction.predict import Job, Task
from scenes.prediction.tiles import TilePlan
from tests.support.cli_cases import call, refused
from tests.support.scene_cases import maps_in, memory_series, write_run, write_scene
from tests.support.series_cases import assert_same_series, write_series_files

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask warns of workers that die
TILES = ["--tile", "64", "--overlap", "32", "--detector", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def two_workers():
    """The address of a cluster of two processes on this machine; a dead one is restarted."""
    with cluster.local_cluster(2) as address:
        yield address


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"), 200, 300)


def worker_numbers(address: str) -> set[int]:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return set(client.run(os.getpid).values())


def test_one_of_two_workers_is_killed_and_the_scene_is_the_same(two_workers, scene, scene_run, tmp_path):
    line = ["--weights", scene_run, *scene.words(), *TILES]
    assert call(main, *line, "--out", tmp_path / "alone", "--workers", 1) == 0
    victim = min(worker_numbers(two_workers))
    killed_with = []

    def kill_midway():
        tiles, deadline = tmp_path / "shared" / ".work" / "tiles", time.monotonic() + 60
        while time.monotonic() < deadline:
            finished = len(list(tiles.rglob("*.npz")))
            if finished >= 5:
                os.kill(victim, signal.SIGKILL)
                killed_with.append(finished)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_midway)
    killer.start()
    assert call(main, *line, "--out", tmp_path / "shared", "--scheduler", two_workers) == 0
    killer.join()
    assert killed_with, "the worker was to die while tiles were computed"
    assert killed_with[0] < 54  # of 6 x 9 tiles
    alone, shared = maps_in(tmp_path / "alone"), maps_in(tmp_path / "shared")
    assert set(alone) == set(shared)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, shared[name], err_msg=name)
    assert not (tmp_path / "shared" / ".work").exists()


def test_a_series_is_the_same_on_a_cluster(two_workers, scene_run, tmp_path):
    files = write_series_files(tmp_path)
    assert call(main, *files.line(scene_run, tmp_path / "alone")) == 0
    words = [word for word in files.line(scene_run, tmp_path / "shared") if word not in ("--workers", "1")]
    assert call(main, *words, "--scheduler", two_workers) == 0
    assert_same_series(tmp_path / "alone", tmp_path / "shared")


def test_few_tasks_are_handed_over_at_a_time(two_workers, scene_run, tmp_path, monkeypatch):
    """Two workers with a thread each: four at first, one more for each that finishes."""
    from distributed import Client

    submitted = []
    submit = Client.submit

    def counted(self, act, job, task, **more):
        submitted.append(task)
        return submit(self, act, job, task, **more)

    monkeypatch.setattr(Client, "submit", counted)
    job = Job(memory_series(64, 400), TilePlan(64, 400, 64, 16), str(scene_run), str(tmp_path))
    done = 0
    for task in cluster.run_on_cluster(two_workers, job, [Task(batch, [0]) for batch in job.plan.batches(1)]):
        done += 1
        assert job.path(job.plan[task.tiles[0]]).is_file()
        assert len(submitted) <= 4 + done
    assert done == len(job.plan) == 8


def test_errors_of_workers_come_as_one_line(two_workers, scene, tmp_path, capsys):
    broken = write_run(tmp_path / "run")
    (broken / "model.pth.tar").write_bytes(b"not a checkpoint")
    line = ["--weights", broken, *scene.words(), *TILES, "--out", tmp_path / "maps", "--scheduler", two_workers]
    assert "model.pth.tar" in refused(capsys, main, *line)


def test_workers_that_do_not_see_the_folder_are_told(two_workers, scene_run, tmp_path, monkeypatch):
    from common.errors import DataError

    job = Job(memory_series(64, 64), TilePlan(64, 64, 64, 0), str(scene_run), str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="does not see .*nowhere; --out must be a folder that all share"):
        next(cluster.run_on_cluster(two_workers, job, [Task(batch, [0]) for batch in job.plan.batches(1)]))


def test_no_scheduler_is_told(scene, scene_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    line = ["--weights", scene_run, *scene.words(), *TILES, "--out", tmp_path / "maps"]
    text = refused(capsys, main, *line, "--scheduler", "tcp://127.0.0.1:1")
    assert "--scheduler tcp://127.0.0.1:1: no Dask scheduler answers there" in text
    assert "workers of its own" in refused(capsys, main, *line, "--scheduler", "x", "--workers", 2, code=2)


def test_nothing_of_the_cluster_remains(tmp_path):
    with cluster.local_cluster(1) as address:
        numbers = worker_numbers(address)
        assert address.startswith("tcp://127.0.0.1:")
    for number in numbers:
        assert not Path(f"/proc/{number}").exists() or "Z" in Path(f"/proc/{number}/stat").read_text().split()[2]
