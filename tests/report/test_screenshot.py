"""Screenshots of cards."""

import pytest
from PIL import Image

from common.errors import DataError
from report.screenshot import find_browser, take_screenshot
from report.test_page import write_test_page
from tests.support.report_pages import fake_report
from util.demo import picture_report


def test_a_picture_of_a_card_or_a_line_without_a_browser(tmp_path, monkeypatch, capsys):
    report = write_test_page(tmp_path, fake_report(n=3))
    monkeypatch.setattr("report.screenshot.find_browser", lambda: None)
    picture_report(report, tmp_path / "card.png")
    assert f"no picture of {report}: it needs chromium and playwright" in capsys.readouterr().out
    assert not (tmp_path / "card.png").exists()
    monkeypatch.undo()
    pytest.importorskip("playwright", reason="playwright is not installed")
    if find_browser() is None:
        pytest.skip("no chromium on this machine")
    picture_report(report, tmp_path / "card.png")
    with Image.open(tmp_path / "card.png") as image:
        assert image.width == 1152  # the page's 1,200 less its margins of 24
    with pytest.raises(DataError, match="made no picture of .nothing in .*report.html: "):
        take_screenshot(report, tmp_path / "x.png", ".nothing", wait_s=0.3)
    assert not (tmp_path / "x.png").exists()
