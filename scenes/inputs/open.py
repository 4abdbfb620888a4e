"""From files, a list or a region to the series of a scene."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date

from common.errors import DataError, UsageError
from data.raster.geotiff import days_since_origin
from scenes.inputs.dataset_pool import gdal_settings, is_remote, open_raster
from scenes.inputs.dates import date_labels, describe_pairs, find_date, pair_nearest, parse_date
from scenes.inputs.grid import Grid
from scenes.inputs.manifest import ManifestEntry, read_manifest
from scenes.inputs.optical import NO_DATA, OpticalImage, open_optical
from scenes.inputs.radar import RadarDay, RadarImage, open_radar
from scenes.inputs.region import open_region
from scenes.inputs.series import SceneSeries
from scenes.options import SceneInputs


def open_series(inputs: SceneInputs) -> SceneSeries:
    """Inspect the images of a scene and determine how they are read; pixels are only sampled.

    Args:
        inputs: optical GeoTIFFs of one grid, in any order, see `scenes.inputs.optical.open_optical`, and radar
            GeoTIFFs, any number on any grid, see `scenes.inputs.radar.open_radar`: each optical date gets all radar
            images of the nearest day. Dates that are not given come from tags or names, see
            `scenes.inputs.dates.find_date`. Or a list, see `scenes.inputs.manifest.read_manifest`; or a region of
            SEN12MS-CR-TS, see `scenes.inputs.region.open_region`.

    Raises:
        DataError: if files cannot be read or do not fit together; the message names them.
        UsageError: if a flag has an invalid value.
    """
    if inputs.folder:
        days = [parse_date(text, "--dates") for text in inputs.dates]
        series = open_region(inputs.folder, inputs.numbers, days)
    else:
        series = _open_files(inputs)
    series.grid.check_location(inputs.folder or series.paths[0])
    return series


def _open_files(inputs: SceneInputs) -> SceneSeries:
    """The series of files that flags or a list name."""
    shift = _parse_offset(inputs.offset)
    if inputs.manifest:
        entries, unpaired = read_manifest(inputs.manifest), []
    else:
        optical = _with_dates("--optical", inputs.optical, inputs.dates)
        radar = _with_dates("--sar", inputs.radar, inputs.radar_dates)
        entries = [ManifestEntry(path, date=day) for path, day in optical]
        unpaired = [ManifestEntry("", path, radar_date=day) for path, day in radar]
    with gdal_settings():
        dated = [(_date(entry.optical, entry.date, inputs.allow_vrt), entry) for entry in entries]
        dated.sort(key=lambda pair: pair[0])
        days = tuple(days_since_origin(day) for day, _ in dated)
        images, grid, notes = _open_optical(dated, date_labels(days), shift, inputs)
        radar_sources, paired_days, radar_notes = _open_radar(
            [entry for _, entry in dated], unpaired, days, grid, inputs
        )
    nodata = next((image.nodata for image in images if image.nodata is not None), None)
    return SceneSeries(grid, days, paired_days, images, radar_sources, nodata, (*notes, *radar_notes))


def _parse_offset(offset: str | float) -> float | None:
    """None for "auto"."""
    if offset == "auto":
        return None
    return 0.0 if offset == "none" else float(offset)


def _with_dates(flag: str, paths: Sequence[str], dates: Sequence[str]) -> list[tuple[str, str]]:
    """Absolute paths with their dates, empty where none are given."""
    if dates and len(dates) != len(paths):
        raise UsageError(f"{len(paths)} images of {flag}, but {len(dates)} dates; give one for each")
    absolute = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    return list(zip(absolute, dates or [""] * len(paths), strict=True))


def _date(path: str, text: str, allow_vrt: bool) -> date:
    if text:
        return parse_date(text, f"date of {path}")
    with open_raster(path, allow_vrt) as dataset:
        return find_date(path, dataset.tags())


def _open_optical(
    dated: Sequence[tuple[date, ManifestEntry]], labels: Sequence[str], offset: float | None, inputs: SceneInputs
) -> tuple[tuple[OpticalImage, ...], Grid, list[str]]:
    """The optical images, their common grid, and notes."""
    paths = [entry.optical for _, entry in dated]
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise DataError(f"{repeated} is named twice")
    images, grids = [], []
    notes: dict[str, list[str]] = defaultdict(list)
    for (day, entry), label in zip(dated, labels, strict=True):
        image, grid, image_notes = open_optical(entry.optical, offset, inputs.scale, day, inputs.allow_vrt)
        images.append(image)
        grids.append(grid)
        for note in image_notes:
            notes[note].append(label)
        difference = grids[0].difference(grid)
        if difference:
            raise DataError(
                f"{paths[0]} and {entry.optical} have different {difference}; all optical images must lie on one grid "
                "(gdalwarp brings them there)"
            )
    if len(notes.get(NO_DATA, ())) == len(paths):
        raise DataError(f"{paths[0]} and all other optical images: {NO_DATA}")
    repeated_days = sorted({label[:10] for label in labels if len(label) > 10})
    lines = [*_note_lines(notes, len(paths)), *(f"several images of {day}: all are used" for day in repeated_days)]
    return tuple(images), grids[0], lines


def _open_radar(
    entries: Sequence[ManifestEntry],
    unpaired: Sequence[ManifestEntry],
    days: Sequence[int],
    grid: Grid,
    inputs: SceneInputs,
) -> tuple[tuple[RadarDay, ...], tuple[int, ...], list[str]]:
    """The radar of each date: the image in its entry, else all of the nearest day; their days, and notes."""
    named = {entry.radar: entry for entry in (*entries, *unpaired) if entry.radar}
    if not named:
        return (), (), []
    images: dict[str, RadarImage] = {}
    day_of: dict[str, int] = {}
    notes: dict[str, list[str]] = defaultdict(list)
    for path, entry in named.items():
        images[path], image_notes = open_radar(path, grid, inputs.radar_units, inputs.allow_vrt)
        day_of[path] = days_since_origin(_date(path, entry.radar_date, inputs.allow_vrt))
        for note in image_notes:
            notes[note].append(os.path.basename(path))
    available = sorted(set(day_of.values()))
    chosen = []
    for entry, index in zip(entries, pair_nearest(days, available), strict=True):
        chosen.append([entry.radar] if entry.radar else [path for path in named if day_of[path] == available[index]])
    radar_days = tuple(day_of[paths[0]] for paths in chosen)
    lines = [*_note_lines(notes, len(named)), *describe_pairs(days, radar_days)]
    unused = [os.path.basename(path) for path in named if not any(path in paths for paths in chosen)]
    if unused:
        lines.append(f"radar further from every date than others, not used: {', '.join(unused)}")
    return tuple(RadarDay(tuple(images[path] for path in paths)) for paths in chosen), radar_days, lines


def _note_lines(notes: Mapping[str, Sequence[str]], n_images: int) -> list[str]:
    """Each note with the images it is about."""
    return [
        f"{note} ({', '.join(names) if len(names) < n_images or n_images == 1 else f'all {n_images}'})"
        for note, names in notes.items()
    ]
