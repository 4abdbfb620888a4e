"""What SEN12MS-CR and SEN12MS-CR-TS share."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from common.errors import DataError, UsageError
from data.batch import Note, Sample, Skipped
from data.clouds.mask_store import MaskStore, open_mask_store
from data.constants import DATE_ORIGIN, DETECTORS, N_S1, N_S2
from data.layout import EXAMPLES, parse_path
from data.raster.geotiff import Bounds
from data.raster.image_store import open_images
from data.raster.missing import mask_missing, missing_pixels
from data.raster.rescaling import RESCALE_METHODS, RawImage, optical_to_unit, sar_to_unit


class EmptySplitError(DataError):
    """A split without patches, in a root that exists."""


@dataclass(frozen=True)
class DatasetOptions:
    """Options of the data sets beyond the published arguments; passed by keyword.

    Attributes:
        legacy: published behaviour. SEN12MS-CR: test regions are also trained on. SEN12MS-CR-TS: the target may be
            among the inputs, and files are paired by position.
        skip_bad_samples: leave out incomplete patches; an item that cannot be read, or whose target has pixels without
            data, is a `data.batch.Skipped`, which `data.batch.Collate` drops.
        flag: name of the root in error messages.
        ref_date: day from which the days of SEN12MS-CR-TS are counted.
        seed: of the sampler "random", whose dates depend on it, the epoch and the sample's index alone.
        earliest: first date of the sampler "fixedsubset".
        latest: date after its last one; None is the end of the series.
    """

    legacy: bool = False
    skip_bad_samples: bool = False
    flag: str = "root"
    ref_date: date = DATE_ORIGIN
    seed: int = 1
    earliest: int = 0
    latest: int | None = None


class PatchDataset(Dataset[Any], ABC):
    """Patches of one split, read on demand; an item is a nested dict with the published keys.

    Subclasses set `paths` and call `_open_store`.

    Attributes:
        paths: paths of each sample, relative to the root.
        bad_samples: what was left out, and why.
        nan_values: number of NaN values read so far, in this process.

    Raises:
        DataError: if the root is missing.
        UsageError: if an option is unknown.
    """

    name: ClassVar[str]
    root_holds: ClassVar[str]
    sample_types: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str | Path,
        split: str,
        region: str,
        cloud_masks: str | None,
        sample_type: str,
        n_input_samples: int,
        rescale_method: str,
        options: DatasetOptions,
    ) -> None:
        check_choice("cloud_masks", cloud_masks, (*DETECTORS, None))
        check_choice("rescale_method", rescale_method, RESCALE_METHODS)
        check_choice("sample_type", sample_type, self.sample_types)
        self.root_dir = check_root(root, options.flag, self.root_holds)
        self.split, self.region, self.cloud_masks, self.sample_type = split, region, cloud_masks, sample_type
        self.n_input_t, self.rescale_method, self.options, self.epoch = n_input_samples, rescale_method, options, 0
        self.paths: list[Any] = []
        self.bad_samples: list[Skipped] = []
        self.nan_values = 0
        self._notes: dict[str, Note] = {}
        self._reported: set[str] = set()
        self._store: MaskStore | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | Skipped:
        try:
            sample = self.load(index)
        except DataError as error:
            if not self.options.skip_bad_samples:
                raise
            return Skipped(self.first_path(index), str(error))
        warn_once(self.take_notes(), self._reported)
        return sample

    def take_notes(self) -> tuple[Note, ...]:
        """Notes about the files that `load` has read since the last call."""
        notes, self._notes = tuple(self._notes.values()), {}
        return notes

    @abstractmethod
    def load(self, index: int, for_batch: bool = False, radar: bool = True) -> Sample:
        """Read a sample.

        Args:
            index: which.
            for_batch: read only what `data.batch.Collate` needs, and leave images as `RawImage`, which it rescales
                into the batch.
            radar: False for a batch without radar, which is not read then.

        Raises:
            DataError: if one of its files cannot be used, also with `skip_bad_samples`.
        """

    @abstractmethod
    def first_path(self, index: int) -> str:
        """The path that identifies a sample: its first optical input, or the first target file of a custom sample."""

    def roi(self, index: int) -> str:
        """The region of a sample, "ROIs1868/73" or "ROIs1970_fall/139"."""
        return parse_path(self.first_path(index))[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which random dates depend."""
        self.epoch = epoch

    def _require_samples(self, n_bad: int) -> None:
        """Raise an `EmptySplitError` if no sample was found."""
        if self.paths:
            return
        skipped = f" ({n_bad} incomplete or misplaced ones were skipped)" if n_bad else ""
        expected = EXAMPLES[self.name].replace("ROOT", self.root_dir.rstrip("/"), 1)
        raise EmptySplitError(
            f"no patch of {self.name}, split {self.split!r}, region {self.region!r} in {self.root_dir} "
            f"({self.options.flag}){skipped}; expected {expected}"
        )

    def _open_store(self, path: str | Path | None, optical_paths: Iterable[str]) -> None:
        """Open the mask store; an imported coverage file must contain some of the optical paths."""
        if self.cloud_masks is None:
            return
        self._store = open_mask_store(
            path, self.cloud_masks, n_inputs=self.n_input_t, split=self.split, region=self.region
        )
        if self._store.imported is not None:
            self._store.require_overlap(list(optical_paths))

    def _coverages(self, paths: Sequence[str], images: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Cloud cover of optical images, float64 (n,); NaN without a detector."""
        if self._store is None:
            return np.full(len(paths), np.nan)
        return self._store.coverages(self.root_dir, paths, images)

    def _masks(self, paths: Sequence[str], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Cloud masks of optical images, float32 (H, W) each; 0 without a detector, 1 at pixels without data."""
        if self._store is None:
            masks = [np.zeros(image.shape[1:], np.float32) for image in images]
        else:
            masks = self._store.masks(self.root_dir, paths, images)
        # also stored masks: those of earlier versions, and of files that were damaged later
        return [mask_missing(mask, image) for mask, image in zip(masks, images, strict=True)]

    def _read_optical(self, path: str, target: bool = False) -> tuple[np.ndarray, Bounds]:
        """An optical patch as stored, (13, H, W), and its bounds; see `_check_optical`."""
        raw, bounds = open_images(self.root_dir).read(path, N_S2, self._patch_size)
        self._check_optical(path, raw, target)
        return raw, bounds

    def _check_optical(self, path: str, raw: np.ndarray, target: bool) -> None:
        """Note pixels without data.

        Raises:
            DataError: if a target is blank, or has such pixels and bad samples are skipped.
        """
        missing = missing_pixels(raw)
        if missing is None:
            return
        full_path = os.path.join(self.root_dir, path)
        if target and missing.all():
            raise DataError(f"{full_path}: every value is 0, there is no image to be a target")
        n_missing = int(missing.sum())
        text = f"{full_path}: {n_missing} of {missing.size} pixels ({missing.mean():.1%}) are 0 in every band"
        if target and self.options.skip_bad_samples:
            raise DataError(f"{text}, as in damaged files")
        consequence = "in inputs they count as cloud, in targets they are left out of loss and metrics"
        self._note(path, f"{text}, as in damaged files: {consequence}; fetch it again, or use --skip_bad_samples")

    def _note(self, key: str, text: str) -> None:
        self._notes.setdefault(key, Note(key, text))

    def _read_radar(self, path: str) -> np.ndarray:
        """A radar patch in dB, float32 (2, H, W)."""
        return open_images(self.root_dir).read(path, N_S1, self._patch_size)[0]

    @cached_property
    def _patch_size(self) -> tuple[int, int]:
        """Size of the first readable image in pixels; all others must have it."""
        for index in range(len(self)):
            try:
                return open_images(self.root_dir).size(self.first_path(index))
            except DataError:
                if not self.options.skip_bad_samples:
                    raise
        raise DataError(f"not one readable image in {self.root_dir}")

    def _rescale(self, path: str, raw: np.ndarray, as_raw_image: bool) -> np.ndarray | RawImage:
        """Rescale an optical or radar image, or defer it to collation; NaN and blank rows of radar are noted."""
        if raw.dtype.kind == "f":
            full_path = os.path.join(self.root_dir, path)
            if n_nan := int(np.isnan(raw).sum()):
                text = f"{full_path}: {n_nan} of {raw.size} values are NaN and become 0"
                self._note("NaN", f"{text}; further files with NaN are not reported")
            self.nan_values += n_nan
            rows = np.flatnonzero(raw[0, :, 0] == 0)  # few, if any: only these are read entirely
            if n_blank := int((raw[:, rows] == 0).all(axis=(0, 2)).sum()):
                text = f"{full_path}: {n_blank} of {raw.shape[1]} rows are exactly 0 dB, as in damaged files"
                self._note(path, f"{text}; they are used as they are; fetch it again")
        image = RawImage(raw, optical_to_unit if len(raw) == N_S2 else sar_to_unit, self.rescale_method)
        return image if as_raw_image else image.to_unit()


def warn_once(notes: Iterable[Note], reported: set[str]) -> None:
    """Warn of the notes whose keys are not among those `reported`, which are updated."""
    for note in notes:
        if note.key not in reported:
            reported.add(note.key)
            warnings.warn(note.text, stacklevel=3)


def check_root(root: str | Path, flag: str, contents: str) -> str:
    """The root with ~ expanded.

    Raises:
        UsageError: if it is empty.
        DataError: if there is no such folder; the message names the flag and the expected contents.
    """
    if not str(root):
        raise UsageError(f"{flag} is not given: it is the folder that holds {contents}")
    expanded = os.path.expanduser(str(root))
    if not os.path.isdir(expanded):
        raise DataError(f"no folder {expanded} ({flag}); expected a folder that holds {contents}")
    return expanded


def check_choice(what: str, value: object, choices: Sequence[object]) -> None:
    """Raise a `UsageError` that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise UsageError(f"unknown {what} {value!r}; choose from {', '.join(str(choice) for choice in choices)}")
