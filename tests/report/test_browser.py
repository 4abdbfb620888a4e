"""Reports in a headless browser: pictures load, the divider moves, there are no errors and no sideways scrolling."""

from pathlib import Path

import pytest
import torch

from evaluation.exports import ExportWriter, read_exports
from model.predictions import NIG
from report.comparison_page import RunResult, write_comparison_page
from report.screenshot import FLAGS, find_browser
from report.test_page import write_test_page
from tests.support.report_pages import fake_report

PHONE, DESK = {"width": 375, "height": 812}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_test_page(
        tmp_path_factory.mktemp("run"), fake_report("a_rather_long_name_of_an_experiment_0123456789")
    )


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Three runs with exports of two samples, and long names."""
    folder, runs = tmp_path_factory.mktemp("a_folder_with_a_name_that_is_far_too_long_for_any_phone"), []
    report = fake_report(n=2)
    for number in range(3):
        name = f"conv3d_mamba_with_a_long_name_{number}"
        field = torch.full((1, 1, 13, 24, 24), 0.1 * (number + 1))
        with ExportWriter(folder / name / "export") as writer:
            for sample in range(2):
                writer.write(sample, NIG(field, field + 1, field + 2, field), torch.full_like(field, 0.15))
        exports = read_exports(folder / name / "export")
        records = [sample.record for sample in report.samples]
        content = (report.metrics, report.comparison, records, exports, {"use_sar": True})
        runs.append(RunResult(name, Path(folder / name), *content))
    return write_comparison_page(runs, folder / "compare.html", "", f"python -m util.compare_runs {runs[0].folder}")


@pytest.fixture
def opened(browser, report, comparison):
    """Opens a page in a window; fails at the end if there were console messages, errors or network requests."""
    problems, windows = [], []

    def open_window(size, page=report, **options):
        window = browser.new_page(viewport=size, **options)
        windows.append(window)
        window.on("console", lambda message: problems.append(message.text))
        window.on("pageerror", lambda error: problems.append(str(error)))
        window.on("request", lambda request: None if is_local(request.url) else problems.append(request.url))
        window.goto(page.as_uri())
        return window

    def is_local(url):
        return url.startswith("data:") or url in (report.as_uri(), comparison.as_uri())

    yield open_window
    for window in windows:
        window.close()
    assert problems == []


def clip(window):
    """The right edge of the upper picture of the first card, per cent of its width from the left."""
    style = window.evaluate("getComputedStyle(document.querySelector('.over')).clipPath")
    width = window.evaluate("document.querySelector('.over').getBoundingClientRect().width")
    inside = style.removeprefix("inset(").removesuffix(")").split()[1]  # such as "50%", "calc(100% - 50%)" or pixels
    if inside.endswith("px"):
        return 100 - 100 * float(inside[:-2]) / width
    return 100 - sum(float(word) for word in inside.replace("%", "").removeprefix("calc(").removesuffix(")").split("-"))


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_picture_loads_and_the_page_does_not_overflow(opened, size):
    window = opened(size)
    widths = window.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 3 * 16 + 3
    assert min(widths) > 0
    window.evaluate("document.querySelector('details').open = true")
    assert window.evaluate("document.documentElement.scrollWidth") <= size["width"]
    boxes = window.evaluate("[...document.querySelectorAll('.scroll')].map(box => [box.scrollWidth, box.clientWidth])")
    assert any(inner > outer for inner, outer in boxes) == (size is PHONE)  # there tables scroll in their own boxes


def test_runs_side_by_side_fit_a_phone_too(opened, comparison):
    for size in (DESK, PHONE):
        window = opened(size, comparison)
        widths = window.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
        # of each of two cards: two of the slider, three predictions, the target, error and deviation of each, a scale
        assert len(widths) == 2 * (2 + 3 + 1 + 6 + 1) + 3
        assert min(widths) > 0
        assert window.evaluate("document.documentElement.scrollWidth") <= size["width"]
    slider = window.locator(".slider input").last
    slider.focus()
    slider.press("End")
    assert slider.input_value() == "100"


def test_columns_on_a_desk_and_one_column_on_a_phone(opened):
    for size, columns in ((DESK, 2), (PHONE, 1)):
        window = opened(size)
        grid = window.evaluate("getComputedStyle(document.querySelector('.upper')).gridTemplateColumns")
        assert len(grid.split()) == columns


def test_the_divider_moves_by_keyboard(opened):
    window = opened(DESK)
    slider = window.locator(".slider input").first
    assert clip(window) == pytest.approx(50)
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    assert slider.input_value() == "53"
    assert clip(window) == pytest.approx(53)
    assert slider.get_attribute("aria-valuetext") == "53 % from the left"
    slider.press("Home")
    assert clip(window) == pytest.approx(0)
    sliders = window.locator(".slider input")
    assert sliders.nth(1).input_value() == "50"  # each card has its own divider


def test_the_divider_follows_the_mouse(opened):
    window = opened(DESK)
    window.locator(".slider").first.scroll_into_view_if_needed()
    box = window.locator(".slider").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    window.mouse.move(box["x"] + box["width"] / 2, middle)
    window.mouse.down()
    for share in (0.6, 0.7, 0.8):
        window.mouse.move(box["x"] + share * box["width"], middle)
        assert clip(window) == pytest.approx(100 * share, abs=0.7)  # steps of 1, and a pixel
    window.mouse.up()
    handle = window.locator(".handle").first.bounding_box()
    assert handle["x"] + handle["width"] / 2 == pytest.approx(box["x"] + 0.8 * box["width"], abs=0.012 * box["width"])


def test_the_divider_follows_a_finger(opened):
    window = opened(PHONE, has_touch=True)
    window.locator(".slider").first.scroll_into_view_if_needed()
    box = window.locator(".slider").first.bounding_box()
    window.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert clip(window) == pytest.approx(25, abs=0.7)


def test_the_lists_choose_the_pictures(opened):
    window = opened(DESK)
    card = window.locator(".card").first
    card.locator("select[data-side=left]").select_option("target")
    source = card.locator("img[data-key=target]").get_attribute("src")
    assert card.locator(".over").get_attribute("src") == source
    assert card.locator(".over").get_attribute("alt").startswith("Left of the divider: Target")
    assert card.locator(".tag.left").text_content() == "Target"
    assert card.locator(".under").get_attribute("src") != source


def test_dark_surroundings_and_paper(opened):
    window = opened(DESK, color_scheme="dark")
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    window.emulate_media(media="print")
    assert window.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
