"""A packed data set: one chunked, compressed HDF5 file for each region, read as if it were the folder of GeoTIFFs.

    PACK/pack.json       the mark by which a root is taken for a pack: format and data set; written last
    PACK/ROIs1868/73.h5  one region; groups S1 and S2 (of SEN12MS-CR: s1, s2 and s2_cloudy), in each of them
        pixels           (P, D, C, H, W), patches by number, dates 0 to 29 (SEN12MS-CR: one); a chunk is one image,
                         all bands, compressed by Blosc (HDF5 filter 32001: lz4hc, byte shuffle), no chunk where
                         the image is missing
        names            (P, D) file names, empty where the image is missing: they hold the dates of acquisition
        file_bytes       (P, D) sizes of the GeoTIFFs, by which stored cloud masks know their images
        crc32            (P, D) of the pixels' bytes
        place            (P, D) row of `bounds` (N, 4), `transform` (N, 6) and `crs` (N), texts as WKT

Any HDF5 reader that has the Blosc filter reads these files. This one asks HDF5 for the places of the chunks alone and
reads and decodes them itself: one positioned read an image, no lock, no handle that a forked worker could not share.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from common.errors import DataError
from data.constants import N_S1
from data.raster.geotiff import Bounds, GeoRef, check_image
from data.splits import MONO, SERIES

MARK = "pack.json"
FORMAT = 1
BLOSC_FILTER = 32001  # as registered with the HDF Group
STACKS = {SERIES: ("S1", "S2"), MONO: ("s1", "s2", "s2_cloudy")}
_GROUPS = {name for names in STACKS.values() for name in names}
_SERIES_FOLDER = re.compile(r"(ROIs\d+/\d+)/(S[12])(?:/(\d+))?")
_MONO_FOLDER = re.compile(r"(ROIs\d+_[a-z]+)_(s1|s2|s2_cloudy)/\2_(\d+)")
_PATCH = re.compile(r"_(?:patch_|p)(\d+)\.tif$")
_HEADER = 16  # bytes of Blosc's header: the sizes of content and frame are its numbers 1 and 3

Slot = tuple[str, int, int]
"""Group, row of the patch, date: where an image lies in the file of its region."""


@dataclass(frozen=True)
class Stack:
    """What is known about the images of one group without reading them; arrays are (P, D)."""

    rows: dict[int, int]  # by number of the patch
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]  # (C, H, W)
    offsets: np.ndarray  # where in the file
    lengths: np.ndarray  # bytes there, 0 where an image is missing
    file_bytes: np.ndarray
    checksums: np.ndarray
    name_checks: np.ndarray  # of the names: half a million of them would be 60 MB in every worker
    places: np.ndarray


class RoiFile:
    """One region of a pack: its index in memory, its images read when asked for.

    Args:
        path: the HDF5 file.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listing: tuple[str, np.ndarray] | None = None
        with self._content() as file:
            self.stacks = {name: _stack(file[name]) for name in sorted(_GROUPS & set(file))}
            self._bounds, self._transforms = file["bounds"][:], file["transform"][:]
            self._crs = [text.decode() for text in file["crs"][:]]
        self._georefs: dict[int, GeoRef] = {}

    def names(self, stack: str) -> np.ndarray:
        """The file names of a group, bytes (P, D); those asked for last are kept."""
        if self._listing is None or self._listing[0] != stack:
            with self._content() as file:
                self._listing = stack, file[stack]["names"][:]
        return self._listing[1]

    def slot(self, stack: str, date: int, name: str) -> Slot | None:
        """Where an image lies, None where this region lacks it."""
        number, known = patch_number(name), self.stacks.get(stack)
        row = None if number is None or known is None else known.rows.get(number)
        if row is None or known is None or date >= known.lengths.shape[1] or not known.lengths[row, date]:
            return None
        return (stack, row, date) if known.name_checks[row, date] == crc32(name.encode()) else None

    def pixels(self, slot: Slot) -> np.ndarray:
        """An image as it was stored in its GeoTIFF, (C, H, W).

        Raises:
            DataError: if it cannot be read or decoded.
        """
        name, row, date = slot
        stack = self.stacks[name]
        image = np.empty(stack.shape, stack.dtype)
        length = int(stack.lengths[row, date])
        try:
            frame = os.pread(self._descriptor, length, int(stack.offsets[row, date]))
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        sizes = np.frombuffer(frame[:_HEADER], "<u4")
        # compared before decoding: it writes as many bytes as the frame says
        if len(frame) != length or len(sizes) != 4 or int(sizes[1]) != image.nbytes or int(sizes[3]) != length:
            raise self._damaged(slot)
        codec = blosc()
        try:
            codec.decompress_ptr(frame, image.ctypes.data)
        except codec.blosc_extension.error as error:
            raise self._damaged(slot) from error
        return image

    def intact(self, slot: Slot) -> bool:
        """Whether the pixels of an image are those that were packed, by their checksum."""
        return checksum(self.pixels(slot)) == int(self.stacks[slot[0]].checksums[slot[1], slot[2]])

    def bounds(self, slot: Slot) -> Bounds:
        """Left, bottom, right, top of an image."""
        left, bottom, right, top = self._bounds[int(self.stacks[slot[0]].places[slot[1:]])].tolist()
        return left, bottom, right, top

    def georef(self, slot: Slot) -> GeoRef:
        """Where an image lies."""
        place = int(self.stacks[slot[0]].places[slot[1:]])
        if place not in self._georefs:
            from affine import Affine
            from rasterio.crs import CRS

            crs = CRS.from_wkt(self._crs[place]) if self._crs[place] else None
            transform = Affine(*(float(number) for number in self._transforms[place]))
            self._georefs[place] = GeoRef(self.bounds(slot), crs, transform)
        return self._georefs[place]

    def slots(self) -> Iterator[tuple[Slot, str]]:
        """All images with their file names."""
        for name, stack in self.stacks.items():
            names = self.names(name)
            for row, date in zip(*np.nonzero(stack.lengths), strict=True):
                yield (name, int(row), int(date)), names[row, date].decode()

    @cached_property
    def _descriptor(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)

    @contextmanager
    def _content(self) -> Iterator[Any]:
        import h5py

        try:
            with h5py.File(self.path, "r", locking=False) as file:  # locks fail on many shared file systems
                yield file
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            text = f"not a readable region of a pack: {self.path} ({error})"
            raise DataError(f"{text}; pack it again with util.pack_dataset") from error

    def _damaged(self, slot: Slot) -> DataError:
        name = self.names(slot[0])[slot[1], slot[2]].decode()
        return DataError(f"damaged image {name} in {self.path}; remove the file and pack it again")


