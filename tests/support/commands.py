"""Command lines as real processes, and the sample data they run on; the fixtures are in conftest.py."""

import json
import os
import shlex
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = "--encoder_widths 8 --decoder_widths 8 8 --n_head 2 --d_model 8 --device cpu --batch_size 1"


@dataclass(frozen=True)
class SampleData:
    """Three ROIs, one of each split, two patches of 32 x 32 pixels in each; masks lie in the default stores."""

    series: Path
    mono: Path

    @property
    def roots(self) -> list:
        return ["--root1", self.series, "--root2", self.series, "--root3", self.mono]


@dataclass
class Command:
    """A command line that runs, or has run."""

    server: subprocess.Popen
    pid: int
    log: Path
    status: int | None = field(default=None)

    def wait(self) -> "Command":
        if self.status is None:
            self.status = ask(self.server, {"wait": self.pid})
        return self

    def kill(self) -> "Command":
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    @property
    def code(self) -> int:
        """Exit code; minus the signal where one ended it."""
        self.wait()
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    @property
    def text(self) -> str:
        """What it has printed, progress bars included."""
        return self.log.read_text(encoding="utf-8")

    def ok(self) -> "Command":
        assert self.code == 0, self.text
        return self


class Commands:
    """Starts scripts of the root; see `fork_server.py`."""

    def __init__(self, server: subprocess.Popen, folder: Path) -> None:
        self.server, self.folder, self.number = server, folder, 0

    def start(self, script: str, *argv: object, cwd: Path | None = None, kill_at=(), draw: bool = False) -> Command:
        self.number += 1
        log = self.folder / f"{self.number}.log"
        request = {"script": script, "argv": command_line(argv), "cwd": str(cwd or self.folder)}
        pid = ask(self.server, request | {"log": str(log), "kill_at": list(kill_at), "draw": draw})
        return Command(self.server, pid, log)

    def run(self, script: str, *argv: object, **options) -> Command:
        return self.start(script, *argv, **options).wait()


def command_line(parts) -> list[str]:
    """Words from strings, which are split, paths and numbers, and lists of all these."""
    found = []
    for part in parts:
        if isinstance(part, list):
            found += command_line(part)
        else:
            found += shlex.split(part) if isinstance(part, str) else [str(part)]
    return found


def ask(server: subprocess.Popen, request: dict) -> int:
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())
