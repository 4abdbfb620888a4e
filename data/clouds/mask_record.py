"""One file of the mask store: the masks and coverages of all dates of one patch, as an npz archive.

Members: `names` (file names of the images), `coverage` (float64), `image_bytes` (sizes of the image files, -1 where
unknown), `imported` (coverage came from a published file), `shapes` (H, W; 0 where there is no mask yet), and for each
date with a mask `mask_N`: bits, eight pixels a byte, or the four bytes of each float32 in four planes, which deflate
packs far better than floats. Every member carries a checksum, and is parsed only after it held.
"""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import whole_file

# what a damaged archive can raise in zipfile, zlib and numpy's header parser
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, KeyError, ValueError, IndexError, TypeError,
    RuntimeError, NotImplementedError, OverflowError,
)  # fmt: skip
_READ_WHOLE = 1 << 20  # bytes; a record of bits is far smaller and read at once, one of floats member by member


class DamagedRecordError(Exception):
    """A record that cannot be read."""


@dataclass(frozen=True)
class Entry:
    """What is known about one image: the mask may be missing where its coverage was imported."""

    coverage: float
    mask: np.ndarray | None = None  # float32 (H, W)
    image_bytes: int = -1
    imported: bool = False


class Record:
    """A record on disk: its index in memory, its masks decoded when asked for.

    Args:
        path: the npz file.

    Raises:
        FileNotFoundError: if there is none.
        DamagedRecordError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._source = io.BytesIO(path.read_bytes()) if path.stat().st_size <= _READ_WHOLE else path
        try:
            with zipfile.ZipFile(self._source) as archive:
                names = [str(name) for name in _member(archive, "names")]
                self._coverage = _member(archive, "coverage")
                self._image_bytes = _member(archive, "image_bytes")
                self._imported = _member(archive, "imported")
                self._shapes = _member(archive, "shapes")
            if not all(len(column) == len(names) for column in self._columns()):
                raise DamagedRecordError(f"columns of different lengths in {path}")
        except _DAMAGE as error:
            raise DamagedRecordError(f"{path}: {error}") from error
        self._place = {name: index for index, name in enumerate(names)}

    def names(self) -> list[str]:
        """The file names of the images in this record."""
        return list(self._place)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def has_mask(self, name: str) -> bool:
        """Whether the mask of this image is here, not its coverage alone."""
        return name in self._place and int(self._shapes[self._place[name]][0]) > 0

    def coverage(self, name: str) -> float | None:
        """The coverage of an image, None where it is unknown."""
        return float(self._coverage[self._place[name]]) if name in self._place else None

    def image_bytes(self, name: str) -> int:
        """The size of the image file when its mask was made, -1 where unknown."""
        return int(self._image_bytes[self._place[name]])

    def masks(self, names: list[str]) -> list[np.ndarray]:
        """The masks of some images, float32 (H, W) each.

        Raises:
            DamagedRecordError: if one cannot be read.
        """
        try:
            with zipfile.ZipFile(self._source) as archive:
                return [self._mask(archive, self._place[name]) for name in names]
        except _DAMAGE as error:
            raise DamagedRecordError(str(error)) from error

    def entries(self) -> dict[str, Entry]:
        """Everything in this record."""
        with_mask = [name for name in self._place if self.has_mask(name)]
        masks = dict(zip(with_mask, self.masks(with_mask), strict=True))
        return {
            name: Entry(float(self._coverage[i]), masks.get(name), int(self._image_bytes[i]), bool(self._imported[i]))
            for name, i in self._place.items()
        }

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self._coverage, self._image_bytes, self._imported, self._shapes

    def _mask(self, archive: zipfile.ZipFile, index: int) -> np.ndarray:
        height, width = (int(side) for side in self._shapes[index])
        packed = _member(archive, f"mask_{index}")
        if packed.ndim == 1:
            return np.unpackbits(packed, count=height * width).reshape(height, width).astype(np.float32)
        return np.ascontiguousarray(packed.T).view(np.float32).reshape(height, width)


def write_record(path: Path, entries: dict[str, Entry]) -> None:
    """Write a record, whole or not at all."""
    items = list(entries.values())
    arrays = {
        "names": np.array(list(entries), dtype=np.str_),
        "coverage": np.array([entry.coverage for entry in items], np.float64),
        "image_bytes": np.array([entry.image_bytes for entry in items], np.int64),
        "imported": np.array([entry.imported for entry in items], np.bool_),
        "shapes": np.array([(0, 0) if entry.mask is None else entry.mask.shape for entry in items], np.int32),
    }
    arrays |= {f"mask_{i}": _pack(entry.mask) for i, entry in enumerate(items) if entry.mask is not None}
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def _pack(mask: np.ndarray) -> np.ndarray:
    if ((mask == 0) | (mask == 1)).all():
        return np.packbits(mask.astype(np.bool_))
    return np.ascontiguousarray(mask, np.float32).reshape(-1, 1).view(np.uint8).T  # (4, H * W)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    checked = io.BytesIO(archive.read(f"{name}.npy"))  # read to its end, so that its checksum is compared first
    array: np.ndarray = np.lib.format.read_array(checked, allow_pickle=False)
    return array
