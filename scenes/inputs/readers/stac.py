"""STAC items of Sentinel-2 and of terrain-corrected Sentinel-1: one file a band, or one of all bands.

Bands are found by the names that items give them (`eo:bands`, `bands`, keys of assets), values by `raster:bands` or
`bands`, the processing baseline, and `boa_offset_applied`. Files beside the item are preferred to remote ones.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from common.errors import DataError, UsageError, list_some
from data.constants import N_S1, N_S2, REFLECTANCE_SCALE, S1_BANDS, S2_BANDS
from scenes.inputs.dates import parse_date
from scenes.inputs.products import Band, ClassBand, OpticalProduct, Products, RadarProduct, Reader
from scenes.inputs.rasters.dataset_pool import is_remote, open_raster
from scenes.inputs.rasters.raster import image_file
from scenes.inputs.readers.product_metadata import start_in, tile_in
from scenes.inputs.readers.stac_documents import (
    Item,
    beside,
    is_stac,
    mapping,
    objects,
    read_items,
    remote_path,
    short,
    unique,
)
from scenes.inputs.values.bands import are_named, band_of, optical_bands, polarisation_of
from scenes.inputs.values.optical import check_types
from scenes.inputs.values.scaling import baseline_offset, declared_bands
from scenes.options import SceneInputs

_ALL = N_S2 - 1  # bands of an image without B10
_PREVIEW = re.compile(r"visual|thumbnail|overview|preview|tci|true.?colou?r|rendered|pvi|tilejson", re.IGNORECASE)
_PREVIEW_ROLES = {"visual", "thumbnail", "overview", "metadata"}
_IMAGE_TYPE = re.compile(r"tiff|geotiff|cog|jp2|jpeg ?2000", re.IGNORECASE)
_OTHER_TYPE = re.compile(r"png|jpe?g(?! ?2000)|xml|json|zip|html|vrt|pdf|zarr|netcdf|safe", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"\.(?:tiff?|jp2|j2k)$", re.IGNORECASE)
_JPEG_2000 = re.compile(r"jp2|jpeg ?2000|j2k", re.IGNORECASE)
_SCL = re.compile(r"(?:.*_)?scl(?:_\d+m)?(?:[-_]jp2)?", re.IGNORECASE)
_METRES = re.compile(r"_(\d{2})m(?![a-z])", re.IGNORECASE)
_CODE = re.compile(r"(?<![A-Za-z0-9])B(0[1-9]|1[0-2]|8A)(?![A-Za-z0-9])")
_BASELINE = re.compile(r"_N(\d{2})\.?(\d{2})(?=[_.]|$)")
_UNITS = {"db": re.compile(r"\bdb\b|decibel", re.I), "power": re.compile(r"power|linear", re.I)}
_POWER = ("sentinel-1-rtc",)  # collections of gamma0 in linear power


@dataclass(frozen=True)
class _Source:
    """A file of an asset.

    Attributes:
        key: of the asset.
        asset: as the item describes it.
        number: of the band among those of the asset, from 0; -1 for a file of all bands.
        paths: where it may lie, the first one that can be opened is read.
        metres: size of its pixels; infinite where unknown.
    """

    key: str
    asset: Mapping[str, Any]
    number: int
    paths: tuple[str, ...]
    metres: float

    @property
    def order(self) -> tuple[bool, float, bool, str]:
        """Preferred first: beside the item, fine, not JPEG 2000."""
        jpeg = _JPEG_2000.search(f"{self.key} {self.asset.get('type')} {self.paths[0]}") is not None
        return is_remote(self.paths[0]), self.metres, jpeg, self.key


def _read(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    """The images of STAC documents.

    Args:
        paths: of the documents.
        sensor: "optical" takes items of either sensor, "radar" those of Sentinel-1 only.
        inputs: which dates and clouds are taken.
    """
    items: list[Item] = []
    notes: list[str] = []
    for path in paths:
        own, own_notes = read_items(path)
        items += own
        notes += own_notes
    items = unique(items)
    chosen, choice_notes = _choose(items, inputs)
    optical = [item for item in chosen if not _is_radar(item)]
    radar = [item for item in chosen if _is_radar(item)]
    if sensor == "radar" and not radar:
        raise DataError(f"{paths[0]}: expected items of Sentinel-1 with VV and VH for --sar, found none")
    optical, newest_notes = _newest(optical if sensor != "radar" else [])
    _check_shared([*optical, *radar])
    products = Products(
        tuple(_optical(item, inputs) for item in optical),
        tuple(_radar(item) for item in radar),
        (*notes, *choice_notes, *newest_notes),
    )
    return products


def _choose(items: Sequence[Item], inputs: SceneInputs) -> tuple[list[Item], list[str]]:
    """The items within the dates and below the cloud cover that flags give."""
    first, last = parse_range(inputs.date_range) if inputs.date_range else (date.min, date.max)
    in_time = [item for item in items if first <= _day(item) <= last]
    chosen, unknown = [], []
    for item in in_time:
        cover = _number(item.properties.get("eo:cloud_cover"))
        if _is_radar(item) or inputs.max_cloud is None or (cover is not None and cover <= inputs.max_cloud):
            chosen.append(item)
        elif cover is None:
            chosen.append(item)
            unknown.append(item.name)
    notes = []
    if len(in_time) < len(items):
        notes.append(f"{len(items) - len(in_time)} of {len(items)} items lie outside of --date_range, not used")
    if len(chosen) < len(in_time):
        notes.append(f"{len(in_time) - len(chosen)} items have more clouds than --max_cloud, not used")
    if unknown:
        notes.append(f"items do not give their cloud cover, used: {list_some(unknown)}")
    if not chosen:
        found = ", ".join([f"{len(items)} items", *notes])
        raise DataError(f"no item is left ({found}); check --date_range and --max_cloud, or the document")
    return chosen, notes


def parse_range(text: str) -> tuple[date, date]:
    """The first and the last day of `2018-06-01/2018-07-01`, `2018-06-01/..` or one day.

    Raises:
        UsageError: if it is none.
    """
    first, separator, last = (part.strip() for part in text.partition("/"))
    try:
        begin = date.min if first == ".." else parse_date(first, "--date_range")
        end = parse_date(last, "--date_range") if last not in ("", "..") else date.max
    except DataError as error:
        raise UsageError(str(error)) from error
    if not separator:
        end = begin
    if end < begin:
        raise UsageError(f"--date_range: {text[:40]!r} ends before it begins")
    return begin, end


def _newest(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """Items without older processings of the same tile of the same overpass."""
    by_image: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        key = (_overpass(item), _tile(item), _level(item))
        by_image.setdefault(key if all(key[:2]) else (item.name,), []).append(item)
    kept, left = [], []
    for same in by_image.values():
        same.sort(key=lambda item: (_baseline(item) or 0.0, item.name))
        kept.append(same[-1])
        left += [item.name for item in same[:-1]]
    kept.sort(key=list(items).index)
    return kept, [f"older processings of the same images, not used: {list_some(left)}"] if left else []


def _check_shared(items: Sequence[Item]) -> None:
    """Raise a `DataError` if a file beside the document would be a file of several items."""
    owners: dict[str, str] = {}
    for item in items:
        for source in _sources(item):
            path = source.paths[0]
            if not is_remote(path) and owners.setdefault(path, item.name) != item.name:
                raise DataError(
                    f"{path}: a file of {owners[path]} and of {item.name} by their names; put the files of each item "
                    "into a folder of their own, called like the item"
                )


def _is_radar(item: Item) -> bool:
    properties = item.properties
    constellation = str(properties.get("constellation") or properties.get("platform") or "").lower()
    if constellation.startswith("sentinel-2"):
        return False
    return constellation.startswith("sentinel-1") or any(key.startswith("sar:") for key in properties)


def _day(item: Item) -> date:
    properties = item.properties
    text = properties.get("datetime") or properties.get("start_datetime")
    if not isinstance(text, str):
        raise DataError(f"{item.name} in {short(item.location)}: no datetime; expected one as of every STAC item")
    return parse_date(text, f"datetime of {item.name}")


def _ending(item: Item, *endings: str) -> str:
    """The first property whose name, without the prefix of its extension, is one of these."""
    for ending in endings:
        for key, value in item.properties.items():
            if key.rpartition(":")[2] == ending and isinstance(value, str | float | int):
                return str(value)
    return ""


def _names(item: Item) -> list[str]:
    """Names of the product that the item may give."""
    return [_ending(item, ending) for ending in ("datatake_id", "product_uri", "product_id", "granule_id")] + [
        item.name
    ]


def _overpass(item: Item) -> str:
    return start_in(_names(item)[0]) or next((start_in(name) for name in _names(item)[1:3] if start_in(name)), "")


def _tile(item: Item) -> str:
    tile = _ending(item, "mgrs_tile") or _ending(item, "code").removeprefix("MGRS-")
    return tile or next((tile_in(name) for name in _names(item) if tile_in(name)), "")


def _level(item: Item) -> str:
    texts = [_ending(item, "product_type", "processing_level", "level"), str(item.content.get("collection") or "")]
    for text in (text.upper().replace("-", "") for text in (*texts, *_names(item))):
        for level in ("L1C", "L2A"):
            if level in text:
                return level
    return ""


def _baseline(item: Item) -> float | None:
    """The processing baseline, such as 5.1; None where the item does not give it."""
    text = _ending(item, "processing_baseline") or str(item.properties.get("processing:version") or "")
    if not text:
        match = next((match for name in _names(item) if (match := _BASELINE.search(name))), None)
        text = ".".join(match.groups()) if match else ""
    value = _number(text.upper().removeprefix("N"))
    return value / 100 if value is not None and value >= 100 else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _sources(item: Item) -> Iterator[_Source]:
    """Files of images that an item has, one entry for each band that it describes."""
    for key, asset in item.assets.items():
        roles = {str(role) for role in asset.get("roles") or () if isinstance(role, str)}
        href, kind = asset.get("href"), str(asset.get("type") or "")
        if not isinstance(href, str) or roles & _PREVIEW_ROLES or _PREVIEW.search(key):
            continue
        name = href.partition("?")[0]
        if _OTHER_TYPE.search(kind) and not _IMAGE_TYPE.search(kind):
            continue
        if not _IMAGE_TYPE.search(kind) and not _IMAGE_NAME.search(name):
            continue
        paths = _paths(item, asset, href)
        if paths:
            bands = _band_entries(asset)
            numbers = range(len(bands)) if len(bands) > 1 else [0]
            yield from (_Source(key, asset, number, paths, _metres(key, asset)) for number in numbers)


def _paths(item: Item, asset: Mapping[str, Any], href: str) -> tuple[str, ...]:
    """Where a file may lie: beside the item, else at its references to http(s) or s3."""
    others = [mapping(entry).get("href") for entry in mapping(asset.get("alternate")).values()]
    hrefs = [href, *(other for other in others if isinstance(other, str))]
    local = [path for reference in hrefs if (path := beside(reference, item.location))]
    remote = [path for reference in hrefs if (path := remote_path(reference, item.location))]
    return tuple(dict.fromkeys([*local[:1], *([] if local else remote)]))


def _band_entries(asset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Descriptions of the bands of an asset, those of several extensions merged."""
    parts = [objects(asset.get(key)) for key in ("raster:bands", "eo:bands", "bands")]
    length = max(map(len, parts))
    entries: list[Mapping[str, Any]] = []
    for number in range(length):
        entry: dict[str, Any] = {}
        for part in parts:
            entry |= part[number] if number < len(part) else {}
        entries.append(entry)
    return entries


