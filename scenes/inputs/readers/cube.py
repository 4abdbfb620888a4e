"""Cubes of dates and bands, netCDF and Zarr, as openEO, odc-stac, stackstac, Sentinel Hub and xcube write them."""

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from common.errors import DataError, list_some
from data.constants import N_S1, REFLECTANCE_SCALE, S1_BANDS
from scenes.inputs.products import Band, ClassBand, OpticalProduct, Products, RadarProduct, Reader
from scenes.inputs.readers.cube_layout import Layer, find_coordinate, find_days, find_grid, find_layers
from scenes.inputs.readers.cube_store import CubeRaster, Plane, is_cube, open_cube, stored_type
from scenes.inputs.values.bands import are_named, optical_bands, polarisation_of, radar_bands
from scenes.inputs.values.optical import check_types
from scenes.inputs.values.scaling import baseline_offset
from scenes.options import SceneInputs

_BASELINE = ("s2:processing_baseline", "processing_baseline", "processing:version")
_APPLIED = ("earthsearch:boa_offset_applied", "boa_offset_applied")
_UNITS = {"db": "db", "decibel": "db", "decibels": "db", "power": "power", "linear": "power", "amplitude": "amplitude"}


def read_baselines(dataset: Any, time: str) -> list[float | None]:
    """The offset of stored values at each date, in reflectance, by processing baselines in the coordinates of a cube.

    stackstac and odc-stac carry over properties of items; where one says that the offset was applied, it is 0.
    """
    count = int(dataset.sizes[time]) if time else 1
    baselines = find_coordinate(dataset, _BASELINE, time) or [None] * count
    applied = find_coordinate(dataset, _APPLIED, time) or [None] * count
    offsets: list[float | None] = []
    for baseline, done in zip(baselines, applied, strict=True):
        match = re.fullmatch(r"N?0?(\d{1,2})\.?(\d{2})", str(baseline))
        if str(done).lower() == "true":
            offsets.append(0.0)
        else:
            offsets.append(baseline_offset(int(match[1])) / REFLECTANCE_SCALE if match else None)
    return offsets


