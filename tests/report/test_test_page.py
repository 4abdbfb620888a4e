"""The page of a test: its figures, samples and texts; it is self-contained, and markup in names is escaped."""

import math
from dataclasses import replace

import pytest

from report.test_page import write_test_page
from tests.support.report_pages import check_page, fake_report


@pytest.fixture(scope="module")
def report():
    return fake_report()


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    return check_page(write_test_page(tmp_path_factory.mktemp("run"), report))


def test_figures_stand_beside_the_baselines_and_the_best_is_told_in_words(page, report):
    assert "All samples: means over images" in page.words
    rmse = report.metrics["RMSE"]
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


def test_calibration_is_told_in_words(page):
    assert "over-confident" in page.words
    assert "An interval that should hold 90 of 100 true values holds" in page.words
    assert "By the cloudiness of the pixel" in page.words
    assert "B08 near infrared, 842 nm" in page.words


def test_a_name_with_markup_is_shown_not_obeyed(tmp_path):
    nasty = '<b>bold</b><script>alert("x")</script>'
    page = check_page(write_test_page(tmp_path, fake_report(nasty, n=1)))
    assert nasty in page.words
    assert "<b>bold</b>" not in page.raw
    assert "<script>alert" not in page.raw
    assert "the only sample" in page.words


def test_a_network_without_variance_or_radar_says_so(tmp_path):
    page = check_page(write_test_page(tmp_path, fake_report(variance=False, radar=False)))
    assert "This network has no variance: it states no uncertainty, so there is nothing to calibrate." in page.words
    assert "No radar here." in page.words
    assert "inside the 90 % interval" not in page.words
    alts = [image["alt"] for image in page.named("img")]
    assert not any("deviation, sample" in alt or "VV" in alt for alt in alts)


def test_a_perfect_reconstruction_without_known_clouds(tmp_path):
    report = fake_report(n=1)
    (sample,) = report.samples
    record = replace(sample.record, coverage=(math.nan,) * 3, metrics={"RMSE": 0.0, "PSNR": math.inf, "SAM": math.nan})
    prediction = replace(sample.predictions["net"], mean=sample.target)
    sample = replace(sample, record=record, predictions={"net": prediction}, rmse={"net": 0.0})
    page = check_page(write_test_page(tmp_path, replace(report, samples=[sample])))
    assert "PSNR infinite" in page.words
    assert "SAM \N{EN DASH}" in page.words
    assert "has an RMSE of 0.2000." in page.words
    assert "nan" not in page.words
    assert "% cloud " not in page.words  # below the inputs; tables have "% clouded"


def test_of_a_long_series_the_clearest_and_the_cloudiest_dates_are_shown(tmp_path):
    report = fake_report(n=1, n_dates=30)
    page = check_page(write_test_page(tmp_path, report))
    assert "8 of 30 dates: the clearest and the cloudiest." in page.words
    keys = [image["data-key"] for image in page.named("img") if image.get("data-key", "").startswith("input")]
    assert keys == [f"input {date}" for date in (0, 1, 2, 3, 26, 27, 28, 29)]


def test_256_pixels_stay_below_5_megabytes(tmp_path):
    """Noise is the worst case for PNG and JPEG; real pictures take half of the space."""
    path = write_test_page(tmp_path, fake_report(n=3, size=256))
    assert path.stat().st_size < 5e6
