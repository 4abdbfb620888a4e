"""A scene's series of dates: which files, and what a window of them holds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from types import TracebackType
from typing import Protocol

import numpy as np

from common.errors import DataError, UsageError
from data.constants import N_S1, N_S2
from data.raster.geotiff import days_since_origin, optical_to_unit, sar_to_unit
from scenes.inputs.dataset_pool import gdal_settings, handles, is_remote, open_raster
from scenes.inputs.dates import find_date, labels_of, parse_date
from scenes.inputs.grid import Grid, Window
from scenes.inputs.manifest import Entry, read_listing
from scenes.inputs.optical import OpticalImage, open_optical
from scenes.inputs.radar import RadarDay, RadarImage, describe_pairs, open_radar, pair_nearest, why_other_grid
from scenes.inputs.region import open_region


class OpticalSource(Protocol):
    """One optical date, however it is stored."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """uint16 (13,h,w), reflectance x 10000, 0 where missing; and bool (h,w), where there is data."""


class RadarSource(Protocol):
    """One radar date, however it is stored."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""

    def read(self, window: Window) -> np.ndarray:
        """float32 (2,h,w) in dB, NaN where missing."""


@dataclass(frozen=True)
class Pixels:
    """What a window of a series holds.

    Attributes:
        raw: (T,13,h,w) uint16, reflectance x 10000 without the products' offset, 0 where missing; for cloud detection.
        optical: (T,13,h,w) float32, the same as reflectance in [0, 1].
        radar: (T,2,h,w) float32 in [0, 1], VV then VH, 0 where missing; None without radar.
        valid: (T,h,w) bool, False where the optical image holds no data.
    """

    raw: np.ndarray
    optical: np.ndarray
    radar: np.ndarray | None
    valid: np.ndarray


@dataclass(frozen=True)
class SceneSeries:
    """The plan of a scene's inputs. Picklable: files are opened by whoever reads, once for each process.

    Attributes:
        grid: of all optical images.
        days: since 2014-04-03, rising, one for each date.
        radar_days: the same of the radar image that goes with each date; empty without radar.
        optical: how to read each date.
        radar: how to read the radar of each date; empty without radar.
        nodata: of the optical images, as declared by the first one that declares any.
        notes: what was done to the inputs, a line each.
    """

    grid: Grid
    days: tuple[int, ...]
    radar_days: tuple[int, ...]
    optical: tuple[OpticalSource, ...]
    radar: tuple[RadarSource, ...]
    nodata: float | None
    notes: tuple[str, ...]

    @property
    def has_radar(self) -> bool:
        """Whether there is radar for every date."""
        return bool(self.radar)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each date: 2018-06-21; the second image of a day is "2018-06-21 (2)"."""
        return labels_of(self.days)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, absolute, optical first."""
        optical = [path for image in self.optical for path in image.paths]
        return (*optical, *(path for image in self.radar for path in image.paths))

    def read(self, window: Window) -> Pixels:
        """The pixels of a window, of all dates.

        Raises:
            DataError: if a file is damaged.
            ValueError: if the window does not lie within the scene.
        """
        if not window.inside(self.grid):
            raise ValueError(f"{window} does not lie within {self.grid.height} x {self.grid.width} pixels")
        shape = (window.height, window.width)
        raw = np.empty((len(self.days), N_S2, *shape), np.uint16)
        optical = np.empty(raw.shape, np.float32)
        valid = np.empty((len(self.days), *shape), np.bool_)
        radar = np.empty((len(self.days), N_S1, *shape), np.float32) if self.radar else None
        with gdal_settings():
            for place, image in enumerate(self.optical):
                raw[place], valid[place] = image.read(window)
                optical_to_unit(raw[place], out=optical[place])
            if radar is not None:
                for place, backscatter in enumerate(self.radar):
                    sar_to_unit(backscatter.read(window), out=radar[place])
        return Pixels(raw, optical, radar, valid)

    def close(self) -> None:
        """Close this process's files; reading opens them again."""
        handles().close(self.paths)

    def __enter__(self) -> "SceneSeries":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_series(
    optical: Sequence[str] = (),
    radar: Sequence[str] = (),
    *,
    dates: Sequence[str] | None = None,
    radar_dates: Sequence[str] | None = None,
    listing: str = "",
    folder: str = "",
    numbers: Sequence[int] = (),
    offset: str | float = "auto",
    scale: float | None = None,
    radar_units: str = "db",
) -> SceneSeries:
    """Look at the images of a scene, and plan how they are read; no image is loaded.

    Args:
        optical: Sentinel-2 GeoTIFFs of all dates on one grid, in any order; see `scenes.inputs.optical.open_optical`.
        radar: Sentinel-1 GeoTIFFs in dB, any number on any grid: each optical date gets the nearest day's, put
            together where there are several; see `scenes.inputs.radar.open_radar`.
        dates: of `optical`, like 2018-06-21; None takes them from tags or names, `scenes.inputs.dates.find_date`. With
            `folder` those of its dates that are wanted.
        radar_dates: of `radar`.
        listing: a CSV or JSON file in place of all these, see `scenes.inputs.manifest.read_listing`.
        folder: a region of SEN12MS-CR-TS in place of all these, see `scenes.inputs.region.open_region`.
        numbers: the same by image number, 0 to 29; none stands for all.
        offset: of the optical values: "auto", "none" or a number.
        scale: reflectance for each stored optical unit; None takes what files declare, else 1e-4.
        radar_units: "db", or "power" for linear power.

    Raises:
        DataError: if files cannot be read or do not fit together; the line names them.
        UsageError: if arguments contradict each other.
    """
    if sum(map(bool, (optical, listing, folder))) != 1:
        raise UsageError("expected one of --optical, --list and --folder, to name the images of a scene")
    if (listing or folder) and (radar or radar_dates or (dates and listing)):
        raise UsageError("--sar, --dates and --sar_dates go with --optical; a list or a folder names its own")
    if numbers and not folder:
        raise UsageError("--numbers chooses among the 30 dates of --folder; there is none")
    if folder:
        region = open_region(folder, numbers, [parse_date(text, "--dates") for text in dates or ()])
        return SceneSeries(
            region.grid, region.days, region.radar_days, region.optical, region.radar, region.nodata, region.notes
        )
    entries = read_listing(listing) if listing else _entries(optical, dates)
    with gdal_settings():
        images, days, grid, notes = _optical_dates(entries, offset, scale)
        loose = [Entry("", path, "", day) for path, day in _with_dates("--sar", radar, radar_dates)]
        paired, radar_days, radar_notes = _radar_dates(entries, loose, days, grid, radar_units)
    declared = [image.nodata for image in images if image.nodata is not None]
    nodata = declared[0] if declared else None
    return SceneSeries(grid, days, radar_days, images, paired, nodata, (*notes, *radar_notes))


