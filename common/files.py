"""Atomic writes, disk space, and the identity of files."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError

_STALE_SECONDS = 3600  # older temporary files have no writer: they are written within minutes


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block succeeds, so that the file is whole or absent.

    Args:
        path: the file to write; a missing folder is created.

    Yields:
        The temporary path to write to, in the same folder and with the same suffix.

    Raises:
        DataError: if the disk is full or the folder cannot be written; an existing file at `path` stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; check the folder and the disk") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"disk full while saving {path}: make room; what stood there before is untouched"
            ) from error
        if error.filename in (None, str(temporary), str(path)):  # else the block failed to read another file
            text = f"cannot write {path}: {error.strerror or error}; what stood there before is untouched"
            raise DataError(text) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale_files(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder, but not those of active writers."""
    for leftover in folder.glob(".*.tmp*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        except OSError:  # already removed, or owned by another user
            continue


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity are spelled as Python does."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_disk_space(path: str | Path, needed: int, advice: str) -> None:
    """Raise a `DataError` unless the disk of `path` has `needed` bytes free.

    Args:
        path: a file or folder to be written; it need not exist.
        needed: bytes.
        advice: how to need less, or where else to write.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{path} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {advice}")


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Modification time (ns) and size (bytes) of a file: they change when its content does."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def cache_folder() -> Path:
    """The project's folder in the user's cache, `$XDG_CACHE_HOME` or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudless-uncertainty"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
