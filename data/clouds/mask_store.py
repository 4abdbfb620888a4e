"""The persistent store of cloud masks and coverages: computed once, then read by every epoch and every run.

Layout: `STORE/DETECTOR-SETTINGS/ROIs1868/73/patch_171.npz`, one record for all dates of a patch (for SEN12MS-CR one for
each cloudy image), `SETTINGS` being a hash of what decides the outcome, spelled out in `settings.json` beside the
records. A record is written to a temporary name and renamed, so readers and other writers see it whole or not at all,
on any file system with an atomic rename. Of two writers of one record the later one wins; what the other one knew
beyond that is computed again when it is asked for.
"""

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import write_json
from data.clouds.detectors import detect_clouds, detector_settings
from data.clouds.mask_record import DamagedRecordError, Entry, Record, write_record
from data.clouds.published_coverage import ImportedCoverage, find_published, published_name, read_published
from data.constants import N_S2
from data.raster.image_store import open_images

_FORMAT = 1  # of the records; part of the settings' hash
_STALE_SECONDS = 3600  # a temporary file this old has no living writer: a record is written within seconds
_IMPORT_TOLERANCE = 0.02  # an imported coverage further than this from the mask's mean is not of this image
_SERIES = re.compile(r"(?P<roi>.+/.+)/S2/\d+/s2_.*_(?P<patch>patch_\d+)\.tif")


class StoreWriteError(DataError):
    """The store cannot be written."""


