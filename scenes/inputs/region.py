"""A region of SEN12MS-CR-TS as a scene: its patches laid side by side, read where a window meets them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from common.errors import DataError, UsageError
from data.constants import N_DATES, N_S1, N_S2
from data.datasets.file_index import LAYOUT, index_series
from data.raster.geotiff import acquisition_date, check_image, days_since_origin
from data.raster.image_store import open_images
from data.raster.patch_mosaic import Mosaic, lay_out, read_native
from scenes.inputs.dates import labels_of
from scenes.inputs.grid import Grid, Window


@dataclass(frozen=True)
class _Layout:
    """Where patches lie; picklable.

    Attributes:
        root: of the data set.
        patch_size: rows and columns of a patch.
        places: first row and column of each patch.
    """

    root: str
    patch_size: tuple[int, int]
    places: tuple[tuple[int, int], ...]

    def fill(self, whole: np.ndarray, paths: Sequence[str], window: Window) -> None:
        """Put the patches that meet a window into `whole` (C,h,w); of patches that overlap the first one wins."""
        images = open_images(self.root)
        for index, inner, outer in reversed(list(self._meeting(window))):
            pixels = read_native(images, paths[index], self.patch_size)
            check_image(paths[index], pixels.shape, {pixels.dtype.name}, len(whole), self.patch_size)
            whole[:, outer[0], outer[1]] = pixels[:, inner[0], inner[1]]

    def _meeting(self, window: Window) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        height, width = self.patch_size
        for index, (top, left) in enumerate(self.places):
            first_row, last_row = max(top, window.top), min(top + height, window.bottom)
            first_column, last_column = max(left, window.left), min(left + width, window.right)
            if first_row < last_row and first_column < last_column:
                inner = slice(first_row - top, last_row - top), slice(first_column - left, last_column - left)
                outer = (
                    slice(first_row - window.top, last_row - window.top),
                    slice(first_column - window.left, last_column - window.left),
                )
                yield index, inner, outer


@dataclass(frozen=True)
class OpticalPatches:
    """One date of a region, as `scenes.inputs.optical.OpticalImage` is of files."""

    layout: _Layout
    files: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(os.path.join(self.layout.root, path) for path in self.files)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """See `scenes.inputs.optical.OpticalImage.read`; where no patch lies there is no data."""
        raw = np.zeros((N_S2, window.height, window.width), np.uint16)
        self.layout.fill(raw, self.files, window)
        valid: np.ndarray = (raw != 0).any(axis=0, keepdims=False)
        return raw, valid


@dataclass(frozen=True)
class RadarPatches:
    """The radar of one date of a region, as `scenes.inputs.radar.RadarImage` is of files."""

    layout: _Layout
    files: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(os.path.join(self.layout.root, path) for path in self.files)

    def read(self, window: Window) -> np.ndarray:
        """See `scenes.inputs.radar.RadarImage.read`."""
        decibels = np.full((N_S1, window.height, window.width), np.nan, np.float32)
        self.layout.fill(decibels, self.files, window)
        return decibels


@dataclass(frozen=True)
class Region:
    """What `open_region` finds; one entry for each date, rising."""

    grid: Grid
    optical: tuple[OpticalPatches, ...]
    radar: tuple[RadarPatches, ...]
    days: tuple[int, ...]
    radar_days: tuple[int, ...]
    nodata: float | None
    notes: tuple[str, ...]


def open_region(folder: str, numbers: Sequence[int] = (), wanted: Sequence[date] = ()) -> Region:
    """A region's patches, put together on their grid.

    Args:
        folder: ROOT/ROIs1868/73, in which S1 and S2 hold folders 0 to 29; or the same within a pack.
        numbers: which of the dates, 0 to 29; none stands for all.
        wanted: which of these by day; none stands for all.

    Raises:
        DataError: if it is no such folder, or its patches do not make a scene.
        UsageError: if a number is no date's.
    """
    wrong = [number for number in numbers if number not in range(N_DATES)]
    if wrong:
        raise UsageError(f"image numbers run from 0 to {N_DATES - 1}, not {wrong[0]}; check --numbers")
    place = Path(os.path.abspath(folder))
    root, roi = str(place.parent.parent), f"{place.parent.name}/{place.name}"
    if not open_images(root).holds(roi):
        raise DataError(f"no such region: {folder}; expected the folder above S1 and S2 of {LAYOUT}")
    patches, skipped = index_series(root, [roi], skip_bad=True)
    if not patches:
        reason = f" ({skipped[0].reason})" if skipped else ""
        raise DataError(f"no whole patch in {folder}{reason}; expected {LAYOUT}")
    mosaic = lay_out(open_images(root), patches)
    notes = [f"{len(patches)} patches of {roi} make a scene of {mosaic.shape[0]} x {mosaic.shape[1]} pixels"]
    if skipped:
        notes.append(f"left out and counted as missing: {skipped[0].reason} ({len(skipped)} such)")
    covered = float(mosaic.covered().mean())
    if covered < 1:
        notes.append(f"patches cover {100 * covered:.1f} % of the scene; gaps hold no data")
    layout = _Layout(root, mosaic.patch_size, tuple((top, left) for _, top, left in mosaic.places.tolist()))
    dates = []
    for number in sorted(set(numbers)) or range(N_DATES):
        optical, radar = (tuple(paths[sensor][number] for paths in patches) for sensor in ("S2", "S1"))
        day, radar_day = (days_since_origin(acquisition_date(paths[0])) for paths in (optical, radar))
        if {acquisition_date(path) for path in optical} != {acquisition_date(optical[0])}:
            notes.append(f"patches of image {number} are of several days; that of the first one counts")
        dates.append((day, number, radar_day, OpticalPatches(layout, optical), RadarPatches(layout, radar)))
    days = [days_since_origin(day) for day in wanted]
    absent = set(days) - {entry[0] for entry in dates}
    if absent:
        known = ", ".join(labels_of(sorted({entry[0] for entry in dates})))
        raise DataError(f"{roi} has no image of {labels_of([min(absent)])[0]}; it has {known}")
    dates = sorted((entry for entry in dates if not days or entry[0] in days), key=lambda entry: entry[:2])
    return Region(
        _grid(mosaic),
        tuple(entry[3] for entry in dates),
        tuple(entry[4] for entry in dates),
        tuple(entry[0] for entry in dates),
        tuple(entry[2] for entry in dates),
        0.0 if covered < 1 else None,
        tuple(notes),
    )


def _grid(mosaic: Mosaic) -> Grid:
    crs: Any = CRS.from_wkt(mosaic.crs) if mosaic.crs else None
    return Grid(mosaic.shape[0], mosaic.shape[1], Affine(*mosaic.transform), crs)
