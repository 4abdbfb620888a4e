"""The record of a reconstruction in its folder: what resumes, and what is refused."""

import json

import pytest

from common.errors import DataError, UsageError
from scenes.resume import ResumeState, digest


def test_a_record_follows_a_reconstruction_to_its_end(tmp_path):
    settings = {"inputs": "a", "--overlap": 16, "dates": (1, 2)}
    state = ResumeState(tmp_path / "maps", settings)
    assert state.begin(overwrite=False) == "new"
    assert (tmp_path / "maps" / ".work" / "job.json").is_file()
    del state  # its lock, as the end of a process does
    state = ResumeState(tmp_path / "maps", settings)
    assert state.begin(overwrite=False) == "resumed"
    record = state.finish({"seconds": 3})
    assert json.loads(record.read_text()) == {"settings": {**settings, "dates": [1, 2]}, "seconds": 3}
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["reconstruction.json"]
    assert ResumeState(tmp_path / "maps", settings).begin(overwrite=False) == "done"
    assert ResumeState(tmp_path / "maps", {}).begin(overwrite=True) == "new"


def test_a_folder_of_another_scene_is_refused(tmp_path):
    ResumeState(tmp_path, {"inputs": "a", "--tile": 64}).begin(overwrite=False)
    with pytest.raises(UsageError, match="holds a reconstruction with other inputs, --detector; choose another --out"):
        ResumeState(tmp_path, {"inputs": "b", "--tile": 64, "--detector": "none"}).begin(overwrite=False)
    (tmp_path / ".work" / "job.json").write_text("{")
    with pytest.raises(DataError, match=r"job\.json is not valid JSON \(.*\); add --overwrite to begin anew"):
        ResumeState(tmp_path, {}).begin(overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to .*file: .*; check --out"):
        ResumeState(tmp_path / "file", {}).begin(overwrite=False)


def test_a_digest_changes_with_each_file(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b", "s3://bucket/remote.tif"]
    for path in paths[:2]:
        path.write_text("content")
    first = digest(paths)
    assert digest(paths) == first
    paths[1].write_text("longer content")
    assert len({first, digest(paths), digest(paths[:2]), digest(paths[2:])}) == 4
