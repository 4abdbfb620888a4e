"""File format of the mask store: masks and coverages of all dates of one patch, as an npz archive.

Members: `names` (file names of the images), `coverage` (float64), `image_bytes` (sizes of the image files, -1 if
unknown), `imported` (coverage from a published file), `shapes` (H, W; 0 without a mask), and for each date with a mask
`mask_N`: bits, eight pixels a byte, or the four bytes of each float32 in four planes, which deflate compresses far
better than floats. The checksum of each member is verified before it is parsed.
"""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_file

# what zipfile, zlib and numpy's header parser can raise for a damaged archive
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError, ValueError, IndexError, TypeError,
    RuntimeError, NotImplementedError, OverflowError,
)  # fmt: skip
_PRELOAD_BYTES = 1 << 20  # records up to this size (bits) are read at once, larger ones (floats) member by member


class DamagedRecordError(Exception):
    """A record that cannot be read."""


@dataclass(frozen=True)
class MaskEntry:
    """Coverage and mask of one image.

    Attributes:
        coverage: mean of the mask.
        mask: float32 (H, W); None if only the coverage was imported.
        image_bytes: size of the image file, -1 if unknown.
        imported: whether the coverage is from a published file.
    """

    coverage: float
    mask: np.ndarray | None = None
    image_bytes: int = -1
    imported: bool = False

    @classmethod
    def of(cls, mask: np.ndarray, image_bytes: int = -1) -> "MaskEntry":
        """The entry of a computed mask."""
        return cls(float(mask.mean(dtype=np.float64)), mask, image_bytes)


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
                names = [str(name) for name in _member(archive, "names")]
                columns = [_member(archive, name) for name in ("coverage", "image_bytes", "imported", "shapes")]
            if any(len(column) != len(names) for column in columns):
                raise DamagedRecordError(f"columns of different lengths in {path}")
        except _DAMAGE as error:
            raise DamagedRecordError(f"{path}: {error}") from error
        self._coverage, self._image_bytes, self._imported, self._shapes = columns
        self._place = {name: index for index, name in enumerate(names)}

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

    def masks(self, names: list[str]) -> list[np.ndarray]:
        """The masks of images, float32 (H, W) each.

        Raises:
            DamagedRecordError: if one cannot be read.
        """
        try:
            with zipfile.ZipFile(self._source) as archive:
                return [self._mask(archive, self._place[name]) for name in names]
        except _DAMAGE as error:
            raise DamagedRecordError(str(error)) from error

    def entries(self) -> dict[str, MaskEntry]:
        """All entries by file name."""
        with_mask = [name for name in self._place if self.has_mask(name)]
        masks = dict(zip(with_mask, self.masks(with_mask), strict=True))
        return {
            name: MaskEntry(
                float(self._coverage[i]), masks.get(name), int(self._image_bytes[i]), bool(self._imported[i])
            )
            for name, i in self._place.items()
        }

    def _mask(self, archive: zipfile.ZipFile, index: int) -> np.ndarray:
        height, width = (int(side) for side in self._shapes[index])
        packed = _member(archive, f"mask_{index}")
        if packed.ndim == 1:
            return np.unpackbits(packed, count=height * width).reshape(height, width).astype(np.float32)
        return np.ascontiguousarray(packed.T).view(np.float32).reshape(height, width)


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


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    content = io.BytesIO(archive.read(f"{name}.npy"))  # reading to the end verifies the checksum
    array: np.ndarray = np.lib.format.read_array(content, allow_pickle=False)
    return array
