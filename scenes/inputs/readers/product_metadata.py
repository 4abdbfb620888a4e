"""What the metadata of a Sentinel-2 product say: dates, baseline, offsets, and the meaning of stored values."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from xml.etree.ElementTree import Element

from common.errors import DataError
from data.constants import N_S2
from scenes.inputs.dates import parse_date
from scenes.inputs.readers.product_files import ProductFile, read_xml
from scenes.inputs.values.scaling import baseline_offset

_ROOT = re.compile(r"Level-(1C|2A)p?_(User_Product|Tile_ID)")
_JSON = ("productInfo.json", "tileInfo.json")
_TILE = re.compile(r"(?<![A-Z0-9])T(\d{2}[A-Z]{3})(?![A-Z0-9])")
_START = re.compile(r"(?<!\d)(\d{8}T\d{6})(?!\d)")
_BASELINE = re.compile(r"_N(\d{2})\.?(\d{2})(?=[_.]|$)")  # of tiles, data strips, datatakes and products
_QUANTIFICATION = ("QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
_OFFSETS = ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET")


@dataclass(frozen=True)
class Metadata:
    """Of one file, or of several together.

    Attributes:
        names: of the files, for notes.
        level: "L1C", "L2A" or empty.
        day: of acquisition.
        start: of the datatake, "20171207T002051", the same for all tiles of an overpass; empty where unknown.
        tile: "55JEJ", empty where unknown or several.
        baseline: such as 2.06.
        quantification: stored units for a reflectance of 1.
        offsets: of the 13 bands in stored units; empty where none are listed.
        nodata: stored value of missing pixels.
    """

    names: tuple[str, ...] = ()
    level: str = ""
    day: date | None = None
    start: str = ""
    tile: str = ""
    baseline: float | None = None
    quantification: float | None = None
    offsets: tuple[float, ...] = field(default=())
    nodata: float | None = None

    def offset(self, band: int) -> float | None:
        """Of a band by its index, in stored units: as listed, else by the baseline; None where neither says it."""
        if self.offsets:
            return self.offsets[band]
        return None if self.baseline is None else baseline_offset(self.baseline)

    def fill(self, other: "Metadata") -> "Metadata":
        """What these say, completed by others where they say nothing."""
        values = {
            name: getattr(self, name) if getattr(self, name) not in (None, "", ()) else getattr(other, name)
            for name in self.__dataclass_fields__
        }
        return Metadata(**values | {"names": (*self.names, *other.names)})

    def fits(self, tile: str, day: date | None) -> bool:
        """Whether they may be about the images of a tile and day, as far as these are known."""
        return (not tile or not self.tile or tile == self.tile) and (day is None or self.day in (None, day))


def tile_in(name: str) -> str:
    """The tile that a name holds, "33UUU"; empty if none."""
    match = _TILE.search(name.replace("_", " "))
    return match[1] if match else ""


def start_in(name: str) -> str:
    """The first time in a name, "20170216T102101"; empty if none."""
    match = _START.search(name)
    return match[1] if match else ""


def read_metadata(files: Sequence[ProductFile]) -> list[Metadata]:
    """Of each file that has any, products before tiles, which have no offsets.

    Raises:
        DataError: if one cannot be read.
    """
    found: list[tuple[bool, Metadata]] = []
    for file in files:
        if file.name in _JSON:
            found.append((False, _read_json(file)))
        elif file.name.lower().endswith(".xml") and _ROOT.search(file.start(4096).decode("utf-8", "replace")):
            root = read_xml(file)
            match = _ROOT.search(root.tag)
            if match is not None:
                is_product = match[2] == "User_Product"
                read = _read_product if is_product else _read_tile
                found.append((is_product, read(file, root, f"L{match[1]}")))
    return [metadata for _, metadata in sorted(found, key=lambda entry: not entry[0])]


def _read_product(file: ProductFile, root: Element, level: str) -> Metadata:
    start = _text(root, "DATATAKE_SENSING_START") or _text(root, "PRODUCT_START_TIME")
    special = {
        (_text(element, "SPECIAL_VALUE_TEXT") or "").upper(): _text(element, "SPECIAL_VALUE_INDEX")
        for element in _elements(root, "Special_Values")
    }
    quantification = next((value for name in _QUANTIFICATION if (value := _text(root, name))), None)
    datatake = next((element.get("datatakeIdentifier", "") for element in _elements(root, "Datatake")), "")
    name = _text(root, "PRODUCT_URI") or _text(root, "PRODUCT_URI_2A") or _text(root, "PRODUCT_URI_1C") or ""
    baseline = _text(root, "PROCESSING_BASELINE")
    nodata = special.get("NODATA")
    return Metadata(
        (file.name,),
        level,
        parse_date(start, f"sensing time of {file.path}") if start else None,
        _compact(start) if start else "",
        tile_in(name),
        _number(baseline, file) if baseline else _baseline_in(datatake),
        _number(quantification, file) if quantification else None,
        _offsets(root, file),
        _number(nodata, file) if nodata else None,
    )


def _read_tile(file: ProductFile, root: Element, level: str) -> Metadata:
    name, time = _text(root, "TILE_ID") or "", _text(root, "SENSING_TIME")
    day = parse_date(time, f"sensing time of {file.path}") if time else None
    return Metadata((file.name,), level, day, tile=tile_in(name), baseline=_baseline_in(name))


def _read_json(file: ProductFile) -> Metadata:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON: {file.path} ({error}); fetch it again") from error
    if not isinstance(content, dict):
        return Metadata()

    def text(key: str) -> str:
        return str(content.get(key) or "")

    name = text("name") or text("productName")
    level = next((level for level in ("L1C", "L2A") if f"MSI{level}_" in name), "")
    time = text("timestamp")
    start = start_in(text("datatakeIdentifier")) or (start_in(name) if name.startswith("S2") and "_N" in name else "")
    day = parse_date(start or time, f"time in {file.path}") if start or time else None
    return Metadata((file.name,), level, day, start, tile_in(name), _baseline_in(name))


def _offsets(root: Element, file: ProductFile) -> tuple[float, ...]:
    """The offsets of the 13 bands; those that are not listed have that of the others."""
    listed: dict[int, float] = {}
    for element in (element for name in _OFFSETS for element in _elements(root, name)):
        band = _number(element.get("band_id", str(len(listed))), file)
        if band not in range(N_S2):
            raise DataError(f"{file.path}: an offset for band_id {band:g}, expected 0 to {N_S2 - 1}; fetch it again")
        listed[int(band)] = _number(element.text, file)
    if not listed:
        return ()
    common = max(set(listed.values()), key=list(listed.values()).count)
    return tuple(listed.get(band, common) for band in range(N_S2))


def _baseline_in(name: str) -> float | None:
    match = _BASELINE.search(name)
    return float(f"{match[1]}.{match[2]}") if match else None


def _compact(time: str) -> str:
    """A time as in product names: "20171207T002051"."""
    return re.sub(r"[-:]", "", time.strip())[:15]


def _elements(root: Element, name: str) -> Iterator[Element]:
    """Elements of a name in any namespace."""
    return root.iterfind(f".//{{*}}{name}")


def _text(root: Element, name: str) -> str | None:
    return next((element.text.strip() for element in _elements(root, name) if element.text), None)


def _number(text: Any, file: ProductFile) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) < 1e9:
        raise DataError(f"{file.path}: expected a number, found {str(text)[:40]!r}; fetch it again")
    return value
