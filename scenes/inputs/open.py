"""From files, a list or a region to the series of a scene."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import TypeVar

from common.errors import DataError, UsageError
from data.raster.geotiff import days_since_origin
from scenes.inputs.dataset_pool import dataset_pool, gdal_settings, is_remote
from scenes.inputs.dates import date_labels, describe_pairs, pair_nearest, parse_date
from scenes.inputs.grid import Grid
from scenes.inputs.manifest import read_manifest
from scenes.inputs.optical import NO_DATA, OpticalDate, OpticalImage, finest_grid, open_optical
from scenes.inputs.products import OpticalProduct, Products, RadarProduct, Reader
from scenes.inputs.radar import RadarDay, RadarImage, open_radar
from scenes.inputs.readers import geotiff
from scenes.inputs.region import open_region
from scenes.inputs.series import SceneSeries
from scenes.options import SceneInputs

READERS: tuple[Reader, ...] = (geotiff.READER,)
"""Kinds of files, the first one that recognises a path reads it."""

_Product = TypeVar("_Product", OpticalProduct, RadarProduct)


def open_series(inputs: SceneInputs) -> SceneSeries:
    """Inspect the images of a scene and determine how they are read; pixels are only sampled.

    Args:
        inputs: optical images, in any order, of any kind that `READERS` has, and radar images, any number on any grid,
            see `scenes.inputs.radar.open_radar`: each optical date gets all radar images of the nearest day. Dates that
            are not given come from the products. Or a list, see `scenes.inputs.manifest.read_manifest`; or a region of
            SEN12MS-CR-TS, see `scenes.inputs.region.open_region`.

    Raises:
        DataError: if files cannot be read or do not fit together; the message names them.
        UsageError: if a flag has an invalid value.
    """
    if inputs.folder:
        days = [parse_date(text, "--dates") for text in inputs.dates]
        series = open_region(inputs.folder, inputs.numbers, days)
    else:
        with gdal_settings():
            series = _open_products(inputs)
    series.grid.check_location(inputs.folder or series.paths[0])
    return series


def _open_products(inputs: SceneInputs) -> SceneSeries:
    """The series of the products that flags or a list name."""
    products, pairs = _read_list(inputs) if inputs.manifest else (_read_flags(inputs), {})
    optical = sorted(products.optical, key=_day)
    days = tuple(days_since_origin(_day(product)) for product in optical)
    images, grid, notes = _open_optical(optical, date_labels(days), inputs)
    radar, radar_days, radar_notes = _open_radar(optical, products.radar, pairs, days, grid, inputs)
    nodata = next((image.nodata for image in images if image.nodata is not None), None)
    dates = tuple(OpticalDate((image,), grid) for image in images)
    series = SceneSeries(grid, days, radar_days, dates, radar, nodata, (*products.notes, *notes, *radar_notes))
    dataset_pool().close(series.paths)
    return series


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
        reader = next(reader for reader in READERS if reader.recognises(path))
        by_reader.setdefault(reader.name, (reader, []))[1].append(path)
    parts = [reader.read(own, sensor, inputs) for reader, own in by_reader.values()]
    order = {path: index for index, path in reversed(list(enumerate(paths)))}
    optical = sorted((product for part in parts for product in part.optical), key=lambda product: order[product.path])
    radar = sorted((product for part in parts for product in part.radar), key=lambda product: order[product.path])
    return Products(tuple(optical), tuple(radar), tuple(note for part in parts for note in part.notes))


def _read_flags(inputs: SceneInputs) -> Products:
    paths = _absolute(inputs.optical)
    _check_unique(paths)
    found = read_products(paths, "optical", inputs)
    optical = _with_dates("--optical", found.optical, inputs.dates)
    if not inputs.radar:
        return replace(found, optical=optical)
    named = read_products(_absolute(inputs.radar), "radar", inputs)
    return Products(optical, _with_dates("--sar", named.radar, inputs.radar_dates), (*found.notes, *named.notes))


def _read_list(inputs: SceneInputs) -> tuple[Products, dict[str, str]]:
    """The products of a list, and the radar path of each optical one that names it."""
    entries = read_manifest(inputs.manifest)
    _check_unique([entry.optical for entry in entries])
    days = [
        (_entry_day(entry.optical, entry.date), _entry_day(entry.radar, entry.radar_date) if entry.radar else None)
        for entry in entries
    ]
    optical: list[OpticalProduct] = []
    radar: dict[str, RadarProduct] = {}
    notes: list[str] = []
    for entry, (day, radar_day) in zip(entries, days, strict=True):
        found = read_products([entry.optical], "optical", inputs)
        optical += [replace(product, day=day or product.day) for product in found.optical]
        notes += found.notes
        if entry.radar and entry.radar not in radar:
            own = read_products([entry.radar], "radar", inputs)
            radar |= {product.path: replace(product, day=radar_day or product.day) for product in own.radar}
            notes += own.notes
    pairs = {entry.optical: entry.radar for entry in entries if entry.radar}
    return Products(tuple(optical), tuple(radar.values()), tuple(notes)), pairs


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
    products: Sequence[OpticalProduct], labels: Sequence[str], inputs: SceneInputs
) -> tuple[tuple[OpticalImage, ...], Grid, list[str]]:
    """The optical images, their common grid, and notes."""
    names = [product.name for product in products]
    images, grids = [], []
    notes: dict[str, list[str]] = defaultdict(list)
    for product, label in zip(products, labels, strict=True):
        image, image_notes = open_optical(product, inputs)
        images.append(image)
        grids.append(finest_grid(product.bands))
        for note in image_notes:
            notes[note].append(label)
        difference = grids[0].difference(grids[-1])
        if difference:
            raise DataError(
                f"{names[0]} and {product.name} have different {difference}; all optical images must lie on one grid "
                "(gdalwarp brings them there)"
            )
    if len(notes.get(NO_DATA, ())) == len(products):
        raise DataError(f"{names[0]} and all other optical images: {NO_DATA}")
    repeated_days = sorted({label[:10] for label in labels if len(label) > 10})
    lines = [*_note_lines(notes, len(products)), *(f"several images of {day}: all are used" for day in repeated_days)]
    return tuple(images), grids[0], lines


def _open_radar(
    optical: Sequence[OpticalProduct],
    products: Sequence[RadarProduct],
    pairs: Mapping[str, str],
    days: Sequence[int],
    grid: Grid,
    inputs: SceneInputs,
) -> tuple[tuple[RadarDay, ...], tuple[int, ...], list[str]]:
    """The radar of each date: the image that its path is paired with, else all of the nearest day; days, and notes."""
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
    available = sorted(set(day_of))
    chosen: list[list[int]] = []
    for image_product, index in zip(optical, pair_nearest(days, available), strict=True):
        path = pairs.get(image_product.path)
        if path:
            chosen.append([number for number, radar in enumerate(products) if radar.path == path])
        else:
            chosen.append([number for number, day in enumerate(day_of) if day == available[index]])
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