def _with_dates(flag: str, paths: Sequence[str], dates: Sequence[str] | None) -> list[tuple[str, str]]:
    if dates is not None and len(dates) != len(paths):
        raise UsageError(f"{len(paths)} images of {flag}, but {len(dates)} dates; give one for each")
    places = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    return list(zip(places, dates if dates is not None else [""] * len(paths), strict=True))


def _entries(optical: Sequence[str], dates: Sequence[str] | None) -> list[Entry]:
    return [Entry(path, "", day) for path, day in _with_dates("--optical", optical, dates)]


def _optical_dates(
    entries: list[Entry], offset: str | float, scale: float | None
) -> tuple[tuple[OpticalImage, ...], tuple[int, ...], Grid, list[str]]:
    """The images by date, and sort `entries` likewise."""
    told: dict[str, date] = {entry.optical: _date(entry.optical, entry.date) for entry in entries}
    if len(told) < len(entries):
        paths = [entry.optical for entry in entries]
        raise DataError(f"{next(path for path in paths if paths.count(path) > 1)} is named twice")
    entries.sort(key=lambda entry: told[entry.optical])
    days = tuple(days_since_origin(told[entry.optical]) for entry in entries)
    labels = labels_of(days)
    images, grids = [], []
    notes: dict[str, list[str]] = {}
    for label, entry in zip(labels, entries, strict=True):
        image, grid, said = open_optical(entry.optical, offset, scale, told[entry.optical])
        images.append(image)
        grids.append(grid)
        for note in said:
            notes.setdefault(note, []).append(label)
        differ = why_other_grid(grids[0], grid)
        if differ:
            raise DataError(
                f"{entries[0].optical} and {entry.optical} have different {differ}; all optical images must lie on one "
                "grid (gdalwarp brings them there)"
            )
    lines = _lines(notes, len(entries))
    several = sorted({label[:10] for label in labels if len(label) > 10})
    lines += [f"several images of {day}: all are used" for day in several]
    return tuple(images), days, grids[0], lines


def _radar_dates(
    entries: Sequence[Entry], loose: Sequence[Entry], days: tuple[int, ...], grid: Grid, units: str
) -> tuple[tuple[RadarDay, ...], tuple[int, ...], list[str]]:
    """The radar of each date: the image named with it, else all of the nearest day."""
    named = {entry.radar: entry for entry in (*entries, *loose) if entry.radar}
    if not named:
        return (), (), []
    opened: dict[str, RadarImage] = {}
    when: dict[str, int] = {}
    notes: dict[str, list[str]] = {}
    for path, entry in named.items():
        opened[path], said = open_radar(path, grid, units)
        when[path] = days_since_origin(_date(path, entry.radar_date))
        for note in said:
            notes.setdefault(note, []).append(os.path.basename(path))
    known = sorted(set(when.values()))
    chosen = []
    for entry, place in zip(entries, pair_nearest(days, known), strict=True):
        chosen.append([entry.radar] if entry.radar else [path for path in named if when[path] == known[place]])
    radar_days = tuple(when[paths[0]] for paths in chosen)
    lines = [*_lines(notes, len(named)), *describe_pairs(labels_of(days), days, radar_days)]
    unused = [os.path.basename(path) for path in named if not any(path in paths for paths in chosen)]
    if unused:
        lines.append(f"radar further from every date than others, not used: {', '.join(unused)}")
    return tuple(RadarDay(tuple(opened[path] for path in paths)) for paths in chosen), radar_days, lines


def _date(path: str, told: str) -> date:
    if told:
        return parse_date(told, f"date of {path}")
    with open_raster(path) as source:
        return find_date(path, source.tags())


def _lines(notes: Mapping[str, Sequence[str]], n_all: int) -> list[str]:
    """Each note with those it is about."""
    about = {
        note: ", ".join(names) if len(names) < n_all or n_all == 1 else f"all {n_all}" for note, names in notes.items()
    }
    return [f"{note} ({names})" for note, names in about.items()]
