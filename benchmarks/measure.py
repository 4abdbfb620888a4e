"""Time and memory of a process, and statistics of repeated measurements."""

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

CPU = torch.device("cpu")
_COPIES = 5


def seconds(
    action: Callable[[], object], clock: Callable[[], float] = time.perf_counter, device: torch.device = CPU
) -> float:
    """Seconds of one call by `clock`, including the work that it queues on `device`."""
    synchronize(device)
    start = clock()
    action()
    synchronize(device)
    return clock() - start


def time_steps(step: Callable[[], object], steps: int, warmup: int = 1, device: torch.device = CPU) -> dict[str, float]:
    """`wall_s` and `cpu_s` (processor time of all threads, the system's share included) of the median step.

    Args:
        step: is called `warmup + steps` times.
        steps: timed calls.
        warmup: calls before them.
        device: of the computation.
    """
    walls, cpus = [], []
    for _ in range(warmup + steps):
        cpu = time.process_time()
        walls.append(seconds(step, device=device))
        cpus.append(time.process_time() - cpu)
    return {"wall_s": statistics.median(walls[warmup:]), "cpu_s": statistics.median(cpus[warmup:])}


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of copying an array (1 GiB on a GPU, else 64 MiB), read and written; median of five copies."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device=device) for _ in range(1 + _COPIES)]
    return 2 * source.nbytes / statistics.median(times[1:])


def peak_memory(device: torch.device = CPU) -> int:
    """Peak memory in bytes: allocated by torch on a GPU, else the resident set of this process alone."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_set("VmHWM")


def resident_memory() -> int:
    """Current resident set of this process in bytes; its peak on systems without /proc."""
    return _resident_set("VmRSS")


def evict(path: Path) -> None:
    """Drop a file from the page cache of the operating system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; NaN for one value) and number of values."""
    values = list(values)
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def median_range(values: Iterable[float], spec: str = "") -> dict[str, float]:
    """Median, smallest and largest value, rounded by a format specification such as `.3f`."""
    values = list(values)
    figures = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(format(value, spec)) for name, value in figures.items()}


def _resident_set(field: str) -> int:
    """A field of /proc/self/status in bytes; not getrusage, whose peak includes that of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
