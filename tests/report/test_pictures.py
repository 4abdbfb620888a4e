"""Colours of maps and pictures in data URIs."""

import base64
import io

import numpy as np
from PIL import Image

from report.pictures import colour_bar, colour_map, photograph


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_maps_and_pictures_hold_the_right_colours():
    values = np.array([[0.0, 0.05, 0.1, 7.0, np.nan]], np.float32)
    image = decoded(colour_map(values, 0.0, 0.1, "viridis")).convert("RGB")
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
