"""How the inputs of a scene are read, as JSON: source, scaling and coarse mean of each band, for tests and for help."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.features import geometry_mask

from data.constants import DATE_ORIGIN, N_S2, REFLECTANCE_SCALE, S1_BANDS, S2_BANDS
from scenes.inputs.area import reproject
from scenes.inputs.products import Band
from scenes.inputs.rasters.dataset_pool import gdal_settings
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.rasters.raster import read_coarse, sample
from scenes.inputs.series import OpticalSource, RadarSource, SceneSeries
from scenes.inputs.values.optical import OpticalDate, OpticalImage, missing_pixels
from scenes.inputs.values.radar import RadarDay, RadarImage

FULL = 2**22  # pixels of a band that are read completely; of larger ones every n-th
_MOSAIC = 2**20  # pixels at which a date of several images is composed
_SMALL = 200  # stored units: means of overviews are off by a quarter of one
_BLOCK = 256  # pixels along a side of the windows that sample a source which is read only on the grid of the scene


def describe_series(series: SceneSeries) -> dict[str, Any]:
    """The inputs of a scene as JSON values.

    Returns:
        `grid`: height, width, crs ("EPSG:32632", WKT, or null) and transform (a to f of affine). `dates`: for each
        date `day`, `bands` by name (B10 is null where it is missing) and `radar` (VV and VH, or null). `notes`.

        A band has `source`, `position` (from 1), `scale`, `offset` (reflectance, of radar its units, is the stored
        value times `scale` plus `offset`), `nodata` (number, "nan" or null), `mean` (reflectance, of radar dB) over the
        pixels with data of a coarse look at the image within the scene, null where there are none, and `valid`, their
        share. Of a date of several images, `source` to `nodata` are those of the first one, which takes precedence, and
        `sources` names all.
    """
    grid = series.grid
    with gdal_settings():
        dates = []
        for index, (day, optical) in enumerate(zip(series.days, series.optical, strict=True)):
            radar = _radar_bands(series.radar[index], series) if series.radar else None
            label = (DATE_ORIGIN + timedelta(days=day)).isoformat()
            dates.append({"day": label, "bands": _optical_bands(optical, series), "radar": radar})
    code = None if grid.crs is None else grid.crs.to_epsg()
    crs = None if grid.crs is None else f"EPSG:{code}" if code else grid.crs.to_wkt()
    place = {"height": grid.height, "width": grid.width, "crs": crs, "transform": list(grid.transform)[:6]}
    return {"grid": place, "dates": dates, "notes": list(series.notes)}


def _optical_bands(source: OpticalSource, series: SceneSeries) -> dict[str, Any]:
    if not isinstance(source, OpticalDate):
        sums = _Sums(N_S2)
        for window in _sample_windows(series.grid):
            raw, valid = source.read(window)
            for index, plane in enumerate(raw):
                sums.add(index, plane[valid] / REFLECTANCE_SCALE, valid.size)
        return {
            name: _entry(source.paths[:1], index + 1, 1 / REFLECTANCE_SCALE, 0.0, None, *sums.result(index))
            for index, name in enumerate(S2_BANDS)
        }
    images, first = source.images, source.images[0]
    statistics = _image_statistics(first, series) if len(images) == 1 else _mosaic_statistics(images, series)
    bands: dict[str, Any] = {}
    for index, name in enumerate(S2_BANDS):
        band = first.bands[index]
        sources = [image.bands[index].raster.name for image in images if image.bands[index]]  # type: ignore[union-attr]
        if band is None:
            bands[name] = None
            continue
        scale, offset = (values[index] / REFLECTANCE_SCALE for values in (first.factors, first.shifts))
        bands[name] = _entry(sources, band.position, scale, offset, band.nodata, *statistics[index])
    return bands


def _radar_bands(source: RadarSource, series: SceneSeries) -> dict[str, Any]:
    if not isinstance(source, RadarDay):
        sums = _Sums(len(S1_BANDS))
        for window in _sample_windows(series.grid):
            for index, plane in enumerate(source.read(window)):
                sums.add(index, plane[np.isfinite(plane)], plane.size)
        return {
            name: _entry(source.paths[:1], index + 1, 1.0, 0.0, None, *sums.result(index))
            for index, name in enumerate(S1_BANDS)
        }
    images = source.images
    statistics = _radar_statistics(images[0], series) if len(images) == 1 else _radar_mosaic(images, series)
    bands = {}
    for index, name in enumerate(S1_BANDS):
        band = images[0].bands[index]
        scale, offset = 1.0 if band.scale is None else band.scale, band.offset or 0.0
        sources = [image.bands[index].raster.name for image in images]
        bands[name] = _entry(sources, band.position, scale, offset, band.nodata, *statistics[index])
    return bands


def _entry(
    sources: Sequence[str],
    position: int,
    scale: float,
    offset: float,
    nodata: float | None,
    mean: float | None,
    valid: float,
) -> dict[str, Any]:
    stored_nodata = nodata if nodata is None or np.isfinite(nodata) else str(nodata)
    entry = {"source": sources[0], "position": position, "scale": float(scale), "offset": float(offset)}
    entry |= {"nodata": stored_nodata, "mean": mean, "valid": valid}
    return entry | ({"sources": list(sources)} if len(sources) > 1 else {})


class _Sums:
    """Means and shares of values that come in parts."""

    def __init__(self, count: int) -> None:
        self._sums, self._counts, self._totals = ([0.0] * count for _ in range(3))

    def add(self, index: int, values: np.ndarray, total: int) -> None:
        """Add values of one of the means, of `total` pixels."""
        self._sums[index] += float(values.sum(dtype=np.float64))
        self._counts[index] += values.size
        self._totals[index] += total

    def result(self, index: int) -> tuple[float | None, float]:
        """Mean, None without values, and share of pixels with values."""
        count, total = self._counts[index], self._totals[index]
        return (self._sums[index] / count if count else None), (count / total if total else 0.0)


def _statistics(values: np.ndarray, valid: np.ndarray, inside: np.ndarray | None) -> tuple[float | None, float]:
    """The mean of valid values, None without any, and their share of the pixels inside."""
    chosen = valid if inside is None else valid & inside
    total = valid.size if inside is None else int(inside.sum())
    count = int(chosen.sum())
    return (float(values[chosen].mean(dtype=np.float64)) if count else None), (count / total if total else 0.0)


def _image_statistics(image: OpticalImage, series: SceneSeries) -> dict[int, tuple[float | None, float]]:
    """Mean and share of valid pixels of each band of an image, on the band's own grid."""
    by_grid: dict[Grid, list[tuple[int, Band]]] = {}
    for index, band in enumerate(image.bands):
        if band:
            by_grid.setdefault(band.raster.grid, []).append((index, band))
    results: dict[int, tuple[float | None, float]] = {}
    for grid, members in by_grid.items():
        window, step, inside = _part_within(grid, series)
        if not window.size:
            results |= {index: (None, 0.0) for index, _ in members}
            continue
        planes, missing = _read_bands([band for _, band in members], window, step)
        indices = [index for index, _ in members]
        factors, shifts = (np.array([values[index] for index in indices]) for values in (image.factors, image.shifts))
        missing |= missing_pixels(np.stack(planes), [band.nodata for _, band in members], indices, factors, shifts)
        for (index, band), plane in zip(members, planes, strict=True):
            mean, share = _statistics(plane, ~missing, inside)
            if mean is not None and step > 1 and abs(mean) < _SMALL and plane.dtype.kind in "iu":
                exact = read_coarse(band.raster, [band.position], window, step, overviews=False).stored[0]
                mean, _ = _statistics(exact, ~missing, inside)
            if mean is not None:
                mean = (mean * image.factors[index] + image.shifts[index]) / REFLECTANCE_SCALE
            results[index] = mean, share
    return results


