"""The files of one run: names and places below `--res_dir`."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_json


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
    def logs(self) -> Path:
        """TensorBoard's folder."""
        parent = self.res_dir.parent if self.res_dir.name not in ("", "..") else self.res_dir / ".."
        return parent / "logs" / self.name

    def checkpoint(self, epoch: int) -> Path:
        """The checkpoint written after `epoch`."""
        return self.path / f"model_epoch_{epoch}.pth.tar"

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order."""
        names = (path.name for path in self.path.glob("model_epoch_*"))
        numbers = (name.removeprefix("model_epoch_").removesuffix(".pth.tar") for name in names)
        return sorted(int(number) for number in numbers if number.isdigit())

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
        number = next(n for n in count(1) if not (self.res_dir / f"{self.name}_earlier_{n}").exists())
        earlier = RunFolder(self.res_dir, f"{self.name}_earlier_{number}")
        for source, target in ((self.path, earlier.path), (self.logs, earlier.logs)):
            try:
                if source.exists() and not target.exists():
                    source.rename(target)
            except OSError as error:
                raise DataError(
                    f"cannot move {source} to {target}: {error.strerror}; choose another --res_dir"
                ) from error
        return earlier.path

    def sweep(self) -> None:
        """Remove temporary files of a killed training; no other process may be writing here."""
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

    def write_metrics(self, split: str, metrics: Mapping[str, Any]) -> Path:
        """Write `SPLIT_metrics.json` and return its path."""
        path = self.path / f"{split}_metrics.json"
        write_json(path, metrics)
        return path
