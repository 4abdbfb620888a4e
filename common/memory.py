"""How the allocator treats what training frees: on Linux it can be told to keep it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt, malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory rather than return it to the system and ask again.

    A step of training on a processor allocates and frees each map of 256 x 256 pixels anew. By default glibc maps every
    such block from the system, which hands out zeroed pages one fault at a time: measured, that is half of the time of
    a step and more. In exchange, the process holds its peak of memory, and pieces of it lie idle.

    Returns:
        Whether the allocator understood; elsewhere than on Linux with glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