def _read_bands(bands: Sequence[Band], window: Window, step: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Coarse stored values of bands of one grid, and which are missing by masks."""
    by_raster: dict[Any, list[int]] = {}
    for place, band in enumerate(bands):
        by_raster.setdefault(band.raster, []).append(place)
    planes: dict[int, np.ndarray] = {}
    missing: Any = np.False_
    for raster, places in by_raster.items():
        stored, outside = read_coarse(raster, [bands[place].position for place in places], window, step)
        planes |= dict(zip(places, stored, strict=True))
        missing = missing | (np.zeros(stored.shape[1:], np.bool_) if outside is None else outside)
    return [planes[place] for place in range(len(bands))], missing


def _mosaic_statistics(images: Sequence[OpticalImage], series: SceneSeries) -> dict[int, tuple[float | None, float]]:
    """The same of several images of a date, composed on a coarse grid of the scene."""
    present = [[index for index, band in enumerate(image.bands) if band] for image in images]

    def parts(step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for image, indices in zip(images, present, strict=True):
            stored, missing = image.sample_stored(series.grid, step)
            values = np.full((N_S2, *missing.shape), np.nan, np.float32)
            for index, plane in zip(indices, stored, strict=True):
                values[index] = (plane * image.factors[index] + image.shifts[index]) / REFLECTANCE_SCALE
            band = image.bands[indices[0]]
            assert band is not None
            yield values, ~missing, ~_outside(band, series.grid, step)

    return _compose(parts, series)


def _compose(
    parts: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]], series: SceneSeries
) -> dict[int, tuple[float | None, float]]:
    """Mean and share of valid pixels of images of which the first takes precedence.

    Args:
        parts: from a step to the values (C,h,w) of each image, which of them are valid, and what its outline covers.
        series: of which every step-th pixel is looked at.
    """
    step = _step(series.grid.window, _MOSAIC)
    images = parts(step)
    composed, filled, inside = next(images)
    for values, valid, within in images:
        added = valid & ~filled
        composed[:, added] = values[:, added]
        filled, inside = filled | valid, inside | within
    if series.area is not None:
        inside = inside & _polygon_mask(series.area.polygons, series.grid, series.grid.window, inside.shape)
    return {index: _statistics(plane, filled, inside) for index, plane in enumerate(composed)}


def _outside(band: Band, grid: Grid, step: int) -> np.ndarray:
    """Where a scene lies outside of the outline of a band's raster, at every step-th pixel."""
    outline = shapely.Polygon(band.raster.grid.outline())
    shape = -(-grid.height // step), -(-grid.width // step)
    polygons = reproject(outline, band.raster.grid.crs, grid, band.raster.name)
    return ~_polygon_mask(polygons, grid, grid.window, shape)


def _radar_statistics(image: RadarImage, series: SceneSeries) -> dict[int, tuple[float | None, float]]:
    """Mean in dB and share of valid pixels of each band of a radar image, on its own grid."""
    same = image.bands[0].raster.grid == image.bands[1].raster.grid
    results: dict[int, tuple[float | None, float]] = {}
    for index, band in enumerate(image.bands):
        window, step, inside = _part_within(band.raster.grid, series)
        if not window.size:
            results[index] = (None, 0.0)
            continue
        pair = image.bands if same else (band, band)
        planes, missing = _read_bands(pair, window, step)
        stored = np.stack(planes).astype(np.float32)
        stored[:, missing] = np.nan
        decibels = image.to_db(stored)[index]
        results[index] = _statistics(decibels, np.isfinite(decibels), inside)
    return results


def _radar_mosaic(images: Sequence[RadarImage], series: SceneSeries) -> dict[int, tuple[float | None, float]]:
    """The same of several radar images of a day."""

    def parts(step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for image in images:
            pixels = [sample(band.raster, [band.position], series.grid, step) for band in image.bands]
            stored = np.concatenate([part.stored for part in pixels]).astype(np.float32)
            for part in pixels:
                if part.outside is not None:
                    stored[:, part.outside] = np.nan
            decibels = image.to_db(stored)
            valid = np.isfinite(decibels).all(axis=0)
            yield decibels, valid, ~_outside(image.bands[0], series.grid, step)

    return _compose(parts, series)


def _part_within(grid: Grid, series: SceneSeries) -> tuple[Window, int, np.ndarray | None]:
    """What to read of an image: the window of its grid that holds the scene, a step, and which pixels lie within."""
    place, polygons = grid.place_in(series.grid), None
    if place is not None:
        own = Window(*place, *grid.shape)
        window = series.grid.window.intersection(own).relative_to(own)
    else:
        polygons = reproject(shapely.Polygon(series.grid.outline()), series.grid.crs, grid, "the scene")
        window = _window_of(polygons, grid)
    step = _step(window, FULL)
    shape = -(-window.height // step), -(-window.width // step)
    if series.area is not None:
        area = reproject(series.area.polygons, series.grid.crs, grid, "the area")
        polygons = area if polygons is None else shapely.intersection(area, polygons)
    if polygons is None or not window.size:
        return window, step, None
    return window, step, _polygon_mask(polygons, grid, window, shape)


def _window_of(polygons: Any, grid: Grid) -> Window:
    """The pixels of a grid that hold a geometry."""
    points = shapely.get_coordinates(polygons)
    columns, rows = ~grid.transform @ (points[:, 0], points[:, 1])
    edges = np.floor(rows.min()), np.floor(columns.min()), np.ceil(rows.max()), np.ceil(columns.max())
    top, left, bottom, right = (int(edge) for edge in edges)
    return Window.from_edges(top, left, bottom, right).intersection(grid.window)


def _polygon_mask(polygons: Any, grid: Grid, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels of a window, read with fewer pixels, have their centres within a geometry."""
    scale = Affine.scale(window.width / shape[1], window.height / shape[0])
    mask: np.ndarray
    if shapely.is_empty(polygons):
        return np.zeros(shape, np.bool_)
    mask = geometry_mask([polygons], shape, grid.crop(window).transform @ scale, invert=True)
    return mask


def _step(window: Window, limit: int) -> int:
    """The smallest power of 2 at which a window has at most `limit` pixels; overviews are such powers."""
    step = 1
    while -(-window.height // step) * -(-window.width // step) > limit:
        step *= 2
    return step


def _sample_windows(grid: Grid) -> Iterator[Window]:
    """Windows of a scene, all or every n-th in both directions."""
    every = 1
    while grid.window.size / every**2 > FULL:
        every += 1
    for top in range(0, grid.height, _BLOCK * every):
        for left in range(0, grid.width, _BLOCK * every):
            yield Window(top, left, min(_BLOCK, grid.height - top), min(_BLOCK, grid.width - left))
