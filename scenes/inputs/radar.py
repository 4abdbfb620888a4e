"""Sentinel-1 GeoTIFFs, resampled to the grid of the optical images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from common.errors import DataError, UsageError
from scenes.inputs.bands import radar_bands
from scenes.inputs.dataset_pool import dataset_key, dataset_pool, grid_of, image_files, open_raster, probe, read_errors
from scenes.inputs.grid import Grid, Window

UNITS = {"db": "dB", "power": "linear power"}
_TOLERANCE = 1e-6  # of a pixel, of warped positions; rasterio rejects 0
_FINER = 1.05  # source pixels along one of the scene's, from which on they are averaged
_LATTICE = 33  # points along each side of a scene that measure how much of it a radar image covers


@dataclass(frozen=True)
class RadarImage:
    """A radar GeoTIFF and the grid that it is resampled to, a `RadarSource`; picklable.

    Attributes:
        path: the file.
        bands: positions of VV and VH in it, from 1.
        grid: of the optical images.
        warp: whether the file has another grid.
        nodata: as declared.
        power: whether values are linear power, to be converted to dB.
        factor: backscatter is the stored value times this, plus `shift`.
        shift: see `factor`.
        sources: of a VRT.
    """

    path: str
    bands: tuple[int, ...]
    grid: Grid
    warp: bool
    nodata: float | None
    power: bool
    factor: float
    shift: float
    sources: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The file, and the sources of a VRT."""
        return (self.path, *self.sources)

    def read(self, window: Window) -> np.ndarray:
        """See `RadarSource.read`.

        Values of another grid are interpolated bilinearly as they are stored: dB stays dB, as in published data sets,
        and linear power is interpolated before it is converted. Positions are computed exactly for each pixel, so that
        windows equal the full image; GDAL's own approximation is up to an eighth of a pixel off.

        Raises:
            DataError: if the file is damaged.
        """
        pool = dataset_pool()
        with pool.lock:
            dataset = pool.get((*dataset_key(self.path), self.grid if self.warp else None), self._open)
            with read_errors(self.path):
                stored = dataset.read(list(self.bands), window=window.rasterio, out_dtype="float32")  # (2,h,w)
        return self.to_db(stored)

    def to_db(self, stored: np.ndarray) -> np.ndarray:
        """Stored values, float32 (2,h,w), as dB; NaN where missing."""
        values = stored.copy()
        if self.nodata is not None:
            values[stored == np.float32(self.nodata)] = np.nan
        values[:, (stored == 0).all(axis=0)] = np.nan  # exactly 0 dB in both polarisations is an empty border
        if self.factor != 1 or self.shift:
            values = values * np.float32(self.factor) + np.float32(self.shift)
        if self.power:
            values[values <= 0] = np.nan
            values = 10 * np.log10(values)
        values[~np.isfinite(values)] = np.nan
        return values

    def _open(self) -> Any:
        source = open_raster(self.path, bool(self.sources))
        if not self.warp:
            return source
        x_scale, y_scale = _warp_scales(source, self.grid)
        return _Warped(
            source,
            resampling=Resampling.bilinear,
            tolerance=_TOLERANCE,
            XSCALE=x_scale,
            YSCALE=y_scale,
            crs=self.grid.crs,
            transform=self.grid.transform,
            height=self.grid.height,
            width=self.grid.width,
            src_nodata=np.nan if self.nodata is None else self.nodata,
            nodata=np.nan,
            dtype="float32",
        )


@dataclass(frozen=True)
class RadarDay:
    """All radar images of one day, such as neighbouring frames of one pass; a `RadarSource`."""

    images: tuple[RadarImage, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(path for image in self.images for path in image.paths)

    def read(self, window: Window) -> np.ndarray:
        """See `RadarSource.read`; where images overlap, the first one takes precedence."""
        values = self.images[0].read(window)
        for image in self.images[1:]:
            missing = np.isnan(values)
            if missing.any():
                values[missing] = image.read(window)[missing]
        return values


class _Warped(WarpedVRT):
    """A warped view that closes its source too."""

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, **options)
        self._source = source

    def close(self) -> None:
        super().close()
        self._source.close()


