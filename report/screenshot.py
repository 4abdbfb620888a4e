"""Screenshots of elements of an HTML page, with a headless browser if one is installed."""

import shutil
from pathlib import Path

from common.errors import DataError
from common.files import atomic_file

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # required in containers; the page is our own, and loads nothing
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> str | None:
    """The path of Chromium or Chrome; None if neither is installed."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def take_screenshot(
    page: str | Path, path: str | Path, selector: str, number: int = 0, width: int = 1280, wait_s: float = 20.0
) -> Path | None:
    """Write one element of a page as PNG.

    Args:
        page: an .html file.
        path: the .png file.
        selector: CSS selector of the element.
        number: index of the element among those that match.
        width: of the window, pixels.
        wait_s: time to wait for the element.

    Returns:
        The path; None without a browser or without playwright (requirements-dev.txt), which controls it.

    Raises:
        DataError: if the browser fails, or there is no such element.
    """
    browser = find_browser()
    try:
        from playwright.sync_api import Error, sync_playwright  # deferred: optional
    except ImportError:
        return None
    if browser is None:
        return None
    path = Path(path)
    try:
        with sync_playwright() as playwright, atomic_file(path) as temporary:
            chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
            window = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
            window.goto(Path(page).resolve().as_uri())
            window.locator(selector).nth(number).screenshot(path=temporary, timeout=1000 * wait_s)
            chromium.close()
    except Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{browser} made no picture of {selector} in {page}: {reason}") from error
    return path
