"""Which files of a SEN12MS-CR-TS folder belong together: paired by region, image number and patch number."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from common.errors import DataError
from data.batch import Skipped
from data.constants import N_DATES
from data.datasets.index_cache import recall, remember, stamps
from data.raster.image_store import Folder, open_images

SENSORS = ("S1", "S2")
LAYOUT = "ROOT/ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_171.tif, and the same under S1"
_NAME = re.compile(r"(s[12])_(ROIs\d+)_(\d+)_ImgNo_(\d+)_(\d{4}-\d{2}-\d{2})_patch_(\d+)\.tif")
_ENDING = re.compile(r"\d{4}-\d{2}-\d{2}_patch_(\d+)\.tif")

SeriesPaths = dict[str, list[str]]
"""{"S1": one path a date, "S2": one path a date}, POSIX and relative to the root."""


def index_series(
    root: str | Path, rois: Sequence[str], skip_bad: bool = False, legacy: bool = False
) -> tuple[list[SeriesPaths], list[Skipped]]:
    """Find all patches of some regions, with the files of all their dates.

    Args:
        root: where the regions lie; those that are not there are passed over.
        rois: such as "ROIs1868/73", in the order wanted; patches follow by number.
        skip_bad: leave out incomplete patches and misplaced files, and list them, instead of refusing.
        legacy: pair files by their place in each folder's listing, as published.

    Returns:
        The patches, and what was left out.

    Raises:
        DataError: if a patch lacks a date or has two files for one, or a file lies in another region's folder.
    """
    images = open_images(root)
    if legacy or not isinstance(images, Folder):  # a pack holds its index
        return _index(root, rois, skip_bad, legacy)
    folders = [f"{roi}/{sensor}/{date}" for roi in rois for sensor in SENSORS for date in range(N_DATES)]
    known = recall(root, folders)
    if known is not None:
        slots = len(SENSORS) * N_DATES
        return [_series(known[start : start + slots]) for start in range(0, len(known), slots)], []
    before = stamps(root, folders)
    patches, skipped = _index(root, rois, skip_bad, legacy)
    if not skipped:
        remember(root, folders, before, [path for paths in patches for sensor in SENSORS for path in paths[sensor]])
    return patches, skipped


def _index(
    root: str | Path, rois: Sequence[str], skip_bad: bool, legacy: bool
) -> tuple[list[SeriesPaths], list[Skipped]]:
    patches: list[SeriesPaths] = []
    skipped: list[Skipped] = []
    images = open_images(root)
    for roi in rois:
        if not images.holds(roi):
            continue
        if legacy:
            patches.extend(_pair_by_position(root, roi))
            continue
        whole, bad = _pair_by_number(root, roi)
        if bad and not skip_bad:
            more = f" ({len(bad)} such in {roi})" if len(bad) > 1 else ""
            raise DataError(f"{bad[0].reason}{more}; complete the download, or add --skip_bad_samples")
        patches.extend(whole)
        skipped.extend(bad)
    return patches, skipped


def get_pairedS1(
    patch_list: Sequence[str], root_dir: str | Path, mod: str | None = None, time: int | None = None
) -> list[str]:
    """The files that show the same patches by another sensor or at another date.

    Args:
        patch_list: paths relative to the root.
        root_dir: where the regions lie.
        mod: "s1" or "s2"; None keeps the sensor of each patch.
        time: image number, 0 to 29; None keeps that of each patch.

    Returns:
        Paths relative to the root, in the order of `patch_list`.

    Raises:
        DataError: if a path is not one of the data set, or its twin is missing.
    """
    paired = []
    for patch in patch_list:
        parts = _NAME.fullmatch(PurePosixPath(patch).name)
        if parts is None:
            raise DataError(f"{patch} is no file of SEN12MS-CR-TS; expected a path such as {LAYOUT}")
        sensor, season, region, date, _, number = parts.groups()
        folder = f"{season}/{region}/{(mod or sensor).upper()}/{date if time is None else time}"
        twins = [name for name, found in _listing(root_dir, folder) if int(found) == int(number)]
        if not twins:
            expected = f"{os.path.join(root_dir, folder)}/{_prefix(folder)}DATE_patch_{number}.tif"
            raise DataError(f"no twin of {patch}: expected {expected}; is the download complete?")
        paired.append(f"{folder}/{twins[0]}")
    return paired


def natural_key(text: str) -> list[int | str]:
    """A key that sorts numbers within text by value: patch_9 before patch_10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", text)]


