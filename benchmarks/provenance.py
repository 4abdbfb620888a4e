"""Where a measured number comes from: device, commit, command, versions."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def provenance(module: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """What a table of results must carry.

    Args:
        module: the benchmark's module, as `python -m` takes it.
        argv: its arguments, None for those of this process.
    """
    import torch

    words = list(sys.argv[1:] if argv is None else argv)
    return {
        "command": " ".join(["python -m", module, *words]),
        "commit": commit(),
        "device": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The short hash of the commit at hand, marked where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
