"""Temporary files: those of killed processes are removed by the next writer, those of active ones stay."""

import os
import subprocess
import sys

import pytest

from common import files
from common.errors import DataError, UsageError
from common.files import atomic_file, cache_folder, remove_stale_files, require_utf8, write_text
from common.processes import process_tag
from tests.support.commands import ROOT

DIE = """
import os, signal, sys
from common.files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["map.tif", "manifest.json", "model_epoch_1.pth.tar", "no_ending", "a.b-c.d.npz"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, name):
    subprocess.run([sys.executable, "-c", DIE, str(tmp_path / name)], cwd=ROOT, check=False)
    (leftover,) = names(tmp_path)
    assert leftover.startswith(".")
    assert ".tmp" in leftover
    write_text(tmp_path / "other.txt", "content")
    assert names(tmp_path) == {"other.txt"}


def test_files_of_active_writers_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    with atomic_file(tmp_path / "map.tif") as temporary:
        assert process_tag() in temporary.name
        os.utime(temporary, (0, 0))  # a day is not long for one that lives
        remove_stale_files(tmp_path)
        assert temporary.exists()


def test_files_of_other_machines_and_of_earlier_versions_stay_for_a_day(tmp_path):
    ours = [".map.00000000-1-1.abcdefgh.tmp.tif", ".map.abc_defg.tmp.tif"]
    others = [".map.tmp", ".~lock.tmp.odt", "map.abcdefgh.tmp", ".ssh.tmp.d"]
    for name in (*ours, *others):
        (tmp_path / name).write_text("half")
    remove_stale_files(tmp_path)
    assert names(tmp_path) == {*ours, *others}
    for name in (*ours, *others):
        os.utime(tmp_path / name, (0, 0))
    remove_stale_files(tmp_path)
    assert names(tmp_path) == set(others)


def test_a_folder_is_searched_once(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(files, "remove_stale_files", searched.append)
    for name in ("a.txt", "b.txt"):
        write_text(tmp_path / name, "content")
    assert searched == [tmp_path]


def test_an_error_leaves_no_temporary_file(tmp_path):
    def write_half():
        with atomic_file(tmp_path / "map.tif") as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        write_half()
    assert names(tmp_path) == set()


def no_such_user(number):
    raise KeyError(number)


def test_a_user_without_a_home_has_a_cache_that_holds_nothing(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    with (
        pytest.raises(DataError, match="cannot write /dev/null/cloudless-uncertainty/index"),
        atomic_file(cache_folder() / "index"),
    ):
        pass


def test_paths_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"a\xff")
    with pytest.raises(UsageError, match=r"--out 'a.udcff' is not UTF-8"):
        require_utf8(name, "--out")
    require_utf8("ä", "--out")
    write_text(tmp_path / "page", name)
    assert (tmp_path / "page").read_text(encoding="utf-8") == r"a\udcff"
