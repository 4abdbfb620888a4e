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


@dataclass(frozen=True)
class Entry:
    """One date of a scene; what is not told is empty."""

    optical: str
    radar: str = ""
    date: str = ""
    radar_date: str = ""


def read_listing(path: str | Path) -> list[Entry]:
    """The images that a list names.

    Args:
        path: a CSV file with a header, or a JSON list of objects. Columns or keys: `optical`, and where wanted
            `radar`, `date` and `radar_date`. Files without a leading / are relative to the list. Rows may be in any
            order. `radar` pairs that image with the row's optical one; rows without get the one nearest in time.

            ```
            optical,radar,date
            s2_a.tif,s1_a.tif,2018-06-21
            s2_b.tif,,2018-06-26
            ```

    Raises:
        DataError: if it cannot be read, or names other things.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} is not text: expected CSV or JSON with {', '.join(KEYS)}") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(text)
    entries = []
    for number, row in enumerate(rows, start=1):
        entries.append(_entry(path, number, row))
    if not entries:
        raise DataError(f"the list {path} names no image; expected rows with {', '.join(KEYS)}")
    return entries


def _csv_rows(text: str) -> list[Any]:
    header = text.partition("\n")[0]
    return list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in header else ",", skipinitialspace=True))


def _json_rows(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"the list {path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"the list {path} must be a JSON list of objects with {', '.join(KEYS)}")
    return rows


def _entry(path: Path, number: int, row: Any) -> Entry:
    where = f"row {number} of the list {path}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with {', '.join(KEYS)}, found {row!r}")
    unknown = sorted(str(key) for key in row if key not in KEYS)
    if unknown:
        raise DataError(f"{where}: unknown {', '.join(unknown)}; expected {', '.join(KEYS)}")
    values = {key: str(value).strip() for key, value in row.items() if value is not None}
    if not values.get("optical"):
        raise DataError(f"{where}: no optical image; expected {', '.join(KEYS)}")
    for key in ("optical", "radar"):
        if values.get(key) and not is_remote(values[key]):
            values[key] = os.path.abspath(os.path.join(path.parent, values[key]))
    return Entry(**values)
