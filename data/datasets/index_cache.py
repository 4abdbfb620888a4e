"""Persistent index of a large folder: listing half a million files takes seconds, on a network minutes.

It lies in the user's cache folder (`$XDG_CACHE_HOME` or ~/.cache, cloudless-uncertainty/index), one file for each root
and list of regions. It is valid as long as inode and modification times of every folder are unchanged, which is checked
at every start. If a folder changed within seconds before it was listed, no index is saved, because a further change
might not alter its times. CLOUDLESS_INDEX_CACHE=off disables the cache.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError
from common.files import atomic_file, cache_folder

SWITCH = "CLOUDLESS_INDEX_CACHE"
_FORMAT = 1
_LEAST_PATHS = 60_000  # smaller folders are listed in half a second
_MIN_AGE_NS = 3_000_000_000  # coarsest clock resolution of a file system in use, plus a second

Stamp = list[int]
"""Inode, modification time and status-change time (ns) of a folder; empty if it does not exist."""


def folder_stamps(root: str | Path, folders: Sequence[str]) -> list[Stamp]:
    """Stamps that change when the content of a folder does."""
    stamps: list[Stamp] = []
    for folder in folders:
        try:
            status = os.stat(os.path.join(root, folder))
        except OSError:
            stamps.append([])
            continue
        stamps.append([status.st_ino, status.st_mtime_ns, status.st_ctime_ns])
    return stamps


def load_index(root: str | Path, folders: Sequence[str]) -> list[str] | None:
    """The indexed paths of these folders, None if there are none or the folders have changed."""
    if os.environ.get(SWITCH) == "off":
        return None
    try:
        header, _, paths = zlib.decompress(_index_path(root, folders).read_bytes()).decode().partition("\n")
        if header != _header(root, folder_stamps(root, folders)):
            return None
    except (OSError, zlib.error, ValueError):  # missing or damaged
        return None
    return paths.split("\n")


def save_index(root: str | Path, folders: Sequence[str], before: list[Stamp], paths: list[str]) -> None:
    """Save an index, unless it is small or the folders have changed recently.

    Args:
        root: that folders and paths are relative to.
        folders: the folders listed.
        before: their stamps, taken before they were listed.
        paths: their content.
    """
    newest = time.time_ns() - _MIN_AGE_NS
    recent = any(max(stamp[1:]) > newest for stamp in before if stamp)
    if len(paths) < _LEAST_PATHS or recent or os.environ.get(SWITCH) == "off" or before != folder_stamps(root, folders):
        return
    text = "\n".join([_header(root, before), *paths])
    try:
        with atomic_file(_index_path(root, folders)) as temporary:
            temporary.write_bytes(zlib.compress(text.encode(), 1))
    except DataError:  # the cache folder is not writable: folders are listed at every start
        return


def _header(root: str | Path, stamps: list[Stamp]) -> str:
    return json.dumps({"format": _FORMAT, "root": os.path.realpath(root), "stamps": stamps})


def _index_path(root: str | Path, folders: Sequence[str]) -> Path:
    key = hashlib.sha256("\n".join((os.path.realpath(root), *folders)).encode()).hexdigest()[:32]
    return cache_folder() / "index" / key
