"""Radar images of a scene: Sentinel-1 backscatter, brought onto the grid of the optical images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from common.errors import DataError, UsageError
from scenes.inputs.bands import radar_bands
from scenes.inputs.dataset_pool import first_look, grid_of, handles, open_raster, reading, stamp
from scenes.inputs.dates import labels_of
from scenes.inputs.grid import Grid, Window

UNITS = ("db", "power")
FAR_DAYS = 14  # a radar image further from its optical one is told
_SAME_PIXEL = 0.01  # of a pixel, by which two grids may differ and be the same
_EXACT = 1e-6  # of a pixel, by which places may be off; rasterio takes no 0
_FINER = 1.05  # source pixels along one of the scene's, from which on they are averaged
_LATTICE = 33  # points along each side of a scene, at which its cover by a radar image is looked up


@dataclass(frozen=True)
class RadarImage:
    """One radar image and the grid onto which it is brought; picklable.

    Attributes:
        path: the file.
        bands: positions of VV and VH in it, from 1.
        grid: of the optical images.
        warp: whether it lies on another grid.
        nodata: as declared.
        power: linear power, of which decibels are to be made.
        factor: backscatter is the stored value times this, plus `shift`.
        shift: see `factor`.
    """

    path: str
    bands: tuple[int, ...]
    grid: Grid
    warp: bool
    nodata: float | None
    power: bool
    factor: float
    shift: float

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return (self.path,)

    def read(self, window: Window) -> np.ndarray:
        """A window's backscatter in dB, float32 (2,h,w), VV then VH; NaN where missing.

        On another grid each pixel is interpolated bilinearly between the values as they are stored: decibels stay
        decibels, as in published data sets, and linear power is interpolated before decibels are made of it. Places
        are calculated for each pixel exactly, so that windows give what the whole would; GDAL's own
        shortcut is up to an eighth of a pixel off.

        Raises:
            DataError: if the file is damaged.
        """
        pool = handles()
        with pool.lock:
            source = pool.get((*stamp(self.path), self.grid if self.warp else None), self._open)
            with reading(self.path):
                stored = source.read(list(self.bands), window=window.gdal, out_dtype="float32")  # (2,h,w)
        return self._decibels(stored)

    def _open(self) -> Any:
        source = open_raster(self.path)
        if not self.warp:
            return source
        missing = np.nan if self.nodata is None else self.nodata
        place = {"crs": self.grid.crs, "transform": self.grid.transform}
        size = {"height": self.grid.height, "width": self.grid.width}
        values = {"src_nodata": missing, "nodata": np.nan, "dtype": "float32"}
        wide, high = _zoom(source, self.grid)
        return _Warped(
            source,
            resampling=Resampling.bilinear,
            tolerance=_EXACT,
            XSCALE=wide,
            YSCALE=high,
            **place,
            **size,
            **values,
        )

    def _decibels(self, stored: np.ndarray) -> np.ndarray:
        values = stored.copy()
        if self.nodata is not None:
            values[stored == np.float32(self.nodata)] = np.nan
        values[:, (stored == 0).all(axis=0)] = np.nan  # 0 dB in both polarisations is no ground, but an empty border
        if self.factor != 1 or self.shift:
            values = values * np.float32(self.factor) + np.float32(self.shift)
        if self.power:
            values[values <= 0] = np.nan
            values = 10 * np.log10(values)
        return values


@dataclass(frozen=True)
class RadarDay:
    """All radar images of one day, as neighbouring frames of one pass are: what one misses the next may hold."""

    images: tuple[RadarImage, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(image.path for image in self.images)

    def read(self, window: Window) -> np.ndarray:
        """See `RadarImage.read`; where images overlap the first one wins."""
        values = self.images[0].read(window)
        for image in self.images[1:]:
            missing = np.isnan(values)
            if missing.any():
                values[missing] = image.read(window)[missing]
        return values


class _Warped(WarpedVRT):
    """A warped view that closes the file behind it too."""

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, **options)
        self._behind = source

    def close(self) -> None:
        super().close()
        self._behind.close()


def open_radar(path: str, grid: Grid, units: str = "db") -> tuple[RadarImage, list[str]]:
    """Find out how to read a radar file.

    Args:
        path: bands VV and VH by description, or two bands in this order; any CRS and grid.
        grid: of the optical images.
        units: of the stored values: "db", or "power" for linear power.

    Returns:
        How to read it, and notes on what is done to it.

    Raises:
        DataError: if it cannot be read, lacks a polarisation, does not overlap the scene, or holds other units.
        UsageError: if `units` is unknown.
    """
    if units not in UNITS:
        raise UsageError(f"--sar_units must be one of {', '.join(UNITS)}, not {units!r}")
    notes = []
    with open_raster(path) as source:
        bands = radar_bands(path, source.descriptions)
        warp = why_other_grid(grid, grid_of(source)) != ""
        if warp:
            share = _covered(path, source, grid)
            notes.append(f"radar is brought onto the grid of the optical images, bilinearly, in {_spell(units)}")
            if share < 1:
                notes.append(f"radar covers {100 * share:.0f} % of the scene; elsewhere it counts as missing")
        factor, shift = source.scales[bands[0] - 1], source.offsets[bands[0] - 1]
        nodata = source.nodatavals[bands[0] - 1]
        image = RadarImage(path, bands, grid, warp, nodata, units == "power", factor, shift)
        _check_values(image, source)
    if units == "power":
        notes.append("linear power of radar is turned into dB, as told")
    return image, notes


def why_other_grid(one: Grid, other: Grid) -> str:
    """How two grids differ, or nothing if they are the same to a hundredth of a pixel."""
    if one.crs != other.crs:
        return f"coordinate systems {_spell_crs(one)} and {_spell_crs(other)}"
    if (one.height, one.width) != (other.height, other.width):
        return f"sizes {one.height} x {one.width} and {other.height} x {other.width}"
    pixel = min(abs(one.transform.a) + abs(one.transform.b), abs(one.transform.d) + abs(one.transform.e))
    for column, row in one.corners:
        apart = np.subtract(one.place(column, row), other.place(column, row))
        if np.abs(apart).max() > _SAME_PIXEL * pixel:
            places = [f"{grid.transform.c:.10g}, {grid.transform.f:.10g}" for grid in (one, other)]
            steps = [f"{grid.transform.a:.6g} x {grid.transform.e:.6g}" for grid in (one, other)]
            if steps[0] != steps[1]:
                return f"pixel sizes {steps[0]} and {steps[1]}"
            return f"upper left corners ({places[0]}) and ({places[1]})"
    return ""


def pair_nearest(days: Sequence[int], radar_days: Sequence[int]) -> tuple[int, ...]:
    """For each optical date the position of the radar image nearest in time; of two as near the earlier one."""
    order = sorted(range(len(radar_days)), key=lambda place: radar_days[place])
    return tuple(min(order, key=lambda place: abs(radar_days[place] - day)) for day in days)


def _zoom(source: Any, grid: Grid) -> tuple[float, float]:
    """How many of a scene's pixels lie along one of the radar image's, across and down; at most 1.

    GDAL would work this out for each piece that it warps, from the piece's outline: a grid turned by some degrees then
    counts as finer, and is smoothed more or less from piece to piece, by up to 5 dB in speckle.
    """
    column, row = grid.width // 2, grid.height // 2
    points = [grid.place(column, row), grid.place(column + 1, row), grid.place(column, row + 1)]
    columns, rows = _pixels_of(source, points, grid)
    steps = [float(np.hypot(columns[i] - columns[0], rows[i] - rows[0])) for i in (1, 2)]
    wide, high = (1.0 if step < _FINER else 1 / step for step in steps)
    return wide, high


def _pixels_of(source: Any, points: Sequence[tuple[float, float]], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) in a radar image of places in a scene's coordinate system."""
    xs, ys = transform_points(grid.crs, source.crs, *map(list, zip(*points, strict=True)))[:2]
    a, b, c, d, e, f = tuple(~source.transform)[:6]
    return a * np.array(xs) + b * np.array(ys) + c, d * np.array(xs) + e * np.array(ys) + f