class MaskStore:
    """Cloud masks and coverages by image path: stored ones are read, missing ones computed and stored.

    Args:
        path: the folder of the store, made when first written to; None for `default_store` of the root asked for.
        detector: one of `data.constants.DETECTORS`.
        read_only: compute what is missing, but write nothing.
        imported: coverages that win over stored ones.
        must_store: raise if a record cannot be written, instead of going on without storing, with a warning.
        device: where clouds are detected, see `data.clouds.detectors.detect_clouds`.
    """

    def __init__(
        self,
        path: str | Path | None,
        detector: str,
        read_only: bool = False,
        *,
        imported: ImportedCoverage | None = None,
        must_store: bool = False,
        device: str = "cpu",
    ) -> None:
        self.detector, self.read_only, self.imported, self.must_store = detector, read_only, imported, must_store
        self.device = device
        self.path = None if path is None else Path(path)
        self._settings = {**detector_settings(detector), "format": _FORMAT}
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()[:8]
        self._folder = f"{detector}-{digest}"
        # coverages, then masks of the same patch: one reading, one computing
        self._last_read: tuple[Path, Record] | None = None
        self._last_computed: tuple[Path, dict[str, Entry]] | None = None
        self._swept: set[Path] = set()
        self._told: set[str] = set()

    def folder(self, root: str | Path) -> Path:
        """Where the records of this detector lie."""
        return (self.path if self.path is not None else default_store(root)) / self._folder

    def coverages(
        self, root: str | Path, rel_paths: Sequence[str], images: Sequence[np.ndarray | None] | None = None
    ) -> np.ndarray:
        """The share of each image that is clouded.

        Args:
            root: the data set's folder.
            rel_paths: optical images, POSIX paths below the root.
            images: their raw values (13, H, W) where at hand, to spare a second reading.

        Returns:
            float64 (n,), in [0, 1].

        Raises:
            DataError: if an image whose mask is missing cannot be read.
        """
        imported = np.full(len(rel_paths), np.nan) if self.imported is None else self.imported.lookup(rel_paths)
        rest = [index for index in range(len(rel_paths)) if np.isnan(imported[index])]
        if rest and self.imported is not None:
            text = f"{self.imported.source} does not know all images ({rel_paths[rest[0]]}): their coverage is computed"
            self._tell("unknown", text)
        found = self._entries(Path(root), rel_paths, rest, images, with_masks=False)
        for index, entry in found.items():
            imported[index] = entry.coverage
        return imported

    def masks(
        self, root: str | Path, rel_paths: Sequence[str], images: Sequence[np.ndarray | None] | None = None
    ) -> list[np.ndarray]:
        """The mask of each image, float32 (H, W); arguments and errors as for `coverages`."""
        found = self._entries(Path(root), rel_paths, range(len(rel_paths)), images, with_masks=True)
        masks = [found[index].mask for index in range(len(rel_paths))]
        return [mask for mask in masks if mask is not None]

    def missing(self, root: str | Path, rel_paths: Sequence[str]) -> list[str]:
        """The images whose masks are not stored."""
        absent = []
        for record_path, indexes in self._grouped(Path(root), rel_paths, range(len(rel_paths))).items():
            record = self._read(record_path)
            absent += [rel_paths[i] for i in indexes if record is None or not record.has_mask(_name(rel_paths[i]))]
        return absent

    def add_imported(self, root: str | Path, rel_paths: Sequence[str], imported: ImportedCoverage) -> int:
        """Store coverages from a published file for the images that the store does not know yet.

        Returns:
            How many were added.
        """
        values = imported.lookup(rel_paths)
        known = [index for index in range(len(rel_paths)) if not np.isnan(values[index])]
        added = 0
        for record_path, indexes in self._grouped(Path(root), rel_paths, known).items():
            record = self._read(record_path)
            names = {_name(rel_paths[index]): float(values[index]) for index in indexes}
            new = {n: Entry(v, imported=True) for n, v in names.items() if record is None or record.coverage(n) is None}
            if new:
                self._write(root, record_path, self._merged(record_path, new, keep_old=True))
            added += len(new)
        return added

    def require_overlap(self, rel_paths: Sequence[str]) -> None:
        """Make sure that an imported coverage file is of this data set.

        Raises:
            DataError: if it knows none of these images.
        """
        if self.imported is not None and rel_paths and np.isnan(self.imported.lookup(rel_paths)).all():
            raise DataError(
                f"coverage file for other data: {self.imported.source} knows none of the {len(rel_paths)} images of"
                f" this data set, such as {rel_paths[0]}; check the split, the region and the root"
            )

    def _entries(
        self,
        root: Path,
        rel_paths: Sequence[str],
        indexes: Sequence[int],
        images: Sequence[np.ndarray | None] | None,
        with_masks: bool,
    ) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        for record_path, members in self._grouped(root, rel_paths, indexes).items():
            names = {index: _name(rel_paths[index]) for index in members}
            # the images of a mask are about to be opened anyway; for coverages one look at the series is enough
            checked = members if with_masks else members[:1]
            sizes = {names[index]: open_images(root).file_bytes(rel_paths[index]) for index in checked}
            stored, valid = self._stored(record_path, list(names.values()), sizes, with_masks)
            found |= {index: stored[name] for index, name in names.items() if name in stored}
            absent = [index for index in members if index not in found]
            computed = {
                names[i]: self._computed(root, rel_paths[i], None if images is None else images[i]) for i in absent
            }
            if computed:
                merged = self._merged(record_path, computed, keep_old=valid)
                self._last_computed = record_path, merged
                self._write(root, record_path, merged)
                found |= {index: merged[names[index]] for index in absent}
        return found

    def _stored(
        self, record_path: Path, names: list[str], sizes: dict[str, int], with_masks: bool
    ) -> tuple[dict[str, Entry], bool]:
        """What is known without computing, and whether the record is of the images as they are now."""
        if self._last_computed is not None and self._last_computed[0] == record_path:
            last = self._last_computed[1]
            if all(name in last and not (with_masks and last[name].mask is None) for name in names):
                return {name: last[name] for name in names}, True
        record = self._last_read[1] if self._last_read is not None and self._last_read[0] == record_path else None
        if record is None or not all(record.has_mask(n) if with_masks else n in record for n in names):
            record = self._read(record_path)  # another process may have added what was missing a moment ago
        if record is None:
            return {}, True
        for name, size in sizes.items():
            if name in record and -1 not in (size, record.image_bytes(name)) and size != record.image_bytes(name):
                text = f"images have changed since their masks were stored in {record_path}: computing them again"
                self._tell("changed", text)
                return {}, False
        if not with_masks:
            known = {name: record.coverage(name) for name in names}
            return {name: Entry(value) for name, value in known.items() if value is not None}, True
        there = [name for name in names if record.has_mask(name)]
        try:
            masks = record.masks(there)
        except DamagedRecordError as error:
            self._tell("damaged", f"damaged record in the mask store: computing it again ({error})")
            return {}, True
        return {name: Entry(0.0, mask) for name, mask in zip(there, masks, strict=True)}, True

    def _computed(self, root: Path, rel_path: str, image: np.ndarray | None) -> Entry:
        images = open_images(root)
        raw = images.read(rel_path, N_S2)[0] if image is None else image
        mask = detect_clouds(raw, self.detector, self.device)
        entry = Entry(float(mask.mean(dtype=np.float64)), mask, images.file_bytes(rel_path))
        if self.imported is not None:
            self._compare(root / rel_path, float(self.imported.lookup([rel_path])[0]), entry.coverage)
        return entry

    def _compare(self, path: Path | str, imported: float, computed: float) -> None:
        if abs(imported - computed) > _IMPORT_TOLERANCE:
            text = f"imported coverage {imported:.3f} of {path}, but its mask says {computed:.3f}"
            self._tell("differs", f"{text}: was it imported for other data?")

    def _merged(self, record_path: Path, new: dict[str, Entry], keep_old: bool) -> dict[str, Entry]:
        record = self._read(record_path) if keep_old else None
        try:
            merged = {} if record is None else record.entries()
        except DamagedRecordError:
            merged = {}
        for name, entry in new.items():
            before = merged.get(name)
            if before is not None and before.imported:  # stays, lest the choice of dates change as masks come in
                self._compare(name, before.coverage, entry.coverage)
                entry = replace(entry, coverage=before.coverage, imported=True)
            merged[name] = entry
        return merged

    def _write(self, root: str | Path, record_path: Path, entries: dict[str, Entry]) -> None:
        if self.read_only:
            return
        settings = self.folder(root) / "settings.json"
        try:
            if record_path.parent not in self._swept:
                self._swept.add(record_path.parent)
                sweep(record_path.parent)
            if not settings.is_file():
                write_json(settings, self._settings)
            write_record(record_path, entries)
        except DataError as error:
            if self.must_store:
                raise StoreWriteError(str(error)) from error
            self.read_only = True
            self._tell("unstored", f"cloud masks are computed at each reading, for they cannot be stored: {error}")

    def _read(self, record_path: Path) -> Record | None:
        try:
            record = Record(record_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (DamagedRecordError, OSError) as error:
            self._tell("damaged", f"damaged record in the mask store: computing it again ({error})")
            return None
        self._last_read = record_path, record
        return record

    def _grouped(self, root: Path, rel_paths: Sequence[str], indexes: Sequence[int]) -> dict[Path, list[int]]:
        groups: dict[str, list[int]] = {}
        for index in indexes:
            groups.setdefault(_record_name(rel_paths[index]), []).append(index)
        folder = self.folder(root)
        return {folder / name: members for name, members in groups.items()}

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, stacklevel=2)


