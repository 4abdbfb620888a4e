"""Shared parts of the benchmark scripts: parsers, fresh processes, alternating rounds, and results with provenance."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from common import json_files
from common.errors import DataError
from common.files import write_json

ROOT = Path(__file__).resolve().parent.parent

Variant = TypeVar("Variant", bound=Hashable)


def benchmark_parser(
    name: str, description: str | None, out: str | None = None, out_flag: str = "--out"
) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has.

    Args:
        name: the module in this folder.
        description: its docstring.
        out: default JSON file of the results; None: they are only printed.
        out_flag: the flag that names it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(out_flag, default=out, metavar="FILE", help="JSON file for the results")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_python(words: Sequence[str], title: str, environment: Mapping[str, str] | None = None) -> str:
    """The standard output of a fresh Python process, started in the project's folder.

    Args:
        words: after `python`.
        title: of the process, for the error.
        environment: variables to set in addition.

    Raises:
        DataError: if it fails, with the end of its error output.
    """
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | (environment or {}),
    )
    if done.returncode:
        raise DataError(f"{title} stopped with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def run_worker(
    name: str,
    words: Sequence[str],
    title: str,
    environment: Mapping[str, str] | None = None,
    launcher: Sequence[str] = (),
) -> dict[str, Any]:
    """The JSON object that a module of this folder prints last.

    `words` are its arguments, `launcher` options of Python before it; all else is as in `run_python`.
    """
    output = run_python([*launcher, "-m", f"benchmarks.{name}", *words], title, environment)
    return json.loads(output.splitlines()[-1])


def in_turns(
    variants: Iterable[Variant], rounds: int, run: Callable[[Variant], dict[str, Any]]
) -> dict[Variant, list[dict[str, Any]]]:
    """The results of each variant, one per round; variants alternate, so that other load affects all alike."""
    results: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, measured in results.items():
            measured.append(run(variant))
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in measured[-1].items() if isinstance(value, float))
            print(f"round {number + 1}, {variant}: {numbers}", file=sys.stderr, flush=True)
    return results


def publish(name: str, argv: Sequence[str] | None, results: dict[str, Any], out: str | None) -> int:
    """Print results with their provenance as JSON, and write them to `out` if given; the exit code 0."""
    report = provenance(name, argv) | results
    print(json.dumps(report, indent=4))
    if out is not None:
        write_json(out, report)
    return 0


def provenance(name: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """Command, commit, device and versions of a measurement.

    Args:
        name: the module in this folder.
        argv: its arguments; None: those of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    return {
        "command": " ".join([f"python -m benchmarks.{name}", *words]),
        "commit": commit(),
        "device": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The short hash of the current commit, with `-dirty` appended where tracked files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The model name of the processor; the architecture where the system does not give one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: if it is missing or not JSON.
    """
    return json_files.read_json(path, {}, "remove it, and run the benchmark again")
