"""Custom samples: lists of the patches to merge and the dates to use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.json_files import PATH, Schema, check_schema, read_json
from data.constants import N_DATES
from data.datasets.file_index import get_pairedS1

PUBLISHED = "published"
"""Name of the list in the published test script: nine patches of one test region, dates 0, 1, 2."""
_PUBLISHED_TARGETS = [
    f"ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_{number}.tif"
    for number in (171, 172, 173, 187, 188, 189, 203, 204, 205)
]
_FORMS = (
    '{"target": [S2 paths], "inputs": [image numbers]}, or the published '
    '{"input": {"S1": [[paths] per date], "S2": ...}, "target": {"S1": [[paths]], "S2": [[paths]]}}'
)

_PATHS: Schema = {"type": "array", "minItems": 1, "items": PATH | {"minLength": 2}}
_IMAGES: Schema = {
    "type": "object",
    "required": ["S1", "S2"],
    "properties": {sensor: {"type": "array", "minItems": 1, "items": _PATHS} for sensor in ("S1", "S2")},
}
_SHORT: Schema = {
    "type": "object",
    "required": ["target"],
    "properties": {
        "target": _PATHS,
        "inputs": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": N_DATES - 1}},
    },
}
_NESTED: Schema = {
    "type": "object",
    "required": ["input", "target"],
    "properties": {"input": _IMAGES, "target": _IMAGES},
}

CustomSample = dict[str, dict[str, list[list[str]]]]
"""input and target -> S1 and S2 -> dates -> patches of a mosaic; paths relative to the root."""


def read_custom_list(source: str | Path | Sequence[Any], root: str | Path) -> list[CustomSample]:
    """Read a list of custom samples.

    Args:
        source: a JSON file, "published", or the list itself. An entry is a target (paths of optical patches) with the
            image numbers of the inputs, whose paths are looked up; or all paths, in the published nesting.
        root: folder or pack of the data set.

    Returns:
        The samples, with all paths.

    Raises:
        DataError: if the file cannot be read, an entry has neither form, or a file is missing.
    """
    if not isinstance(source, str | Path):
        return [_expand(entry, number, root) for number, entry in enumerate(source, start=1)]
    if str(source) == PUBLISHED:
        return [_expand({"target": _PUBLISHED_TARGETS, "inputs": [0, 1, 2]}, 1, root)]
    entries = read_json(
        source, {"type": "array", "minItems": 1}, f"--use_custom takes a JSON list of samples, each {_FORMS}"
    )
    return [_expand(entry, number, root) for number, entry in enumerate(entries, start=1)]


def _expand(entry: Any, number: int, root: str | Path) -> CustomSample:
    """The `number`-th custom sample with all paths, from either of its two forms."""
    short = isinstance(entry, Mapping) and "inputs" in entry
    check_schema(entry, _SHORT if short else _NESTED, f"custom sample {number}", f"expected {_FORMS}")
    if short:
        target, dates = entry["target"], [int(date) for date in entry["inputs"]]
        sample = {
            "input": {
                "S1": [get_pairedS1(target, root, mod="s1", time=date) for date in dates],
                "S2": [get_pairedS1(target, root, mod="s2", time=date) for date in dates],
            },
            "target": {"S1": [get_pairedS1(target, root, mod="s1")], "S2": [target]},
        }
    else:
        sample = {part: {sensor: entry[part][sensor] for sensor in ("S1", "S2")} for part in ("input", "target")}
    n_dates = len(sample["input"]["S2"])
    if len(sample["input"]["S1"]) != n_dates or len(sample["target"]["S2"]) != 1:
        raise DataError(
            f"custom sample {number} needs as many radar as optical input dates, and one target; expected {_FORMS}"
        )
    return sample
