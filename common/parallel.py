"""Processor cores and worker processes."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

from common.errors import DataError
from common.processes import end_with_parent, interrupts_blocked

Item = TypeVar("Item")
Result = TypeVar("Result")
AUTO = "auto"
MOST_WORKERS = 1024


def available_cores() -> int:
    """Processor cores that this process may use; its CPU affinity counts, where the system reports it."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def worker_count(text: str) -> int | str:
    """An argparse type: a number of processes, 0 and 1 for none besides this one, or `auto`."""
    if text == AUTO:
        return text
    if not text.isdecimal() or len(text) > 9 or int(text) > MOST_WORKERS:
        raise argparse.ArgumentTypeError(
            f"expected auto or a number of workers up to {MOST_WORKERS}, got {text[:40]!r}"
        )
    return int(text)


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int | str) -> Iterator[Result]:
    """Apply `function` to each item in worker processes; results come in order of completion.

    Args:
        function: a module-level function, or a partial of one.
        items: its arguments.
        workers: number of processes, at most one for each item, or "auto" for one per core; up to one runs in this
            process.

    Raises:
        DataError: if a process was killed from outside.
    """
    n_workers = min(available_cores() if isinstance(workers, str) else workers, len(items))
    if n_workers <= 1:
        yield from map(function, items)
        return
    require_shared_memory("--workers 1")
    earlier = active_children()
    # spawn: a forked child would inherit locks of libraries that have started threads
    with ProcessPoolExecutor(n_workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            with interrupts_blocked():
                futures = [pool.submit(function, item) for item in items]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was killed from outside (out of memory?); run again to resume, with fewer --workers"
            ) from error
        except KeyboardInterrupt:  # an item may take minutes
            for worker in set(active_children()) - set(earlier):
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def require_shared_memory(flag: str) -> None:
    """Raise a `DataError` that advises `flag` unless processes can share locks, which lie in /dev/shm on Linux."""
    try:
        get_context("spawn").Lock()
    except OSError as error:
        raise DataError(
            f"cannot start worker processes: /dev/shm cannot be written ({error.strerror or error}); mount it "
            f"writable (docker run --shm-size=8g), or use {flag}"
        ) from error
