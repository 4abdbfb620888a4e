"""A region of SEN12MS-CR-TS as a scene: the mosaic of its patches, read by windows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from common.errors import DataError, UsageError
from data.constants import N_DATES, N_S1, N_S2
from data.datasets.file_index import index_series
from data.layout import EXAMPLES
from data.raster.geotiff import acquisition_date, days_since_origin
from data.raster.image_store import open_images
from data.raster.patch_mosaic import plan_mosaic
from data.splits import SERIES
from scenes.inputs.dates import date_labels
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.series import SceneSeries


@dataclass(frozen=True)
class _Patches:
    """The patches of one date; picklable.

    Attributes:
        root: of the data set.
        windows: the place of each patch in the scene.
        files: one file of each patch, relative to `root`.
    """

    root: str
    windows: tuple[Window, ...]
    files: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(os.path.join(self.root, path) for path in self.files)

    def _fill(self, out: np.ndarray, window: Window) -> None:
        """Write the pixels of a window into `out` (C,h,w); where patches overlap, the first one takes precedence."""
        images = open_images(self.root)
        for path, patch in reversed(list(zip(self.files, self.windows, strict=True))):
            shared = patch.intersection(window)
            if shared.size:
                pixels, _ = images.read(path, len(out), (patch.height, patch.width))
                out[(..., *shared.relative_to(window).slices)] = pixels[(..., *shared.relative_to(patch).slices)]


class OpticalPatches(_Patches):
    """The optical patches of one date, an `OpticalSource`."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """See `OpticalSource.read`; gaps between patches have no data."""
        raw = np.zeros((N_S2, window.height, window.width), np.uint16)
        self._fill(raw, window)
        valid: np.ndarray = (raw != 0).any(axis=0, keepdims=False)
        return raw, valid


class RadarPatches(_Patches):
    """The radar patches of one date, a `RadarSource`."""

    def read(self, window: Window) -> np.ndarray:
        """See `RadarSource.read`."""
        decibels = np.full((N_S1, window.height, window.width), np.nan, np.float32)
        self._fill(decibels, window)
        return decibels


def open_region(folder: str, numbers: Sequence[int] = (), dates: Sequence[date] = ()) -> SceneSeries:
    """The series of a region.

    Args:
        folder: ROOT/ROIs1868/73, in which S1 and S2 hold folders 0 to 29; or the same within a pack.
        numbers: image numbers to take, 0 to 29; empty takes all.
        dates: acquisition dates to take of these; empty takes all.

    Raises:
        DataError: if it is no such folder, or its patches do not form a scene.
        UsageError: if a number is out of range.
    """
    out_of_range = [number for number in numbers if number not in range(N_DATES)]
    if out_of_range:
        raise UsageError(f"image numbers run from 0 to {N_DATES - 1}, not {out_of_range[0]}; check --numbers")
    path = Path(os.path.abspath(folder))
    root, roi = str(path.parent.parent), f"{path.parent.name}/{path.name}"
    images = open_images(root)
    if not images.names(roi):
        raise DataError(f"no such region: {folder}; expected the folder above S1 and S2 of {EXAMPLES[SERIES]}")
    patches, skipped = index_series(root, [roi], skip_bad=True)
    if not patches:
        reason = f" ({skipped[0].reason})" if skipped else ""
        raise DataError(f"no whole patch in {folder}{reason}; expected {EXAMPLES[SERIES]}")
    mosaic = plan_mosaic(images, [paths["S2"][0] for paths in patches])
    height, width = mosaic.shape
    notes = [f"{len(patches)} patches of {roi} make a scene of {height} x {width} pixels"]
    if skipped:
        notes.append(f"left out and counted as missing: {skipped[0].reason} ({len(skipped)} such)")
    coverage = float(mosaic.covered().mean())
    if coverage < 1:
        notes.append(f"patches cover {100 * coverage:.1f} % of the scene; gaps hold no data")
    windows = tuple(Window(top, left, *mosaic.patch_size) for _, top, left in mosaic.places.tolist())
    entries = []
    for number in sorted(set(numbers)) or range(N_DATES):
        optical, radar = (tuple(paths[sensor][number] for paths in patches) for sensor in ("S2", "S1"))
        if len({acquisition_date(path) for path in optical}) > 1:
            notes.append(f"patches of image {number} are of several days; that of the first one counts")
        day, radar_day = (days_since_origin(acquisition_date(paths[0])) for paths in (optical, radar))
        sources = OpticalPatches(root, windows, optical), RadarPatches(root, windows, radar)
        entries.append((day, number, radar_day, *sources))
    if dates:
        wanted, available = {days_since_origin(day) for day in dates}, {entry[0] for entry in entries}
        if not wanted <= available:
            labels = ", ".join(date_labels(sorted(available)))
            raise DataError(f"{roi} has no image of {date_labels([min(wanted - available)])[0]}; it has {labels}")
        entries = [entry for entry in entries if entry[0] in wanted]
    entries.sort(key=lambda entry: entry[:2])
    days, _, radar_days, optical_sources, radar_sources = zip(*entries, strict=True)
    grid = Grid(height, width, Affine(*mosaic.transform), CRS.from_wkt(mosaic.crs) if mosaic.crs else None)
    nodata = 0.0 if coverage < 1 else None
    return SceneSeries(grid, days, radar_days, optical_sources, radar_sources, nodata, tuple(notes))
