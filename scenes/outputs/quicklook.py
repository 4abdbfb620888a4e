"""A small picture of a scene."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling

from data.constants import N_S2, REFLECTANCE_SCALE, RGB
from data.raster.rgb import save_pixels, to_rgb
from scenes.inputs.dataset_pool import reading

LONGEST = 1024  # pixels


def write_quicklook(reflectance: Path, path: Path, longest: int = LONGEST) -> None:
    """Write a PNG in true colour, transparent where there is no data.

    Args:
        reflectance: the product, x 10000; its overviews are read, not the whole.
        path: the file to make.
        longest: pixels along the longer side, at most.
    """
    with rasterio.open(reflectance) as source, reading(str(reflectance)):
        shrink = max(1.0, max(source.height, source.width) / longest)
        size = max(1, round(source.height / shrink)), max(1, round(source.width / shrink))
        bands = [band + 1 for band in RGB]
        stored = source.read(bands, out_shape=(len(bands), *size), resampling=Resampling.average)
        there = source.dataset_mask(out_shape=size) > 0
        missing = ~there if source.nodata is not None else ~stored.any(axis=0)
    image = np.zeros((N_S2, *size), np.float32)
    image[list(RGB)] = stored / np.float32(REFLECTANCE_SCALE)
    colours = np.concatenate([to_rgb(image), np.where(missing, 0, 1)[..., None]], axis=-1)  # (H,W,4)
    save_pixels(path, colours)
