"""Single images with all bands, as GeoTIFF or any other format that GDAL opens."""

from collections.abc import Sequence
from typing import Any

from data.constants import N_S2
from scenes.inputs.dates import find_date
from scenes.inputs.products import OpticalProduct, Products, RadarProduct, Reader, find_class_band
from scenes.inputs.rasters.dataset_pool import open_raster
from scenes.inputs.rasters.raster import image_file
from scenes.inputs.values.bands import are_named, optical_bands, radar_bands
from scenes.inputs.values.optical import check_types
from scenes.inputs.values.radar import declared_pair
from scenes.inputs.values.scaling import declared_bands
from scenes.options import SceneInputs

_WIDE_STRIP = 4096  # pixels; wider rows do not stay in the cache from tile to tile


def _read(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    if sensor == "radar":
        return Products(radar=tuple(_radar(path, inputs) for path in paths))
    return Products(optical=tuple(_optical(path, inputs) for path in paths))


def _optical(path: str, inputs: SceneInputs) -> OpticalProduct:
    with open_raster(path, inputs.allow_vrt) as dataset:
        positions = optical_bands(path, dataset.descriptions)
        present = [position for position in positions if position]
        check_types(path, [dataset.dtypes[position - 1] for position in present])
        raster = image_file(path, dataset)
        bands, source = declared_bands(path, dataset, raster, positions)
        day, notes = find_date(path, dataset.tags()), _notes(dataset, present, raster.masked)
        by_position = not are_named(dataset.descriptions)
        classes = find_class_band(raster, dataset.descriptions, dataset.indexes)
        return OpticalProduct(path, path, bands, day, source, classes=classes, notes=notes, by_position=by_position)


def _notes(dataset: Any, present: Sequence[int], masked: bool) -> tuple[str, ...]:
    notes = []
    if not are_named(dataset.descriptions):
        without = " without B10" if len(present) < N_S2 else ""
        notes.append(f"bands have no names and are taken as B01 to B12{without} in order")
    if dataset.nodatavals[present[0] - 1] is None and not masked:
        notes.append("no nodata value is declared: pixels at 0 in all bands count as missing")
    strip = dataset.block_shapes[0][1]
    if strip >= _WIDE_STRIP:
        notes.append(f"stored in rows of {strip} pixels: tiled files (gdal_translate -co TILED=YES) read faster")
    return tuple(notes)


def _radar(path: str, inputs: SceneInputs) -> RadarProduct:
    with open_raster(path, inputs.allow_vrt) as dataset:
        vv, vh = radar_bands(path, dataset.descriptions)
        raster = image_file(path, dataset)
        day, by_position = find_date(path, dataset.tags()), not are_named(dataset.descriptions)
        return RadarProduct(path, path, declared_pair(dataset, raster, vv, vh), day, by_position=by_position)


READER = Reader("image with all bands", lambda path: True, _read)
