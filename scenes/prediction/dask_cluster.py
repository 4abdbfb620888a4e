"""Prediction of tiles on a Dask cluster: a running one, or one of processes on this machine.

A task is a batch of tiles for all output images, see `scenes.prediction.predict`; its result is files in a folder that
this process and all workers share. When a worker dies, others repeat its tasks, and its unfinished files do not exist.
Only a few tasks are submitted at a time, so that a large scene fills neither the scheduler nor the disk.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.parallel import require_shared_memory
from common.processes import interrupts_blocked
from scenes.prediction.predict import Job, Task, predict_task

AHEAD = 2  # submitted tasks for each thread of the cluster: one runs, one waits
FAILURES = 5  # deaths of workers that a task survives
# A worker computes in a thread, and glibc returns memory that threads free in their own arenas to the system at once.
# `common.memory.keep_freed_memory` acts on the main arena; with this all threads share it: 1.6 s a tile instead of 2.7.
ONE_ARENA = {"MALLOC_ARENA_MAX": 1}
PATIENCE = 30  # seconds to wait for a scheduler and its first worker


@contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """A cluster of processes on this machine that listens on the loopback device only and has no dashboard.

    Args:
        workers: processes, with one Dask thread each.

    Yields:
        The address of its scheduler.
    """
    require_shared_memory("--workers 1")
    import dask  # deferred: optional
    import distributed  # deferred: optional; adds its defaults to dask.config

    config = {
        "distributed.scheduler.allowed-failures": FAILURES,
        "distributed.worker.memory.terminate": False,  # the limit is the machine's, not a share of it for each worker
        "distributed.worker.memory.pause": False,
        "distributed.nanny.pre-spawn-environ": dask.config.get("distributed.nanny.pre-spawn-environ") | ONE_ARENA,
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        with interrupts_blocked():
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            )
        yield cluster.scheduler_address


def run_on_cluster(address: str, job: Job, tasks: Sequence[Task]) -> Generator[Task, None, None]:
    """Predict tasks on the workers of a cluster; a worker that dies is no error while others run.

    Args:
        address: of the scheduler, such as tcp://10.0.0.1:8786.
        job: what to predict; workers must see the same folder of tiles.
        tasks: batches of tiles.

    Yields:
        Each finished task, in order of completion.

    Raises:
        DataError: if there is no such cluster, its workers do not share the folder, or a task fails.
    """
    from distributed import Client  # deferred: optional
    from distributed.scheduler import KilledWorker  # deferred: optional

    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"--scheduler {address}: no Dask scheduler answers there ({reason})") from error
    with client:
        _check_workers(client, address, job)
        try:
            yield from _run_bounded(client, job, tasks)
        except KilledWorker as error:
            raise DataError(
                "workers died again and again over the same tiles (memory?); use fewer --workers, a smaller --tile or "
                "--batch_size, and run again to go on"
            ) from error
        except CancelledError as error:
            raise DataError(f"the scheduler {address} was lost; run again to go on") from error


def _run_bounded(client: Any, job: Job, tasks: Sequence[Task]) -> Iterator[Task]:
    """Submit a few tasks, and one more for each that finishes; cancel what still runs when the loop ends early."""
    from distributed import as_completed  # deferred: optional

    remaining = iter(tasks)
    running: dict[Any, Task] = {}  # by future

    def submit(task: Task) -> Any:
        future = client.submit(predict_task, job, task, pure=False)
        running[future] = task
        return future

    try:
        ahead = AHEAD * sum(client.nthreads().values())
        finished = as_completed([submit(task) for task in islice(remaining, ahead)], loop=client.loop)
        for future in finished:
            future.result()
            task = running.pop(future)
            following = next(remaining, None)
            if following is not None:
                finished.add(submit(following))
            yield task
    finally:
        client.cancel(list(running), force=True)


def _check_workers(client: Any, address: str, job: Job) -> None:
    """Raise a `DataError` unless there are workers that can import this project and see the folder of tiles."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise DataError(f"the scheduler {address} has no worker; start some with: dask worker {address}") from error
    try:
        visible = client.run(_is_folder, job.tile_folder)
    except ImportError as error:
        raise DataError(
            f"the workers of {address} cannot import this project ({error}); start them in its folder, "
            "with the same environment"
        ) from error
    blind = [worker for worker, sees in visible.items() if not sees]
    if blind:
        raise DataError(f"the worker {blind[0]} does not see {job.tile_folder}; --out must be a folder that all share")


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()
