"""Small seeded files of a scene."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from scenes.inputs.grid import Grid

HEIGHT, WIDTH = 70, 90
CRS = "EPSG:32632"
ZONE_31 = "EPSG:32631"
PLACE = from_origin(400_000, 5_000_000, 10, 10)


def ground(seed: int = 0, bands: int = 13, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Reflectance x 10000 between 1500 and 6000."""
    return np.random.default_rng(seed).integers(1500, 6000, (bands, *size)).astype(np.uint16)


def speckle(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).normal(-12, 3, (2, *size)).clip(-24, -1).astype(np.float32)


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
