"""Tiles on a Dask cluster: one that runs already, or one of processes on this machine.

A task is a batch of tiles, see `scenes.predict`; it leaves files in a folder that this process and all workers
share. When a worker dies its tasks are done again by others, and what it had half written is no file at all. Only some
tasks are handed over at a time, so that a large scene fills neither the scheduler nor the disk.
"""

import logging
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DataError
from scenes.predict import Job, predict_batch

if TYPE_CHECKING:
    from distributed import Client, Future

AHEAD = 2  # tasks handed over for each thread of the cluster: one runs, one waits
FAILURES = 5  # deaths of workers that one task survives
# A worker computes in a thread of its own, and glibc hands back to the system at once what threads free in arenas of
# theirs. `common.memory.keep_freed_memory` acts on the main arena; with this all share it: 1.6 s a tile in place of 2.7.
ONE_ARENA = {"MALLOC_ARENA_MAX": 1}
PATIENCE = 30  # seconds to wait for a scheduler and its first worker


@contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """A cluster of processes on this machine, which listens on the loopback device only and has no dashboard.

    Args:
        workers: processes, of one thread each as Dask sees them.

    Yields:
        The address of its scheduler.
    """
    import dask
    import distributed  # which brings its defaults into dask.config

    quiet = {
        "distributed.scheduler.allowed-failures": FAILURES,
        "distributed.worker.memory.terminate": False,  # the limit is the machine's, not a share of it for each worker
        "distributed.worker.memory.pause": False,
        "distributed.nanny.pre-spawn-environ": dask.config.get("distributed.nanny.pre-spawn-environ") | ONE_ARENA,
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(quiet))
        with _deaf_children():
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
        yield stack.enter_context(cluster).scheduler_address


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, which a terminal sends to all: this one tells them to end."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what is heard
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def on_cluster(address: str, job: Job, batches: Sequence[range]) -> Generator[range, None, None]:
    """Predict batches on a cluster's workers; one that has died is no error while others go on.

    Args:
        address: of the scheduler, such as tcp://10.0.0.1:8786.
        job: what to predict; its folder of tiles must be the same for the workers.
        batches: numbers of tiles.

    Yields:
        Each batch when it is done, in any order.

    Raises:
        DataError: if there is no such cluster, its workers do not share the folder, or a task fails.
    """
    from concurrent.futures import CancelledError

    from distributed import Client
    from distributed.scheduler import KilledWorker

    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise DataError(f"--scheduler {address}: no Dask scheduler answers there ({_first_line(error)})") from error
    with client:
        _check_workers(client, address, job)
        try:
            yield from _bounded(client, job, batches)
        except KilledWorker as error:
            raise DataError(
                "workers died again and again over the same tiles (memory?); use fewer --workers, a smaller --tile or "
                "--batch_size, and run again to go on"
            ) from error
        except CancelledError as error:
            raise DataError(f"the scheduler {address} was lost; run again to go on") from error


def _bounded(client: "Client", job: Job, batches: Sequence[range]) -> Iterator[range]:
    """Hand over a few batches, and another one for each that is done; what is under way is cancelled at the end."""
    from distributed import as_completed

    coming = iter(batches)
    under_way: dict[Future, range] = {}

    def submit(batch: range) -> "Future":
        future = client.submit(predict_batch, job, batch, pure=False)
        under_way[future] = batch
        return future

    try:
        ahead = AHEAD * sum(client.nthreads().values())
        done = as_completed([submit(batch) for batch in islice(coming, ahead)], loop=client.loop)
        for future in done:
            future.result()
            batch = under_way.pop(future)
            following = next(coming, None)
            if following is not None:
                done.add(submit(following))
            yield batch
    finally:
        client.cancel(list(under_way), force=True)


def _check_workers(client: "Client", address: str, job: Job) -> None:
    """Raise a DataError unless there are workers which know this project and see the folder of tiles."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise DataError(f"the scheduler {address} has no worker; start some with: dask worker {address}") from error
    try:
        seen = client.run(_sees, job.spool)
    except ImportError as error:
        raise DataError(
            f"the workers of {address} cannot import this project ({error}); start them in its folder, "
            "with the same environment"
        ) from error
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise DataError(f"the worker {blind[0]} does not see {job.spool}; --out must be a folder that all share")


def _sees(folder: str) -> bool:
    return Path(folder).is_dir()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
