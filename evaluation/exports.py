"""Exported predictions: one .npy file per field and sample, and a manifest with the origin of the samples."""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from common import process_group
from common.damage import DAMAGED_ARRAY
from common.errors import DataError, UsageError
from common.files import atomic_file, write_json
from common.json_files import PATH, Schema, read_json
from data.constants import N_S2
from data.raster.image_store import open_images
from data.raster.rescaling import optical_to_unit
from evaluation.accumulator import Accumulator, EvaluatedBatch
from evaluation.mixture import NIG_FIELDS, Fields, Image
from model.predictions import Prediction

MANIFEST = "manifest.json"
UNITS = {
    "pred": "reflectance",
    "target": "reflectance",
    "var": "reflectance squared",
    "gamma": "1",
    "alpha": "1",
    "beta": "reflectance squared",
}
_VERSION = 1
_MAX_PENDING = 8  # samples in memory that are not yet written; 13 bands of 256 x 256 in six fields are 20 MiB
_MANIFEST_EVERY_S = 10.0  # a killed run loses at most the manifest entries of this time, never a file
_PREDICTION = re.compile(r"img-(\d+)_pred\.npy")
_SAMPLE_FILE = re.compile(r"img-\d+_(pred|target|var|gamma|alpha|beta|covar)\.npy")

Entry = dict[str, Any]  # of a sample in the manifest
_DAYS = {"type": ["integer", "null"], "minimum": -700_000, "maximum": 700_000}  # within the years of `date`
_PATHS = {"type": "array", "items": PATH}
_INFO: Schema = {  # `data.batch.SampleInfo` and the coverage
    "type": "object",
    "properties": {
        "index": {"type": "integer"},
        "roi": {"type": "string"},
        "patch": {"type": ["string", "integer"]},
        "input_days": {"type": "array", "items": _DAYS | {"type": "integer"}},
        "target_days": _DAYS,
        "input_paths": _PATHS,
        "sar_paths": _PATHS,
        "target_path": PATH,
        "coverage": {"type": "array", "items": {"type": "number"}},
    },
}
_SCHEMA: Schema = {
    "type": "object",
    "required": ["samples"],
    "properties": {
        "samples": {
            "type": "object",
            "patternProperties": {"^[0-9]{1,18}$": {"type": "object", "properties": {"info": _INFO}}},
            "additionalProperties": False,
        }
    },
}