def _entry(source: _Source) -> Mapping[str, Any]:
    """What an asset says about one of its bands; what it says about all of them is in the asset itself."""
    entries = _band_entries(source.asset)
    own = entries[source.number] if 0 <= source.number < len(entries) else {}
    return {**source.asset, **own}


def _metres(key: str, asset: Mapping[str, Any]) -> float:
    entries = _band_entries(asset)
    transform = asset.get("proj:transform")
    candidates = [
        *(asset.get(name) for name in ("gsd", "raster:spatial_resolution", "spatial_resolution")),
        *(entry.get("spatial_resolution", entry.get("gsd")) for entry in entries),
        abs(transform[0]) if isinstance(transform, list) and transform and _number(transform[0]) else None,
        match[1] if (match := _METRES.search(key)) else None,
    ]
    named = _METRES.search(key)  # gsd may be that of the sensor
    if named:
        return float(named[1])
    return next((value for value in map(_number, candidates) if value), math.inf)


def _band_name(source: _Source, parse: Callable[[str | None], int | None]) -> int | None:
    """The band that an item says a file holds: by the name of the band, the key, the common name, the file's name."""
    entries = _band_entries(source.asset)
    several = len(entries) > 1
    entry = entries[source.number] if 0 <= source.number < len(entries) else {}
    file = os.path.splitext(os.path.basename(source.paths[0].partition("?")[0]))[0]
    code = _CODE.search(file)
    key = re.sub(r"[-_]jp2$", "", source.key, flags=re.IGNORECASE)
    names = [entry.get("name"), None if several else key, entry.get("common_name", entry.get("eo:common_name"))]
    if not several:
        names.append(code[0] if code else None)
    bands = [band for name in names if isinstance(name, str) and (band := parse(name)) is not None]
    if not several and bands and parse is band_of and code is not None and band_of(code[0]) != bands[0]:
        return None
    return bands[0] if bands else None


