"""Sentinel-1 images, resampled to the grid of the optical images."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError

from common.errors import DataError, UsageError
from scenes.inputs.products import Band, RadarProduct
from scenes.inputs.rasters.dataset_pool import probe_windows
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import Raster, pixel_positions

UNITS = {"db": "dB", "power": "linear power", "amplitude": "amplitude"}
AUTO = "auto"
_CODED_DB = -83.0  # dB = 20 log10(value) - 83 of integers, as openEO's and ALOS' products store backscatter
_CODED = (700.0, 20_000.0)  # such values of VV in the median: -26 to 3 dB. Digital numbers of GRD are below 400
_LARGEST_POWER = 10.0  # of calibrated power or amplitude in the median
_LOWEST_DB = -60.0  # in the median; values below are hundredths of dB or the like
_NEGATIVE_DB, _NEGATIVE_POWER = (
    0.5,
    0.05,
)  # at least this share of dB is negative, at most that of power (noise taken off)
_AMPLITUDE_STEP, _AMPLITUDE_LEVEL = 4.6, -10.5  # dB, if taken as power: VV above VH by less, and VV above
_WATER_STEP = 3.1  # the same whatever the level
_SWAPPED_STEP, _SWAPPED_SHARE = -2.0, 0.25  # dB of VV above VH in the median, and the share of pixels where it is above
_LATTICE = 33  # points along each side of a scene that measure how much of it a radar image covers


@dataclass(frozen=True)
class RadarImage:
    """A radar image and the grid that it is resampled to, a `RadarSource`; picklable.

    Attributes:
        name: for messages.
        bands: VV and VH.
        grid: of the optical images.
        units: "db", "power" or "amplitude", of the stored values after scale and offset of the bands.
    """

    name: str
    bands: tuple[Band, Band]
    grid: Grid
    units: str

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(dict.fromkeys(path for band in self.bands for path in band.raster.paths))

    def read(self, window: Window) -> np.ndarray:
        """See `RadarSource.read`.

        Values of another grid are interpolated bilinearly as they are stored: dB stays dB, as in published data sets,
        and linear power is interpolated before it is converted.

        Raises:
            DataError: if the file is damaged.
        """
        return self.to_db(self.read_stored(window, self.grid))

    def read_stored(self, window: Window, grid: Grid) -> np.ndarray:
        """Stored values (2,h,w), float32, NaN beyond the image."""
        vv, vh = self.bands
        if vv.raster == vh.raster:
            parts = [vv.raster.read([vv.position, vh.position], window, grid, nodata=vv.nodata)]
        else:
            parts = [band.raster.read([band.position], window, grid, nodata=band.nodata) for band in self.bands]
        values = np.concatenate([part.stored for part in parts]).astype(np.float32, copy=False)
        for part in parts:
            if part.outside is not None:
                values[:, part.outside] = np.nan
        return values

    def to_db(self, stored: np.ndarray) -> np.ndarray:
        """Stored values, float32 (2,h,w), as dB; NaN where missing."""
        values = stored.copy()
        for band, plane, stored_plane in zip(self.bands, values, stored, strict=True):
            if band.nodata is not None:
                plane[stored_plane == np.float32(band.nodata)] = np.nan
        values[:, (stored == 0).all(axis=0)] = np.nan  # exactly 0 dB in both polarisations is an empty border
        for index, band in enumerate(self.bands):
            scale, offset = 1.0 if band.scale is None else band.scale, band.offset or 0.0
            if scale != 1 or offset:
                values[index] = values[index] * np.float32(scale) + np.float32(offset)
        if self.units == "power":
            values[values <= 0] = np.nan
            values = 10 * np.log10(values)
        elif self.units == "amplitude":
            values[values <= 0] = np.nan
            values = 20 * np.log10(values)
        values[~np.isfinite(values)] = np.nan
        return values


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


def declared_pair(dataset: Any, raster: Raster, vv: int, vh: int) -> tuple[Band, Band]:
    """VV and VH of an open rasterio data set, by position from 1, with what it declares about their values."""
    declared = zip(dataset.scales, dataset.offsets, dataset.nodatavals, strict=True)
    by_position = dict(enumerate(declared, start=1))
    return Band(raster, vv, *by_position[vv]), Band(raster, vh, *by_position[vh])


def open_radar(product: RadarProduct, grid: Grid, units: str = AUTO) -> tuple[RadarImage, list[str]]:
    """Determine how to read a radar image; pixels are sampled.

    Args:
        product: the image.
        grid: of the optical images.
        units: of the stored values: "db", "power" for linear power, "amplitude" for its square root, or "auto", by the
            values.

    Returns:
        The image, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, does not overlap the scene, or has other units.
        UsageError: if `units` is unknown.
    """
    if units not in (AUTO, *UNITS):
        raise UsageError(f"--sar_units must be one of {', '.join((AUTO, *UNITS))}, not {units!r}")
    notes = list(product.notes)
    for band in product.bands:
        scale, offset = 1.0 if band.scale is None else band.scale, band.offset or 0.0
        if not (scale and np.isfinite([scale, offset]).all()):
            raise DataError(
                f"{product.name}: it declares a scale of {scale:g} and an offset of {offset:g}; expected numbers"
            )
    rasters = list(dict.fromkeys(band.raster for band in product.bands))
    other = next((raster for raster in rasters if grid.difference(raster.grid)), None)
    coverage = 1.0 if other is None else _coverage(product.name, other.grid, grid)
    values, has_empty = _sample(product)
    image, value_notes = _find_units(product, grid, units, values)
    if other is not None:
        if other.grid.place_in(grid) is None:
            notes.append(f"radar is brought onto the grid of the optical images, bilinearly, in {UNITS[image.units]}")
            if has_empty:  # empty borders are left out of the interpolation
                vv, vh = image.bands
                image = replace(image, bands=(replace(vv, nodata=0.0), replace(vh, nodata=0.0)))
        if coverage < 1:
            notes.append(f"radar covers {100 * coverage:.0f} % of the scene; elsewhere it counts as missing")
    image, order_notes = _check_order(product, image, values)
    return image, [*notes, *value_notes, *order_notes]


def _coverage(name: str, image: Grid, grid: Grid) -> float:
    """The share of a scene that lies within the outline of a radar image, in (0, 1]."""
    if image.crs is None or grid.crs is None:
        raise DataError(f"{name}: it and the optical images lie on different grids, and one of them has no CRS")
    rows, columns = (np.linspace(0.5, size - 0.5, _LATTICE) for size in (grid.height, grid.width))
    points = [grid.xy(column, row) for row in rows for column in columns]
    try:
        columns, rows = pixel_positions(image, points, grid)
    except (CRSError, CPLE_BaseError) as error:  # rasterio does not convert all of GDAL's errors
        raise DataError(f"{name}: no transformation from {grid.crs_name} to {image.crs}: {error}") from error
    inside = (columns >= 0) & (columns <= image.width) & (rows >= 0) & (rows <= image.height)
    if not inside.any():
        raise DataError(f"{name}: this radar image does not overlap the optical images; check --sar")
    return float(inside.mean())


def _sample(product: RadarProduct) -> tuple[np.ndarray, bool]:
    """Values (2,n) of sampled pixels after scale and offset, and whether empty ones are 0 without being nodata."""
    grid = product.bands[0].raster.grid
    image = RadarImage(product.name, product.bands, grid, "db")
    has_nodata = any(band.nodata is not None and np.isfinite(band.nodata) for band in product.bands)
    parts, has_empty = [], False
    for window in probe_windows(grid):
        stored = image.read_stored(window, grid)
        has_empty |= not has_nodata and bool((stored == 0).all(axis=0).any())
        values = image.to_db(stored)
        parts.append(values[:, np.isfinite(values).all(axis=0)])
    return np.concatenate(parts, axis=1), has_empty


def _find_units(product: RadarProduct, grid: Grid, units: str, values: np.ndarray) -> tuple[RadarImage, list[str]]:
    """The image with the units that are given, declared, or that its values have, and notes on them."""
    if not values.size:
        known = units if units != AUTO else product.units or "db"
        notes = ["no sampled pixel has data: all are nodata, NaN or infinite"]
        return RadarImage(product.name, product.bands, grid, known), notes
    coded = units in (AUTO, "amplitude") and _CODED[0] <= np.median(values, axis=1).max() <= _CODED[1]
    if units != AUTO and not coded:
        _check_given(product.name, units, values)
        image = RadarImage(product.name, product.bands, grid, units)
        return image, [] if units == "db" else [f"{UNITS[units]} of radar is turned into dB, as given"]
    if coded:
        factor = 10 ** (_CODED_DB / 20)
        vv, vh = (
            replace(band, scale=(band.scale or 1.0) * factor, offset=(band.offset or 0.0) * factor)
            for band in product.bands
        )
        note = f"radar is stored as amplitude with dB = 20 log10(value) {_CODED_DB:g}, by its values"
        return RadarImage(product.name, (vv, vh), grid, "amplitude"), [note]
    seen = _units_of(product.name, values)
    image = RadarImage(product.name, product.bands, grid, seen)
    by = "by its values" if product.units != seen else "as declared"
    if product.units not in ("", seen):
        by = f"by its values, though it declares {UNITS[product.units]}"
    elif seen == "db":
        return image, []
    return image, [f"{UNITS[seen]} of radar is turned into dB, {by}; else give --sar_units"]


def _units_of(name: str, values: np.ndarray) -> str:
    """The units of values (2,n)."""
    negative = float((values < 0).mean())
    first, second = (float(median) for median in np.median(values, axis=1))
    if negative > _NEGATIVE_DB:
        if min(first, second) < _LOWEST_DB:
            raise DataError(
                f"{name}: expected backscatter in dB, found {first:.4g} and {second:.4g} in the median; if they are "
                "hundredths of dB, declare it (gdal_edit.py -scale 0.01)"
            )
        return "db"
    if negative > _NEGATIVE_POWER:
        raise DataError(
            f"{name}: {100 * negative:.0f} % of the values are negative, too few for dB and too many for power; give "
            "--sar_units"
        )
    if max(first, second) > _LARGEST_POWER:
        raise DataError(
            f"{name}: expected backscatter in dB or calibrated, found digital numbers, {first:.4g} and {second:.4g} in "
            "the median; calibrate them (to sigma0 or gamma0, as in SNAP)"
        )
    positive = values[:, (values > 0).all(axis=0)]
    decibels = 10 * np.log10(positive)
    step = abs(float(np.median(decibels[0] - decibels[1]))) if positive.size else np.inf
    level = float(np.median(decibels.max(axis=0))) if positive.size else -np.inf
    flat = step < _WATER_STEP or step < _AMPLITUDE_STEP and level > _AMPLITUDE_LEVEL
    return "amplitude" if flat else "power"


def _check_given(name: str, units: str, values: np.ndarray) -> None:
    """Raise a `DataError` if values cannot have the units that the user gives: dB is negative, power is not."""
    lowest, highest = float(values.min()), float(values.max())
    if units != "db" and (values < 0).mean() > _NEGATIVE_POWER:
        raise DataError(f"{name}: expected {UNITS[units]}, found {lowest:.3g}; leave --sar_units {units} out")
    if units == "db" and lowest > 0:
        raise DataError(
            f"{name}: expected backscatter in dB, found positive values only, {lowest:.3g} to {highest:.3g}; leave "
            "--sar_units db out, which then goes by the values; amplitudes without calibration must be calibrated"
        )


def _check_order(product: RadarProduct, image: RadarImage, values: np.ndarray) -> tuple[RadarImage, list[str]]:
    """The image with VV first, which lies above VH on average, by 5 to 8 dB over land and water, and notes."""
    if image.units != "db":
        values = np.log10(values[:, (values > 0).all(axis=0)]) * (10 if image.units == "power" else 20)
    if not values.size:
        return image, []
    above = values[0] - values[1]
    step, share = float(np.median(above)), float((above > 0).mean())
    if step >= 0:
        return image, []
    if product.by_position and step <= _SWAPPED_STEP and share <= _SWAPPED_SHARE:
        vv, vh = image.bands
        return replace(image, bands=(vh, vv)), [
            f"its bands have no names and are taken as VH, VV: the second one lies {-step:.1f} dB above the first"
        ]
    named = "its bands have no names and are taken as VV, VH" if product.by_position else "of its bands"
    return image, [f"{named}, VV lies {-step:.1f} dB below VH; check their order"]
