"""Index of the files of SEN12MS-CR-TS, paired by region, image number and patch number."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from common.errors import DataError
from data.batch import Skipped
from data.constants import N_DATES
from data.datasets.index_cache import folder_stamps, load_index, save_index
from data.layout import EXAMPLES, SENSORS, SERIES_NAME, list_images, patch_number, series_folder
from data.raster.image_store import ImageFolder, open_images
from data.splits import SERIES

_N_FILES = len(SENSORS) * N_DATES  # of a patch: 30 dates of S1, then 30 of S2

SeriesPaths = dict[str, list[str]]
"""{"S1": one path a date, "S2": one path a date}, POSIX and relative to the root."""


def index_series(
    root: str | Path, rois: Sequence[str], skip_bad: bool = False, legacy: bool = False
) -> tuple[list[SeriesPaths], list[Skipped]]:
    """Find all patches of some regions, with the files of all their dates.

    Args:
        root: folder or pack of the data set; regions that it lacks are ignored.
        rois: such as "ROIs1868/73", in the order of the result; patches follow by number.
        skip_bad: leave out and list incomplete patches and misplaced files instead of raising.
        legacy: pair files by their position in each folder, as published.

    Returns:
        The patches, and what was left out.

    Raises:
        DataError: if a patch lacks a date or has two files for one, or a file lies in another region's folder.
    """
    if legacy or not isinstance(open_images(root), ImageFolder):  # a pack holds its index
        return _index(root, rois, skip_bad, legacy)
    folders = [f"{roi}/{sensor}/{date}" for roi in rois for sensor in SENSORS for date in range(N_DATES)]
    cached = load_index(root, folders)
    if cached is not None:
        return [_series(cached[start : start + _N_FILES]) for start in range(0, len(cached), _N_FILES)], []
    stamps = folder_stamps(root, folders)
    patches, skipped = _index(root, rois, skip_bad, legacy)
    if not skipped:
        save_index(root, folders, stamps, [path for paths in patches for sensor in SENSORS for path in paths[sensor]])
    return patches, skipped


def get_pairedS1(
    patch_list: Sequence[str], root_dir: str | Path, mod: str | None = None, time: int | None = None
) -> list[str]:
    """The files of the same patches from another sensor or another date.

    Args:
        patch_list: paths relative to the root.
        root_dir: folder or pack of the data set.
        mod: "s1" or "s2"; None keeps the sensor of each patch.
        time: image number, 0 to 29; None keeps that of each patch.

    Returns:
        Paths relative to the root, in the order of `patch_list`.

    Raises:
        DataError: if a path does not belong to the data set, or its twin is missing.
    """
    paired = []
    for patch in patch_list:
        match = SERIES_NAME.fullmatch(PurePosixPath(patch).name)
        if match is None:
            raise DataError(f"{patch} is no file of {SERIES}; expected a path such as {EXAMPLES[SERIES]}")
        sensor, season, region, date, _, number = match.groups()
        folder, prefix = series_folder(f"{season}/{region}", (mod or sensor).upper(), date if time is None else time)
        names = (name for name in open_images(root_dir).names(folder) if name.startswith(prefix))
        twin = next((name for name in names if patch_number(name) == int(number)), None)
        if twin is None:
            expected = f"{os.path.join(root_dir, folder)}/{prefix}DATE_patch_{number}.tif"
            raise DataError(f"no twin of {patch}: expected {expected}; is the download complete?")
        paired.append(f"{folder}/{twin}")
    return paired


def natural_key(text: str) -> list[int | str]:
    """A key that sorts numbers within text by value: patch_9 before patch_10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", text)]


def _index(
    root: str | Path, rois: Sequence[str], skip_bad: bool, legacy: bool
) -> tuple[list[SeriesPaths], list[Skipped]]:
    patches: list[SeriesPaths] = []
    skipped: list[Skipped] = []
    images = open_images(root)
    for roi in rois:
        if not images.names(roi):
            continue
        if legacy:
            patches.extend(_pair_by_position(root, roi))
            continue
        complete, bad = _pair_by_number(root, roi)
        if bad and not skip_bad:
            more = f" ({len(bad)} such in {roi})" if len(bad) > 1 else ""
            raise DataError(f"{bad[0].reason}{more}; complete the download, or add --skip_bad_samples")
        patches.extend(complete)
        skipped.extend(bad)
    return patches, skipped


def _pair_by_number(root: str | Path, roi: str) -> tuple[list[SeriesPaths], list[Skipped]]:
    patches: dict[int, list[str]] = {}
    bad: list[Skipped] = []
    duplicates: set[int] = set()
    names = open_images(root).names
    for offset, sensor in zip((0, N_DATES), SENSORS, strict=True):
        for date, number, path in list_images(names, SERIES, roi, sensor):
            if number is None:
                bad.append(Skipped(path, f"{path} is misplaced: by its name it belongs to another folder"))
                continue
            if number not in patches:
                patches[number] = [""] * _N_FILES
            files, slot = patches[number], offset + date
            if files[slot]:
                duplicates.add(number)
                bad.append(Skipped(path, f"two files for one date of one patch: {files[slot]} and {path}; remove one"))
            files[slot] = path
    complete = []
    for number in sorted(patches):
        files = patches[number]
        if "" in files:
            bad.append(_incomplete(root, roi, number, files))
        elif number not in duplicates:
            complete.append(_series(files))
    return complete, bad


def _series(files: list[str]) -> SeriesPaths:
    return {"S1": files[:N_DATES], "S2": files[N_DATES:]}


def _incomplete(root: str | Path, roi: str, number: int, files: Sequence[str]) -> Skipped:
    missing = [slot for slot, path in enumerate(files) if not path]
    sensor, date = SENSORS[missing[0] // N_DATES], missing[0] % N_DATES
    folder, prefix = series_folder(roi, sensor, date)
    expected = f"{os.path.join(root, folder)}/{prefix}DATE_patch_{number}.tif"
    count = f"{len(missing)} images are" if len(missing) > 1 else "one image is"
    present = next(path for path in files if path)
    return Skipped(present, f"patch {number} of {roi}: {count} missing, the first {sensor} date {date} ({expected})")


def _pair_by_position(root: str | Path, roi: str) -> list[SeriesPaths]:
    dates: dict[str, list[list[str]]] = {sensor: [] for sensor in SENSORS}
    for sensor in SENSORS:
        for date in range(N_DATES):
            folder = f"{roi}/{sensor}/{date}"
            names = sorted((name for name in open_images(root).names(folder) if ".tif" in name), key=natural_key)
            dates[sensor].append([f"{folder}/{name}" for name in names])
    n_patches = len(dates["S1"][0])
    if {len(paths) for folders in dates.values() for paths in folders} != {n_patches}:
        raise DataError(f"{roi}: its folders hold different numbers of files, which --legacy cannot pair by position")
    return [{sensor: [paths[place] for paths in dates[sensor]] for sensor in SENSORS} for place in range(n_patches)]
