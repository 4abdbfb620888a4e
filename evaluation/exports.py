"""Predictions on disk: one .npy file for each field of each sample, and a manifest that says what they show."""

import json
import re
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.files import atomic_file, write_json
from data.constants import N_S2

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
NIG_FIELDS = ("gamma", "alpha", "beta")
UNITS = {
    "pred": "reflectance",
    "target": "reflectance",
    "var": "reflectance squared",
    "gamma": "1",
    "alpha": "1",
    "beta": "reflectance squared",
}
_VERSION = 1
_MOST_WAITING = 8  # samples in memory that are not yet written; 13 bands of 256 x 256 in six fields are 20 MiB
_MANIFEST_EVERY_S = 10.0  # a killed run loses the manifest entries of so many seconds, never a file
_PREDICTION = re.compile(r"img-(\d+)_pred\.npy")
_SAMPLE_FILE = re.compile(r"img-\d+_(pred|target|var|gamma|alpha|beta|covar)\.npy")

Image = npt.NDArray[np.float32]


class Exportable(Protocol):
    """A prediction of one sample, in reflectance."""

    @property
    def mean(self) -> "Tensor":
        """The predicted image."""

    @property
    def total(self) -> "Tensor | None":
        """The predictive variance; None where the head has none."""

    def fields(self) -> "dict[str, Tensor]":
        """Parameters by name."""