def _prefix(folder: str) -> str:
    """How the names of all files in a date's folder begin: s2_ROIs1868_73_ImgNo_14_."""
    season, region, sensor, date = folder.split("/")
    return f"{sensor.lower()}_{season}_{region}_ImgNo_{date}_"


def _listing(root: str | Path, folder: str) -> Iterator[tuple[str, str]]:
    """Names and patch numbers of the images that belong into a date's folder."""
    prefix = _prefix(folder)
    for name in open_images(root).names(folder):
        found = _ENDING.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
        if found is not None:
            yield name, found[1]
        elif _NAME.fullmatch(name):
            yield name, ""


def _pair_by_number(root: str | Path, roi: str) -> tuple[list[SeriesPaths], list[Skipped]]:
    found: dict[int, list[str]] = {}
    bad: list[Skipped] = []
    doubled: set[int] = set()
    for slot in range(len(SENSORS) * N_DATES):
        folder = f"{roi}/{SENSORS[slot // N_DATES]}/{slot % N_DATES}"
        for name, digits in _listing(root, folder):
            path = f"{folder}/{name}"
            if not digits:
                bad.append(Skipped(path, f"{path} is misplaced: by its name it belongs to another folder"))
                continue
            files = found.get(int(digits))
            if files is None:
                files = found[int(digits)] = [""] * (len(SENSORS) * N_DATES)
            if files[slot]:
                doubled.add(int(digits))
                bad.append(Skipped(path, f"two files for one date of one patch: {files[slot]} and {path}; remove one"))
            files[slot] = path
    whole = []
    for number in sorted(found):
        files = found[number]
        if "" in files:
            bad.append(_incomplete(root, roi, number, files))
        elif number not in doubled:
            whole.append(_series(files))
    return whole, bad


def _series(files: list[str]) -> SeriesPaths:
    return {"S1": files[:N_DATES], "S2": files[N_DATES:]}


def _incomplete(root: str | Path, roi: str, number: int, files: Sequence[str]) -> Skipped:
    missing = [slot for slot, path in enumerate(files) if not path]
    sensor, date = SENSORS[missing[0] // N_DATES], missing[0] % N_DATES
    folder = f"{roi}/{sensor}/{date}"
    expected = f"{os.path.join(root, folder)}/{_prefix(folder)}DATE_patch_{number}.tif"
    count = f"{len(missing)} images are" if len(missing) > 1 else "one image is"
    present = next(path for path in files if path)
    return Skipped(present, f"patch {number} of {roi}: {count} missing, the first {sensor} date {date} ({expected})")


def _pair_by_position(root: str | Path, roi: str) -> list[SeriesPaths]:
    listings: dict[str, list[list[str]]] = {sensor: [] for sensor in SENSORS}
    for sensor in SENSORS:
        for date in range(N_DATES):
            folder = f"{roi}/{sensor}/{date}"
            names = sorted((name for name in open_images(root).names(folder) if ".tif" in name), key=natural_key)
            listings[sensor].append([f"{folder}/{name}" for name in names])
    n_patches = len(listings["S1"][0])
    if {len(names) for dates in listings.values() for names in dates} != {n_patches}:
        raise DataError(f"{roi}: its folders hold different numbers of files, which --legacy cannot pair by position")
    return [{sensor: [names[place] for names in listings[sensor]] for sensor in SENSORS} for place in range(n_patches)]
