"""From files, a list or a region to the series of a scene."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, TypeVar

import numpy as np

from common.errors import DataError, UsageError
from data.raster.geotiff import days_since_origin
from scenes.inputs.area import choose_place
from scenes.inputs.dates import date_labels, describe_pairs, pair_nearest, parse_date
from scenes.inputs.products import OpticalProduct, Products, RadarProduct, Reader
from scenes.inputs.rasters.dataset_pool import dataset_pool, gdal_settings, is_remote
from scenes.inputs.rasters.grid import Grid
from scenes.inputs.readers import cube, earth_engine, geotiff, safe, stac
from scenes.inputs.readers.manifest import read_manifest
from scenes.inputs.readers.region import open_region
from scenes.inputs.series import SceneSeries
from scenes.inputs.values.optical import NO_DATA, OpticalDate, OpticalImage, finest_grid, open_optical
from scenes.inputs.values.radar import RadarDay, RadarImage, open_radar
from scenes.inputs.values.scaling import parse_offset
from scenes.options import SceneInputs

READERS: tuple[Reader, ...] = (stac.READER, cube.READER, *safe.READERS, earth_engine.READER, geotiff.READER)
"""Kinds of files, the first one that recognises a path reads it."""

_COARSE = 256  # pixels along the longer side of a scene at which overlaps are measured
_Product = TypeVar("_Product", OpticalProduct, RadarProduct)


def open_series(inputs: SceneInputs) -> SceneSeries:
    """Inspect the images of a scene and determine how they are read; pixels are only sampled.

    Args:
        inputs: optical images, in any order, of any kind that `READERS` has, and radar images, any number on any grid,
            see `scenes.inputs.values.radar.open_radar`: each optical date gets all radar images of the nearest day.
            Dates that are not given come from the products. Or a list, see
            `scenes.inputs.readers.manifest.read_manifest`; or a region of SEN12MS-CR-TS, see
            `scenes.inputs.readers.region.open_region`.

    Raises:
        DataError: if files cannot be read or do not fit together; the message names them.
        UsageError: if a flag has an invalid value.
    """
    if inputs.folder:
        days = [parse_date(text, "--dates") for text in inputs.dates]
        series = open_region(inputs.folder, inputs.numbers, days)
    else:
        with gdal_settings(), dataset_pool().closing_others() as kept:
            series = _open_products(inputs)
            if series.cache_bytes:  # decoded blocks, which are lost by closing, are needed again soon
                kept += series.paths
    series.grid.check_location(inputs.folder or series.paths[0])
    return series


def _open_products(inputs: SceneInputs) -> SceneSeries:
    """The series of the products that flags or a list name."""
    products, pairs = _read_list(inputs) if inputs.manifest else (_read_flags(inputs), {})
    if not products.optical:
        raise DataError("no optical image is left; check the flags that choose images")
    optical = sorted(products.optical, key=_day)
    grids, names = [finest_grid(product.bands) for product in optical], [product.name for product in optical]
    place = choose_place(grids, names, inputs)
    outside = [product.name for product, window in zip(optical, place.windows, strict=True) if not window.size]
    optical = [product for product, window in zip(optical, place.windows, strict=True) if window.size]
    skipped = [f"outside of the area, not used: {', '.join(map(os.path.basename, outside))}"] if outside else []
    images, image_notes = _open_optical(optical, inputs)
    groups = _group_by_date(optical, images, place.grid)
    days = tuple(days_since_origin(_day(optical[group[0]])) for group in groups)
    notes = [
        *place.notes,
        *filter(None, [place.grid.pixel_note()]),
        *skipped,
        *_date_notes(groups, optical, days, image_notes),
    ]
    dates = [[optical[index] for index in group] for group in groups]
    radar, radar_days, radar_notes = _open_radar(dates, products.radar, pairs, days, place.grid, inputs)
    nodata = next((image.nodata for image in images if image.nodata is not None), None)
    if nodata is None and (place.area or any(window != place.grid.window for window in place.windows)):
        nodata = 0.0
    sources = tuple(
        OpticalDate(tuple(images[index] for index in group), place.grid, inputs.resampling) for group in groups
    )
    return SceneSeries(
        place.grid, days, radar_days, sources, radar, nodata, (*products.notes, *notes, *radar_notes), place.area
    )


def read_products(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    """What files hold, in their order.

    Args:
        paths: absolute or remote.
        sensor: "optical" or "radar", of the flag that names them.
        inputs: how they are read.

    Raises:
        DataError: if one cannot be read.
    """
    by_reader: dict[str, tuple[Reader, list[str]]] = {}
    for path in paths:
        if not (is_remote(path) or os.path.isfile(path) or os.path.isdir(path)) and os.path.exists(path):
            raise DataError(f"{path} is a pipe or a device; expected an image")  # of which reading would wait
        reader = next(reader for reader in READERS if reader.recognises(path))
        by_reader.setdefault(reader.name, (reader, []))[1].append(path)
    parts = [reader.read(own, sensor, inputs) for reader, own in by_reader.values()]
    order = {path: index for index, path in reversed(list(enumerate(paths)))}
    optical = sorted((product for part in parts for product in part.optical), key=lambda product: order[product.path])
    radar = sorted((product for part in parts for product in part.radar), key=lambda product: order[product.path])
    return Products(tuple(optical), tuple(radar), tuple(note for part in parts for note in part.notes))


def _read_flags(inputs: SceneInputs) -> Products:
    paths = _absolute(inputs.optical or inputs.stac)
    _check_unique(paths)
    found = stac.READER.read(paths, "optical", inputs) if inputs.stac else read_products(paths, "optical", inputs)
    optical = _with_values(_with_dates("--optical", found.optical, inputs.dates), inputs)
    if not inputs.radar:
        return replace(found, optical=optical)
    named = read_products(_absolute(inputs.radar), "radar", inputs)
    radar = (*found.radar, *_with_dates("--sar", named.radar, inputs.radar_dates))
    return Products(optical, radar, (*found.notes, *named.notes))


def _read_list(inputs: SceneInputs) -> tuple[Products, dict[str, str]]:
    """The products of a list, and the radar path of each optical one that names it."""
    entries = read_manifest(inputs.manifest)
    _check_unique([entry.optical for entry in entries])
    days = [
        (_entry_day(entry.optical, entry.date), _entry_day(entry.radar, entry.radar_date) if entry.radar else None)
        for entry in entries
    ]
    optical: list[OpticalProduct] = []
    radar: dict[str, tuple[RadarProduct, ...]] = {}
    notes: list[str] = []
    for entry, (day, radar_day) in zip(entries, days, strict=True):
        found = read_products([entry.optical], "optical", inputs)
        of_row = _with_day(entry.optical, found.optical, day)
        optical += [replace(product, offset=entry.offset, scale=entry.scale) for product in of_row]
        notes += found.notes
        if entry.radar and entry.radar not in radar:
            own = read_products([entry.radar], "radar", inputs)
            radar[entry.radar] = _with_day(entry.radar, own.radar, radar_day)
            notes += own.notes
        elif not entry.radar:
            radar[entry.optical] = found.radar
    pairs = {entry.optical: entry.radar for entry in entries if entry.radar}
    return Products(tuple(optical), tuple(product for own in radar.values() for product in own), tuple(notes)), pairs


def _absolute(paths: Sequence[str]) -> list[str]:
    return [path if is_remote(path) else os.path.abspath(path) for path in paths]


def _with_dates(flag: str, products: tuple[_Product, ...], dates: Sequence[str]) -> tuple[_Product, ...]:
    """Products with the dates that a flag gives, one for each."""
    if not dates:
        return products
    if len(dates) != len(products):
        raise UsageError(f"{len(products)} images of {flag}, but {len(dates)} dates; give one for each")
    pairs = zip(products, dates, strict=True)
    return tuple(replace(product, day=parse_date(text, f"date of {product.path}")) for product, text in pairs)


def _with_values(products: tuple[OpticalProduct, ...], inputs: SceneInputs) -> tuple[OpticalProduct, ...]:
    """Products with the offsets and scales that flags give, where they give one for each."""
    for name, values in (("offset", inputs.offset), ("scale", inputs.scale)):
        if not isinstance(values, tuple):
            continue
        if len(values) != len(products):
            text = f"{len(products)} images of --optical, but {len(values)} values of --{name}; give one for each"
            raise UsageError(text)
        changes: list[dict[str, Any]] = [{name: _value(value)} for value in values]
        products = tuple(replace(product, **change) for product, change in zip(products, changes, strict=True))
    return products


def _value(value: str | float) -> float | None:
    return value if isinstance(value, float | int) else parse_offset(value)


def _with_day(path: str, products: tuple[_Product, ...], day: date | None) -> tuple[_Product, ...]:
    """The products of a row of a list, with the date that it gives."""
    if day is None:
        return products
    if len(products) > 1:
        raise DataError(f"{path} holds {len(products)} images, but the list gives one date for it; leave the date out")
    return tuple(replace(product, day=day) for product in products)


def _entry_day(path: str, text: str) -> date | None:
    return parse_date(text, f"date of {path}") if text else None


def _check_unique(paths: Sequence[str]) -> None:
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise DataError(f"{repeated} is named twice")


def _day(product: OpticalProduct | RadarProduct) -> date:
    if product.day is None:
        raise DataError(
            f"no date for {product.name}: neither its tags (ACQUISITION_DATE) nor its name (2018-06-21, 20180621) have "
            "one; rename it, or give --dates or a list with dates"
        )
    return product.day


def _open_optical(
    products: Sequence[OpticalProduct], inputs: SceneInputs
) -> tuple[list[OpticalImage], list[list[str]]]:
    """The optical images, and notes on each."""
    opened = [open_optical(product, inputs) for product in products]
    if all(NO_DATA in notes for _, notes in opened):
        raise DataError(f"{products[0].name} and all other optical images: {NO_DATA}")
    return [image for image, _ in opened], [notes for _, notes in opened]


def _group_by_date(
    products: Sequence[OpticalProduct], images: Sequence[OpticalImage], grid: Grid
) -> tuple[tuple[int, ...], ...]:
    """The images of each date of the series, by their indices; the first ones of a group take precedence.

    Images of one day are one date if they are parts of one overpass, or if their pixels with data overlap by less than
    half of the smaller one. Which are, and which takes precedence, does not depend on the order of the images: those on
    the grid of the scene come first, which are read exactly, then by name.

    Args:
        products: in the order of their days.
        images: of the products.
        grid: of the scene.
    """
    step = max(1, -(-max(grid.shape) // _COARSE))
    valid: dict[int, np.ndarray] = {}

    def has_data(index: int) -> np.ndarray:
        if index not in valid:
            valid[index] = ~images[index].sample_stored(grid, step)[1]
        return valid[index]

    def complete(first: int, second: int) -> bool:
        overpasses = {products[first].overpass, products[second].overpass}
        if products[first].level != products[second].level:
            return False
        if len(overpasses) == 1 and overpasses != {""}:
            return True
        shared = int((has_data(first) & has_data(second)).sum())
        return shared < min(int(has_data(first).sum()), int(has_data(second).sum())) / 2 or not shared

    def order(index: int) -> tuple[bool, str, str]:
        product = products[index]
        return finest_grid(product.bands).place_in(grid) is None, os.path.basename(product.name), product.name

    groups: list[tuple[int, ...]] = []
    for day in dict.fromkeys(map(_day, products)):
        of_day: list[list[int]] = []
        for index in sorted((index for index, product in enumerate(products) if _day(product) == day), key=order):
            group = next((group for group in of_day if all(complete(index, other) for other in group)), None)
            if group is None:
                of_day.append([index])
            else:
                group.append(index)
        groups += sorted((tuple(group) for group in of_day), key=min)
    return tuple(groups)


def _date_notes(
    groups: Sequence[Sequence[int]],
    products: Sequence[OpticalProduct],
    days: Sequence[int],
    image_notes: Sequence[Sequence[str]],
) -> list[str]:
    """Notes on the images by the labels of their dates, and on days with several images."""
    labels = date_labels(days)
    by_note: dict[str, list[str]] = defaultdict(list)
    lines = []
    for group, label in zip(groups, labels, strict=True):
        for note in dict.fromkeys(note for index in group for note in image_notes[index]):
            by_note[note].append(label)
        if len(group) > 1:
            names = ", ".join(os.path.basename(products[index].name) for index in group)
            lines.append(f"images of {label} are parts of one date, the first ones take precedence: {names}")
    repeated_days = sorted({label[:10] for label in labels if len(label) > 10})
    lines += [f"several images of {day}: all are used" for day in repeated_days]
    return [*_note_lines(by_note, len(groups)), *lines]


def _open_radar(
    dates: Sequence[Sequence[OpticalProduct]],
    products: Sequence[RadarProduct],
    pairs: Mapping[str, str],
    days: Sequence[int],
    grid: Grid,
    inputs: SceneInputs,
) -> tuple[tuple[RadarDay, ...], tuple[int, ...], list[str]]:
    """The radar of each date: all of the nearest day, of the file that it is paired with if any; days, and notes."""
    if not products:
        return (), (), []
    images: list[RadarImage] = []
    notes: dict[str, list[str]] = defaultdict(list)
    for product in products:
        image, image_notes = open_radar(product, grid, inputs.radar_units)
        images.append(image)
        for note in image_notes:
            notes[note].append(os.path.basename(product.name))
    day_of = [days_since_origin(_day(product)) for product in products]
    chosen: list[list[int]] = []
    for optical, day in zip(dates, days, strict=True):
        paths = {pairs[product.path] for product in optical if product.path in pairs}
        own = [number for number, radar in enumerate(products) if not paths or radar.path in paths]
        (nearest,) = pair_nearest([day], [day_of[number] for number in own])
        chosen.append([number for number in own if day_of[number] == day_of[own[nearest]]])
    radar_days = tuple(day_of[numbers[0]] for numbers in chosen)
    lines = [*_note_lines(notes, len(products)), *describe_pairs(days, radar_days)]
    used = {number for numbers in chosen for number in numbers}
    unused = [os.path.basename(product.name) for number, product in enumerate(products) if number not in used]
    if unused:
        lines.append(f"radar further from every date than others, not used: {', '.join(unused)}")
    return tuple(RadarDay(tuple(images[number] for number in numbers)) for numbers in chosen), radar_days, lines


def _note_lines(notes: Mapping[str, Sequence[str]], n_images: int) -> list[str]:
    """Each note with the images it is about."""
    return [
        f"{note} ({', '.join(names) if len(names) < n_images or n_images == 1 else f'all {n_images}'})"
        for note, names in notes.items()
    ]