class ExportWriter(Accumulator):
    """Writes `img-ID_{pred,target,var,gamma,alpha,beta}.npy` and `manifest.json`; use it in a `with` block.

    A background thread writes the files while the network predicts the next batch. Its errors are raised by a later
    `write`, or when the block ends.

    Args:
        folder: created if missing. The first sample removes all samples of an earlier writer, so that predictions of
            different models are not mixed; files of other names stay.
        every: `update` writes every N-th sample.
        shared: whether the other processes of this run write to the folder as well: then earlier samples are removed
            at the start of the block, and `merge` writes the manifest.
    """

    def __init__(self, folder: str | Path, every: int = 1, shared: bool = False) -> None:
        self.folder, self.every, self.shared = Path(folder), every, shared
        self._entries: dict[int, Entry] = {}  # of the samples that are written
        self._pending: deque[tuple[int, Entry, Future[None]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exports")
        self._cleared = shared
        self._saved_at = time.monotonic()
        self._unsaved = False

    def update(self, batch: EvaluatedBatch) -> None:
        """Write those samples of a batch whose id is a multiple of `every`."""
        for position, sample_id in enumerate(batch.ids):
            if sample_id % self.every == 0:
                prediction = batch.prediction.item(position)
                self.write(sample_id, prediction, batch.target[position], batch.infos[position])

    def write(
        self,
        sample_id: int,
        prediction: Prediction,
        target: Tensor | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one sample.

        Args:
            sample_id: its number in the split, counted over samples (known issue 7).
            prediction: in reflectance, of one sample: (1,1,13,H,W), or with fewer leading dimensions.
            target: reflectance, same shape.
            info: region, patch, dates and paths for the manifest, ready for JSON.
        """
        if not self._cleared:
            _remove_samples(self.folder)
            self._cleared = True
        parameters = prediction.fields()
        arrays = {"pred": prediction.mean, "var": prediction.total, "target": target}
        arrays |= {name: parameters[name] for name in NIG_FIELDS if name in parameters}
        images = {
            field: values.detach().float().cpu().numpy() for field, values in arrays.items() if values is not None
        }
        entry = {"info": dict(info or {}), "fields": sorted(images)}
        self._pending.append((sample_id, entry, self._thread.submit(_write_fields, self.folder, sample_id, images)))
        self._collect(_MAX_PENDING)
        if time.monotonic() - self._saved_at > _MANIFEST_EVERY_S:
            self._save_own_manifest()

    def _collect(self, max_pending: int) -> None:
        """Register the written samples, and wait until at most `max_pending` are not written.

        Raises:
            OSError: of a file that could not be written.
        """
        while self._pending and (len(self._pending) > max_pending or self._pending[0][2].done()):
            sample_id, entry, written = self._pending.popleft()
            written.result()
            self._entries[sample_id] = entry
            self._unsaved = True

    def state(self) -> dict[int, Entry]:
        """Wait for the files; the manifest entries of the own samples."""
        self._collect(0)
        return self._entries

    def merge(self, states: Sequence[dict[int, Entry]]) -> None:
        """Write the manifest of the samples of all processes."""
        for entries in states:
            self._entries.update(entries)
        if process_group.is_rank_zero():
            self.save_manifest()

    def save_manifest(self) -> None:
        """Write the manifest of the samples that are written."""
        samples = {str(sample_id): self._entries[sample_id] for sample_id in sorted(self._entries)}
        write_json(self.folder / MANIFEST, {"version": _VERSION, "units": UNITS, "samples": samples})
        self._saved_at, self._unsaved = time.monotonic(), False

    def _save_own_manifest(self) -> None:
        if self._unsaved and not self.shared:
            self.save_manifest()

    def __enter__(self) -> "ExportWriter":
        if self.shared:
            if process_group.is_rank_zero():
                _remove_samples(self.folder)
            process_group.barrier()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._collect(0)
        finally:  # after an error of the block, samples handed over are still written, and their errors ignored
            self._thread.shutdown(cancel_futures=error is None)
            for sample_id, entry, written in self._pending:
                if not written.cancelled() and written.exception() is None:
                    self._entries[sample_id] = entry
                    self._unsaved = True
            self._pending.clear()
            self._save_own_manifest()


@dataclass(frozen=True)
class Exports:
    """Exported predictions of one model: ours with a manifest, or published ones without."""

    folder: Path
    infos: dict[int, dict[str, Any]]  # by sample id; empty dicts without a manifest

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the samples, in order."""
        return tuple(sorted(self.infos))

    def load(self, sample_id: int) -> dict[str, Image]:
        """The fields of one sample by name, (13,H,W), memory-mapped; `var` is the diagonal of a `covar` (13,13,H,W).

        Raises:
            DataError: if the sample is missing or a file is not valid.
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
        except DAMAGED_ARRAY as error:
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
    if not (ids := _prediction_ids(folder)):
        folder = _exports_below(folder)
        ids = _prediction_ids(folder)
    entries = _read_manifest(folder)
    missing = sorted(set(entries) - set(ids))
    if missing:
        raise DataError(f"{folder / MANIFEST} lists sample {missing[0]}, but img-{missing[0]}_pred.npy is missing")
    return Exports(folder, {sample_id: entries.get(sample_id, {}).get("info", {}) for sample_id in ids})


def exported_target(fields: Sequence[Fields], info: Mapping[str, Any], root: str, sample_id: int) -> Image:
    """The target of a sample, (13,H,W) reflectance, from the exported fields of any model, or from the data set.

    Raises:
        DataError: if the target is unknown or its shape is not that of the predictions.
        UsageError: if it was not exported and `root` is empty.
    """
    target = next((np.array(member["target"]) for member in fields if "target" in member), None)
    if target is None:
        path = str(info.get("target_path", ""))
        if not path or ";" in path:
            raise DataError(
                f"sample {sample_id} has no exported target, and no manifest names its file; export it again"
            )
        if not root:
            raise UsageError(f"sample {sample_id} has no exported target: name the data set by --root to read {path}")
        target = _read_optical(root, path)
    expected = fields[0]["pred"].shape
    if target.shape != expected:
        raise DataError(f"sample {sample_id}: its target has shape {target.shape}, the predictions have {expected}")
    return target


def read_inputs(info: Mapping[str, Any], root: str) -> Image | None:
    """The optical inputs of a sample, (T,13,H,W) reflectance; None without `root` or paths in the manifest."""
    paths = info.get("input_paths")
    if not root or not isinstance(paths, list) or not paths or any(";" in path for path in paths):
        return None
    return np.stack([_read_optical(root, path) for path in paths])


def _read_optical(root: str, path: str) -> Image:
    return optical_to_unit(open_images(root).read(path, N_S2)[0])


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
    """Remove the samples of an earlier writer, the manifest last, so that a partial removal is an error on reading."""
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


def _read_manifest(folder: Path) -> dict[int, Entry]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    samples = read_json(path, _SCHEMA, "delete this list of exports, or export again")["samples"]
    return {int(sample_id): entry for sample_id, entry in samples.items()}