def _optical(item: Item, inputs: SceneInputs) -> OpticalProduct:
    if not item.assets:
        raise DataError(f"{item.name} in {short(item.location)}: no assets; expected bands of Sentinel-2")
    sources = list(_sources(item))
    by_band: dict[int, list[_Source]] = {}
    classes: list[_Source] = []
    for source in sources:
        band = _band_name(source, band_of)
        if _SCL.fullmatch(source.key) or str(_entry(source).get("name")).lower() == "scl":
            classes.append(source)
        elif band is not None:
            by_band.setdefault(band, []).append(source)
    missing = [name for index, name in enumerate(S2_BANDS) if index not in by_band and name != "B10"]
    notes: list[str] = []
    by_position = False
    if missing:
        whole = _whole(item, sources, inputs) if not by_band else None
        if whole is None:
            raise DataError(
                f"{item.name} in {short(item.location)}: bands {', '.join(missing)} are missing; expected an asset for "
                f"each band of Sentinel-2 (B10 may be absent), over http(s), s3 or beside the item; found assets "
                f"{list_some(list(item.assets), 12, 40) or 'none'}"
            )
        bands, declared_by, by_position = whole
    else:
        bands, declared_by, notes = _bands_of(item, by_band, inputs)
    return OpticalProduct(
        path=item.path,
        name=item.name,
        bands=bands,
        day=_day(item),
        declared_by=declared_by,
        level=_level(item),
        overpass=_overpass(item),
        classes=_classes(classes, notes),
        notes=tuple(notes),
        by_position=by_position,
    )


