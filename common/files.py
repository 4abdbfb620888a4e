"""Files that appear whole or not at all."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well.

    Args:
        path: the file to make; its folder is made if it is missing.

    Yields:
        The temporary path to write to, on the same file system and with the same ending.

    Raises:
        DataError: if the disk is full or the folder cannot be written; what stood at `path` stays.
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
        if error.filename in (None, str(temporary), str(path)):  # else it is about a file that the block reads
            text = f"cannot write {path}: {error.strerror or error}; what stood there before is untouched"
            raise DataError(text) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are spelled as Python does."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
