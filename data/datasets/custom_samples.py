"""Samples of one's own making: which patches to lay side by side, and at which dates."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.merge import merge
from rasterio.transform import array_bounds

from common.errors import DataError
from data.constants import N_DATES, N_S1, N_S2
from data.datasets.file_index import get_pairedS1
from data.raster.geotiff import GeoRef
from data.raster.image_store import open_images

PUBLISHED = "published"
"""Name of the list that the published test script carries: nine patches of one test region, dates 0, 1, 2."""
_PUBLISHED_TARGETS = [
    f"ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_{number}.tif"
    for number in (171, 172, 173, 187, 188, 189, 203, 204, 205)
]
_FORMS = (
    '{"target": [S2 paths], "inputs": [image numbers]}, or the published '
    '{"input": {"S1": [[paths] per date], "S2": ...}, "target": {"S1": [[paths]], "S2": [[paths]]}}'
)

CustomSample = dict[str, dict[str, list[list[str]]]]
"""input and target -> S1 and S2 -> dates -> patches that lie side by side; paths relative to the root."""


def read_custom_list(source: str | Path, root: str | Path) -> list[CustomSample]:
    """A list of custom samples from a JSON file.

    Args:
        source: the file, or "published". It holds a list whose entries take one of two forms: a target (paths of
            optical patches) with the image numbers of the inputs, for which the radar and the inputs are looked up;
            or every path, in the published nesting.
        root: where the regions lie.

    Returns:
        The samples, with every path spelled out.

    Raises:
        DataError: if the file cannot be read, an entry has neither form, or a twin is missing.
    """
    if str(source) == PUBLISHED:
        return [expand_custom({"target": _PUBLISHED_TARGETS, "inputs": [0, 1, 2]}, root)]
    try:
        entries = json.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the custom list {source}: {error.strerror}; check --use_custom") from error
    except ValueError as error:
        raise DataError(f"the custom list {source} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"the custom list {source} must be a JSON list of samples, each {_FORMS}")
    return [expand_custom(entry, root) for entry in entries]


def expand_custom(entry: Mapping[str, Any], root: str | Path) -> CustomSample:
    """One custom sample with every path spelled out, from either of its two forms."""
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


def _image_numbers(given: Any) -> list[int]:
    if not isinstance(given, list) or not all(type(number) is int and 0 <= number < N_DATES for number in given):
        raise DataError(f"inputs of a custom sample are image numbers, 0 to {N_DATES - 1}, not {given!r}")
    return list(given)


def _paths(entry: Any, part: str) -> dict[str, list[list[str]]]:
    try:
        nested = {sensor: [[str(path) for path in group] for group in entry[part][sensor]] for sensor in ("S1", "S2")}
    except (KeyError, TypeError) as error:
        raise DataError(f"a custom sample lacks {part!r} or its S1 or S2; expected {_FORMS}") from error
    flat = [path for groups in nested.values() for group in groups for path in group]
    if not all(group for groups in nested.values() for group in groups) or any(len(path) < 2 for path in flat):
        raise DataError(f"a custom sample needs a list of paths for each date; expected {_FORMS}")
    return nested


def read_mosaic(root: str | Path, paths: Sequence[str], bands: int) -> tuple[np.ndarray, GeoRef]:
    """Patches laid side by side where they lie on the ground.

    Args:
        root: where the regions lie.
        paths: of one sensor and date, relative to the root; the first wins where patches overlap.
        bands: 13 (optical) or 2 (radar).

    Returns:
        Stored values (C, H, W) over the bounds of all patches, and where they lie. What no patch covers is 0 in
        optical, NaN in radar.

    Raises:
        DataError: if a file cannot be read, or the patches differ in coordinate system, pixel size or type.
    """
    images, full = open_images(root), [os.path.join(root, path) for path in paths]
    first, georef = images.read(paths[0], bands)[0], images.georef(paths[0])
    if len(full) == 1:
        return first, georef
    for path in paths[1:]:
        images.read(path, bands)  # every check of single files, each with its own message
        other = images.georef(path)
        if other.crs != georef.crs or not np.allclose(_pixel_size(other), _pixel_size(georef)):
            here = os.path.join(root, path)
            raise DataError(f"{here} has another coordinate system or pixel size than {full[0]}; they make no mosaic")
    nodata = {N_S1: float("nan"), N_S2: 0}[bands]
    with ExitStack() as stack:
        try:
            sources = [stack.enter_context(images.opened(path)) for path in paths]
            mosaic, transform = merge(sources, nodata=nodata)
        except RasterioError as error:
            raise DataError(f"cannot join {full[0]} and {len(full) - 1} others into one image: {error}") from error
    left, bottom, right, top = array_bounds(*mosaic.shape[1:], transform)
    return mosaic, GeoRef((left, bottom, right, top), georef.crs, transform)


def _pixel_size(place: GeoRef) -> tuple[float, float]:
    return place.transform.a, place.transform.e
