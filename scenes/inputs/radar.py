"""Sentinel-1 images, resampled to the grid of the optical images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError

from common.errors import DataError, UsageError
from scenes.inputs.dataset_pool import probe_windows
from scenes.inputs.grid import Grid, Window
from scenes.inputs.products import Band, RadarProduct
from scenes.inputs.raster import pixel_positions

UNITS = {"db": "dB", "power": "linear power"}
_LATTICE = 33  # points along each side of a scene that measure how much of it a radar image covers


@dataclass(frozen=True)
class RadarImage:
    """A radar image and the grid that it is resampled to, a `RadarSource`; picklable.

    Attributes:
        name: for messages.
        bands: VV and VH.
        grid: of the optical images.
        units: "db" or "power", of the stored values after scale and offset of the bands.
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


def open_radar(product: RadarProduct, grid: Grid, units: str = "db") -> tuple[RadarImage, list[str]]:
    """Determine how to read a radar image; pixels are sampled.

    Args:
        product: the image.
        grid: of the optical images.
        units: of the stored values: "db", or "power" for linear power.

    Returns:
        The image, and notes on how it is read.

    Raises:
        DataError: if it cannot be read, does not overlap the scene, or has other units.
        UsageError: if `units` is unknown.
    """
    if units not in UNITS:
        raise UsageError(f"--sar_units must be one of {', '.join(UNITS)}, not {units!r}")
    notes = list(product.notes)
    for raster in dict.fromkeys(band.raster for band in product.bands):
        if grid.difference(raster.grid):
            coverage = _coverage(product.name, raster.grid, grid)
            if raster.grid.place_in(grid) is None:
                notes.append(f"radar is brought onto the grid of the optical images, bilinearly, in {UNITS[units]}")
            if coverage < 1:
                notes.append(f"radar covers {100 * coverage:.0f} % of the scene; elsewhere it counts as missing")
            break
    for band in product.bands:
        scale, offset = 1.0 if band.scale is None else band.scale, band.offset or 0.0
        if not (scale and np.isfinite([scale, offset]).all()):
            raise DataError(
                f"{product.name}: it declares a scale of {scale:g} and an offset of {offset:g}; expected numbers"
            )
    image = RadarImage(product.name, product.bands, grid, units)
    notes += _check_values(image)
    if units == "power":
        notes.append("linear power of radar is turned into dB, as given")
    return image, notes


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


def _samples(image: RadarImage) -> Iterator[np.ndarray]:
    """Stored values (2,h,w) of sampled windows, on the image's own grid."""
    grid = image.bands[0].raster.grid
    for window in probe_windows(grid):
        yield image.read_stored(window, grid)


def _check_values(image: RadarImage) -> list[str]:
    """Check sampled pixels for the declared units: dB is negative, power is not. Returns notes."""
    as_stored = RadarImage(image.name, image.bands, image.grid, "db")
    lowest, highest = np.inf, -np.inf
    for pixels in _samples(image):
        values = as_stored.to_db(pixels)
        values = values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        if lowest < 0:
            break
    if lowest == np.inf:
        return ["no sampled pixel has data: all are nodata, NaN or infinite"]
    if image.units == "power" and lowest < 0:
        raise DataError(f"{image.name}: expected linear power, found {lowest:.3g}; leave --sar_units power out")
    if image.units == "db" and lowest > 0:
        raise DataError(
            f"{image.name}: expected backscatter in dB, found positive values only, {lowest:.3g} to {highest:.3g}; if "
            "they are linear power add --sar_units power, if they are amplitudes calibrate them"
        )
    return []