class Pack:
    """A packed data set, see `data.raster.image_store.Images`.

    Args:
        root: the folder with pack.json.

    Attributes:
        dataset: `data.splits.SERIES` or `data.splits.MONO`.

    Raises:
        DataError: if pack.json cannot be read or is of another format.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        mark = Path(root, MARK)
        try:
            said = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {mark}: {error}; pack the data set again") from error
        if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("dataset") not in STACKS:
            raise DataError(f"{mark}: expected format {FORMAT} of a pack of {SERIES} or {MONO}, found {said!r}")
        self.dataset: str = said["dataset"]
        self._rois: dict[str, RoiFile | None] = {}

    def roi(self, name: str) -> RoiFile | None:
        """The file of a region such as "ROIs1868/73", None where there is none."""
        if name not in self._rois:
            path = roi_path(self.root, name)
            self._rois[name] = RoiFile(path) if path.is_file() else None
        return self._rois[name]

    def names(self, folder: str) -> list[str]:
        """See `data.raster.image_store.Images`."""
        found = parse_folder(self.dataset, folder)
        roi = None if found is None else self.roi(found[0])
        if found is None or roi is None or found[1] not in roi.stacks:
            return []
        there = roi.stacks[found[1]].lengths > 0
        if found[2] is None:
            return [str(date) for date in np.flatnonzero(there.any(axis=0))]
        if found[2] >= there.shape[1]:
            return []
        return [name.decode() for name in roi.names(found[1])[there[:, found[2]], found[2]]]

    def holds(self, folder: str) -> bool:
        """See `data.raster.image_store.Images`."""
        return self.roi(folder) is not None or bool(self.names(folder))

    def read(self, path: str, bands: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, Bounds]:
        """See `data.raster.image_store.Images`."""
        roi, slot = self._find(path)
        stack = roi.stacks[slot[0]]
        check_image(os.path.join(self.root, path), stack.shape, {stack.dtype.name}, bands, size)
        pixels = roi.pixels(slot)
        return (pixels.astype(np.float32, copy=False) if bands == N_S1 else pixels), roi.bounds(slot)

    def read_native(self, path: str) -> tuple[np.ndarray, GeoRef]:
        """Pixels in the type that the GeoTIFF had, and where they lie."""
        roi, slot = self._find(path)
        return roi.pixels(slot), roi.georef(slot)

    def georef(self, path: str) -> GeoRef:
        """See `data.raster.image_store.Images`."""
        roi, slot = self._find(path)
        return roi.georef(slot)

    def size(self, path: str) -> tuple[int, int]:
        """See `data.raster.image_store.Images`."""
        roi, slot = self._find(path)
        return roi.stacks[slot[0]].shape[1:]

    def file_bytes(self, path: str) -> int:
        """See `data.raster.image_store.Images`."""
        found = self._slot(path)
        return -1 if found is None else int(found[0].stacks[found[1][0]].file_bytes[found[1][1:]])

    def _find(self, path: str) -> tuple[RoiFile, Slot]:
        found = self._slot(path)
        if found is None:
            raise DataError(f"no such image: {os.path.join(self.root, path)}; is the pack complete?")
        return found

    def _slot(self, path: str) -> tuple[RoiFile, Slot] | None:
        folder, _, name = path.rpartition("/")
        found = parse_folder(self.dataset, folder)
        roi = None if found is None else self.roi(found[0])
        if found is None or found[2] is None or roi is None:
            return None
        slot = roi.slot(found[1], found[2], name)
        return None if slot is None else (roi, slot)


def checksum(image: np.ndarray) -> int:
    """Of the pixels' bytes."""
    return crc32(np.ascontiguousarray(image).data)


