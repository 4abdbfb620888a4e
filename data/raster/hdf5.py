"""HDF5 files on disks that may be full."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.processes import interrupts_deferred


class _Target:
    """The file that HDF5 writes to; the first error is kept, and everything after it is discarded.

    HDF5 itself never sees an error: it would keep what it could not write, try again when the file is closed, and then
    crash.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            while view and self.error is None:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int) -> int:
        try:
            return size if self.error else self._file.truncate(size)
        except OSError as error:
            self.error = error
            return size

    def readinto(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        n_read = self._file.readinto(view) or 0
        view[n_read:] = bytes(len(view) - n_read)  # discarded before
        return len(view)

    def interrupt(self) -> None:
        """Keep a Ctrl-C as the error."""
        self.error = KeyboardInterrupt()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # seek, tell, flush, close


_targets: dict[str, _Target] = {}  # of open files, by their h5py names


@contextmanager
def write_hdf5(path: Path, **options: Any) -> Iterator[Any]:
    """A new HDF5 file, an `h5py.File`; on a full disk neither h5py nor the process crashes.

    Args:
        path: an existing file, whose content is replaced.
        options: of `h5py.File`.

    Raises:
        OSError: at the end, or by `check_written`, if the file could not be written.
        KeyboardInterrupt: likewise, after a Ctrl-C.
    """
    import h5py  # deferred: heavy, needed for packs and exports only

    target = _Target(path)
    _targets[repr(target)] = target
    try:
        with interrupts_deferred(target.interrupt), h5py.File(target, "w", **options) as file:
            yield file
    finally:
        del _targets[repr(target)]
        target.close()
    if target.error is not None:
        raise target.error


def check_written(group: Any) -> None:
    """Raise the error of writing the file of a group or data set so far: of a full disk, or a Ctrl-C."""
    target = _targets[group.file.filename]
    if target.error is not None:
        raise target.error