class ExportWriter:
    """Writes `img-ID_{pred,target,var,gamma,alpha,beta}.npy` and `manifest.json`; use it in a `with` block.

    The files are written by a thread in the background while the network predicts the next batch. What goes wrong
    there is raised by a later `write`, or when the block ends.

    Args:
        folder: where to; made if missing. With the first sample all samples of an earlier writer go, lest predictions
            of an older model stay among the new ones; files of other names are left alone.
        alone: False where other processes write to the folder as well: then one of them calls `clear` before the
            first sample of any, and `adopt` with what all have `finished`.
    """

    def __init__(self, folder: str | Path, alone: bool = True) -> None:
        self.folder, self._alone = Path(folder), alone
        self._samples: dict[int, dict[str, Any]] = {}
        self._writing: deque[tuple[int, dict[str, Any], Future[None]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exports")
        self._began = not alone
        self._saved_at = time.monotonic()
        self._unsaved = False

    def write(
        self,
        sample_id: int,
        prediction: Exportable,
        target: "Tensor | None" = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one sample.

        Args:
            sample_id: its number in the split, counted over samples (known issue 7).
            prediction: in reflectance, of one sample: (1,1,13,H,W), or with fewer leading ones.
            target: reflectance, alike.
            info: what the manifest tells about it, ready for JSON: region, patch, dates, paths.
        """
        if not self._began:
            self.clear()
            self._began = True
        arrays = {"pred": prediction.mean}
        if prediction.total is not None:
            arrays["var"] = prediction.total
        if target is not None:
            arrays["target"] = target
        parameters = prediction.fields()
        arrays |= {name: parameters[name] for name in NIG_FIELDS if name in parameters}
        images = {field: values.detach().float().cpu().numpy() for field, values in arrays.items()}
        entry = {"info": dict(info or {}), "fields": sorted(arrays)}
        self._writing.append((sample_id, entry, self._thread.submit(_write_fields, self.folder, sample_id, images)))
        self._gather(_MOST_WAITING)
        if self._alone and self._unsaved and time.monotonic() - self._saved_at > _MANIFEST_EVERY_S:
            self.save_manifest()

    def _gather(self, most: int) -> None:
        """Note what is written, and wait until at most so many samples are not.

        Raises:
            OSError: of a file that could not be written.
        """
        while self._writing and (len(self._writing) > most or self._writing[0][2].done()):
            sample_id, entry, written = self._writing.popleft()
            written.result()
            self._samples[sample_id] = entry
            self._unsaved = True

    def save_manifest(self) -> None:
        """Write the manifest of the samples that are written."""
        samples = {str(sample_id): self._samples[sample_id] for sample_id in sorted(self._samples)}
        write_json(self.folder / MANIFEST, {"version": _VERSION, "units": UNITS, "samples": samples})
        self._saved_at, self._unsaved = time.monotonic(), False

    def close(self) -> None:
        """Wait for the files, and write the manifest if it lacks a sample."""
        try:
            self._gather(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
            if self._alone and self._unsaved:
                self.save_manifest()

    def clear(self) -> None:
        """Remove the samples of an earlier writer."""
        _remove_samples(self.folder)

    def finished(self) -> dict[int, dict[str, Any]]:
        """Wait for the files; what the manifest is to tell of each sample."""
        self._gather(0)
        return self._samples

    def adopt(self, entries: Mapping[int, dict[str, Any]]) -> None:
        """Write the manifest of these samples, which other processes have written, and of one's own."""
        self._samples.update(entries)
        self.save_manifest()

    def __enter__(self) -> "ExportWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._thread.shutdown()  # what was handed over is written; of two errors the first is told
        for sample_id, entry, written in self._writing:
            if written.exception() is None:
                self._samples[sample_id] = entry
                self._unsaved = True
        self._writing.clear()
        if self._alone and self._unsaved:
            self.save_manifest()


@dataclass(frozen=True)
class Exports:
    """Exported predictions of one model: ours with a manifest, or published ones without."""

    folder: Path
    infos: dict[int, dict[str, Any]]  # empty dicts where there is no manifest

    @property
    def ids(self) -> tuple[int, ...]:
        """Numbers of the samples, rising."""
        return tuple(sorted(self.infos))

    def load(self, sample_id: int) -> dict[str, Image]:
        """The fields of one sample by name, (13,H,W), mapped from disk; a `covar` (13,13,H,W) comes as its `var`.

        Raises:
            DataError: if the sample is not there or a file is not what it should be.
        """
        fields = {field: self._load(sample_id, field) for field in UNITS if self._path(sample_id, field).is_file()}
        if "pred" not in fields:
            raise DataError(f"no sample {sample_id} in {self.folder}: img-{sample_id}_pred.npy is missing")
        if "var" not in fields and self._path(sample_id, "covar").is_file():
            covariance = self._load(sample_id, "covar")
            fields["var"] = np.moveaxis(np.diagonal(covariance, axis1=0, axis2=1), -1, 0)
        size = fields["pred"].shape
        for field, image in fields.items():
            if image.shape != size:
                path = self._path(sample_id, field)
                raise DataError(f"{path}: expected the shape of the prediction, {size}, got {image.shape}")
        return fields

    def _path(self, sample_id: int, field: str) -> Path:
        return _field_path(self.folder, sample_id, field)

    def _load(self, sample_id: int, field: str) -> Image:
        path = self._path(sample_id, field)
        try:
            image = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy file ({error}); export this sample again") from error
        dims = 4 if field == "covar" else 3
        image = image.reshape(image.shape[-dims:]) if image.ndim > dims else image
        if image.ndim != dims or image.shape[-3] != N_S2:
            raise DataError(f"{path}: expected ({N_S2},H,W), got {image.shape}")
        return image


def read_exports(folder: str | Path) -> Exports:
    """The exported predictions in a folder.

    Args:
        folder: holds img-ID_pred.npy files; or a run's folder, if exactly one folder below its `export` does.

    Raises:
        DataError: if there are none, or several folders with exports, or the manifest cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; expected exported predictions (img-ID_pred.npy)")
    found = _prediction_ids(folder)
    if not found:
        folder = _exports_below(folder)
        found = _prediction_ids(folder)
    samples = _read_manifest(folder) or {}
    gone = sorted(set(samples) - set(found))
    if gone:
        raise DataError(f"{folder / MANIFEST} lists sample {gone[0]}, but img-{gone[0]}_pred.npy is missing")
    return Exports(folder, {sample_id: samples.get(sample_id, {}).get("info", {}) for sample_id in found})


def _exports_below(folder: Path) -> Path:
    candidates = sorted(path for path in folder.glob("**/") if path != folder and _prediction_ids(path))
    tests = [path for path in candidates if path.name == "test"]
    if len(candidates) == 1 or len(tests) == 1:
        return candidates[0] if len(candidates) == 1 else tests[0]
    if not candidates:
        raise DataError(f"no exported predictions (img-ID_pred.npy) in {folder}; test with --export_every 1 first")
    listed = ", ".join(str(path.relative_to(folder)) for path in candidates)
    raise DataError(f"several exports in {folder}: {listed}; name one of these folders")


def _prediction_ids(folder: Path) -> list[int]:
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _PREDICTION.fullmatch(path.name)))


def _remove_samples(folder: Path) -> None:
    """Remove the samples of an earlier writer, its manifest last: killed in between, reading them is an error."""
    if not folder.is_dir():
        return
    try:
        for path in folder.iterdir():
            if _SAMPLE_FILE.fullmatch(path.name):
                path.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot replace the exports in {folder}: {error.strerror or error}") from error


def _write_fields(folder: Path, sample_id: int, images: Mapping[str, Image]) -> None:
    for field, image in images.items():
        with atomic_file(_field_path(folder, sample_id, field)) as temporary:
            np.save(temporary, image.reshape(image.shape[-3:]))


def _field_path(folder: Path, sample_id: int, field: str) -> Path:
    return folder / f"img-{sample_id}_{field}.npy"


def _read_manifest(folder: Path) -> dict[int, dict[str, Any]] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {int(sample_id): dict(entry) for sample_id, entry in manifest["samples"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a manifest of exports ({error!r}); delete it or export again") from error
