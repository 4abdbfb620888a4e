"""Processes: their identity, the end of workers with their parent, and deferred Ctrl-C."""

import os
import signal
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType

_NO_START = "0"  # start time where the system does not tell it


def process_tag() -> str:
    """A name of this process that no other has, on this machine or another: `MACHINE-NUMBER-START`."""
    return _tag(os.getpid())


def has_ended(tag: str) -> bool | None:
    """Whether the process of a `process_tag` has ended; None if it is of another machine or container."""
    machine, number, start = tag.split("-")
    if machine != _machine():
        return None
    current = _start_time(int(number))
    return not current or (_NO_START not in (current, start) and current != start)


def end_with_parent() -> None:
    """End this worker process at once when its parent ends, even if that is killed; call it in the worker."""
    Thread(target=_wait_for_parent, name="end with parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def interrupts_deferred(notify: Callable[[], None] | None = None) -> Iterator[None]:
    """Raise a Ctrl-C at the end of the block instead of within; in another thread than the main one it has no effect.

    Args:
        notify: called when the Ctrl-C arrives.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or current_thread() is not main_thread():
        yield
        return
    received: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if notify is not None:
            notify()

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start worker processes within, which Ctrl-C does not reach then: it is for the parent, which ends them.

    A terminal sends Ctrl-C to all processes of a command. In this one it is raised at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    with interrupts_deferred():  # the system may give a signal to a thread that does not block it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@lru_cache(maxsize=1)
def _tag(pid: int) -> str:
    return f"{_machine()}-{pid}-{_start_time(pid)}"


@lru_cache(maxsize=1)
def _machine() -> str:
    """A hash of what makes process numbers comparable: the host, since its last boot, and the container."""
    names = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", Path.readlink)):
        try:
            names.append(str(read(Path(path))))
        except OSError:  # not Linux
            continue
    return f"{zlib.crc32(' '.join(names).encode()):08x}"


def _start_time(pid: int) -> str:
    """When a process started, in ticks of the system; empty if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]  # a zombie has ended
    except OSError:  # no such process, one of another user that is hidden, or not Linux
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return _NO_START
