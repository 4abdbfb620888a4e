"""File format of the mask store: masks and coverages of all dates of one patch, as an npz archive.

Members: `names` (file names of the images), `coverage` (float64), `image_bytes` (sizes of the image files, -1 if
unknown), `imported` (coverage from a published file), `shapes` (H, W; 0 without a mask), and for each date with a mask
`mask_N`: bits, eight pixels a byte, or the four bytes of each float32 in four planes, which deflate compresses far
better than floats. The declared size of each member is checked before it is read, its checksum before it is parsed.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.damage import DAMAGED_ARRAY
from common.files import atomic_file

_PRELOAD_BYTES = 1 << 20  # records up to this size (bits) are read at once, larger ones (floats) member by member
_COLUMN_BYTES = 1 << 20  # of a column; the longest, file names of 30 images, has 8 KB
_HEADER_BYTES = 1 << 10  # of an npy array; those of records have 128
_MAX_PIXELS = 1 << 29  # of all masks of a record: 30 images of 4,230 x 4,230 pixels; patches have 256 x 256
_ROUNDING = 1e-6  # by which a smoothed mask may exceed 1
_KINDS = {"names": "U", "coverage": "f", "image_bytes": "i", "imported": "b", "shapes": "i"}  # of the columns' dtypes


class DamagedRecordError(Exception):
    """A record that cannot be read."""


@dataclass(frozen=True)
class MaskEntry:
    """Coverage and mask of one image.

    Attributes:
        coverage: share of cloud, in [0, 1].
        mask: float32 (H, W); None if only the coverage was imported.
        image_bytes: size of the image file, -1 if unknown.
        imported: whether the coverage is from a published file.
    """

    coverage: float
    mask: np.ndarray | None = None
    image_bytes: int = -1
    imported: bool = False


class MaskRecord:
    """A record on disk: the index is in memory, masks are decoded on demand.

    Args:
        path: the npz file.

    Raises:
        FileNotFoundError: if there is none.
        DamagedRecordError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._source = io.BytesIO(path.read_bytes()) if path.stat().st_size <= _PRELOAD_BYTES else path
        try:
            with zipfile.ZipFile(self._source) as archive:
                columns = {name: _member(archive, name, _COLUMN_BYTES) for name in _KINDS}
            _check_columns(columns)
        except DAMAGED_ARRAY as error:
            raise DamagedRecordError(f"{path}: {error}") from error
        self._coverage, self._image_bytes, self._imported, self._shapes = (columns[name] for name in list(_KINDS)[1:])
        self._place = {str(name): index for index, name in enumerate(columns["names"])}

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def has_mask(self, name: str) -> bool:
        """Whether the record has the mask of an image, not only its coverage."""
        return name in self._place and int(self._shapes[self._place[name]][0]) > 0

    def coverage(self, name: str) -> float | None:
        """The coverage of an image, None if it is unknown."""
        return float(self._coverage[self._place[name]]) if name in self._place else None

    def image_bytes(self, name: str) -> int:
        """The size of the image file when its mask was computed, -1 if unknown."""
        return int(self._image_bytes[self._place[name]])

    def masks(self, names: list[str], size: tuple[int, ...] | None = None) -> list[np.ndarray]:
        """The masks of images, float32 (H, W) each.

        Args:
            names: of the images.
            size: (H, W) of the images, if known.

        Raises:
            DamagedRecordError: if one cannot be read, or is of another size.
        """
        for name in names:
            shape = tuple(self._shapes[self._place[name]].tolist())
            if size not in (None, shape):
                raise DamagedRecordError(f"a mask of {shape} pixels for {name}, which has {size}")
        try:
            with zipfile.ZipFile(self._source) as archive:
                return [self._mask(archive, self._place[name]) for name in names]
        except DAMAGED_ARRAY as error:
            raise DamagedRecordError(str(error)) from error

    def entries(self, size: tuple[int, ...] | None = None) -> dict[str, MaskEntry]:
        """All entries by file name; argument and errors as for `masks`."""
        with_mask = [name for name in self._place if self.has_mask(name)]
        masks = dict(zip(with_mask, self.masks(with_mask, size), strict=True))
        return {
            name: MaskEntry(
                float(self._coverage[i]), masks.get(name), int(self._image_bytes[i]), bool(self._imported[i])
            )
            for name, i in self._place.items()
        }

    def _mask(self, archive: zipfile.ZipFile, index: int) -> np.ndarray:
        height, width = (int(side) for side in self._shapes[index])
        packed = _member(archive, f"mask_{index}", 4 * height * width + _HEADER_BYTES)
        if packed.ndim == 1:
            return np.unpackbits(packed, count=height * width).reshape(height, width).astype(np.float32)
        mask = np.ascontiguousarray(packed.T).view(np.float32).reshape(height, width)
        if not ((mask >= 0) & (mask <= 1 + _ROUNDING)).all():
            raise ValueError(f"mask_{index} has values outside [0, 1]")
        return mask


def write_record(path: Path, entries: dict[str, MaskEntry]) -> None:
    """Write a record atomically."""
    items = list(entries.values())
    arrays = {
        "names": np.array(list(entries), dtype=np.str_),
        "coverage": np.array([entry.coverage for entry in items], np.float64),
        "image_bytes": np.array([entry.image_bytes for entry in items], np.int64),
        "imported": np.array([entry.imported for entry in items], np.bool_),
        "shapes": np.array([(0, 0) if entry.mask is None else entry.mask.shape for entry in items], np.int32),
    }
    arrays |= {f"mask_{i}": _pack(entry.mask) for i, entry in enumerate(items) if entry.mask is not None}
    with atomic_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def _pack(mask: np.ndarray) -> np.ndarray:
    if ((mask == 0) | (mask == 1)).all():
        return np.packbits(mask.astype(np.bool_))
    return np.ascontiguousarray(mask, np.float32).reshape(-1, 1).view(np.uint8).T  # (4, H * W)


def _check_columns(columns: dict[str, np.ndarray]) -> None:
    """Raise a ValueError unless the columns are what `write_record` writes."""
    n = len(columns["names"])
    for name, kind in _KINDS.items():
        shape = (n, 2) if name == "shapes" else (n,)
        if columns[name].dtype.kind != kind or columns[name].shape != shape:
            raise ValueError(f"{name} is an array {columns[name].shape} of {columns[name].dtype}")
    coverage, shapes = columns["coverage"], columns["shapes"].astype(np.float64)
    if not ((coverage >= 0) & (coverage <= 1 + _ROUNDING)).all():  # NaN fails too
        raise ValueError("a coverage is outside [0, 1]")
    if (shapes < 0).any() or shapes.prod(axis=1).sum() > _MAX_PIXELS:
        raise ValueError(f"masks of {shapes.prod(axis=1).sum():.3g} pixels in all, expected {_MAX_PIXELS:.3g} at most")


def _member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray:
    """An array of the archive that has at most `max_bytes` with its header."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > max_bytes:
        raise ValueError(f"{name} declares {info.file_size:,} bytes, expected {max_bytes:,} at most")
    with archive.open(info) as member:
        content = member.read(info.file_size)  # not `read()`, which inflates 2 GB at once whatever is declared
        if member.read(1):
            raise ValueError(f"{name} is longer than it declares")
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array
