"""Locks of output folders: one command at a time, and the others say which."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.processes import has_ended, process_tag

_held: set[str] = set()  # of this process, which the system would let lock a file twice


@contextmanager
def folder_lock(folder: str | Path, flag: str, *, as_sibling: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold an output folder for this process.

    The system releases the lock when the process ends, also if it is killed; it works between the machines of a network
    file system. Where a file system has no locks, only processes of the same machine are recognised.

    Args:
        folder: created if missing, and removed again if nothing was written to it. The lock is a file `.lock` in it.
        flag: names the folder on the command line.
        as_sibling: the lock is a file `.NAME.lock` beside it, for a file or for a folder that is renamed as a whole.
        wait: wait until the folder is free, and print why.

    Raises:
        DataError: if another process holds the folder, or it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    path = folder.with_name(f".{folder.name}.lock") if as_sibling else folder / ".lock"
    created = [place for place in path.parents if not place.exists()]
    try:
        file = _acquire(path, folder, flag, wait)
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise DataError(f"cannot write to {folder}: {reason}; choose another {flag}") from error
    _held.add(str(path))
    try:
        yield
    finally:
        _held.discard(str(path))
        with suppress(OSError):
            path.unlink()
        os.close(file)  # after the removal: a process that gets the lock of a removed file tries again
        with suppress(OSError):  # those that are not empty remain
            for place in created:
                place.rmdir()


def _acquire(path: Path, folder: Path, flag: str, wait: bool) -> int:
    """The descriptor of the locked file, which names this process."""
    while True:
        if str(path) in _held:
            raise DataError(f"{folder} is in use by this process already; choose another {flag}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its holder has just removed the empty folder
            continue
        try:
            if not _lock(file):
                holder = _describe(_read(file))
                if not wait:
                    raise DataError(f"{folder} is in use by {holder}; wait for it to end, or choose another {flag}")
                print(f"note: {folder} is in use by {holder}; waiting for it to end", flush=True)
                _lock(file, block=True)
            if os.path.samestat(os.fstat(file), os.stat(path)):  # else its holder has removed it
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_myself()).encode(), 0)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, block: bool = False) -> bool:
    """Lock an open file; returns whether it is locked.

    Locks of fcntl(2) rather than flock(2): children do not inherit them, so that a killed command's workers hold none.
    """
    try:
        import fcntl  # deferred: Unix only

        fcntl.lockf(file, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):  # a system or a file system without locks
        holder = str(_read(file).get("process", ""))
        return holder in ("", process_tag()) or has_ended(holder) is not False
    return True


def _myself() -> dict[str, Any]:
    return {
        "command": Path(sys.argv[0]).name,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "process": process_tag(),
    }


def _read(file: int) -> dict[str, Any]:
    """What the holder of a lock has written about itself; empty if it has not yet."""
    for _ in range(20):
        try:
            holder = json.loads(os.pread(file, 4096, 0))
        except ValueError:
            time.sleep(0.01)
            continue
        return holder if isinstance(holder, dict) else {}
    return {}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another command"
    return "{command} (process {pid} on {host}, since {since})".format_map({**dict.fromkeys(_myself(), "?"), **holder})