def _bands_of(
    item: Item, by_band: Mapping[int, Sequence[_Source]], inputs: SceneInputs
) -> tuple[tuple[Band | None, ...], str, list[str]]:
    """The 13 bands, what declares their values, and notes."""
    bands: list[Band | None] = [None] * N_S2
    sources: list[str] = []
    notes: list[str] = []
    crs = set()
    for index, candidates in sorted(by_band.items()):
        ordered = sorted(candidates, key=lambda source: source.order)
        band, source = _open_first(item, ordered)
        finest = min(entry.metres for entry in ordered)
        if source.metres > finest:
            notes.append(f"{S2_BANDS[index]} is read at {source.metres:g} m, since {finest:g} m cannot be reached")
        bands[index], declared, note = _with_values(item, band, source, inputs)
        sources.append(declared)
        notes += [note] if note and note not in notes else []
        crs.add(band.raster.grid.crs_name)
    if len(crs) > 1:
        raise DataError(f"{item.name}: its bands have several coordinate systems, {list_some(sorted(crs), 3)}")
    return tuple(bands), next((source for source in sources if source), ""), notes


def _open_first(item: Item, candidates: Sequence[_Source]) -> tuple[Band, _Source]:
    """The first file that can be opened.

    Raises:
        DataError: if none can.
    """
    first: DataError | None = None
    for source in candidates:
        for path in source.paths:
            try:
                return _open(path, max(0, source.number)), source
            except DataError as error:
                first = first or error
    reason = str(first) if first else "no reference to http(s), s3 or a file beside the item"
    remote = any(is_remote(path) for source in candidates for path in source.paths)
    advice = "; addresses may need a signature (Planetary Computer) or credentials" if remote else ""
    raise DataError(f"{item.name}: asset {candidates[0].key} cannot be read: {_without_query(reason)}{advice}")


