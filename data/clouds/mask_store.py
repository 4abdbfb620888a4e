"""Persistent store of cloud masks and coverages, computed once and read in every epoch and run.

Layout: `STORE/DETECTOR-SETTINGS/ROIs1868/73/patch_171.npz`, one record for all dates of a patch (of SEN12MS-CR for each
cloudy image). `SETTINGS` is a hash of the detector's settings, which `settings.json` beside the records spells out. A
record is written to a temporary name and renamed, so that readers and other writers never see a partial one, on any
file system with an atomic rename. Of two concurrent writers of a record the later one wins; what only the other one had
is computed again on demand.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import cache_folder, write_json
from data.clouds.detectors import detector_settings, mask_and_coverage
from data.clouds.mask_record import DamagedRecordError, MaskEntry, MaskRecord, write_record
from data.clouds.published_coverage import ImportedCoverage, find_published, published_name, read_published
from data.constants import N_S2
from data.raster.image_store import open_images

_FORMAT = 1  # of the records; part of the settings' hash
_IMPORT_TOLERANCE = 0.02  # if an imported coverage differs more from the mask's mean, it is of another image
_SERIES = re.compile(r"(?P<roi>.+/.+)/S2/\d+/s2_.*_(?P<patch>patch_\d+)\.tif")

RawImages = Sequence[np.ndarray | None] | None


class StoreWriteError(DataError):
    """The store cannot be written."""


class MaskStore:
    """Cloud masks and coverages by image path; missing ones are computed and stored.

    Args:
        path: the folder of the store, created when first written to; None for the `default_store` of the root.
        detector: one of `data.constants.DETECTORS`.
        read_only: compute missing masks, but write nothing.
        imported: coverages that take precedence over stored ones.
        must_store: raise if a record cannot be written, instead of continuing with a warning.
    """

    def __init__(
        self,
        path: str | Path | None,
        detector: str,
        read_only: bool = False,
        *,
        imported: ImportedCoverage | None = None,
        must_store: bool = False,
    ) -> None:
        self.detector, self.read_only, self.imported, self.must_store = detector, read_only, imported, must_store
        self.path = None if path is None else Path(path)
        self._settings = {**detector_settings(detector), "format": _FORMAT}
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()[:8]
        self._folder = f"{detector}-{digest}"
        # caches: the coverages of a patch are followed by its masks
        self._last_read: tuple[Path, MaskRecord] | None = None
        self._last_computed: tuple[Path, dict[str, MaskEntry]] | None = None
        self._warned: set[str] = set()

    def folder(self, root: str | Path) -> Path:
        """The folder of this detector's records."""
        return (self.path if self.path is not None else default_store(root)) / self._folder

    def coverages(self, root: str | Path, rel_paths: Sequence[str], images: RawImages = None) -> np.ndarray:
        """The cloud cover of images.

        Args:
            root: the data set's folder.
            rel_paths: optical images, POSIX paths relative to the root.
            images: their raw values (13, H, W) if already loaded.

        Returns:
            float64 (n,), in [0, 1].

        Raises:
            DataError: if an image without a stored mask cannot be read.
        """
        coverage = np.full(len(rel_paths), np.nan) if self.imported is None else self.imported.lookup(rel_paths)
        rest = [int(index) for index in np.flatnonzero(np.isnan(coverage))]
        if rest and self.imported is not None:
            text = f"{self.imported.source} lacks some images ({rel_paths[rest[0]]}): their coverage is computed"
            self._warn_once("unknown", text)
        for index, entry in self._entries(Path(root), rel_paths, rest, images, with_masks=False).items():
            coverage[index] = entry.coverage
        return coverage

    def masks(self, root: str | Path, rel_paths: Sequence[str], images: RawImages = None) -> list[np.ndarray]:
        """The mask of each image, float32 (H, W); arguments and errors as for `coverages`."""
        entries = self._entries(Path(root), rel_paths, range(len(rel_paths)), images, with_masks=True)
        masks = [entries[index].mask for index in range(len(rel_paths))]
        return [mask for mask in masks if mask is not None]

    def missing(self, root: str | Path, rel_paths: Sequence[str]) -> list[str]:
        """The images without a stored mask."""
        absent = []
        for record_path, indexes in self._by_record(Path(root), rel_paths, range(len(rel_paths))).items():
            record = self._read(record_path)
            absent += [rel_paths[i] for i in indexes if record is None or not record.has_mask(_name(rel_paths[i]))]
        return absent

    def add_imported(self, root: str | Path, rel_paths: Sequence[str], imported: ImportedCoverage) -> int:
        """Store coverages from a published file for images without a stored coverage.

        Returns:
            The number of images added.
        """
        values = imported.lookup(rel_paths)
        indexes = [index for index in range(len(rel_paths)) if not np.isnan(values[index])]
        added = 0
        for record_path, members in self._by_record(Path(root), rel_paths, indexes).items():
            record = self._read(record_path)
            coverage = {_name(rel_paths[index]): float(values[index]) for index in members}
            new = {
                name: MaskEntry(value, imported=True)
                for name, value in coverage.items()
                if record is None or name not in record
            }
            if new:
                self._write(root, record_path, self._merge(record_path, new, keep_old=True))
            added += len(new)
        return added

    def require_overlap(self, rel_paths: Sequence[str]) -> None:
        """Check that an imported coverage file belongs to this data set.

        Raises:
            DataError: if it contains none of these images.
        """
        if self.imported is not None and rel_paths and np.isnan(self.imported.lookup(rel_paths)).all():
            raise DataError(
                f"coverage file for other data: {self.imported.source} contains none of the {len(rel_paths)} images of"
                f" this data set, such as {rel_paths[0]}; check the split, the region and the root"
            )

    def _entries(
        self, root: Path, rel_paths: Sequence[str], indexes: Sequence[int], images: RawImages, with_masks: bool
    ) -> dict[int, MaskEntry]:
        """The entries of the images at `indexes`, stored or computed."""
        entries: dict[int, MaskEntry] = {}
        for record_path, members in self._by_record(root, rel_paths, indexes).items():
            names = {index: _name(rel_paths[index]) for index in members}
            # images whose masks are needed are about to be opened; for coverages checking one of the series suffices
            checked = members if with_masks else members[:1]
            file_sizes = {names[index]: open_images(root).file_bytes(rel_paths[index]) for index in checked}
            image = None if images is None else images[members[0]]
            size = None if image is None else image.shape[1:]  # that of all dates
            stored, valid = self._stored(record_path, list(names.values()), file_sizes, with_masks, size)
            entries |= {index: stored[name] for index, name in names.items() if name in stored}
            absent = [index for index in members if index not in entries]
            computed = {
                names[i]: self._compute(root, rel_paths[i], None if images is None else images[i]) for i in absent
            }
            if computed:
                merged = self._merge(record_path, computed, keep_old=valid)
                self._last_computed = record_path, merged
                self._write(root, record_path, merged)
                entries |= {index: merged[names[index]] for index in absent}
        return entries

    def _stored(
        self,
        record_path: Path,
        names: list[str],
        file_sizes: dict[str, int],
        with_masks: bool,
        size: tuple[int, ...] | None,
    ) -> tuple[dict[str, MaskEntry], bool]:
        """The stored entries, and whether the record is valid: no image has changed size since it was written."""
        if self._last_computed is not None and self._last_computed[0] == record_path:
            last = self._last_computed[1]
            if all(name in last and not (with_masks and last[name].mask is None) for name in names):
                return {name: last[name] for name in names}, True
        record = self._last_read[1] if self._last_read is not None and self._last_read[0] == record_path else None
        if record is None or not all(record.has_mask(n) if with_masks else n in record for n in names):
            record = self._read(record_path)  # another process may have added entries in the meantime
        if record is None:
            return {}, True
        for name, n_bytes in file_sizes.items():
            if name in record and -1 not in (n_bytes, record.image_bytes(name)) and n_bytes != record.image_bytes(name):
                text = f"images have changed since their masks were stored in {record_path}: computing them again"
                self._warn_once("changed", text)
                return {}, False
        if not with_masks:
            coverage = {name: record.coverage(name) for name in names}
            return {name: MaskEntry(value) for name, value in coverage.items() if value is not None}, True
        available = [name for name in names if record.has_mask(name)]
        try:
            masks = record.masks(available, size)
        except DamagedRecordError as error:
            self._warn_damaged(error)
            return {}, True
        return {name: MaskEntry(0.0, mask) for name, mask in zip(available, masks, strict=True)}, True

    def _compute(self, root: Path, rel_path: str, image: np.ndarray | None) -> MaskEntry:
        images = open_images(root)
        raw = images.read(rel_path, N_S2)[0] if image is None else image
        mask, coverage = mask_and_coverage(raw, self.detector)
        entry = MaskEntry(coverage, mask, images.file_bytes(rel_path))
        if self.imported is not None:
            self._compare(root / rel_path, float(self.imported.lookup([rel_path])[0]), entry.coverage)
        return entry

    def _compare(self, path: Path | str, imported: float, computed: float) -> None:
        if abs(imported - computed) > _IMPORT_TOLERANCE:
            text = f"imported coverage {imported:.3f} of {path} differs from that of its mask, {computed:.3f}"
            self._warn_once("differs", f"{text}: was it imported for other data?")

    def _merge(self, record_path: Path, new: dict[str, MaskEntry], keep_old: bool) -> dict[str, MaskEntry]:
        record = self._read(record_path) if keep_old else None
        try:
            size = next((entry.mask.shape for entry in new.values() if entry.mask is not None), None)
            merged = {} if record is None else record.entries(size)
        except DamagedRecordError:
            merged = {}
        for name, entry in new.items():
            before = merged.get(name)
            if (
                before is not None and before.imported
            ):  # stays, so that the choice of dates is stable as masks are added
                self._compare(name, before.coverage, entry.coverage)
                entry = replace(entry, coverage=before.coverage, imported=True)
            merged[name] = entry
        return merged

    def _write(self, root: str | Path, record_path: Path, entries: dict[str, MaskEntry]) -> None:
        if self.read_only:
            return
        settings = self.folder(root) / "settings.json"
        try:
            if not os.path.isfile(settings):  # unlike Path.is_file, False in a folder that is closed
                write_json(settings, self._settings)
            write_record(record_path, entries)
        except DataError as error:
            if self.must_store:
                raise StoreWriteError(str(error)) from error
            self.read_only = True
            self._warn_once("unstored", f"cloud masks cannot be stored and are computed at each reading: {error}")

    def _read(self, record_path: Path) -> MaskRecord | None:
        try:
            record = MaskRecord(record_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (DamagedRecordError, OSError) as error:
            self._warn_damaged(error)
            return None
        self._last_read = record_path, record
        return record

    def _by_record(self, root: Path, rel_paths: Sequence[str], indexes: Sequence[int]) -> dict[Path, list[int]]:
        """The indexes of images, grouped by the path of their record."""
        groups: dict[str, list[int]] = {}
        for index in indexes:
            groups.setdefault(_record_name(rel_paths[index]), []).append(index)
        folder = self.folder(root)
        return {folder / name: members for name, members in groups.items()}

    def _warn_damaged(self, error: Exception) -> None:
        self._warn_once("damaged", f"damaged record in the mask store: computing it again ({error})")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, stacklevel=2)