def _covered(path: str, source: Any, grid: Grid) -> float:
    """The share of a scene that lies within a radar image, by its outline."""
    if source.crs is None or grid.crs is None:
        raise DataError(f"{path}: it and the optical images lie on different grids, and one of them has no CRS")
    points = [
        grid.place(column, row)
        for row in np.linspace(0.5, grid.height - 0.5, _LATTICE)
        for column in np.linspace(0.5, grid.width - 0.5, _LATTICE)
    ]
    try:
        columns, rows = _pixels_of(source, points, grid)
    except CRSError as error:
        raise DataError(f"{path}: no way from {_spell_crs(grid)} to {source.crs}: {error}") from error
    inside = (columns >= 0) & (columns <= source.width) & (rows >= 0) & (rows <= source.height)
    if not inside.any():
        raise DataError(f"{path}: this radar image does not overlap the optical images; check --sar")
    return float(inside.mean())


def _check_values(image: RadarImage, source: Any) -> None:
    plain = replace(image, power=False)
    lowest, largest = np.inf, -np.inf
    for pixels in first_look(image.path, source, image.bands):
        values = plain._decibels(pixels.astype(np.float32))
        values = values[np.isfinite(values)]
        if values.size:
            lowest, largest = min(lowest, float(values.min())), max(largest, float(values.max()))
        if lowest < 0:
            break
    if image.power and lowest < 0:
        raise DataError(f"{image.path}: expected linear power, found {lowest:.3g}; leave --sar_units power out")
    if not image.power and 0 < lowest < np.inf:
        raise DataError(
            f"{image.path}: expected backscatter in dB, found positive values only, {lowest:.3g} to {largest:.3g}; if "
            "they are linear power add --sar_units power, if they are amplitudes calibrate them"
        )


def _spell(units: str) -> str:
    return "dB" if units == "db" else "linear power"


def _spell_crs(grid: Grid) -> str:
    if grid.crs is None:
        return "none"
    code = grid.crs.to_epsg()
    return f"EPSG:{code}" if code else str(grid.crs.to_wkt())[:60]


def describe_pairs(labels: Sequence[str], days: Sequence[int], radar_days: Sequence[int]) -> list[str]:
    """Which radar goes with which date, and which is far from it.

    Args:
        labels: of the dates.
        days: of the dates, since 2014-04-03.
        radar_days: the same of the radar of each date.
    """
    partners = [labels_of([day])[0] for day in radar_days]
    pairs = [f"{label} with {partner}" for label, partner in zip(labels, partners, strict=True)]
    notes = [f"radar goes with optical dates thus: {'; '.join(pairs)}"]
    for label, partner, day, radar_day in zip(labels, partners, days, radar_days, strict=True):
        if abs(radar_day - day) > FAR_DAYS:
            notes.append(f"radar of {partner} lies {abs(radar_day - day)} days from the optical image of {label}")
    return notes
