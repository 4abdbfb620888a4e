"""Stacks of several dates in one image, as Google Earth Engine exports them: `B1 … B12, B1_1 … B12_1` or `0_B1 …`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from common.errors import DataError, list_some
from data.constants import S1_BANDS
from scenes.inputs.dates import find_date, parse_date
from scenes.inputs.products import OpticalProduct, Products, RadarProduct, Reader, find_class_band
from scenes.inputs.rasters.dataset_pool import is_remote, open_raster
from scenes.inputs.rasters.raster import ImageFile, image_file
from scenes.inputs.values.bands import band_of, optical_bands, polarisation_of, radar_bands
from scenes.inputs.values.optical import check_types
from scenes.inputs.values.radar import declared_pair
from scenes.inputs.values.scaling import declared_bands
from scenes.options import SceneInputs

_CLASSES = ("scl", "qa60")
_SUFFIX = re.compile(r"\d{1,4}|(?:19|20)\d{2}[-_]?\d{2}(?:[-_]?\d{2})?(?:T\d{6})?")  # a counter or a date
_PREFIX = re.compile(r"\d+|.*(?<!\d)(?:19|20)\d{2}[-_]?\d{2}[-_]?\d{2}(?!\d).*")  # the same, or a product's name


@dataclass(frozen=True)
class StackImage:
    """The bands of one date in a stack.

    Attributes:
        key: what their names have in common: "3", a date, a product's name; empty for the first date of a stack
            whose further bands are numbered.
        names: of the bands, without the key.
        positions: of the bands, from 1.
    """

    key: str
    names: tuple[str, ...]
    positions: tuple[int, ...]

    @property
    def has_optical(self) -> bool:
        """Whether it has any band of Sentinel-2."""
        return any(band_of(name) is not None for name in self.names)

    @property
    def has_radar(self) -> bool:
        """Whether it has VV and VH."""
        return {polarisation_of(name) for name in self.names} >= set(range(len(S1_BANDS)))


def split_stack(descriptions: Sequence[str | None]) -> list[StackImage]:
    """The images of a stack in their order, by what precedes or follows the names of their bands.

    `ImageCollection.toBands` puts the image's index first (`0_B1`, `20180621T103021_…_T32TPQ_B1`), `ee.Image.cat` and
    `addBands` number repeated names (`B1_1`).
    """
    groups: dict[str, dict[int, str]] = {}
    for position, description in enumerate(descriptions, start=1):
        split = _split(description or "")
        if split is not None:
            groups.setdefault(split[0], {})[position] = split[1]
    return [StackImage(key, tuple(bands.values()), tuple(bands)) for key, bands in groups.items()]


def _split(name: str) -> tuple[str, str] | None:
    """(key, band) of the name of a band; None if it is none of ours."""
    key, _, last = name.rpartition("_")
    if key and _is_band(last) and _PREFIX.fullmatch(key):
        return key, last
    first, _, rest = name.partition("_")
    if rest and _is_band(first) and _SUFFIX.fullmatch(rest):
        return rest, first
    return ("", name) if _is_band(name) else None


def _is_band(name: str) -> bool:
    return not name.isdigit() and (
        band_of(name) is not None or polarisation_of(name) is not None or name.lower() in _CLASSES
    )


def _recognises(path: str) -> bool:
    if is_remote(path):
        return False
    try:
        with open_raster(path) as dataset:
            images = split_stack(dataset.descriptions)
    except DataError:
        return False
    return len(images) > 1 or bool(images and images[0].key)


def _read(paths: Sequence[str], sensor: str, inputs: SceneInputs) -> Products:
    parts = [_read_one(path, sensor, inputs) for path in paths]
    optical = [product for part in parts for product in part.optical]
    radar = [product for part in parts for product in part.radar]
    given = inputs.radar_dates if sensor == "radar" else inputs.dates
    if sensor == "optical" and len(given) == len(optical):
        # radar of the same stack shares the dates that the flag gives to its optical images
        days = {product.name: parse_date(text, "--dates") for product, text in zip(optical, given, strict=True)}
        radar = [replace(product, day=product.day or days.get(product.name)) for product in radar]
    for product in radar if sensor == "radar" else optical:
        if product.day is None and not given:
            flag = "--sar_dates" if sensor == "radar" else "--dates"
            raise DataError(
                f"{product.path}: a stack of {len(radar if sensor == 'radar' else optical)} images whose band names "
                f"hold no dates; give {flag}, one for each image in their order (2018-06-01 2018-06-11 ...)"
            )
    return Products(tuple(optical), tuple(radar), tuple(note for part in parts for note in part.notes))


def _read_one(path: str, sensor: str, inputs: SceneInputs) -> Products:
    with open_raster(path, inputs.allow_vrt) as dataset:
        images = split_stack(dataset.descriptions)
        raster = image_file(path, dataset)
        radar = tuple(_radar(path, dataset, raster, image) for image in images if image.has_radar)
        used = {at for image in images for at in image.positions}
        unused = [str(name) for at, name in enumerate(dataset.descriptions, start=1) if at not in used]
        notes = [f"bands of the stack that are not used: {list_some(unused, 6)}"] if unused else []
        if sensor == "radar":
            if not radar:
                raise DataError(f"{path}: no image of this stack has VV and VH of Sentinel-1; check --sar")
            return Products(radar=radar, notes=tuple(notes))
        optical = tuple(_optical(path, dataset, raster, image) for image in images if image.has_optical)
        if not optical:
            raise DataError(f"{path}: this stack holds no bands of Sentinel-2, but VV and VH; give it to --sar")
        return Products(optical, radar, tuple(notes))


def _optical(path: str, dataset: Any, raster: ImageFile, image: StackImage) -> OpticalProduct:
    name = _name(path, image)
    positions = [image.positions[at - 1] if at else 0 for at in optical_bands(name, image.names)]
    present = [position for position in positions if position]
    check_types(path, [dataset.dtypes[position - 1] for position in present])
    bands, source = declared_bands(path, dataset, raster, positions)
    classes = find_class_band(raster, image.names, image.positions)
    level = "L2A" if classes is not None and classes.kind == "scl" else ""
    return OpticalProduct(path, name, bands, _day(image), source, level, classes=classes)


def _radar(path: str, dataset: Any, raster: ImageFile, image: StackImage) -> RadarProduct:
    own = [at for at, name in zip(image.positions, image.names, strict=True) if polarisation_of(name) is not None]
    vv, vh = (own[at - 1] for at in radar_bands(_name(path, image), [str(dataset.descriptions[at - 1]) for at in own]))
    return RadarProduct(path, _name(path, image), declared_pair(dataset, raster, vv, vh), _day(image))


def _name(path: str, image: StackImage) -> str:
    return f"{path}, image {image.key or 'without suffix'}"


def _day(image: StackImage) -> date | None:
    return find_date(image.key, {}) if image.key and not image.key.isdigit() or len(image.key) == 8 else None


READER = Reader("stack of dates in one image (Earth Engine)", _recognises, _read)
