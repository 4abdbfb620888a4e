"""A small true-colour picture of a scene."""

from pathlib import Path

import numpy as np
from rasterio.enums import Resampling

from data.constants import N_S2, REFLECTANCE_SCALE, RGB
from data.raster.geotiff import open_image
from data.raster.rgb import save_pixels, to_rgb
from scenes.inputs.rasters.dataset_pool import read_errors

LONGEST = 1024  # pixels


def write_quicklook(reflectance: Path, path: Path, longest: int = LONGEST) -> None:
    """Write a PNG in true colour, transparent where there is no data.

    Args:
        reflectance: the product, x 10000; only its overviews are read.
        path: the file to write.
        longest: maximum pixels along the longer side.
    """
    with open_image(str(reflectance)) as source, read_errors(str(reflectance)):
        reduction = max(1.0, max(source.height, source.width) / longest)
        size = max(1, round(source.height / reduction)), max(1, round(source.width / reduction))
        bands = [band + 1 for band in RGB]
        stored = source.read(bands, out_shape=(len(bands), *size), resampling=Resampling.average)
        valid = source.dataset_mask(out_shape=size) > 0 if source.nodata is not None else stored.any(axis=0)
    image = np.zeros((N_S2, *size), np.float32)
    image[list(RGB)] = stored / np.float32(REFLECTANCE_SCALE)
    save_pixels(path, np.concatenate([to_rgb(image), np.where(valid, 1, 0)[..., None]], axis=-1))  # (H,W,4)
