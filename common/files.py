"""Atomic writes, disk space, and the identity of files."""

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError
from common.processes import has_ended, process_tag

_TEMPORARY = re.compile(r"\..+?\.(?:([0-9a-f]{8}-\d+-\d+)\.)?[a-z0-9_]{8}\.tmp(\.[^.]*)?")  # with its writer
_STALE_SECONDS = 86_400  # older temporary files have no writer on another machine
_swept: set[Path] = set()  # folders without temporary files of ended processes


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block succeeds, so that the file is whole or absent.

    The first file that a process writes to a folder removes what killed processes left there.

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
        if path.parent not in _swept:
            _swept.add(path.parent)
            remove_stale_files(path.parent)
        prefix, suffix = f".{path.stem}.{process_tag()}.", f".tmp{path.suffix}"
        handle, name = tempfile.mkstemp(suffix, prefix, path.parent)
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
    """Remove the temporary files that killed processes left in a folder, but not those of active ones.

    The name of a temporary file has the tag of its writer. Where that is of another machine, or missing as in files of
    earlier versions, a file is removed when it is a day old.
    """
    entries: list[os.DirEntry[str]] = []
    with suppress(OSError):  # a folder that may be written to, but not listed
        entries += os.scandir(folder)
    for entry in entries:
        try:
            if match := _TEMPORARY.fullmatch(entry.name):
                ended = has_ended(match[1]) if match[1] else None
                if ended or (ended is None and time.time() - entry.stat().st_mtime > _STALE_SECONDS):
                    os.unlink(entry)
        except OSError:  # already removed, or owned by another user
            continue


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity are spelled as Python does."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # paths need not be UTF-8


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


def require_utf8(path: str, flag: str) -> None:
    """Raise a `UsageError` that names a flag if GDAL and TensorBoard cannot write to its path."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{flag} {path!a} is not UTF-8; choose another name") from error


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Modification time (ns) and size (bytes) of a file: they change when its content does."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def cache_folder() -> Path:
    """The project's folder in the user's cache, `$XDG_CACHE_HOME` or ~/.cache.

    A user without a home, as in a container, gets a path at which nothing can be read or written.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither HOME nor an entry of the user
        cache = Path(os.devnull)
    return cache / "cloudless-uncertainty"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
