"""The page of a test: what it says, that it stands by itself, and that names cannot break it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from common.errors import DataError
from report import page as pages
from report.cards import make_cards
from report.pictures import colour_bar, mapped, photograph
from report.test_page import report_or_say_why, write_report
from tests.support.report_pages import check_page, fake_tested


@pytest.fixture(scope="module")
def tested():
    return fake_tested()


@pytest.fixture(scope="module")
def page(tested, tmp_path_factory):
    return check_page(write_report(tmp_path_factory.mktemp("run"), tested))


def test_figures_stand_beside_the_baselines_and_the_best_is_told_in_words(page, tested):
    assert "All samples: means over images" in page.words
    rmse = tested.metrics["RMSE"]
    assert rmse == pytest.approx(0.03, abs=1e-6)  # the mean of 0.01 to 0.05
    assert "best: 0.0300" in page.words
    assert "best baseline: 0.2000 (least_cloudy)" in page.words  # equal to mean; the first is named
    assert page.words.count("best: ") >= 5


def test_best_median_and_worst_are_shown_with_dates_and_cloud(page):
    for words in ("best of 5 Sample 0", "median of 5 Sample 2", "worst of 5 Sample 4", "patch 4"):
        assert words in page.words
    assert "2018-01-02 50 % cloud" in page.words
    assert "median \N{MINUS SIGN}12.5 dB" in page.words
    assert "RMS 0.0500" in page.words  # the error of the worst
    assert "RMS 0.0200" in page.words  # its total deviation
    assert "(mean) has an RMSE of 0.2000, 4.0 times that of the network" in page.words


def test_pictures_of_a_card(page):
    cards = page.named("article")
    assert len(cards) == 3
    # of each card: two of the slider, 3 inputs, 3 radar, a radar scale, prediction, target, 4 maps, a scale
    assert len(page.named("img")) == 3 * 16 + 3  # and three charts
    alts = [image["alt"] for image in page.named("img")]
    assert "Map of the total deviation, sample 4: root mean square 0.0200 reflectance" in alts
    assert sum(alt.startswith("Colour bar, error and standard deviation, reflectance") for alt in alts) == 3


def test_scales_are_shared_by_all_cards(tested):
    cards = make_cards(tested.cases, tested.missing)
    # 97 % of all errors and deviations lie below 0.05: errors of 0.01, 0.03, 0.05 and deviations of 0.014 and 0.02
    assert cards.scale.ticks == ("0", "0.01", "0.02", "0.03", "0.04", "\N{GREATER-THAN OR EQUAL TO} 0.05")
    assert cards.radar_scale.ticks == ("\N{MINUS SIGN}25", *(f"\N{MINUS SIGN}{n}" for n in (20, 15, 10, 5)), "0")
    totals = {
        picture.src
        for card in cards.cards
        for group in card.results
        for picture in group.pictures
        if picture.caption == "Total deviation"
    }
    assert len(totals) == 1  # the same deviation has the same colour in all cards


def test_calibration_is_told_in_words(page):
    assert "over-confident" in page.words
    assert "An interval that should hold 90 of 100 true values holds" in page.words
    assert "By the cloudiness of the pixel" in page.words
    assert "B08 near infrared, 842 nm" in page.words


def test_a_name_with_markup_is_shown_not_obeyed(tmp_path):
    nasty = '<b>bold</b><script>alert("x")</script>'
    found = check_page(write_report(tmp_path, fake_tested(nasty, n=1)))
    assert nasty in found.words
    assert "<b>bold</b>" not in found.raw
    assert "<script>alert" not in found.raw
    assert "the only sample" in found.words


def test_a_network_without_variance_or_radar_says_so(tmp_path):
    found = check_page(write_report(tmp_path, fake_tested(variance=False, radar=False)))
    assert "This network has no variance: it states no uncertainty, so there is nothing to calibrate." in found.words
    assert "No radar here." in found.words
    assert "inside the 90 % interval" not in found.words
    alts = [image["alt"] for image in found.named("img")]
    assert not any("deviation, sample" in alt or "VV" in alt for alt in alts)


def test_a_perfect_reconstruction_without_known_clouds(tmp_path):
    tested = fake_tested(n=1)
    (case,) = tested.cases
    record = replace(case.record, coverage=(math.nan,) * 3, metrics={"RMSE": 0.0, "PSNR": math.inf, "SAM": math.nan})
    output = replace(case.outputs["net"], mean=case.target)
    case = replace(case, record=record, outputs={"net": output}, rmse={"net": 0.0})
    found = check_page(write_report(tmp_path, replace(tested, cases=[case])))
    assert "PSNR infinite" in found.words
    assert "SAM \N{EN DASH}" in found.words
    assert "has an RMSE of 0.2000." in found.words
    assert "nan" not in found.words
    assert "% cloud " not in found.words  # below the inputs; tables tell of "% clouded"


def test_of_a_long_series_the_clearest_and_the_cloudiest_dates_are_shown(tmp_path):
    tested = fake_tested(n=1, n_dates=30)
    found = check_page(write_report(tmp_path, tested))
    assert "8 of 30 dates: the clearest and the cloudiest." in found.words
    keys = [image["data-key"] for image in found.named("img") if image.get("data-key", "").startswith("input")]
    assert keys == [f"input {date}" for date in (0, 1, 2, 3, 26, 27, 28, 29)]


def test_256_pixels_stay_below_5_megabytes(tmp_path):
    """Noise is the worst that PNG and JPEG can meet; real pictures take half of it."""
    path = write_report(tmp_path, fake_tested(n=3, size=256))
    assert path.stat().st_size < 5e6


def test_nothing_half_written_and_a_reason_where_jinja2_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(DataError, match="needs jinja2: pip install -r requirements.txt"):
        pages.write_page(tmp_path / "report.html", "report.html", {})
    report_or_say_why(lambda: pages.write_page(tmp_path / "report.html", "report.html", {}))
    assert "note: there is no report:" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_json_line_by_line():
    flags = {"a": [1, 2], "b": "x", "c": None}
    text = pages.pretty(flags)
    assert json.loads(text) == flags
    assert len(text.splitlines()) == 5


def decoded(uri):
    import base64
    import io

    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_maps_and_pictures_hold_the_right_colours():
    values = np.array([[0.0, 0.05, 0.1, 7.0, np.nan]], np.float32)
    image = decoded(mapped(values, 0.0, 0.1, "viridis")).convert("RGB")
    colours = [image.getpixel((x, 0)) for x in range(5)]
    dark, bright = (68, 1, 84), (253, 231, 37)  # the ends of viridis, as published
    assert [colours[0], colours[2], colours[3], colours[4]] == [dark, bright, bright, dark]
    assert colours[1] == (33, 145, 140)  # its middle, entry 128 of 256
    rgb = np.zeros((4, 6, 3), np.float32)
    rgb[..., 1] = 1
    assert decoded(photograph(rgb)).getpixel((5, 3)) == (0, 255, 0)
    large = decoded(photograph(np.tile(rgb, (300, 200, 1))))  # 1,200 x 1,200
    assert large.size == (400, 400)
    assert large.format == "JPEG"
    assert colour_bar(0, 0.3, "viridis", "error", 3).ticks == ("0", "0.1", "0.2", "\N{GREATER-THAN OR EQUAL TO} 0.3")
