"""The cached index of a large folder: valid only while the folders are unchanged."""

import os
import shutil
import time
from pathlib import Path

import pytest

from common.errors import DataError
from data.datasets import file_index, index_cache
from data.datasets.file_index import index_series
from tests.support.fake_trees import ROI, image_path

ROIS = (ROI, "ROIs1970/21", "ROIs1970/35")  # the last one is missing


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "_LEAST_PATHS", 60)
    monkeypatch.setattr(index_cache, "_MIN_AGE_NS", 0)
    return tmp_path / "cache" / "cloudless-uncertainty" / "index"


@pytest.fixture
def listings(monkeypatch) -> list[str]:
    """The regions whose folders have been listed."""
    listed: list[str] = []
    original = file_index._pair_by_number
    monkeypatch.setattr(file_index, "_pair_by_number", lambda root, roi: listed.append(roi) or original(root, roi))
    return listed


def test_a_second_start_lists_nothing_and_finds_the_same(tree, kept, listings):
    first = index_series(tree, ROIS)
    assert listings == [ROI, "ROIs1970/21"]
    assert index_series(tree, ROIS) == first
    assert len(listings) == 2
    assert len(list(kept.iterdir())) == 1
    assert index_series(tree, ROIS[:1])[0] == first[0][:2]  # another split has its own


def move(copy: Path) -> None:
    path = image_path(copy, "S2", 3, 10)
    path.rename(path.with_name(path.name.replace("2018", "2017")))


def add_roi(copy: Path) -> None:
    shutil.copytree(copy / "ROIs1970/21", copy / "ROIs1970/35")


def remove_date(copy: Path) -> None:
    shutil.rmtree(image_path(copy, "S1", 7).parent)


@pytest.mark.parametrize("change", [move, add_roi, remove_date, lambda copy: image_path(copy, "S2", 3, 10).unlink()])
def test_any_change_of_a_folder_is_seen(copy, listings, change):
    index_series(copy, ROIS)
    times = {folder: os.stat(folder) for folder in copy.rglob("*") if folder.is_dir()}
    change(copy)
    for folder, before in times.items():  # copying a tree may restore these times, but not the status-change time
        if folder.is_dir():
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        indexed = index_series(copy, ROIS, skip_bad=True)
    except DataError:
        indexed = None
    os.environ[index_cache.SWITCH] = "off"
    try:
        assert indexed == index_series(copy, ROIS, skip_bad=True)
    finally:
        del os.environ[index_cache.SWITCH]
    assert len(listings) > 2


def test_folders_that_have_just_changed_are_not_kept(copy, kept, monkeypatch):
    monkeypatch.setattr(index_cache, "_MIN_AGE_NS", 60_000_000_000)
    assert time.time() - copy.stat().st_ctime < 60
    index_series(copy, ROIS)
    assert not kept.exists()


def test_small_folders_incomplete_ones_and_a_switch_keep_nothing(tree, copy, kept, listings, monkeypatch):
    image_path(copy, "S2", 3, 10).unlink()
    assert index_series(copy, ROIS, skip_bad=True)[1]
    monkeypatch.setenv(index_cache.SWITCH, "off")
    index_series(tree, ROIS)
    monkeypatch.delenv(index_cache.SWITCH)
    monkeypatch.setattr(index_cache, "_LEAST_PATHS", 1000)
    index_series(tree, ROIS)
    assert not kept.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", bytes.fromhex("789c0300000000010a0a")])
def test_a_damaged_file_is_listed_anew(tree, kept, listings, content):
    first = index_series(tree, ROIS)
    (file,) = kept.iterdir()
    file.write_bytes(content)
    assert index_series(tree, ROIS) == first
    assert len(listings) == 4


def test_a_home_that_cannot_be_written_is_no_hindrance(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(index_series(tree, ROIS)[0]) == 3
