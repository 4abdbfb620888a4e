"""Folders and file names of both data sets."""

import re
from collections.abc import Callable, Iterator

from data.constants import N_DATES
from data.splits import MONO, SERIES

STACKS = {SERIES: ("S1", "S2"), MONO: ("s1", "s2", "s2_cloudy")}
SENSORS = STACKS[SERIES]
EXAMPLES = {
    SERIES: "ROOT/ROIs1868/73/S2/14/s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_171.tif, and the same under S1",
    MONO: (
        "ROOT/ROIs1970_fall_s1/s1_139/ROIs1970_fall_s1_139_p839.tif with its twins ROIs1970_fall_s2/s2_139/… and "
        "ROIs1970_fall_s2_cloudy/s2_cloudy_139/…"
    ),
}
SERIES_NAME = re.compile(r"(s[12])_(ROIs\d+)_(\d+)_ImgNo_(\d+)_(\d{4}-\d{2}-\d{2})_patch_(\d+)\.tif")
_NAME = {SERIES: SERIES_NAME, MONO: re.compile(r"ROIs\d+_[a-z]+_s[12](?:_cloudy)?_\d+_p\d+\.tif")}
_ENDING = {SERIES: re.compile(r"\d{4}-\d{2}-\d{2}_patch_(\d+)\.tif"), MONO: re.compile(r"(\d+)\.tif")}
_FOLDER = {
    SERIES: re.compile(r"(ROIs\d+/\d+)/(S[12])(?:/(\d+))?"),
    MONO: re.compile(r"(ROIs\d+_[a-z]+)_(s1|s2|s2_cloudy)/\2_(\d+)"),
}
_PATCH = re.compile(r"_(?:patch_|p)(\d+)\.tif$")
_SERIES_PATH = re.compile(r"(ROIs\d+)/(\d+)/S[12]/\d+/[^/]*_patch_(\d+)\.tif")
_MONO_PATH = re.compile(r"(ROIs\d+_[a-z]+)_s[12](?:_cloudy)?/s[12](?:_cloudy)?_(\d+)/[^/]*_p(\d+)\.tif")


def series_folder(roi: str, sensor: str, date: int | str) -> tuple[str, str]:
    """Folder of a date of SEN12MS-CR-TS, and prefix of its file names: s2_ROIs1868_73_ImgNo_14_."""
    season, number = roi.split("/")
    return f"{roi}/{sensor}/{date}", f"{sensor.lower()}_{season}_{number}_ImgNo_{date}_"


def stack_folders(dataset: str, roi: str, stack: str) -> Iterator[tuple[int, str, str]]:
    """Date, folder, and prefix of the file names in it, of one sensor or member of a region.

    Args:
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        roi: "ROIs1868/73", of SEN12MS-CR "ROIs1970_fall/139".
        stack: one of `STACKS[dataset]`.
    """
    season, number = roi.split("/")
    if dataset == MONO:
        yield 0, f"{season}_{stack}/{stack}_{number}", f"{season}_{stack}_{number}_p"
        return
    for date in range(N_DATES):
        yield date, *series_folder(roi, stack, date)


def list_images(
    names: Callable[[str], list[str]], dataset: str, roi: str, stack: str
) -> Iterator[tuple[int, int | None, str]]:
    """Date, patch number and path of the images of a region that are present; other files are ignored.

    Args:
        names: returns the names in a folder.
        dataset: as for `stack_folders`, like `roi` and `stack`.
        roi: the region.
        stack: the sensor or member.

    Yields:
        The patch number is None if an image is misplaced: by its name it belongs to another folder.
    """
    name_pattern, ending = _NAME[dataset], _ENDING[dataset]
    for date, folder, prefix in stack_folders(dataset, roi, stack):
        for name in names(folder):
            match = ending.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
            if match is not None:
                yield date, int(match[1]), f"{folder}/{name}"
            elif name_pattern.fullmatch(name):
                yield date, None, f"{folder}/{name}"


def patch_number(name: str) -> int | None:
    """The patch number in the file name of an image, None for other files."""
    match = _PATCH.search(name)
    return None if match is None else int(match[1])


def parse_folder(dataset: str, folder: str) -> tuple[str, str, int | None] | None:
    """Region, stack and date of a folder of the data set; the date is None for the parent folder of all dates."""
    match = _FOLDER[dataset].fullmatch(folder)
    if match is None:
        return None
    if dataset == MONO:
        return f"{match[1]}/{match[3]}", match[2], 0
    return match[1], match[2], None if match[3] is None else int(match[3])


def parse_path(path: str) -> tuple[str, str, str]:
    """Region, patch number and relative path of a file of either data set; "", "" and the path itself of others."""
    posix = path.replace("\\", "/")
    match = _SERIES_PATH.search(posix) or _MONO_PATH.search(posix)
    if match is None:
        return "", "", path
    return f"{match[1]}/{match[2]}", match[3], match[0]