def open_radar(path: str, grid: Grid, units: str = "db", allow_vrt: bool = False) -> tuple[RadarImage, list[str]]:
    """Determine how to read a radar file.

    Args:
        path: bands VV and VH by description, or two bands in this order; any CRS and grid.
        grid: of the optical images.
        units: of the stored values: "db", or "power" for linear power.
        allow_vrt: see `open_raster`.

    Returns:
        The image, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, lacks a polarisation, does not overlap the scene, or has other units.
        UsageError: if `units` is unknown.
    """
    if units not in UNITS:
        raise UsageError(f"--sar_units must be one of {', '.join(UNITS)}, not {units!r}")
    notes = []
    with open_raster(path, allow_vrt) as source:
        bands = radar_bands(path, source.descriptions)
        warp = bool(grid.difference(grid_of(source)))
        if warp:
            grid_of(source).check_transform(path)
            coverage = _coverage(path, source, grid)
            notes.append(f"radar is brought onto the grid of the optical images, bilinearly, in {UNITS[units]}")
            if coverage < 1:
                notes.append(f"radar covers {100 * coverage:.0f} % of the scene; elsewhere it counts as missing")
        first = bands[0] - 1
        factor, shift, nodata = source.scales[first], source.offsets[first], source.nodatavals[first]
        if not (factor and np.isfinite([factor, shift]).all()):
            raise DataError(f"{path}: it declares a scale of {factor:g} and an offset of {shift:g}; expected numbers")
        files = image_files(path)
        image = RadarImage(path, bands, grid, warp, nodata, units == "power", factor, shift, files[1:])
        notes += _check_values(image, source)
    if image.power:
        notes.append("linear power of radar is turned into dB, as given")
    return image, notes


def _warp_scales(source: Any, grid: Grid) -> tuple[float, float]:
    """Scene pixels along one pixel of a radar image, horizontally and vertically; at most 1.

    GDAL would derive them for each piece that it warps from the outline of the piece: a grid rotated by some degrees
    then counts as finer, and smoothing varies from piece to piece, by up to 5 dB in speckle.
    """
    column, row = grid.width // 2, grid.height // 2
    points = [grid.xy(column, row), grid.xy(column + 1, row), grid.xy(column, row + 1)]
    columns, rows = _pixel_positions(source, points, grid)
    steps = [float(np.hypot(columns[i] - columns[0], rows[i] - rows[0])) for i in (1, 2)]
    horizontal, vertical = (1.0 if step < _FINER else 1 / step for step in steps)
    return horizontal, vertical


def _pixel_positions(source: Any, points: Sequence[tuple[float, float]], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) in a radar image of points in a scene's coordinate system."""
    xs, ys = transform_points(grid.crs, source.crs, *map(list, zip(*points, strict=True)))[:2]
    a, b, c, d, e, f = tuple(~source.transform)[:6]
    return a * np.array(xs) + b * np.array(ys) + c, d * np.array(xs) + e * np.array(ys) + f


def _coverage(path: str, source: Any, grid: Grid) -> float:
    """The share of a scene that lies within the outline of a radar image, in (0, 1]."""
    if source.crs is None or grid.crs is None:
        raise DataError(f"{path}: it and the optical images lie on different grids, and one of them has no CRS")
    rows, columns = (np.linspace(0.5, size - 0.5, _LATTICE) for size in (grid.height, grid.width))
    points = [grid.xy(column, row) for row in rows for column in columns]
    try:
        columns, rows = _pixel_positions(source, points, grid)
    except (CRSError, CPLE_BaseError) as error:  # rasterio does not convert all of GDAL's errors
        raise DataError(f"{path}: no transformation from {grid.crs_name} to {source.crs}: {error}") from error
    inside = (columns >= 0) & (columns <= source.width) & (rows >= 0) & (rows <= source.height)
    if not inside.any():
        raise DataError(f"{path}: this radar image does not overlap the optical images; check --sar")
    return float(inside.mean())


def _check_values(image: RadarImage, source: Any) -> list[str]:
    """Check sampled pixels for the declared units: dB is negative, power is not. Returns notes."""
    as_stored = replace(image, power=False)
    lowest, highest = np.inf, -np.inf
    for pixels in probe(image.path, source, image.bands):
        values = as_stored.to_db(pixels.astype(np.float32))
        values = values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        if lowest < 0:
            break
    if lowest == np.inf:
        return ["no sampled pixel has data: all are nodata, NaN or infinite"]
    if image.power and lowest < 0:
        raise DataError(f"{image.path}: expected linear power, found {lowest:.3g}; leave --sar_units power out")
    if not image.power and lowest > 0:
        raise DataError(
            f"{image.path}: expected backscatter in dB, found positive values only, {lowest:.3g} to {highest:.3g}; if "
            "they are linear power add --sar_units power, if they are amplitudes calibrate them"
        )
    return []
