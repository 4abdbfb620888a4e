"""A folder is held by one process; an error names it to others, and a killed one holds nothing."""

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from common.errors import DataError
from common.locks import folder_lock
from common.processes import process_tag
from tests.support.commands import ROOT

HOLD = """
import sys, time
from common.locks import folder_lock
sys.argv[0] = "holder.py"
with folder_lock(sys.argv[1], "--out", as_sibling=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Starts processes that hold a folder until their input is closed."""
    started = []

    def start(folder, *beside):
        line = [sys.executable, "-c", HOLD, str(folder), *beside]
        process = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("beside", [(), ("beside",)])
def test_the_second_process_names_the_holder(hold, tmp_path, beside):
    folder = tmp_path / "deep" / "out"
    holder = hold(folder, *beside)
    match = rf"{folder} is in use by holder\.py \(process {holder.pid} on \S+, since [-:\d ]+\); .*choose another --out"
    with pytest.raises(DataError, match=match), folder_lock(folder, "--out", as_sibling=bool(beside)):
        pytest.fail("it is held")
    holder.stdin.close()
    assert holder.wait() == 0
    with folder_lock(folder, "--out", as_sibling=bool(beside)):
        pass
    assert not folder.parent.exists()  # as nothing was written


def test_a_killed_process_holds_nothing_and_its_lock_is_removed(hold, tmp_path):
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with folder_lock(tmp_path, "--out"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_children_do_not_keep_the_lock_of_a_killed_process(tmp_path):
    """A lock of flock(2) would be theirs as well."""
    held, released = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        with folder_lock(tmp_path, "--out"):
            if not os.fork():
                os.close(released[1])
                os.read(released[0], 1)  # the child lives until the test ends
                os._exit(0)
            os.write(held[1], b"x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(held[0], 1)
    os.waitpid(pid, 0)
    with folder_lock(tmp_path, "--out"):
        pass
    for end in (*held, *released):
        os.close(end)


def test_a_renamed_folder_stays_held_if_the_lock_lies_beside_it(hold, tmp_path):
    (tmp_path / "run").mkdir()
    holder = hold(tmp_path / "run", "beside")
    (tmp_path / "run").rename(tmp_path / "earlier")
    with (
        pytest.raises(DataError, match=f"process {holder.pid}"),
        folder_lock(tmp_path / "run", "--out", as_sibling=True),
    ):
        pytest.fail("it is held")


def test_one_process_holds_a_folder_once(tmp_path):
    with folder_lock(tmp_path, "--out"):
        with pytest.raises(DataError, match="in use by this process"), folder_lock(tmp_path / ".", "--out"):
            pytest.fail("it is held")
        assert (tmp_path / ".lock").exists()


def test_waiting_for_a_folder(hold, tmp_path, capsys):
    holder = hold(tmp_path)
    subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {holder.pid}"])
    with folder_lock(tmp_path, "--out", wait=True):
        assert holder.wait() == -signal.SIGKILL
    assert f"note: {tmp_path} is in use by holder.py (process {holder.pid}" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_names_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    match = f"cannot write to {tmp_path}/file/out: Not a directory; choose another --out"
    with pytest.raises(DataError, match=match), folder_lock(tmp_path / "file" / "out", "--out"):
        pytest.fail("it is no folder")


def test_without_locks_processes_of_this_machine_are_recognised(hold, tmp_path, monkeypatch):
    holder = hold(tmp_path)

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(DataError, match=f"process {holder.pid}"), folder_lock(tmp_path, "--out"):
        pytest.fail("it is held")
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path, "--out"):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == process_tag()
