"""Lists of the images of a scene, as CSV or JSON."""

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.json_files import PATH, Schema, check_schema, parse_json, read_bytes
from scenes.inputs.rasters.dataset_pool import is_remote

KEYS = ("optical", "radar", "date", "radar_date", "offset", "scale")
_EXPECTED = ", ".join(KEYS)
_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["optical"],
        "properties": {key: PATH | {"type": ["string", "null"]} for key in KEYS}
        | {"optical": PATH | {"minLength": 1}}
        | {key: {"type": ["string", "number", "null"]} for key in ("offset", "scale")},
        "additionalProperties": False,
    },
}


@dataclass(frozen=True)
class ManifestEntry:
    """One date of a scene; what is not given is empty.

    Attributes:
        optical: an optical image.
        radar: a radar image.
        date: of the optical image.
        radar_date: of the radar image.
        offset: added to the stored values of the optical image; None as for all images.
        scale: reflectance for each stored unit, likewise.
    """

    optical: str
    radar: str = ""
    date: str = ""
    radar_date: str = ""
    offset: float | None = None
    scale: float | None = None


def read_manifest(path: str | Path) -> list[ManifestEntry]:
    """The images that a list names.

    Args:
        path: a CSV file with a header, or a JSON list of objects. The column or key `optical` is required; `radar`,
            `date`, `radar_date`, `offset` (as of `--offset`) and `scale` are optional, also in single rows. Relative
            paths start at the list's folder. Rows may be in any order.
            `radar` belongs to the optical image of its row; rows without one get the radar nearest in time.

            ```
            optical,radar,date
            s2_a.tif,s1_a.tif,2018-06-21
            s2_b.tif,,2018-06-26
            ```

    Raises:
        DataError: if it cannot be read, or has other columns.
    """
    path = Path(path)
    advice = f"expected CSV or JSON with {_EXPECTED}"
    content = read_bytes(path, advice)
    if path.suffix.lower() == ".json":
        rows = parse_json(content, _SCHEMA, str(path), advice)
    else:
        rows = _csv_rows(path, content, advice)
        check_schema(rows, _SCHEMA, str(path), advice)
    return [_entry(path, row) for row in rows]


def _csv_rows(path: Path, content: bytes, advice: str) -> list[dict[str, Any]]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
        delimiter = ";" if lines and ";" in lines[0] else ","
        return list(csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not valid CSV in UTF-8 ({error}); {advice}") from error


def _entry(path: Path, row: dict[str, str | float | None]) -> ManifestEntry:
    values = {key: str(value).strip() for key, value in row.items() if value is not None}
    numbers = {key: _number(path, key, values.pop(key, "")) for key in ("offset", "scale")}
    for key in ("optical", "radar"):
        if values.get(key) and not is_remote(values[key]):
            values[key] = os.path.abspath(path.parent / values[key])
    return ManifestEntry(**values, offset=numbers["offset"], scale=numbers["scale"])


def _number(path: Path, key: str, text: str) -> float | None:
    if text in ("", "auto"):
        return None
    if text == "none" and key == "offset":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or key == "scale" and value <= 0:
        expected = "none or a number such as -1000" if key == "offset" else "a positive number such as 0.0001"
        raise DataError(f"{path}: {key} is {text[:40]!r}; expected {expected}, or nothing")
    return value
