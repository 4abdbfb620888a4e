"""The series of a scene: one optical and one radar source for each date, read together by windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from data.constants import N_S1, N_S2
from data.raster.rescaling import optical_to_unit, sar_to_unit
from scenes.inputs.area import Area
from scenes.inputs.dates import date_labels
from scenes.inputs.rasters.dataset_pool import dataset_pool, gdal_settings
from scenes.inputs.rasters.grid import Grid, Window


class OpticalSource(Protocol):
    """One optical date of a scene, of any file format; picklable."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, absolute or remote."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """uint16 (13,h,w), reflectance x 10000, 0 where missing; and bool (h,w), where there is data."""


class RadarSource(Protocol):
    """One radar date on the grid of the optical images, of any file format; picklable."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, absolute or remote."""

    def read(self, window: Window) -> np.ndarray:
        """float32 (2,h,w), VV then VH, in dB, NaN where missing."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of a window of a series.

    Attributes:
        raw: (T,13,h,w) uint16, reflectance x 10000 without the products' offset, 0 where missing; for cloud detection.
        optical: (T,13,h,w) float32, the same as reflectance in [0, 1].
        radar: (T,2,h,w) float32 in [0, 1], VV then VH, 0 where missing; None without radar.
        valid: (T,h,w) bool, False where the optical image has no data.
    """

    raw: np.ndarray
    optical: np.ndarray
    radar: np.ndarray | None
    valid: np.ndarray

    @classmethod
    def stack(cls, parts: "Sequence[Pixels]") -> "Pixels":
        """The pixels of some dates together."""
        radar = [part.radar for part in parts if part.radar is not None]
        return cls(
            np.concatenate([part.raw for part in parts]),
            np.concatenate([part.optical for part in parts]),
            np.concatenate(radar) if radar else None,
            np.concatenate([part.valid for part in parts]),
        )

    def crop(self, window: Window) -> "Pixels":
        """A window of these pixels, counted from their upper left corner; views."""
        part = (..., *window.slices)
        radar = None if self.radar is None else self.radar[part]
        return Pixels(self.raw[part], self.optical[part], radar, self.valid[part])


@dataclass(frozen=True)
class SceneSeries:
    """The inputs of a scene. Picklable: each process that reads opens the files once.

    Attributes:
        grid: of all optical images.
        days: dates since 2014-04-03, ascending.
        radar_days: the same of the radar of each date; empty without radar.
        optical: the source of each date.
        radar: the radar source of each date; empty without radar.
        nodata: of the optical images, as declared by the first one that declares any.
        notes: how the inputs are read, one line each.
        area: outside of which the maps are nodata; None for all of the grid. Pixels outside are read all the same: the
            network sees the surroundings.
    """

    grid: Grid
    days: tuple[int, ...]
    radar_days: tuple[int, ...]
    optical: tuple[OpticalSource, ...]
    radar: tuple[RadarSource, ...]
    nodata: float | None
    notes: tuple[str, ...]
    area: Area | None = None

    @property
    def has_radar(self) -> bool:
        """Whether there is radar for every date."""
        return bool(self.radar)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each date: 2018-06-21; the second image of a day is "2018-06-21 (2)"."""
        return date_labels(self.days)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, optical first."""
        sources: tuple[OpticalSource | RadarSource, ...] = (*self.optical, *self.radar)
        return tuple(path for source in sources for path in source.paths)

    def select(self, dates: Sequence[int]) -> "SceneSeries":
        """The series of some dates, by their indices, ascending."""
        return replace(
            self,
            days=tuple(self.days[date] for date in dates),
            radar_days=tuple(self.radar_days[date] for date in dates) if self.radar_days else (),
            optical=tuple(self.optical[date] for date in dates),
            radar=tuple(self.radar[date] for date in dates) if self.radar else (),
        )

    def read(self, window: Window, dates: Sequence[int] | None = None) -> Pixels:
        """The pixels of a window at all dates, or at those of some indices.

        Raises:
            DataError: if a file is damaged.
            ValueError: if the window does not lie within the scene.
        """
        if not window.inside(self.grid):
            raise ValueError(f"{window} does not lie within {self.grid.height} x {self.grid.width} pixels")
        dates = range(len(self.days)) if dates is None else dates
        n_dates, shape = len(dates), (window.height, window.width)
        raw = np.empty((n_dates, N_S2, *shape), np.uint16)
        optical = np.empty(raw.shape, np.float32)
        valid = np.empty((n_dates, *shape), np.bool_)
        radar = np.empty((n_dates, N_S1, *shape), np.float32) if self.radar else None
        dataset_pool().reserve(self.cache_bytes, len(self.paths))
        with gdal_settings():
            for position, date in enumerate(dates):
                raw[position], valid[position] = self.optical[date].read(window)
                optical_to_unit(raw[position], out=optical[position])
            if radar is not None:
                for position, date in enumerate(dates):
                    sar_to_unit(self.radar[date].read(window), out=radar[position])
        return Pixels(raw, optical, radar, valid)

    @cached_property
    def cache_bytes(self) -> int:
        """What images that are slow to decode take in GDAL's cache; 0 without any."""
        return sum(getattr(source, "cache_bytes", 0) for source in self.optical)  # sources of cubes have none

    def close(self) -> None:
        """Close this process's files; reading opens them again."""
        dataset_pool().close(self.paths)

    def __enter__(self) -> "SceneSeries":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
