"""A packed data set: one chunked, compressed HDF5 file for each region, read like the folder of GeoTIFFs.

    PACK/pack.json       marks the root as a pack: format, data set and packed regions; written last
    PACK/ROIs1868/73.h5  one region; groups S1 and S2 (of SEN12MS-CR: s1, s2 and s2_cloudy), each with
        pixels           (P, D, C, H, W), patches by number, dates 0 to 29 (SEN12MS-CR: one); a chunk is one image,
                         all bands, compressed by Blosc (HDF5 filter 32001: lz4hc, byte shuffle); a missing image
                         has no chunk
        names            (P, D) file names, which hold the dates of acquisition; empty if the image is missing
        file_bytes       (P, D) sizes of the GeoTIFFs, by which stored cloud masks identify their images
        crc32            (P, D) of the pixels' bytes
        place            (P, D) row of `bounds` (N, 4), `transform` (N, 6) and `crs` (N), WKT
                         and, as an attribute of the file, tables_crc32 of all these but the pixels

Any HDF5 reader with the Blosc filter can read these files. This one asks HDF5 only for the chunk offsets, then reads
and decodes the chunks itself: one positioned read for each image, without locks or handles that forks cannot share.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from common.damage import DAMAGED_HDF5
from common.errors import DataError
from common.json_files import PATH, Schema, read_json
from data.constants import N_S1
from data.layout import STACKS, parse_folder, patch_number
from data.raster.geotiff import LARGEST, Bounds, GeoRef, Size, check_image, open_image

MARK = "pack.json"
FORMAT = 1
TABLES_CHECKSUM = "tables_crc32"  # attribute of a region's file; earlier packs lack it
BLOSC_FILTER = 32001  # as registered with the HDF Group
_GROUPS = {name for names in STACKS.values() for name in names}
_GEOREFS, _TABLES = ("bounds", "transform", "crs"), ("patch", "names", "file_bytes", "crc32", "place")
_MOST_IMAGES = 10_000_000  # of a group; the largest region has 30 dates of 400 patches
_SCHEMA: Schema = {
    "type": "object",
    "required": ["format", "dataset"],
    "properties": {
        "format": {"enum": [FORMAT]},
        "dataset": {"enum": list(STACKS)},
        "regions": {"type": "array", "items": PATH},
    },
}
_HEADER = 16  # bytes of Blosc's header: its second and fourth number are the sizes of content and frame

Slot = tuple[str, int, int]
"""Group, row of the patch, and date of an image in the file of its region."""


@dataclass(frozen=True)
class StackIndex:
    """Index of the images of one group; arrays are (P, D)."""

    rows: dict[int, int]  # by patch number
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]  # (C, H, W)
    offsets: np.ndarray  # of the chunks in the file
    lengths: np.ndarray  # of the chunks in bytes; 0 if an image is missing
    file_bytes: np.ndarray
    checksums: np.ndarray
    name_checks: np.ndarray  # CRC-32 of the names: half a million names would be 60 MB in every worker
    places: np.ndarray


class RoiFile:
    """One region of a pack: the index is in memory, images are read on demand.

    Args:
        path: the HDF5 file.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_names: tuple[str, np.ndarray] | None = None
        with self._open_hdf5() as file:
            self.stacks = {name: _read_index(file[name]) for name in sorted(_GROUPS & set(file))}
            n_georefs = len(file["crs"])
            places = zip(
                _table(file, "bounds", "f", (n_georefs, 4)).tolist(),
                _table(file, "crs", "O", (n_georefs,)),
                _table(file, "transform", "f", (n_georefs, 6)).tolist(),
                strict=True,
            )
            crs = {text: CRS.from_wkt(text.decode()) if text else None for text in set(file["crs"][:])}
            self._georefs = [GeoRef(tuple(bounds), crs[text], Affine(*transform)) for bounds, text, transform in places]

    def names(self, stack: str) -> np.ndarray:
        """The file names of a group, bytes (P, D); those of the last call are cached."""
        if self._last_names is None or self._last_names[0] != stack:
            with self._open_hdf5() as file:
                self._last_names = stack, file[stack]["names"][:]
        return self._last_names[1]

    def slot(self, stack: str, date: int, name: str) -> Slot | None:
        """The slot of an image, None if this region lacks it."""
        number, index = patch_number(name), self.stacks.get(stack)
        row = None if number is None or index is None else index.rows.get(number)
        if row is None or index is None or date >= index.lengths.shape[1] or not index.lengths[row, date]:
            return None
        return (stack, row, date) if index.name_checks[row, date] == crc32(name.encode()) else None

    def pixels(self, slot: Slot) -> np.ndarray:
        """An image in the type of its GeoTIFF, (C, H, W).

        Raises:
            DataError: if it cannot be read or decoded.
        """
        stack = self.stacks[slot[0]]
        image = np.empty(stack.shape, stack.dtype)
        length = int(stack.lengths[slot[1:]])
        try:
            frame = os.pread(self._descriptor, length, int(stack.offsets[slot[1:]]))
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        sizes = np.frombuffer(frame[:_HEADER], "<u4")
        # checked before decoding, which writes as many bytes as the frame says
        if len(frame) != length or len(sizes) != 4 or int(sizes[1]) != image.nbytes or int(sizes[3]) != length:
            raise self._damaged(slot)
        codec = blosc()
        try:
            codec.decompress_ptr(frame, image.ctypes.data)
        except codec.blosc_extension.error as error:
            raise self._damaged(slot) from error
        return image

    def is_intact(self, slot: Slot) -> bool:
        """Whether the checksum of an image's pixels is the stored one."""
        return checksum(self.pixels(slot)) == int(self.stacks[slot[0]].checksums[slot[1:]])

    def georef(self, slot: Slot) -> GeoRef:
        """Bounds, coordinate system and transform of an image."""
        return self._georefs[int(self.stacks[slot[0]].places[slot[1:]])]

    def file_bytes(self, slot: Slot) -> int:
        """Size of the GeoTIFF that an image was packed from."""
        return int(self.stacks[slot[0]].file_bytes[slot[1:]])

    def without_pixels(self) -> Iterator[tuple[str, str]]:
        """Group and file name of images that are listed and not stored."""
        for name, stack in self.stacks.items():
            names = self.names(name)
            for text in names[(names != b"") & (stack.lengths == 0)].tolist():
                yield name, text.decode()

    def has_intact_tables(self) -> bool | None:
        """Whether names and georeferences match their checksum; None if an earlier version packed this file."""
        with self._open_hdf5() as file:
            expected = file.attrs.get(TABLES_CHECKSUM)
            return None if expected is None else int(expected) == checksum_tables(file)

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
    def _open_hdf5(self) -> Iterator[Any]:
        import h5py  # deferred: heavy, needed for packs only

        try:
            with h5py.File(self.path, "r", locking=False) as file:  # locks fail on many shared file systems
                yield file
        except DAMAGED_HDF5 as error:
            text = f"not a readable region of a pack: {self.path} ({error})"
            raise DataError(f"{text}; pack it again with util.pack_dataset") from error

    def _damaged(self, slot: Slot) -> DataError:
        name = self.names(slot[0])[slot[1:]].decode()
        return DataError(f"damaged image {name} in {self.path}; remove the file and pack it again")