def _read(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    parts = [_read_one(path, sensor) for path in paths]
    return Products(
        tuple(product for part in parts for product in part.optical),
        tuple(product for part in parts for product in part.radar),
        tuple(note for part in parts for note in part.notes),
    )


def _read_one(path: str, sensor: str) -> Products:
    dataset = open_cube(path)
    try:
        layers = find_layers(path, dataset)
        time = layers[0].time
        days = find_days(path, dataset, time)
        if not days:
            raise DataError(f"{path}: a cube without dates: {time} has length 0")
        radar_layers = [layer for layer in layers if polarisation_of(layer.label) is not None]
        if sensor == "radar":
            chosen = radar_layers if len(layers) > N_S1 else layers
            return Products(radar=_radar(path, dataset, chosen or layers, days))
        others = [layer for layer in layers if layer not in radar_layers]
        if not others:
            raise DataError(f"{path}: holds radar only ({_labels(layers)}); give it to --sar")
        optical = _optical(path, dataset, others, days)
        has_radar = {polarisation_of(layer.label) for layer in radar_layers} == set(range(len(S1_BANDS)))
        return Products(optical, _radar(path, dataset, radar_layers, days) if has_radar else ())
    finally:
        dataset.close()


def _optical(
    path: str, dataset: Any, layers: Sequence[Layer], days: Sequence[date | None]
) -> tuple[OpticalProduct, ...]:
    images = [layer for layer in layers if not layer.is_classes]
    positions = optical_bands(path, [layer.label or None for layer in images])
    bands = [images[position - 1] if position else None for position in positions]
    present = [layer for layer in bands if layer]
    classes = next((layer for layer in layers if layer.is_classes), None)
    check_types(path, [dataset[layer.variable].dtype.name for layer in present])
    rasters, notes = _rasters(path, dataset, [*present, *([classes] if classes else [])], len(days))
    ignored = [layer.label or layer.variable for layer in layers if layer not in present and layer is not classes]
    if ignored:
        notes.append(f"layers of the cube that are not used: {list_some(ignored, 8)}")
    integers = all(dataset[layer.variable].dtype.kind in "iu" for layer in present)
    baselines = read_baselines(dataset, present[0].time) if integers else [None] * len(days)
    products = []
    for number, (day, offset) in enumerate(zip(days, baselines, strict=True)):
        declared = [_band(rasters, layer, number, offset) if layer else None for layer in bands]
        by = "the file" if any(layer.scale is not None for layer in present) else "processing baseline in the cube"
        products.append(
            OpticalProduct(
                path,
                _name(path, day, number, len(days)),
                tuple(declared),
                day,
                by if any(band and band.offset is not None for band in declared) else "",
                _level(path, layers),
                classes=ClassBand(_band(rasters, classes, number), "scl") if classes else None,
                notes=tuple(notes),
                by_position=not are_named([layer.label or None for layer in images]),
            )
        )
    return tuple(products)


def _radar(path: str, dataset: Any, layers: Sequence[Layer], days: Sequence[date | None]) -> tuple[RadarProduct, ...]:
    pair = [layers[position - 1] for position in radar_bands(path, [layer.label or None for layer in layers])]
    rasters, notes = _rasters(path, dataset, pair, len(days))
    units = _UNITS.get(pair[0].units.strip().lower(), "")
    by_position = not are_named([layer.label or None for layer in layers])
    products = []
    for number, day in enumerate(days):
        vv, vh = (_band(rasters, layer, number) for layer in pair)
        name = _name(path, day, number, len(days))
        products.append(RadarProduct(path, name, (vv, vh), day, units, tuple(notes), by_position))
    return tuple(products)


def _rasters(
    path: str, dataset: Any, layers: Sequence[Layer], n_dates: int
) -> tuple[dict[tuple[Layer, int], tuple[CubeRaster, int]], list[str]]:
    """For each layer and date the raster and the position in it; layers on one grid share the rasters."""
    groups: dict[tuple[str, str, bool | None, np.dtype], list[Layer]] = {}
    for layer in layers:
        dtype = stored_type(dataset[layer.variable].dtype, layer.unsigned)
        groups.setdefault((layer.rows, layer.columns, layer.unsigned, dtype), []).append(layer)
    places: dict[tuple[Layer, int], tuple[CubeRaster, int]] = {}
    notes: dict[str, None] = {}
    for (rows, columns, unsigned, _), members in groups.items():
        grid, flips, grid_notes = find_grid(path, dataset, members[0])
        notes |= dict.fromkeys(grid_notes)
        for number in range(n_dates):
            planes = tuple(_plane(layer, number) for layer in members)
            raster = CubeRaster(path, grid, planes, rows, columns, flips, unsigned)
            places |= {(layer, number): (raster, position) for position, layer in enumerate(members, start=1)}
    return places, list(notes)


def _plane(layer: Layer, number: int) -> Plane:
    return Plane(layer.variable, (*layer.select, *(((layer.time, number),) if layer.time else ())))


def _band(
    rasters: dict[tuple[Layer, int], tuple[CubeRaster, int]], layer: Layer, number: int, offset: float | None = None
) -> Band:
    raster, position = rasters[layer, number]
    declared = offset if layer.scale is None else layer.offset
    return Band(raster, position, layer.scale, declared, layer.nodata)


def _name(path: str, day: date | None, number: int, count: int) -> str:
    return path if count == 1 else f"{path}, {day or f'date {number + 1}'}"


def _labels(layers: Sequence[Layer]) -> str:
    return list_some([layer.label or layer.variable for layer in layers], 20)


def _level(path: str, layers: Sequence[Layer]) -> str:
    """The processing level that names say: L2A if there is a scene classification."""
    texts = " ".join([path.rpartition("/")[2], *(layer.label for layer in layers)]).upper()
    if any(layer.is_classes for layer in layers) or "L2A" in texts:
        return "L2A"
    return "L1C" if "L1C" in texts else ""


READER = Reader("cube (netCDF or Zarr)", is_cube, _read)