def _without_query(text: str) -> str:
    return re.sub(r"(https?://[^\s?]+)\?[^\s)]*", r"\1", text)[:1000]


def _open(path: str, number: int) -> Band:
    with open_raster(path) as dataset:
        if number >= dataset.count:
            raise DataError(f"{path}: {dataset.count} bands, but its item describes more")
        check_types(path, dataset.dtypes[number : number + 1])
        raster = image_file(path, dataset)
        positions = [number + 1] + [0] * (N_S2 - 1)
        bands, _ = declared_bands(os.path.basename(path), dataset, raster, positions)
        assert bands[0] is not None
        return bands[0]


def _with_values(item: Item, band: Band, source: _Source, inputs: SceneInputs) -> tuple[Band, str, str]:
    """A band with the scale, offset and nodata that its item declares, what declares them, and a note.

    The offset of baseline 04.00 and later is that of `boa_offset_applied` and the baseline where the former is given,
    else the declared one, else that of the baseline. Where an offset of 0 is declared for such a baseline, values
    decide.
    """
    entry = _entry(source)
    nodata = _number(entry.get("nodata"))
    scale = _number(entry.get("scale", entry.get("raster:scale")))
    offset = _number(entry.get("offset", entry.get("raster:offset")))
    has_scale = scale is not None and band.scale is not None
    if inputs.scale is None and has_scale and not math.isclose(scale or 0.0, band.scale or 0.0, rel_tol=1e-6):
        raise DataError(
            f"{item.name}: the item declares a scale of {scale:g} for {source.key}, the file {band.scale:g} "
            f"({short(band.raster.name)}); give --scale and --offset"
        )
    own_scale = scale if scale is not None else band.scale
    own_offset = offset if offset is not None else band.offset
    unit = own_scale if own_scale is not None else 1 / REFLECTANCE_SCALE
    declared_by = "raster:bands of the item" if scale is not None or offset is not None else ""
    baseline, applied = _baseline(item), _applied(item)
    by_baseline = None if baseline is None else baseline_offset(baseline) * unit
    note = ""
    if applied is True:
        if own_offset:
            note = (
                f"boa_offset_applied: the offset of {own_offset / unit:g} that the item declares was taken off already"
            )
        own_offset, declared_by = 0.0, "boa_offset_applied of the item"
    elif applied is False and by_baseline is not None:
        if inputs.offset == "auto" and own_offset and not math.isclose(own_offset, by_baseline, abs_tol=unit / 2):
            raise DataError(
                f"{item.name}: baseline {baseline:05.2f} has an offset of {by_baseline / unit:g}, but the item "
                f"declares {own_offset / unit:g} for {source.key}; give --offset"
            )
        own_offset, declared_by = by_baseline, f"boa_offset_applied of the item and baseline {baseline:05.2f}"
    elif own_offset is None or (own_offset == 0 and by_baseline):
        if own_offset is None and by_baseline is not None:
            own_offset, declared_by = by_baseline, f"processing baseline {baseline:05.2f} of the item"
        elif by_baseline:
            note = f"the item declares no offset, but has baseline {baseline:05.2f}: values decide"
            own_offset = None
    nodata = nodata if nodata is not None else band.nodata
    return replace(band, scale=own_scale, offset=own_offset, nodata=nodata), declared_by, note