class PackedImages:
    """A packed data set with the interface of `data.raster.image_store.ImageFolder`.

    Args:
        root: the folder with pack.json.

    Attributes:
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        listed: the regions that the pack must hold.

    Raises:
        DataError: if pack.json cannot be read or has an unsupported format.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        mark = Path(root, MARK)
        header = read_json(mark, _SCHEMA, "pack the data set again")
        self.dataset: str = header["dataset"]
        self.listed: tuple[str, ...] = tuple(header.get("regions", ()))  # earlier packs list none
        self._rois: dict[str, RoiFile | None] = {}

    def roi(self, name: str) -> RoiFile | None:
        """The file of a region such as "ROIs1868/73", None if there is none."""
        if name not in self._rois:
            path = roi_path(self.root, name)
            self._rois[name] = RoiFile(path) if path.is_file() else None
        return self._rois[name]

    def names(self, folder: str) -> list[str]:
        """See `ImageFolder.names`."""
        parts = parse_folder(self.dataset, folder)
        roi = self.roi(folder if parts is None else parts[0])
        if roi is None or parts is None:
            return [] if roi is None else list(roi.stacks)
        _, stack, date = parts
        if stack not in roi.stacks:
            return []
        present = roi.stacks[stack].lengths > 0
        if date is None:
            return [str(number) for number in np.flatnonzero(present.any(axis=0))]
        if date >= present.shape[1]:
            return []
        return [name.decode() for name in roi.names(stack)[present[:, date], date]]

    def read(self, path: str, bands: int, size: Size | None = None) -> tuple[np.ndarray, Bounds]:
        """See `ImageFolder.read`."""
        roi, slot = self._require(path, bands, size)
        pixels = roi.pixels(slot)
        return (pixels.astype(np.float32, copy=False) if bands == N_S1 else pixels), roi.georef(slot).bounds

    def read_native(self, path: str, size: Size | None = None) -> tuple[np.ndarray, GeoRef]:
        """See `ImageFolder.read_native`."""
        roi, slot = self._require(path, None, size)
        return roi.pixels(slot), roi.georef(slot)

    def georef(self, path: str) -> GeoRef:
        """See `ImageFolder.georef`."""
        roi, slot = self._require(path)
        return roi.georef(slot)

    def size(self, path: str) -> tuple[int, int]:
        """See `ImageFolder.size`."""
        roi, slot = self._require(path)
        return roi.stacks[slot[0]].shape[1:]

    def file_bytes(self, path: str) -> int:
        """See `ImageFolder.file_bytes`."""
        located = self._locate(path)
        return -1 if located is None else located[0].file_bytes(located[1])

    @contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """See `ImageFolder.open`; the image is written to memory as a GeoTIFF."""
        pixels, georef = self.read_native(path)
        bands, height, width = pixels.shape
        shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", crs=georef.crs, transform=georef.transform, **shape) as target:
                target.write(pixels)
            with open_image(memory.name) as source:
                yield source

    def _require(self, path: str, bands: int | None = None, size: Size | None = None) -> tuple[RoiFile, Slot]:
        """File and slot of an image that must exist, checked against its expected bands and size."""
        located = self._locate(path)
        full_path = os.path.join(self.root, path)
        if located is None:
            raise DataError(f"no such image: {full_path}; is the pack complete?")
        stack = located[0].stacks[located[1][0]]
        check_image(full_path, stack.shape, {stack.dtype.name}, bands, size)
        return located

    def _locate(self, path: str) -> tuple[RoiFile, Slot] | None:
        folder, _, name = path.rpartition("/")
        parts = parse_folder(self.dataset, folder)
        roi = None if parts is None else self.roi(parts[0])
        if parts is None or parts[2] is None or roi is None:
            return None
        slot = roi.slot(parts[1], parts[2], name)
        return None if slot is None else (roi, slot)


def checksum(image: np.ndarray) -> int:
    """CRC-32 of an image's bytes."""
    return crc32(np.ascontiguousarray(image).data)


