"""Memory: the allocator of this process, and advice when memory runs out."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import DataError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's mallopt, malloc.h
_LARGEST = 2**31 - 1
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def keep_freed_memory() -> bool:
    """Make the allocator reuse freed memory instead of returning it to the system.

    A training step on a CPU allocates and frees every map of 256 x 256 pixels. By default glibc maps each such block
    anew, and the system zeroes its pages one fault at a time: measured, half the time of a step and more. The price:
    the process holds its peak memory, some of it idle.

    Returns:
        Whether the setting took effect; nothing is done except on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))


@contextmanager
def memory_advice(device: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error, of the device or of this machine, into a `DataError` with advice.

    Args:
        device: the device of the computation.
        advice: which flags lower the need for memory.
    """
    try:
        yield
    except MemoryError as error:
        raise DataError(f"out of memory of this machine: {advice}") from error
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one
        if not any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY):
            raise
        raise DataError(f"out of memory on {device}: {advice}") from error
