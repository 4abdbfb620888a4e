"""What a folder of products was begun with: a killed run goes on only with the same inputs, weights and flags."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError
from common.files import write_json

WORK = ".work"
TOLD = "reconstruction.json"
LOCK = "lock"


def identity(path: str | Path) -> list[Any]:
    """What tells a file from another one: where it is, its size, and when it was changed, in nanoseconds."""
    try:
        found = Path(path).stat()
    except OSError:  # inside a pack, or a web address: its name must do
        return [str(path)]
    return [str(Path(path).resolve()), found.st_size, found.st_mtime_ns]


def digest(paths: Iterable[str | Path]) -> str:
    """One text for many files; it changes when any of them does."""
    return hashlib.sha256(json.dumps([identity(path) for path in paths]).encode()).hexdigest()[:16]


class Ledger:
    """The record of one reconstruction in its folder.

    While it is under way its settings are in DIR/.work/job.json, afterwards in DIR/reconstruction.json.

    Args:
        folder: DIR.
        settings: everything that the result depends on, by the words that a user knows it by; JSON can hold it.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.work = self.folder / WORK
        self.settings = json.loads(json.dumps(settings))

    def begin(self, overwrite: bool) -> str:
        """Make the folder ready.

        Args:
            overwrite: begin anew, whatever is there.

        Returns:
            `new`, `resumed`, or `done` where nothing is left to do.

        Raises:
            UsageError: if something else was begun or finished here.
            DataError: if the folder cannot be made or read.
        """
        begun, told = self.work / "job.json", self.folder / TOLD
        if told.is_file() and not begun.is_file() and not overwrite:
            self._compare(told)
            return "done"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock()
            if overwrite:
                told.unlink(missing_ok=True)
                _empty(self.work)
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}; check --out") from error
        if begun.is_file():
            self._compare(begun)
            return "resumed"
        write_json(begun, {"settings": self.settings})
        return "new"

    def finish(self, more: Mapping[str, Any]) -> Path:
        """Record that all is done; what was temporary is deleted.

        Args:
            more: what else there is to tell.

        Returns:
            The record.
        """
        path = self.folder / TOLD
        write_json(path, {"settings": self.settings, **more})
        shutil.rmtree(self.work, ignore_errors=True)
        return path

    def _lock(self) -> None:
        """Hold the folder as long as this process lives.

        Raises:
            UsageError: if another process holds it. On file systems without locks nobody notices.
        """
        try:
            import fcntl
        except ImportError:  # not Unix
            return
        self._held = (self.work / LOCK).open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"another command is at work in {self.folder}; wait for it, or choose another --out"
            raise UsageError(text) from error
        except OSError:
            return

    def _compare(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}); add --overwrite to begin anew") from error
        other = [name for name in {**found, **self.settings} if found.get(name) != self.settings.get(name)]
        if other:
            raise UsageError(
                f"{self.folder} holds a reconstruction with other {', '.join(other)}; "
                "choose another --out, or add --overwrite to replace it"
            )


def _empty(folder: Path) -> None:
    """Delete all but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
