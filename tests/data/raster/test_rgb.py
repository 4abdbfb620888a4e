"""True-colour pictures: band order, the stretch, and PNG files pixel for pixel."""

import numpy as np
from matplotlib.image import imread

from data.constants import band_index
from data.raster.rgb import save_pixels, to_rgb


def test_true_colour_takes_red_green_blue_in_this_order():
    image = np.zeros((13, 2, 2), np.float32)
    image[band_index("B04")] = 0.5
    assert to_rgb(image)[0, 0].tolist() == [1, 0, 0]
    radar = np.concatenate([np.ones((2, 2, 2), np.float32), image])
    assert to_rgb(radar)[0, 0].tolist() == [1, 0, 0]
    image[band_index("B02")] = np.nan  # a hole is black, not an error
    assert to_rgb(image)[0, 0].tolist() == [1, 0, 0]


def test_saved_pixels_keep_colour_and_opacity(tmp_path):
    image = np.random.default_rng(0).random((5, 7, 4)).astype(np.float32)
    save_pixels(tmp_path / "picture.png", image)
    np.testing.assert_allclose(imread(tmp_path / "picture.png"), image, atol=1 / 255)  # 8 bits a channel
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
