"""Our JSON files: one error line for each way in which they can be damaged."""

import os

import pytest

from common.errors import DataError
from common.json_files import LARGEST_BYTES, read_json

SCHEMA = {
    "type": "object",
    "required": ["samples"],
    "properties": {
        "samples": {"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}}}}
    },
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"samples": [{"id": 1}, {"id": "2"}]}', r"samples\[1\].id must be integer, got '2'"),
        (b'{"samples": [{"id": true}]}', r"samples\[0\].id must be integer, got True"),
        (b'{"samples": [{"id": NaN}]}', r"samples\[0\].id must be integer, got nan"),
        (b'{"samples": null}', "samples must be array, got None"),
        (b"{}", r"the content must contain \['samples'\] properties"),
        (b"[]", "the content must be object"),
        (b'{"samples": [', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON .*utf-8"),
        (b'{"samples": [], "n": ' + b"9" * 30 + b"}", "number of 30 digits"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"samples": ' + b"[" * 500 + b"]" * 500 + b"}", r"samples\[0\] must be object"),
    ],
)
def test_damage_is_named_with_the_entry_in_one_line(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}:? .*{message}.*; write it again$") as caught:
        read_json(path, SCHEMA, "write it again")
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(DataError, match="cannot read .*none.json: No such file"):
        read_json(tmp_path / "none.json", SCHEMA, "")
    with pytest.raises(DataError, match="is not a file"):
        read_json(tmp_path, SCHEMA, "")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="pipe.json is not a file"):
        read_json(tmp_path / "pipe.json", SCHEMA, "")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(DataError, match="large.json is larger than 256 MiB"):
        read_json(tmp_path / "large.json", SCHEMA, "")


def test_figures_that_are_not_finite_and_unknown_entries_are_kept(tmp_path):
    (tmp_path / "file.json").write_text(
        '\N{ZERO WIDTH NO-BREAK SPACE}{"samples": [{"x": Infinity}], "later": "\\udcff"}'
    )
    assert read_json(tmp_path / "file.json", SCHEMA, "") == {"samples": [{"x": float("inf")}], "later": "\udcff"}
