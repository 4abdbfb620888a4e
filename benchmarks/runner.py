"""Trainings and tests by the project's own command lines: done once, gone on with where they stopped, some at a time.

Each run is a folder OUT/results/NAME (training) and OUT/inference/NAME (test), a log OUT/logs/NAME.log, and its
command line in OUT/commands/NAME.json, by which it is known again.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.provenance import commit
from common.errors import DataError
from common.files import write_json
from config.resolve import resolve_config
from parse_args import parse

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"train": "train_reconstruct.py", "test": "test_reconstruct.py"}


@dataclass(frozen=True)
class Run:
    """One model with one seed.

    Attributes:
        model: the backbone.
        seed: of the training.
        train: the words after the name of the training script.
        test: the words after the name of the test script.
        label: what it is called instead of its model.
        after: runs that it is made of, which must be done before it starts.
    """

    model: str
    seed: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str = ""
    after: tuple["Run", ...] = ()

    @property
    def name(self) -> str:
        """Of the experiment."""
        return f"{self.label or self.model}_seed{self.seed}"

    def record(self) -> dict[str, Any]:
        """What must be the same for a run to be the same."""
        record = json.loads(json.dumps(asdict(self)))
        record["after"] = [run.record() for run in self.after]
        return {key: value for key, value in record.items() if key not in ("label", "after") or value}


def check(runs: Sequence[Run]) -> None:
    """Refuse before the first training what the last one would refuse: flags that no script takes, unknown networks."""
    from model import registry

    for run in runs:
        registry.get_builder(run.model)
        resolve_config(*parse("train", run.train))


def progress(run: Run, out: Path) -> str:
    """How far a run is: "new", "begun" or "done", by its command line, its files, and the runs that it is made of."""
    record = out / "commands" / f"{run.name}.json"
    if not record.is_file() or json.loads(record.read_text(encoding="utf-8"))["run"] != run.record():
        return "new"
    if any(progress(other, out) != "done" for other in run.after):
        return "new"
    tested = out / "inference" / run.name
    return "done" if all((tested / file).is_file() for file in ("test_metrics.json", "comparison.json")) else "begun"


def run_all(runs: Sequence[Run], out: Path, jobs: int) -> None:
    """Bring every run to its end, some at a time; each writes to OUT/logs/NAME.log.

    Raises:
        DataError: naming the runs that failed, after all others are done that do not need them.
    """
    waiting = [(run, "train") for run in runs if progress(run, out) != "done"]
    unfinished = {run for run, _ in waiting}
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done already", flush=True)
    running: dict[Run, tuple[str, subprocess.Popen[bytes], float]] = {}
    failed: list[Run] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this process
    try:
        while running or _ready(waiting, unfinished):
            while len(running) < jobs and (ready := _ready(waiting, unfinished)):
                run, stage = ready[0]
                waiting.remove(ready[0])
                running[run] = (stage, start(run, stage, out), time.perf_counter())
            time.sleep(0.2)
            for run, (stage, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                minutes = (time.perf_counter() - since) / 60
                print(f"{run.name}: {stage} ended with exit code {process.returncode}, {minutes:.1f} min", flush=True)
                if process.returncode:
                    failed.append(run)
                elif stage == "train":
                    waiting.insert(0, (run, "test"))
                else:
                    unfinished.remove(run)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        logs = ", ".join(str(_log(run, out)) for run in failed)
        rest = f" ({len(waiting)} that need them were not started)" if waiting else ""
        text = f"{len(failed)} of {len(runs)} runs failed{rest}, see the end of {logs}; the same command goes on"
        raise DataError(text)


def start(run: Run, stage: str, out: Path) -> "subprocess.Popen[bytes]":
    """Start the training (going on where it stopped) or the test of a run; note its command line first."""
    words = list(getattr(run, stage))
    if stage == "train":
        if progress(run, out) == "begun":
            words.append("--resume_from")
        else:  # figures of another command line must not count as those of this one
            (out / "inference" / run.name / "test_metrics.json").unlink(missing_ok=True)
            write_json(out / "commands" / f"{run.name}.json", {"run": run.record(), "commit": commit()})
    log = _log(run, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    line = shlex.join(["python", STAGES[stage], *words])
    print(f"{run.name}: {stage}, {log}", flush=True)
    stream: IO[bytes]
    with log.open("ab") as stream:
        stream.write(f"\n$ {line}\n".encode())
        stream.flush()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / STAGES[stage]), *words]
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)


def commits(runs: Sequence[Run], out: Path) -> list[str]:
    """The commits that the runs were started at."""
    records = [json.loads((out / "commands" / f"{run.name}.json").read_text(encoding="utf-8")) for run in runs]
    return sorted({record["commit"] for record in records})


def _ready(waiting: Sequence[tuple[Run, str]], unfinished: set[Run]) -> list[tuple[Run, str]]:
    """Those whose parts are done."""
    return [pair for pair in waiting if not any(part in unfinished for part in pair[0].after)]


def _log(run: Run, out: Path) -> Path:
    return out / "logs" / f"{run.name}.log"
