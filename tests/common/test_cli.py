"""Ctrl-C ends a command with one line and exit code 130, whatever libraries make of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.cli import run_command
from tests.support.commands import ROOT

COMMAND = """
import sys, time
from common import cli

def sleep(_):
    print("ready", flush=True)
    time.sleep(60)

def swallow(_):
    cli._END_S = 0.5
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

def clean_up_slowly(_):
    try:
        sleep(_)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)

def fail(_):
    try:
        sleep(_)
    except KeyboardInterrupt:
        raise RuntimeError("a worker is gone") from None

class Destroyed:
    def __del__(self):
        sleep(None)

def lose(_):
    Destroyed()
    time.sleep(60)

def use_processes(_):
    from common.parallel import map_in_processes
    print("ready", flush=True)
    list(map_in_processes(time.sleep, [60, 60, 60], 2))

if __name__ == "__main__":
    raise SystemExit(cli.run_command(globals()[sys.argv[1]]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts a function of `COMMAND` as a process of its own session, and waits until it is ready."""
    started = []
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")

    def run(function):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "command.py"), function],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def interrupt(process, wait_s: float = 0.0) -> None:
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("function", ["sleep", "swallow", "fail", "lose"])
def test_one_interruption(start, function):
    process = start(function)
    interrupt(process, 0.1)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"


@pytest.mark.parametrize("wait_s", [0.0, 0.3, 1.5])  # before, while and after workers start
def test_workers_print_nothing_and_end(start, wait_s):
    process = start("use_processes")
    interrupt(process, wait_s)
    _, errors = process.communicate(timeout=10)  # the end of its output: no worker is left
    assert process.returncode == 130
    assert errors.strip() == "interrupted"


def test_a_second_interruption_ends_the_cleaning_up(start):
    process = start("clean_up_slowly")
    interrupt(process, 0.1)
    assert process.stdout.readline() == "cleaning\n"
    interrupt(process)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", r"\xfc \udcff"), ("utf-8", "\u00fc \\udcff")])
def test_any_text_is_printed_on_any_terminal(encoding, printed):
    code = r"from common.cli import run_command; run_command(lambda _: print('\u00fc \udcff'))"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.decode(encoding).strip() == printed


def test_commands_run_without_a_home(monkeypatch):
    def no_such_user(number):
        raise KeyError(number)

    monkeypatch.setenv("HOME", "/")  # restored afterwards
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    assert run_command(lambda _: print(Path.home()) or 0, []) == 0