def checksum_tables(file: Any) -> int:
    """CRC-32 of the names and values of all tables of a region's open file, which are all but its pixels."""
    total = 0
    names = [*_GEOREFS, *(f"{group}/{table}" for group in sorted(_GROUPS & set(file)) for table in _TABLES)]
    for name in names:
        values = file[name][:]
        content = values.tobytes() if values.dtype.kind != "O" else b"\0".join(values.tolist())
        total = crc32(f"{name} {values.shape}".encode() + content, total)
    return total


def roi_path(root: str | Path, roi: str) -> Path:
    """The file of a region such as "ROIs1868/73"."""
    return Path(root, f"{roi}.h5")


@lru_cache(maxsize=1)
def blosc() -> Any:
    """The codec, with one thread: workers provide the parallelism, and threads do not survive a fork."""
    import blosc as codec  # deferred: needed for packs only

    codec.set_nthreads(1)
    codec.set_releasegil(True)
    return codec


def _read_index(group: Any) -> StackIndex:
    pixels = group["pixels"]
    if len(pixels.shape) != 5 or pixels.chunks != (1, 1, *pixels.shape[2:]) or pixels.dtype.kind not in "uif":
        raise ValueError(f"pixels of {pixels.shape} {pixels.dtype} in chunks of {pixels.chunks}")
    if math.prod(pixels.shape[2:]) > LARGEST or math.prod(pixels.shape[:2]) > _MOST_IMAGES:
        raise ValueError(f"{pixels.shape} values, expected at most {LARGEST:,} of an image")
    offsets = np.zeros(pixels.shape[:2], np.int64)
    lengths = np.zeros(pixels.shape[:2], np.int64)

    def visit(chunk: Any) -> None:
        offsets[chunk.chunk_offset[:2]], lengths[chunk.chunk_offset[:2]] = chunk.byte_offset, chunk.size

    pixels.id.chunk_iter(visit)
    if ((offsets < 0) | (lengths < 0) | (offsets > group.file.id.get_filesize() - lengths)).any():
        raise ValueError("an image lies beyond the end of the file")
    names = _table(group, "names", "S", pixels.shape[:2])
    if not names.tobytes().isascii():
        raise ValueError("a file name is not ASCII")
    places = _table(group, "place", "u", pixels.shape[:2])
    if (places >= max(1, len(group.file["crs"]))).any():
        raise ValueError("an image has no georeference")
    return StackIndex(
        rows={int(number): row for row, number in enumerate(_table(group, "patch", "i", pixels.shape[:1]))},
        dtype=pixels.dtype,
        shape=pixels.shape[2:],
        offsets=offsets,
        lengths=lengths,
        file_bytes=_table(group, "file_bytes", "i", pixels.shape[:2]),
        checksums=_table(group, "crc32", "u", pixels.shape[:2]),
        name_checks=np.fromiter((crc32(name) for name in names.flat), np.uint32, names.size).reshape(names.shape),
        places=places,
    )


def _table(group: Any, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """A table of a region, whose kind of dtype and shape are checked before it is read."""
    table = group[name]
    if table.dtype.kind != kind or table.shape != shape:
        raise ValueError(f"{name} is a table {table.shape} of {table.dtype}, expected {shape} of kind {kind}")
    values: np.ndarray = table[:]
    return values
