"""Atomic pages, a note in place of a failing report, the format of flags."""

import json
import sys

import pytest

from common.errors import DataError
from report.page import format_flags, report_or_note, write_page


def test_nothing_half_written_and_a_reason_where_jinja2_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DataError, match="needs jinja2: pip install -r requirements.txt"):
        write_page(tmp_path / "report.html", "report.html", {})
    report_or_note(lambda: write_page(tmp_path / "report.html", "report.html", {}))
    assert "note: there is no report:" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_json_line_by_line():
    flags = {"a": [1, 2], "b": "x", "c": None}
    text = format_flags(flags)
    assert json.loads(text) == flags
    assert len(text.splitlines()) == 5
