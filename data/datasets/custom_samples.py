"""Custom samples: lists of the patches to merge and the dates to use."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
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
        return [_expand(entry, root) for entry in source]
    if str(source) == PUBLISHED:
        return [_expand({"target": _PUBLISHED_TARGETS, "inputs": [0, 1, 2]}, root)]
    try:
        entries = json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the custom list {source}: {error.strerror}; check --use_custom") from error
    except ValueError as error:
        raise DataError(f"the custom list {source} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"the custom list {source} must be a JSON list of samples, each {_FORMS}")
    return [_expand(entry, root) for entry in entries]


def _expand(entry: Any, root: str | Path) -> CustomSample:
    """A custom sample with all paths, from either of its two forms."""
    if isinstance(entry, Mapping) and "inputs" in entry and isinstance(entry.get("target"), list):
        target = [str(path) for path in entry["target"]]
        dates = _image_numbers(entry["inputs"])
        sample = {
            "input": {
                "S1": [get_pairedS1(target, root, mod="s1", time=date) for date in dates],
                "S2": [get_pairedS1(target, root, mod="s2", time=date) for date in dates],
            },
            "target": {"S1": [get_pairedS1(target, root, mod="s1")], "S2": [target]},
        }
    else:
        sample = {part: _paths(entry, part) for part in ("input", "target")}
    n_dates = len(sample["input"]["S2"])
    if not n_dates or len(sample["input"]["S1"]) != n_dates or len(sample["target"]["S2"]) != 1:
        raise DataError(
            f"a custom sample needs as many radar as optical input dates, and one target; expected {_FORMS}"
        )
    return sample


def _image_numbers(inputs: Any) -> list[int]:
    if not isinstance(inputs, list) or not all(type(number) is int and 0 <= number < N_DATES for number in inputs):
        raise DataError(f"inputs of a custom sample are image numbers, 0 to {N_DATES - 1}, not {inputs!r}")
    return inputs


def _paths(entry: Any, part: str) -> dict[str, list[list[str]]]:
    try:
        nested = {sensor: [[str(path) for path in group] for group in entry[part][sensor]] for sensor in ("S1", "S2")}
    except (KeyError, TypeError) as error:
        raise DataError(f"a custom sample lacks {part!r} or its S1 or S2; expected {_FORMS}") from error
    flat = [path for groups in nested.values() for group in groups for path in group]
    if not all(group for groups in nested.values() for group in groups) or any(len(path) < 2 for path in flat):
        raise DataError(f"a custom sample needs a list of paths for each date; expected {_FORMS}")
    return nested