def roi_path(root: str | Path, roi: str) -> Path:
    """The file of a region such as "ROIs1868/73"."""
    return Path(root, f"{roi}.h5")


def patch_number(name: str) -> int | None:
    """The number of the patch in the file name of an image, None if it is none."""
    found = _PATCH.search(name)
    return None if found is None else int(found[1])


def parse_folder(dataset: str, folder: str) -> tuple[str, str, int | None] | None:
    """Region, group and date of a folder of the data set; date None for the folder of all dates."""
    found = (_MONO_FOLDER if dataset == MONO else _SERIES_FOLDER).fullmatch(folder)
    if found is None:
        return None
    if dataset == MONO:
        return f"{found[1]}/{found[3]}", found[2], 0
    return found[1], found[2], None if found[3] is None else int(found[3])


@lru_cache(maxsize=1)
def blosc() -> Any:
    """The codec, with one thread: workers are the parallelism, and threads do not survive a fork."""
    import blosc as codec

    codec.set_nthreads(1)
    codec.set_releasegil(True)
    return codec


def _stack(group: Any) -> Stack:
    pixels = group["pixels"]
    offsets = np.zeros(pixels.shape[:2], np.int64)
    lengths = np.zeros(pixels.shape[:2], np.int64)

    def note(chunk: Any) -> None:
        offsets[chunk.chunk_offset[:2]], lengths[chunk.chunk_offset[:2]] = chunk.byte_offset, chunk.size

    pixels.id.chunk_iter(note)
    names = group["names"][:]
    checks = np.fromiter((crc32(name) for name in names.flat), np.uint32, names.size).reshape(names.shape)
    return Stack(
        rows={int(number): row for row, number in enumerate(group["patch"][:])},
        dtype=pixels.dtype,
        shape=pixels.shape[2:],
        offsets=offsets,
        lengths=lengths,
        file_bytes=group["file_bytes"][:],
        checksums=group["crc32"][:],
        name_checks=checks,
        places=group["place"][:],
    )
