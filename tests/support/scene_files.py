"""Small seeded files of a scene."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from scenes.inputs.rasters.grid import Grid

HEIGHT, WIDTH = 70, 90
CRS = "EPSG:32632"
ZONE_31 = "EPSG:32631"
PLACE = from_origin(400_000, 5_000_000, 10, 10)


VEGETATION = np.array([1300, 1050, 1000, 700, 1100, 2600, 3300, 3200, 3600, 1000, 12, 1800, 900])[:, None, None]
SOIL = np.array([1900, 1750, 1750, 1900, 2100, 2350, 2500, 2500, 2700, 750, 12, 3200, 2500])[:, None, None]
"""At the top of the atmosphere, reflectance x 10000."""


def ground(seed: int = 0, bands: int = 13, size: tuple[int, int] = (HEIGHT, WIDTH), offset: int = 0) -> np.ndarray:
    """Reflectance x 10000 of pixels with vegetation and soil, of different brightness, with noise.

    Args:
        seed: of the pixels.
        bands: 13, 12 without B10, or the first ones.
        size: rows and columns.
        offset: added to the values, 1000 from baseline 04.00 on.
    """
    rng = np.random.default_rng(seed)
    share, brightness, noise = rng.random(size), rng.uniform(0.4, 1.6, size), rng.normal(1, 0.02, (13, *size))
    spectra = share * VEGETATION + (1 - share) * SOIL
    pixels = (spectra * brightness * noise).round().clip(4).astype(np.uint16) + np.uint16(offset)
    return np.delete(pixels, 10, axis=0) if bands == 12 else pixels[:bands]


def speckle(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Backscatter in dB, VV and VH."""
    values = np.random.default_rng(seed).normal(0, 2, (2, *size)) + np.array([-10, -16])[:, None, None]
    return values.clip(-24, -1).astype(np.float32)


def write_tif(path: Path, pixels: np.ndarray, *, names=None, tags=None, scale=None, offset=None, **profile) -> str:
    """A GeoTIFF with the metadata of real ones; blocks of 32 pixels, so that scenes of this size have several."""
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    layout = {"tiled": True, "blockxsize": 32, "blockysize": 32, "crs": CRS, "transform": PLACE}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **(shape | layout | profile)) as target:
        target.write(pixels)
        target.update_tags(**(tags or {}))
        if names is not None:
            target.descriptions = tuple(names)
        if scale is not None:
            target.scales = [scale] * len(pixels)
            target.offsets = [offset or 0.0] * len(pixels)
    return str(path)


def zone_31(margin: int) -> tuple:
    """The transform and size of a grid of zone 31 that reaches `margin` pixels beyond the scene."""
    scene = Grid(HEIGHT, WIDTH, PLACE, CRS)
    xs, ys = transform(CRS, ZONE_31, *zip(*(scene.xy(*corner) for corner in scene.corners), strict=True))
    left, top = min(xs) - 10 * margin, max(ys) + 10 * margin
    size = (round((top - min(ys)) / 10) + margin, round((max(xs) - left) / 10) + margin)
    return from_origin(left, top, 10, 10), size


def read_all(series):
    """The pixels of a full series, which is closed again."""
    with series:
        return series.read(series.grid.window)


def notes_of(series) -> str:
    return "\n".join(series.notes)