def open_mask_store(
    path: str | Path | None, detector: str, *, n_inputs: int, split: str, region: str, read_only: bool = False
) -> MaskStore:
    """The store that `--precomputed` or `import_data_path` names.

    Args:
        path: the folder of a store (made when first written to), a folder with published
            `generic_N_SPLIT_REGION_DETECTOR.npy` files, one such file, or None for the default store of the root.
        detector: one of `data.constants.DETECTORS`.
        n_inputs: number of input dates; with split and region, which published file of a folder to prefer.
        split: train, val, test or all.
        region: a region or all.
        read_only: write nothing.

    Returns:
        A store. Published files give coverages alone: masks of chosen dates go to the default store of the root, or
        to the folder itself if it already is a store.

    Raises:
        DataError: if the file is missing or no published coverage file, or is of another detector.
    """
    if not path:
        return MaskStore(None, detector, read_only)
    path = Path(path)
    if path.suffix == ".npy":
        facts = published_name(path)
        if facts is not None and facts[3] != detector:
            raise DataError(f"{path} holds the coverage of {facts[3]}, but the detector asked for is {detector}")
        return MaskStore(None, detector, read_only, imported=read_published(path))
    if path.exists() and not path.is_dir():
        raise DataError(f"neither a folder nor an .npy file: {path}; expected a mask store or published coverage")
    published = find_published(path, detector, n_inputs, split, region)
    store = MaskStore(path, detector, read_only, imported=None if published is None else read_published(published))
    if not store.folder(path).is_dir():
        if published is not None:
            store.path = None
        else:
            warnings.warn(f"no masks of {detector} are stored in {path} yet: computing what is missing", stacklevel=2)
    return store


def default_store(root: str | Path) -> Path:
    """Where masks go if nobody says so: `.mask_store` in the root if it can be written, else the user's cache."""
    root = Path(root)
    beside = root / ".mask_store"
    place = beside if beside.exists() else root
    # the mode as well: for the superuser os.access says yes to everything
    if os.access(place, os.W_OK) and place.stat().st_mode & 0o222:
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cloudless-uncertainty" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder of records, not what living ones are writing."""
    for leftover in folder.glob(".*.tmp*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        except OSError:  # its writer or another sweeper was faster, or it belongs to someone else
            continue


def _name(rel_path: str) -> str:
    return rel_path.rpartition("/")[2]


def _record_name(rel_path: str) -> str:
    if rel_path.startswith("/") or ".." in rel_path.split("/"):
        raise ValueError(f"a path below the root is needed, not {rel_path}")
    series = _SERIES.fullmatch(rel_path)
    return f"{series['roi']}/{series['patch']}.npz" if series else f"{rel_path.rpartition('.')[0]}.npz"
