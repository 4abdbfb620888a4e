"""The index of a large folder, kept between runs: listing half a million files takes seconds, and minutes on a network.

It lies in the user's cache folder (`$XDG_CACHE_HOME` or ~/.cache, cloudless-uncertainty/index), one file for each root
and list of regions. It holds for exactly the folders that it was made of: each folder's inode and times of change are
compared at every start, and a folder that had changed within seconds before it was listed is not kept, for a second
change might not show in its times. CLOUDLESS_INDEX_CACHE=off switches it off.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError
from common.files import whole_file

SWITCH = "CLOUDLESS_INDEX_CACHE"
_FORMAT = 1
_LEAST_PATHS = 60_000  # smaller folders are listed in half a second
_SETTLED_NS = 3_000_000_000  # the coarsest clock of a file system in use, and a second

Stamp = list[int]
"""Inode, time of the last change to a folder's content, and to itself, ns; empty where there is no folder."""


def stamps(root: str | Path, folders: Sequence[str]) -> list[Stamp]:
    """What tells whether folders are as they were."""
    found: list[Stamp] = []
    for folder in folders:
        try:
            status = os.stat(os.path.join(root, folder))
        except OSError:
            found.append([])
            continue
        found.append([status.st_ino, status.st_mtime_ns, status.st_ctime_ns])
    return found


def recall(root: str | Path, folders: Sequence[str]) -> list[str] | None:
    """The paths that were found in these folders, None where they are not known or the folders have changed."""
    if os.environ.get(SWITCH) == "off":
        return None
    try:
        header, _, paths = zlib.decompress(_place(root, folders).read_bytes()).decode().partition("\n")
        if json.loads(header) != _header(root, stamps(root, folders)):
            return None
    except (OSError, zlib.error, ValueError):  # none yet, or damaged: the folders are listed
        return None
    return paths.split("\n")


def remember(root: str | Path, folders: Sequence[str], before: list[Stamp], paths: list[str]) -> None:
    """Keep what was found.

    Args:
        root: of the paths.
        folders: that were listed.
        before: their stamps, taken before they were listed.
        paths: what they hold.
    """
    settled = time.time_ns() - _SETTLED_NS
    young = any(max(stamp[1:]) > settled for stamp in before if stamp)
    if len(paths) < _LEAST_PATHS or young or os.environ.get(SWITCH) == "off" or before != stamps(root, folders):
        return
    text = "\n".join([json.dumps(_header(root, before)), *paths])
    try:
        with whole_file(_place(root, folders)) as temporary:
            temporary.write_bytes(zlib.compress(text.encode(), 1))
    except DataError:  # a home that cannot be written: every start lists the folders
        return


def _header(root: str | Path, found: list[Stamp]) -> dict[str, object]:
    return {"format": _FORMAT, "root": os.path.realpath(root), "stamps": found}


def _place(root: str | Path, folders: Sequence[str]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256("\n".join((os.path.realpath(root), *folders)).encode()).hexdigest()[:32]
    return cache / "cloudless-uncertainty" / "index" / key
