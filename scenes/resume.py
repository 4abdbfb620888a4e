"""The record of a reconstruction in its folder: an interrupted one resumes with the same inputs, weights and flags."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from common.errors import DataError, UsageError
from common.files import file_stamp, write_json
from common.json_files import Schema, read_json

WORK = ".work"  # the folder of unfinished files
RECORD = "reconstruction.json"
_SCHEMA: Schema = {"type": "object", "required": ["settings"], "properties": {"settings": {"type": "object"}}}
_IMAGE_SCHEMA: Schema = {"type": "object"}


def digest(paths: Iterable[str | Path]) -> str:
    """A hash of the locations, sizes and modification times of files."""
    return hashlib.sha256(json.dumps([_identity(path) for path in paths]).encode()).hexdigest()[:16]


class ResumeState:
    """The state of a reconstruction in its folder.

    Its settings are in DIR/.work/job.json while it is unfinished, afterwards in DIR/reconstruction.json.

    Args:
        folder: DIR.
        settings: everything that the result depends on, by names that the user knows; JSON values.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.work = self.folder / WORK
        self.settings = json.loads(json.dumps(settings))

    def begin(self, overwrite: bool) -> Literal["new", "resumed", "done"]:
        """Prepare the folder, which this process must hold.

        Args:
            overwrite: start anew, whatever is there.

        Returns:
            `new`, `resumed`, or `done` if nothing is left to do.

        Raises:
            UsageError: if it holds a reconstruction with other settings.
            DataError: if the folder cannot be created or read.
        """
        job, record = self.work / "job.json", self.folder / RECORD
        if record.is_file() and not job.is_file() and not overwrite:
            self._check_settings(record)
            return "done"
        try:
            if overwrite:
                record.unlink(missing_ok=True)
                if self.work.exists():
                    shutil.rmtree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}; check --out") from error
        if job.is_file():
            self._check_settings(job)
            return "resumed"
        write_json(job, {"settings": self.settings})
        return "new"

    def finished_image(self, number: int) -> dict[str, Any] | None:
        """The details of an output image that is complete; None if it is not."""
        path = self._image_record(number)
        return dict(read_json(path, _IMAGE_SCHEMA, "add --overwrite to begin anew")) if path.is_file() else None

    def finish_image(self, number: int, details: Mapping[str, Any]) -> None:
        """Record that an output image is complete, with `details`, JSON values."""
        write_json(self._image_record(number), details)

    def finish(self, details: Mapping[str, Any]) -> Path:
        """Write the record of a finished reconstruction, with `details`, and delete temporary files.

        Returns:
            The record.
        """
        record = self.folder / RECORD
        write_json(record, {"settings": self.settings, **details})
        shutil.rmtree(self.work, ignore_errors=True)
        return record

    def _image_record(self, number: int) -> Path:
        return self.work / "finished" / f"{number:04d}.json"

    def _check_settings(self, path: Path) -> None:
        stored = read_json(path, _SCHEMA, "add --overwrite to begin anew")["settings"]
        names = [name for name in {**stored, **self.settings} if stored.get(name) != self.settings.get(name)]
        if names:
            raise UsageError(
                f"{self.folder} holds a reconstruction with other {', '.join(names)}; "
                "choose another --out, or add --overwrite to replace it"
            )


def _identity(path: str | Path) -> list[Any]:
    """Location, size and modification time (ns) of a file."""
    try:
        modified, size = file_stamp(path)
    except OSError:  # within a pack, or remote: only its name is known
        return [str(path)]
    return [str(Path(path).resolve()), size, modified]
