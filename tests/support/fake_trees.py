"""Tiny seeded trees in the layout of both data sets, with their cloud masks in the default store."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from data.clouds.mask_record import MaskEntry, write_record
from data.clouds.mask_store import MaskStore, default_store
from data.raster.geotiff import write_geotiff

SIZE = 32
ROI = "ROIs1868/73"  # of the test split
CLEAR = (4, 9)  # dates without cloud in `write_series_tree`
DETECTOR = "s2cloudless_mask"
CRS = "EPSG:32633"
FIRST_DATE = date(2018, 1, 5)
COVERAGES = tuple(round(0.05 + 0.9 * ((7 * day) % 30) / 30, 3) for day in range(30))


def coverages_with_clear(*days: int) -> list[float]:
    """Coverages of thirty dates, all cloudy except the given ones."""
    return [0.0 if day in days else COVERAGES[day] for day in range(30)]


def cloud_mask(coverage: float, size: int = SIZE) -> np.ndarray:
    """A mask with the given coverage (rounded to pixels) in its first pixels."""
    flat = np.zeros(size * size, np.float32)
    flat[: round(coverage * size * size)] = 1
    return flat.reshape(size, size)


def mask_entry(mask: np.ndarray, image: Path) -> MaskEntry:
    """The entry of an image in the mask store."""
    return MaskEntry(float(mask.mean(dtype=np.float64)), mask, image.stat().st_size)


def optical_level(patch: int, day: int) -> int:
    """The value of all clear pixels in band 1 of an optical image, which identifies its file."""
    return 300 + 40 * day + patch


def optical_image(patch: int, day: int, coverage: float, size: int = SIZE) -> np.ndarray:
    bands = np.arange(13, dtype=np.uint16).reshape(13, 1, 1) * 100
    image = np.full((13, size, size), optical_level(patch, day), np.uint16) + bands
    image[:, cloud_mask(coverage, size) > 0] = 9000
    return image


def radar_level(patch: int, day: int) -> float:
    return -5.0 - 0.5 * day - 0.01 * patch


def radar_image(patch: int, day: int, size: int = SIZE) -> np.ndarray:
    image = np.full((2, size, size), radar_level(patch, day), np.float32)
    image[1] -= 3.0
    return image


def optical_date(day: int) -> date:
    return FIRST_DATE + timedelta(days=10 * day)


def radar_date(day: int) -> date:
    return optical_date(day) - timedelta(days=3 if day % 2 else 0)


def days_since_launch(day: date) -> int:
    return (day - date(2014, 4, 3)).days


def patch_transform(patch: int, size: int = SIZE):
    """Patches lie in rows of four, 10 m a pixel."""
    column, row = patch % 4, patch // 4
    return from_origin(500_000 + column * size * 10, 4_000_000 - row * size * 10, 10, 10)


def series_path(roi: str, sensor: str, day: int, patch: int) -> str:
    season, number = roi.split("/")
    acquired = optical_date(day) if sensor == "S2" else radar_date(day)
    return f"{roi}/{sensor}/{day}/{sensor.lower()}_{season}_{number}_ImgNo_{day}_{acquired}_patch_{patch}.tif"


def image_path(root: Path, sensor: str, day: int, patch: int = 9) -> Path:
    """The file of an image in a region of `ROI`."""
    return root / series_path(ROI, sensor, day, patch)


def write_series(
    root: Path, roi: str, patch: int, coverages: Sequence[float] = COVERAGES, size: int = SIZE, stored: bool = True
) -> None:
    """Write thirty dates of one patch, and its record in the default store."""
    entries = {}
    for day, coverage in enumerate(coverages):
        optical, radar = (root / series_path(roi, sensor, day, patch) for sensor in ("S2", "S1"))
        transform = patch_transform(patch, size)
        write_geotiff(optical, optical_image(patch, day, coverage, size), CRS, transform, compress=None)
        write_geotiff(radar, radar_image(patch, day, size), CRS, transform, compress=None)
        entries[optical.name] = mask_entry(cloud_mask(coverage, size), optical)
    if stored:
        store = MaskStore(default_store(root), DETECTOR)
        write_record(store.folder(root) / roi / f"patch_{patch}.npz", entries)


def write_series_tree(root: Path) -> None:
    """Write patches 9 and 10 of a test region and 3 of a training region, clear on dates 4 and 9."""
    for patch in (9, 10):
        write_series(root, ROI, patch, coverages_with_clear(*CLEAR))
    write_series(root, "ROIs1970/21", 3, coverages_with_clear(*CLEAR))


def triplet_path(roi: str, sensor: str, patch: int) -> str:
    season, number = roi.split("/")
    return f"{season}_{sensor}/{sensor}_{number}/{season}_{sensor}_{number}_p{patch}.tif"


def write_triplet(root: Path, roi: str, patch: int, coverage: float = 0.4, members=("s1", "s2", "s2_cloudy")) -> None:
    """Write radar, clear and cloudy image of one patch, and its record in the default store."""
    images = {
        "s1": radar_image(patch, 0),
        "s2": optical_image(patch, 0, 0.0),
        "s2_cloudy": optical_image(patch, 1, coverage),
    }
    for sensor in members:
        write_geotiff(root / triplet_path(roi, sensor, patch), images[sensor], CRS, patch_transform(patch))
    cloudy = root / triplet_path(roi, "s2_cloudy", patch)
    if cloudy.is_file():
        record = MaskStore(default_store(root), DETECTOR).folder(root) / triplet_path(roi, "s2_cloudy", patch)
        write_record(record.with_suffix(".npz"), {cloudy.name: mask_entry(cloud_mask(coverage), cloudy)})


def zero_rows(path: Path, rows: int) -> None:
    """Overwrite the last rows of an image by zeros; the size of an uncompressed file stays."""
    with rasterio.open(path) as source:
        image, crs, transform = source.read(), source.crs, source.transform
        compression = source.compression
    image[:, -rows:] = 0
    write_geotiff(path, image, crs, transform, compress=compression and compression.name)
