"""Folders and file names of both data sets."""

import pytest

from data.layout import STACKS, list_images, parse_folder, parse_path, patch_number, stack_folders
from data.splits import MONO, SERIES
from tests.support.fake_trees import ROI, series_path, triplet_path

MONO_ROI = "ROIs1970_fall/139"


@pytest.mark.parametrize(("dataset", "roi", "n_dates"), [(SERIES, ROI, 30), (MONO, MONO_ROI, 1)])
def test_folders_are_parsed_into_what_they_were_made_of(dataset, roi, n_dates):
    for stack in STACKS[dataset]:
        folders = list(stack_folders(dataset, roi, stack))
        assert [parse_folder(dataset, folder) for _, folder, _ in folders] == [(roi, stack, d) for d in range(n_dates)]
    assert parse_folder(dataset, "elsewhere") is None
    assert parse_folder(SERIES, f"{ROI}/S2") == (ROI, "S2", None)


def test_paths_are_parsed_whatever_the_root():
    for path, roi in ((series_path(ROI, "S1", 3, 7), ROI), (triplet_path(MONO_ROI, "s2_cloudy", 7), MONO_ROI)):
        for root in ("", "/data_1/ROIs/", "C:\\data\\"):
            assert parse_path(root + path) == (roi, "7", path)
        assert patch_number(path) == 7
    assert parse_path("other.tif") == ("", "", "other.tif")
    assert patch_number("README.txt") is None


def test_misplaced_images_are_listed_without_a_number_and_other_files_are_ignored():
    own, misplaced = series_path(ROI, "S2", 3, 9), series_path(ROI, "S2", 4, 9).rpartition("/")[2]
    folder, _, name = own.rpartition("/")
    content = {folder: [name, f"._{name}", f"{name}.part", "index.html", misplaced]}
    images = list(list_images(lambda path: content.get(path, []), SERIES, ROI, "S2"))
    assert images == [(3, 9, own), (3, None, f"{folder}/{misplaced}")]
    mono, _, name = triplet_path(MONO_ROI, "s2", 12).rpartition("/")
    content[mono] = [name, name.replace("139", "140"), "notes_p1.txt"]
    images = list(list_images(lambda path: content.get(path, []), MONO, MONO_ROI, "s2"))
    assert images == [(0, 12, f"{mono}/{name}"), (0, None, f"{mono}/{name.replace('139', '140')}")]
