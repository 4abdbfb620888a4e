"""Work divided among processes, for the command lines that go through a whole data set."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from common.errors import DataError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def in_processes(act: Callable[[Item], Outcome], items: Sequence[Item], workers: int) -> Iterator[Outcome]:
    """What `act` makes of each item, as it comes.

    Args:
        act: what processes can be handed: a function of a module, or a partial of one.
        items: what to do.
        workers: processes.

    Raises:
        DataError: if a process was ended from outside.
    """
    # spawn: a forked child would inherit locks of libraries that have started threads
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(act, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was ended from outside (memory?); run again to go on, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
