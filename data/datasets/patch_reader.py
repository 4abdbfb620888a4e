"""What both data sets do with one file: read it, check it, bring it into the range that networks see."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, UsageError
from data.constants import DETECTORS, N_S1, N_S2
from data.raster.geotiff import RESCALE_METHODS, count_nan, optical_to_unit, sar_to_unit
from data.raster.image_store import Reading, open_images


class EmptySplitError(DataError):
    """A split without patches, in a root that exists."""


@dataclass(frozen=True)
class Stored:
    """An image as stored, to be converted to what networks see where it is wanted: once, and without a copy between.

    Attributes:
        values: (C, H, W) as stored.
        convert: `data.raster.geotiff.optical_to_unit` or `sar_to_unit`.
        method: how values are rescaled.
    """

    values: np.ndarray
    convert: Callable[[np.ndarray, str, np.ndarray], np.ndarray]
    method: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.values.shape

    def write(self, room: np.ndarray) -> None:
        """Put float32 values into `room`, (C, H, W)."""
        self.convert(self.values, self.method, room)


class PatchReader:
    """Reads patches of one data set.

    Args:
        root: folder that paths are relative to.
        method: "default" or "resnet", how values are rescaled.
        size_of: gives height and width that every patch must have, from the first file of the data set; asked once.

    Attributes:
        nan_values: NaN met so far by this reader, in this process.
    """

    def __init__(self, root: str, method: str, size_of: Callable[[], tuple[int, int]]) -> None:
        self.root, self.method = root, method
        self.nan_values = 0
        self._size_of = size_of
        self._size: tuple[int, int] | None = None

    def radar(self, path: str, stored: bool = False) -> np.ndarray | Stored:
        """A radar patch, float32 (2, H, W), rescaled; or as stored."""
        return self.scale_radar(path, self._read(path, N_S1)[0], stored)

    def optical(self, path: str, target: bool = False) -> Reading:
        """An optical patch as stored, (13, H, W), and where it lies.

        Raises:
            DataError: if it cannot be used; also if it is a target and blank.
        """
        raw, georef = self._read(path, N_S2)
        if target and not raw.any():
            raise DataError(f"{os.path.join(self.root, path)}: every value is 0, there is no image to be a target")
        return raw, georef

    def scale_radar(self, path: str, decibel: np.ndarray, stored: bool = False) -> np.ndarray | Stored:
        """Backscatter in dB as networks see it, or to be converted later; NaN is counted, told once, and becomes 0."""
        self._count_nan(path, decibel)
        return Stored(decibel, sar_to_unit, self.method) if stored else sar_to_unit(decibel, self.method)

    def scale_optical(self, path: str, raw: np.ndarray, stored: bool = False) -> np.ndarray | Stored:
        """Stored optical values as networks see them, float32, or to be converted later."""
        self._count_nan(path, raw)
        return Stored(raw, optical_to_unit, self.method) if stored else optical_to_unit(raw, self.method)

    def _read(self, path: str, bands: int) -> Reading:
        if self._size is None:
            self._size = self._size_of()
        return open_images(self.root).read(path, bands, self._size)

    def _count_nan(self, path: str, values: np.ndarray) -> None:
        found = count_nan(values)
        if found and not self.nan_values:
            warnings.warn(
                f"{os.path.join(self.root, path)}: {found} of {values.size} values are NaN and become 0; "
                "this is said once, though more files may have some",
                stacklevel=2,
            )
        self.nan_values += found


def checked_root(root: str | Path, flag: str, layout: str) -> str:
    """The root with ~ resolved.

    Raises:
        DataError: if there is no such folder; the text names the flag and the layout expected.
    """
    if not str(root):
        raise UsageError(f"{flag} is not given: it is the folder that holds {layout}")
    resolved = os.path.expanduser(str(root))
    if not os.path.isdir(resolved):
        raise DataError(f"no folder {resolved} ({flag}); expected a folder that holds {layout}")
    return resolved


def check_choice(what: str, value: object, known: Sequence[object]) -> None:
    """Raise a `UsageError` that lists the choices, if `value` is none of them."""
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}; choose from {', '.join(str(choice) for choice in known)}")


def check_options(cloud_masks: str | None, rescale_method: str) -> None:
    """Refuse detectors and ways of rescaling that do not exist."""
    check_choice("cloud_masks", cloud_masks, (*DETECTORS, None))
    check_choice("rescale_method", rescale_method, RESCALE_METHODS)


def empty_split(
    root: str, flag: str, dataset: str, split: str, region: str, layout: str, n_bad: int
) -> EmptySplitError:
    """The error for a split without a single patch."""
    skipped = f" ({n_bad} incomplete or misplaced ones were skipped)" if n_bad else ""
    return EmptySplitError(
        f"no patch of {dataset}, split {split!r}, region {region!r} in {root} ({flag}){skipped}; "
        f"expected {layout.replace('ROOT', root.rstrip('/'), 1)}"
    )
