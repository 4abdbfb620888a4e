"""Lists of the images of a scene, as CSV or JSON."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from scenes.inputs.dataset_pool import is_remote

KEYS = ("optical", "radar", "date", "radar_date")
_EXPECTED = ", ".join(KEYS)


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} is not text: expected CSV or JSON with {_EXPECTED}") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(text)
    if not rows:
        raise DataError(f"the list {path} names no image; expected rows with {_EXPECTED}")
    return [_entry(path, number, row) for number, row in enumerate(rows, start=1)]


def _csv_rows(text: str) -> list[Any]:
    header = text.partition("\n")[0]
    return list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in header else ",", skipinitialspace=True))


def _json_rows(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"the list {path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"the list {path} must be a JSON list of objects with {_EXPECTED}")
    return rows


def _entry(path: Path, number: int, row: Any) -> ManifestEntry:
    where = f"row {number} of the list {path}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with {_EXPECTED}, found {row!r}")
    unknown = sorted(str(key) for key in row if key not in KEYS)
    if unknown:
        raise DataError(f"{where}: unknown {', '.join(unknown)}; expected {_EXPECTED}")
    values = {key: str(value).strip() for key, value in row.items() if value is not None}
    if not values.get("optical"):
        raise DataError(f"{where}: no optical image; expected {_EXPECTED}")
    for key in ("optical", "radar"):
        if values.get(key) and not is_remote(values[key]):
            values[key] = os.path.abspath(path.parent / values[key])
    return ManifestEntry(**values)
