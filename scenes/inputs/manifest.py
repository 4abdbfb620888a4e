"""Lists of the images of a scene, as CSV or JSON."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.json_files import PATH, Schema, check_schema, parse_json, read_bytes
from scenes.inputs.dataset_pool import is_remote

KEYS = ("optical", "radar", "date", "radar_date")
_EXPECTED = ", ".join(KEYS)
_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["optical"],
        "properties": {key: PATH | {"type": ["string", "null"]} for key in KEYS} | {"optical": PATH | {"minLength": 1}},
        "additionalProperties": False,
    },
}


@dataclass(frozen=True)
class ManifestEntry:
    """One date of a scene; what is not given is empty."""

    optical: str
    radar: str = ""
    date: str = ""
    radar_date: str = ""


def read_manifest(path: str | Path) -> list[ManifestEntry]:
    """The images that a list names.

    Args:
        path: a CSV file with a header, or a JSON list of objects. The column or key `optical` is required; `radar`,
            `date` and `radar_date` are optional. Relative paths start at the list's folder. Rows may be in any order.
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


def _entry(path: Path, row: dict[str, str | None]) -> ManifestEntry:
    values = {key: value.strip() for key, value in row.items() if value is not None}
    for key in ("optical", "radar"):
        if values.get(key) and not is_remote(values[key]):
            values[key] = os.path.abspath(path.parent / values[key])
    return ManifestEntry(**values)
