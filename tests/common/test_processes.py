"""Processes are identified, and workers end with the command that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.processes import has_ended, process_tag
from tests.support.commands import ROOT
from tests.support.hard_use import processes_of_session, wait_until

MAP = """
import sys, time
from common.parallel import map_in_processes
if __name__ == "__main__":
    sys.argv = [""]  # workers would import this file under its name
    print("start", flush=True)
    list(map_in_processes(time.sleep, [60, 60, 60], 2))
"""

START = """
import os, signal, subprocess, sys
from common.processes import interrupts_blocked
try:
    with interrupts_blocked():
        os.kill(os.getpid(), signal.SIGINT)
        is_blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(0, []))"
        subprocess.run([sys.executable, "-c", is_blocked])
        print("started", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_process_that_runs_has_not_ended():
    assert has_ended(process_tag()) is False


def test_a_killed_process_has_ended_and_its_number_is_not_mistaken_for_it():
    show = "from common.processes import process_tag; print(process_tag(), flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", show], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    tag = process.stdout.readline().strip()
    assert tag != process_tag()
    assert has_ended(tag) is False
    machine, number, start = tag.split("-")
    assert has_ended(f"{machine}-{number}-{int(start) - 1}") is True  # an earlier process of this number
    process.kill()
    assert wait_until(lambda: has_ended(tag))  # a zombie, before it is waited for
    process.wait()
    process.stdout.close()
    assert has_ended(tag) is True


def test_processes_of_other_machines_are_unknown():
    _, number, start = process_tag().split("-")
    assert has_ended(f"00000000-{number}-{start}") is None


def test_without_the_files_of_linux_processes_are_known_by_number(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError

    tag = process_tag()
    monkeypatch.setattr(Path, "read_text", fail)
    assert has_ended(tag) is False
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
    assert has_ended(tag) is True
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))  # of another user
    assert has_ended(tag) is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_their_command_is_killed(tmp_path, number):
    (tmp_path / "command.py").write_text(MAP, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(tmp_path / "command.py")]
    with subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, env=environment) as process:
        assert wait_until(lambda: len(processes_of_session(process.pid)) >= 3)  # with one that counts resources
        time.sleep(0.5)  # workers are at work
        process.send_signal(number)
        assert process.wait() == -number
        assert wait_until(lambda: not processes_of_session(process.pid), 5)


def test_an_interruption_while_workers_start_is_raised_at_the_end():
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "started", "interrupted"], done.stderr