def open_mask_store(path: str | Path | None, detector: str, *, n_inputs: int, split: str, region: str) -> MaskStore:
    """The store named by `--precomputed` or `import_data_path`.

    Args:
        path: the folder of a store (created when first written to), a folder with published
            `generic_N_SPLIT_REGION_DETECTOR.npy` files, one such file, or None for the default store of the root.
        detector: one of `data.constants.DETECTORS`.
        n_inputs: number of input dates; with split and region it selects the published file in a folder.
        split: train, val, test or all.
        region: a region or all.

    Returns:
        A store. Published files provide coverages only: masks are stored in the default store of the root, or in the
        folder itself if it already is a store.

    Raises:
        DataError: if the file is missing or no published coverage file, or is of another detector.
    """
    if not path:
        return MaskStore(None, detector)
    path = Path(path)
    if path.suffix == ".npy":
        parts = published_name(path)
        if parts is not None and parts[3] != detector:
            raise DataError(f"{path} holds the coverage of {parts[3]}, but the detector is {detector}")
        return MaskStore(None, detector, imported=read_published(path))
    if path.exists() and not path.is_dir():
        raise DataError(f"neither a folder nor an .npy file: {path}; expected a mask store or published coverage")
    published = find_published(path, detector, n_inputs, split, region)
    store = MaskStore(path, detector, imported=None if published is None else read_published(published))
    if not store.folder(path).is_dir():
        if published is not None:
            store.path = None
        else:
            warnings.warn(f"no masks of {detector} are stored in {path} yet: missing ones are computed", stacklevel=2)
    return store


def default_store(root: str | Path) -> Path:
    """The default folder of masks: `.mask_store` in the root if it is writable, otherwise in the user's cache."""
    root = Path(root)
    in_root = root / ".mask_store"
    folder = in_root if in_root.exists() else root
    # the mode as well: os.access is always true for the superuser
    if os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:
        return in_root
    return cache_folder() / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def _name(rel_path: str) -> str:
    return rel_path.rpartition("/")[2]


def _record_name(rel_path: str) -> str:
    if rel_path.startswith("/") or ".." in rel_path.split("/"):
        raise ValueError(f"expected a path relative to the root, got {rel_path}")
    series = _SERIES.fullmatch(rel_path)
    return f"{series['roi']}/{series['patch']}.npz" if series else f"{rel_path.rpartition('.')[0]}.npz"
