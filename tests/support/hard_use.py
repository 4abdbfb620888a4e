"""Commands as processes that are killed, interrupted or short of disk."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import Command, Commands


def wait_until(seen: Callable[[], object], seconds: float = 30) -> bool:
    """Whether a condition holds within some time."""
    deadline = time.monotonic() + seconds
    while not (result := seen()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(result)


def processes_of_session(leader: int) -> list[int]:
    """The running processes of a session."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == leader and state not in "ZX":
            running.append(int(path.parent.name))
    return running


def start_two(commands: Commands, script: str, words: list, lock: Path) -> tuple[Command, Command]:
    """A command that ran to its end, and one with the same words that did while the first held its folder."""
    first = commands.start(script, *words)
    assert wait_until(lambda: lock.exists() and lock.stat().st_size), "it never held its folder"
    os.kill(first.pid, signal.SIGSTOP)
    second = commands.start(script, *words)
    wait_until(lambda: second.log.exists() and "is in use by" in second.text)
    os.kill(first.pid, signal.SIGCONT)
    return first.wait(), second.wait()