def _applied(item: Item) -> bool | None:
    values = [value for key, value in item.properties.items() if key.rpartition(":")[2] == "boa_offset_applied"]
    return values[0] if values and isinstance(values[0], bool) else None


def _whole(
    item: Item, sources: Sequence[_Source], inputs: SceneInputs
) -> tuple[tuple[Band | None, ...], str, bool] | None:
    """All bands from one file, by the names in it; None if there is no such file."""
    for source in {source.key: source for source in sources}.values():
        for path in source.paths:
            with open_raster(path) as dataset:
                if dataset.count < _ALL:
                    break
                positions = optical_bands(path, dataset.descriptions)
                check_types(path, dataset.dtypes)
                raster, by_position = image_file(path, dataset), not are_named(dataset.descriptions)
                declared, by_file = declared_bands(os.path.basename(path), dataset, raster, positions)
            bands: list[Band | None] = []
            origins = [by_file]
            for band in declared:
                if band is None:
                    bands.append(None)
                    continue
                own, by_item, _ = _with_values(item, band, replace(source, number=band.position - 1), inputs)
                bands.append(own)
                origins.append(by_item)
            return tuple(bands), next((origin for origin in reversed(origins) if origin), ""), by_position
    return None


def _classes(candidates: Sequence[_Source], notes: list[str]) -> ClassBand | None:
    for source in sorted(candidates, key=lambda source: source.order):
        for path in source.paths:
            try:
                with open_raster(path) as dataset:
                    return ClassBand(Band(image_file(path, dataset), 1), "scl")
            except DataError:
                continue
    if candidates:
        notes.append("its scene classification, SCL, cannot be read and is not used")
    return None


def _radar(item: Item) -> RadarProduct:
    sources = sorted(_sources(item), key=lambda source: source.order)
    by_band: dict[int, list[_Source]] = {}
    for source in sources:
        polarisation = _band_name(source, polarisation_of)
        if polarisation is not None:
            by_band.setdefault(polarisation, []).append(source)
    if len(by_band) < N_S1:
        declared = item.properties.get("sar:polarizations")
        has = ", ".join(map(str, declared)) if isinstance(declared, list) else list_some(list(item.assets), 8, 40)
        raise DataError(
            f"{item.name} in {short(item.location)}: expected VV and VH of Sentinel-1, terrain-corrected; found {has}"
        )
    bands: list[Band] = []
    for index in range(N_S1):
        band, source = _open_first(item, by_band[index])
        entry = _entry(source)
        nodata = _number(entry.get("nodata"))
        bands.append(replace(band, nodata=nodata if nodata is not None else band.nodata))
    if any(band.raster.grid.crs is None for band in bands):
        raise DataError(
            f"{item.name}: {S1_BANDS[0]} has no CRS: it is in the geometry of the sensor (GRD); expected "
            "terrain-corrected images, such as items of sentinel-1-rtc"
        )
    texts = [str(_entry(source).get("unit") or "") for found in by_band.values() for source in found[:1]]
    units = next((unit for text in texts for unit, pattern in _UNITS.items() if pattern.search(text)), "")
    if not units and item.content.get("collection") in _POWER:
        units = "power"
    return RadarProduct(item.path, item.name, (bands[0], bands[1]), _day(item), units)


READER = Reader("STAC", is_stac, _read)
