"""Images inside a page: pixels as PNG or JPEG, colour bars, and charts as SVG, all as data URIs."""

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.charts import colour_table

Array = npt.NDArray[np.float32]

_MOST_PIXELS = 512  # of a side; larger images are shown as means of blocks
_SMALL = 128  # up to this side pictures are kept to the last bit: they are shown enlarged
_QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Picture:
    """One image of a page."""

    src: str  # data URI
    alt: str
    caption: str = ""
    note: str = ""  # below the caption, smaller
    key: str = ""  # what the slider calls it; empty if it is not offered there
    small: bool = False  # to be enlarged pixel by pixel


@dataclass(frozen=True)
class ColourBar:
    """The scale of some maps: a strip of its colours, and numbers below it from left to right."""

    src: str
    alt: str
    ticks: tuple[str, ...]
    label: str


def photograph(rgb: Array) -> str:
    """The data URI of a picture (H,W,3) in [0, 1]."""
    pixels = np.rint(255 * _shrunk(rgb)).astype(np.uint8)
    small = max(pixels.shape[:2]) <= _SMALL
    return (
        _encoded(pixels, "PNG", optimize=True) if small else _encoded(pixels, "JPEG", quality=_QUALITY, subsampling=0)
    )


def mapped(values: Array, low: float, high: float, colours: str) -> str:
    """The data URI of a map (H,W): `colours` from `low` to `high`, what lies beyond at the ends, NaN at the low end."""
    share = (np.nan_to_num(_shrunk(values), nan=low) - low) / (high - low)
    return _encoded(np.rint(255 * share.clip(0, 1)).astype(np.uint8), "PNG", colour_table(colours), optimize=True)


def is_small(image: Array) -> bool:
    """Whether an image (H,W,...) is so small that it is better enlarged pixel by pixel."""
    return max(image.shape[:2]) <= _SMALL


def colour_bar(low: float, high: float, colours: str, label: str, steps: int, open_end: bool = True) -> ColourBar:
    """The bar of a scale.

    Args:
        low: its left end.
        high: its right end.
        colours: name of a colour map.
        label: what it shows, with unit.
        steps: between the numbers below it.
        open_end: whether values above the end are shown in its colour; the last number says so.
    """
    strip = np.linspace(low, high, 256, dtype=np.float32)[None]  # (1,256)
    numbers = [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in np.linspace(low, high, steps + 1).round(6)]
    if open_end:
        numbers[-1] = f"\N{GREATER-THAN OR EQUAL TO} {numbers[-1]}"
    alt = f"Colour bar, {label}: from dark, {numbers[0]}, to bright, {numbers[-1]}"
    return ColourBar(mapped(strip, low, high, colours), alt, tuple(numbers), label)


def charts(draw: Sequence[Callable[[Path], Any]]) -> list[str]:
    """The data URIs of charts.

    Args:
        draw: functions that write one chart to the path of an SVG file.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="report_") as folder:
        for number, write in enumerate(draw):
            path = Path(folder) / f"{number}.svg"
            write(path)
            found.append(_uri("image/svg+xml", path.read_bytes()))
    return found


def _shrunk(image: Array) -> Array:
    """Means of blocks, so that no side is longer than _MOST_PIXELS; what is left over at the edge is dropped."""
    factor = -(-max(image.shape[:2]) // _MOST_PIXELS)
    if factor == 1:
        return image
    height, width = (length // factor for length in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, *image.shape[2:])
    return blocks.mean(axis=(1, 3))


def _encoded(
    pixels: npt.NDArray[np.uint8], kind: str, palette: npt.NDArray[np.uint8] | None = None, **options: Any
) -> str:
    from PIL import Image  # here: it comes with matplotlib, and most commands draw nothing

    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    room = io.BytesIO()
    image.save(room, kind, **options)  # optimize=True fails on a JPEG of noise, for want of a buffer
    return _uri(f"image/{kind.lower()}", room.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
