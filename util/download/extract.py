"""Extract an untrusted archive of the data sets into the layout of the loaders.

The archives hold `africa/ROIs1970/21/S2/...` or `s2_africa_test/ROIs.../...` or `ROIs1970_fall_s2/s2_139/...`: the
parents of the folder of ROIs are dropped, so that archives of all regions, splits and sensors merge into one root,
without the `mv */* .` that the release requires.
"""

import errno
import gzip
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import DataError

BLOCK = 4096  # bytes of a disk block, as assumed by the table of sizes
HEADER = 1 << 16  # bytes of a member's headers: tarfile keeps them in memory, and those of real ones are below 4 KiB
TRAILER = 1 << 24  # bytes after the last member
SPARE_MEMBERS, SMALLEST = 20_000, 1 << 16  # folders, and bytes of a file: their number is limited too
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, FileExistsError)
_ROIS = re.compile(r"ROIs\d{4}(_[a-z0-9_]+)?")


def place_of(name: str) -> PurePosixPath | None:
    """The path of an archive member relative to the data root; None if it is outside the folders of ROIs.

    Raises:
        ValueError: if the name is absolute or leaves the root.
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    if path.is_absolute() or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"it holds the path {name!r}, which leads outside")
    for i, part in enumerate(parts):
        if _ROIS.fullmatch(part):
            return PurePosixPath(*parts[i:])
    return None


def extract(
    archive: Path, root: Path, largest: int, progress: Callable[[int], None] = lambda compressed: None
) -> tuple[int, int]:
    """Extract regular files below `root`; they appear there after the whole archive has been read and checked.

    Args:
        archive: a .tar.gz file.
        root: data root; existing files of the same name are replaced.
        largest: maximum number of extracted bytes; it limits the number of members too.
        progress: called with the number of compressed bytes read so far.

    Returns:
        Number of files, and their disk space in bytes with blocks of 4 KiB.

    Raises:
        DataError: if the archive is damaged (it is removed then), holds links, devices or paths that lead outside,
            exceeds `largest`, has more or longer headers than an archive of images, or holds no ROI; and if the disk is
            full. Nothing of it is left in `root`.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".unpacking-{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    try:
        try:
            files, on_disk = _unpack(archive, staging, largest, progress)
        except _DAMAGE as error:
            archive.unlink()
            raise DataError(f"{archive}: damaged ({error}); it was removed: run again to fetch it again") from error
        if not files:
            raise DataError(f"{archive}: no folder of ROIs in it; expected ROIs1868/... or ROIs1970_fall_s2/...")
        for path in files:
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"disk full while extracting {archive}; the archive is kept: make room and run again"
            ) from error
        raise DataError(f"cannot extract {archive} to {root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(files), on_disk


class _Metered:
    """A stream that raises a `DataError` when more than the allowed number of bytes is read.

    Headers may declare gigabytes, which tarfile would read into memory at once.
    """

    def __init__(self, archive: Path, stream: gzip.GzipFile) -> None:
        self._archive, self._stream, self._left = archive, stream, 0

    def allow(self, n_bytes: int) -> None:
        """Set the number of bytes that may be read from here on."""
        self._left = n_bytes

    def read(self, size: int) -> bytes:
        """See `gzip.GzipFile.read`."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(
                f"{self._archive}: refused, it holds a header of more than {HEADER} bytes, or as much after its last "
                "member; nothing was unpacked"
            )
        return content


def _unpack(
    archive: Path, staging: Path, largest: int, progress: Callable[[int], None]
) -> tuple[list[PurePosixPath], int]:
    files: list[PurePosixPath] = []
    on_disk = skipped = n_members = 0
    with archive.open("rb") as compressed, gzip.GzipFile(fileobj=compressed) as decompressed:
        stream = _Metered(archive, decompressed)
        stream.allow(HEADER)
        with tarfile.open(fileobj=stream, mode="r|") as members:  # type: ignore[call-overload]  # only read is needed
            while (member := members.next()) is not None:
                members.members = []  # tarfile would keep them all
                place = _check_member(archive, member)
                progress(compressed.tell())
                n_members += 1
                size = -(-member.size // BLOCK) * BLOCK
                is_file = place is not None and not member.isdir()
                on_disk, skipped = (on_disk + size, skipped) if is_file else (on_disk, skipped + size)
                if on_disk + skipped > largest or n_members > SPARE_MEMBERS + largest // SMALLEST:
                    raise DataError(
                        f"{archive}: unpacks to more than {largest} bytes or {SPARE_MEMBERS + largest // SMALLEST} "
                        "files, more than this archive can hold; if the release has grown add --size-limit"
                    )
                stream.allow(member.size + HEADER)
                if place is None or member.isdir():
                    continue
                target = staging / place
                target.parent.mkdir(parents=True, exist_ok=True)
                source: Any = members.extractfile(member)
                # not extracted by tarfile: owner, mode and links of the archive are ignored
                with target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if target.stat().st_size != member.size:
                    raise EOFError(f"{member.name} is cut off")
                files.append(place)
                stream.allow(HEADER)
        stream.allow(TRAILER)
        while stream.read(1 << 20):  # to the end, where the checksum is
            pass
    return files, on_disk


def _check_member(archive: Path, member: tarfile.TarInfo) -> PurePosixPath | None:
    try:
        place = place_of(member.name)
    except ValueError as error:
        raise DataError(f"{archive}: refused, {error}; nothing was unpacked") from error
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive}: refused, {member.name!r} is a link or a device; nothing was unpacked")
    if member.issparse() or member.size < 0:
        raise DataError(f"{archive}: refused, {member.name!r} has gaps or no size; nothing was unpacked")
    return place
