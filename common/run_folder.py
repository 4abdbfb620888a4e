"""The files of one run: names and places below `--res_dir`."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_json

_OF_EPOCH = re.compile(r"(?:(?:model|val|nan)_)?epoch_([1-9][0-9]{0,8})(?:\.pth\.tar|_metrics\.json|_batch_.*)?")
_TEST_RESULTS = ("test_*", "comparison.*", "report.html", "plot_*.png")


@dataclass(frozen=True)
class RunFolder:
    """Files of one experiment: `RES_DIR/EXPERIMENT`, logs in `RES_DIR/../logs/EXPERIMENT`."""

    res_dir: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder."""
        return self.res_dir / self.name

    @property
    def conf(self) -> Path:
        """The resolved flags."""
        return self.path / "conf.json"

    @property
    def best(self) -> Path:
        """The checkpoint that was best on validation."""
        return self.path / "model.pth.tar"

    @property
    def trainlog(self) -> Path:
        """The figures of the epochs."""
        return self.path / "trainlog.json"

    @property
    def logs(self) -> Path:
        """TensorBoard's folder."""
        parent = self.res_dir.parent if self.res_dir.name not in ("", "..") else self.res_dir / ".."
        return parent / "logs" / self.name

    def checkpoint(self, epoch: int) -> Path:
        """The checkpoint written after `epoch`."""
        return self.path / f"model_epoch_{epoch}.pth.tar"

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order."""
        return sorted(_epoch_of(path) for path in self.path.glob("model_epoch_*.pth.tar") if _epoch_of(path))

    def plots(self, epoch: int, split: str) -> Path:
        """Folder of the pictures of one evaluation."""
        return self.path / "plots" / f"epoch_{epoch}" / split

    def exports(self, epoch: int, split: str) -> Path:
        """Folder of the arrays of one evaluation."""
        return self.path / "export" / f"epoch_{epoch}" / split

    def set_aside(self) -> Path | None:
        """Rename the folder and logs of an earlier training of this name.

        Returns:
            Its new folder; None if there was no such training.
        """
        if not (self.best.exists() or self.epochs()):
            return None
        earlier = self._earlier()
        with _moving(earlier):
            for source, target in ((self.path, earlier.path), (self.logs, earlier.logs)):
                if source.exists() and not target.exists():
                    source.rename(target)
        return earlier.path

    def set_aside_after(self, epoch: int) -> Path:
        """Move what a training has left after `epoch`, and its test, into the folder of an earlier training.

        That folder becomes a complete run: `conf.json`, `trainlog.json`, the best weights and the logs, which stay here
        too, are linked into it, or copied where there are no links.

        Returns:
            That folder.
        """
        earlier = self._earlier()
        folders = (self.path, self.path / "plots", self.path / "export")
        places = [path for folder in folders for path in folder.glob("*") if _epoch_of(path) > epoch]
        tests = [path for pattern in _TEST_RESULTS for path in self.path.glob(pattern)]
        with _moving(earlier):
            earlier.path.mkdir(parents=True)
            for source in (self.conf, self.trainlog, self.best):
                if source.exists():
                    _link_or_copy(source, earlier.path / source.name)
            if self.logs.exists() and not earlier.logs.exists():
                shutil.copytree(self.logs, earlier.logs, copy_function=_link_or_copy)
            for path in [*tests, *sorted(places, key=_epoch_of, reverse=True)]:  # killed, no epoch is missing between
                target = earlier.path / path.relative_to(self.path)
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
        return earlier.path

    def _earlier(self) -> "RunFolder":
        number = next(n for n in count(1) if not (self.res_dir / f"{self.name}_earlier_{n}").exists())
        return RunFolder(self.res_dir, f"{self.name}_earlier_{number}")

    def sweep(self) -> None:
        """Remove temporary files of killed commands; this process must hold the folder."""
        for leftover in self.path.rglob(".*.tmp*"):
            leftover.unlink(missing_ok=True)

    def create(self) -> None:
        """Create the folder.

        Raises:
            DataError: if it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot create the run folder {self.path}: {error.strerror}; choose another --res_dir"
            ) from error

    def metrics(self, split: str) -> Path:
        """The figures of an evaluation, `SPLIT_metrics.json`."""
        return self.path / f"{split}_metrics.json"

    def write_metrics(self, split: str, metrics: Mapping[str, Any]) -> Path:
        """Write the figures of an evaluation and return their path."""
        write_json(self.metrics(split), metrics)
        return self.metrics(split)


def _epoch_of(path: Path) -> int:
    """The epoch in the name of a file or folder of a run; 0 if there is none."""
    match = _OF_EPOCH.fullmatch(path.name)
    return int(match[1]) if match else 0


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


@contextmanager
def _moving(target: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot move {error.filename} to {target.path}: {error.strerror or error}; choose another --res_dir"
        ) from error
