"""Images of a page as data URIs: pixels as PNG or JPEG, colour bars, and charts as SVG."""

import base64
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.charts import colour_table, plot_coverage, plot_discards, plot_reliability

Array = npt.NDArray[np.float32]

_MAX_SIDE = 512  # pixels; larger images are shown as means of blocks
_SMALL = 128  # pixels; images up to this side are enlarged, and stored without loss
_QUALITY = 90  # of JPEG
_CHART_WIDTH = 4.4  # inches: three charts fit side by side, with letters readable on a phone


@dataclass(frozen=True)
class Picture:
    """One image of a page."""

    src: str  # data URI
    alt: str
    caption: str = ""
    note: str = ""  # below the caption, smaller
    key: str = ""  # of the slider; empty if the slider does not offer it
    small: bool = False  # enlarge pixel by pixel


@dataclass(frozen=True)
class ColourBar:
    """The scale of maps: a strip of its colours, and the numbers below it from left to right."""

    src: str
    alt: str
    ticks: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and caption."""

    title: str
    src: str
    alt: str
    caption: str


def photograph(rgb: Array) -> str:
    """The data URI of a picture (H,W,3) in [0, 1]."""
    pixels = np.rint(255 * _shrink(rgb)).astype(np.uint8)
    if is_small(pixels):
        return _encode(pixels, "PNG", optimize=True)
    return _encode(pixels, "JPEG", quality=_QUALITY, subsampling=0)  # optimize=True fails on noise: buffer too small


def colour_map(values: Array, low: float, high: float, colours: str) -> str:
    """The data URI of a map (H,W): `colours` from `low` to `high`, clipped to this range, NaN shown as `low`."""
    share = (np.nan_to_num(_shrink(values), nan=low) - low) / (high - low)
    return _encode(np.rint(255 * share.clip(0, 1)).astype(np.uint8), "PNG", colour_table(colours), optimize=True)


def is_small(image: npt.NDArray[Any]) -> bool:
    """Whether an image (H,W,...) is to be enlarged pixel by pixel."""
    return max(image.shape[:2]) <= _SMALL


def colour_bar(low: float, high: float, colours: str, label: str, steps: int, open_end: bool = True) -> ColourBar:
    """The bar of a scale.

    Args:
        low: left end.
        high: right end.
        colours: name of a colour map.
        label: quantity and unit.
        steps: between the numbers below the bar.
        open_end: whether the last number stands for larger values too.
    """
    strip = np.linspace(low, high, 256, dtype=np.float32)[None]  # (1,256)
    numbers = [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in np.linspace(low, high, steps + 1).round(6)]
    if open_end:
        numbers[-1] = f"\N{GREATER-THAN OR EQUAL TO} {numbers[-1]}"
    alt = f"Colour bar, {label}: from dark, {numbers[0]}, to bright, {numbers[-1]}"
    return ColourBar(colour_map(strip, low, high, colours), alt, tuple(numbers), label)


def calibration_charts(
    runs: Mapping[str, Mapping[str, Any]],
    discard_curves: Mapping[str, Sequence[float]],
    *,
    reliability: tuple[str, str],
    coverage: tuple[str, str],
    discard: tuple[str, str],
) -> list[Chart]:
    """Reliability, coverage and discard curves.

    Args:
        runs: name -> metrics, drawn in one chart.
        discard_curves: by name.
        reliability: alternative text and caption of the chart.
        coverage: the same.
        discard: the same.
    """
    charts = {
        "Reliability": (partial(plot_reliability, runs), reliability),
        "Coverage": (partial(plot_coverage, runs), coverage),
        "Discard curve": (partial(plot_discards, discard_curves), discard),
    }
    return [Chart(title, _chart_uri(draw), *texts) for title, (draw, texts) in charts.items()]


def _chart_uri(draw: Callable[..., Any]) -> str:
    with tempfile.TemporaryDirectory(prefix="report_") as folder:
        path = Path(folder) / "chart.svg"
        draw(path=path, width=_CHART_WIDTH)
        return _uri("image/svg+xml", path.read_bytes())


def _shrink(image: Array) -> Array:
    """Means of blocks, so that no side is longer than _MAX_SIDE; incomplete blocks at the edge are dropped."""
    factor = -(-max(image.shape[:2]) // _MAX_SIDE)
    if factor == 1:
        return image
    height, width = (length // factor for length in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, *image.shape[2:])
    return blocks.mean(axis=(1, 3))


def _encode(
    pixels: npt.NDArray[np.uint8], kind: str, palette: npt.NDArray[np.uint8] | None = None, **options: Any
) -> str:
    from PIL import Image  # deferred: comes with matplotlib, and most commands draw nothing

    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _uri(f"image/{kind.lower()}", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
