"""Tiny seeded trees in the layout of both data sets, with their cloud masks put straight into the store."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from rasterio.transform import from_origin

from data.clouds.mask_record import MaskEntry, write_record
from data.clouds.mask_store import MaskStore, default_store
from data.raster.geotiff import write_geotiff

SIZE = 32
ROI = "ROIs1868/73"  # of the test split
CLEAR = (4, 9)  # dates without cloud in `write_small_tree`
DETECTOR = "s2cloudless_mask"
FIRST_DAY = date(2018, 1, 5)
COVERAGES = tuple(round(0.05 + 0.9 * ((7 * day) % 30) / 30, 3) for day in range(30))


def clear_at(*days: int) -> list[float]:
    """Coverages of thirty dates, all cloudy but for the given ones."""
    return [0.0 if day in days else COVERAGES[day] for day in range(30)]


def mask_of(coverage: float, size: int = SIZE) -> np.ndarray:
    """A mask whose first pixels are clouded, nearest to that share."""
    flat = np.zeros(size * size, np.float32)
    flat[: round(coverage * size * size)] = 1
    return flat.reshape(size, size)


def optical_level(patch: int, day: int) -> int:
    """The value of every clear pixel in band 1 of an optical patch: tells which file was read."""
    return 300 + 40 * day + patch


def optical(patch: int, day: int, coverage: float, size: int = SIZE) -> np.ndarray:
    bands = np.arange(13, dtype=np.uint16).reshape(13, 1, 1) * 100
    image = np.full((13, size, size), optical_level(patch, day), np.uint16) + bands
    image[:, mask_of(coverage, size) > 0] = 9000
    return image


def radar_level(patch: int, day: int) -> float:
    return -5.0 - 0.5 * day - 0.01 * patch


def radar(patch: int, day: int, size: int = SIZE) -> np.ndarray:
    image = np.full((2, size, size), radar_level(patch, day), np.float32)
    image[1] -= 3.0
    return image


def optical_day(day: int) -> date:
    return FIRST_DAY + timedelta(days=10 * day)


def radar_day(day: int) -> date:
    return optical_day(day) - timedelta(days=3 if day % 2 else 0)


def series_path(roi: str, sensor: str, day: int, patch: int) -> str:
    season, number = roi.split("/")
    when = optical_day(day) if sensor == "S2" else radar_day(day)
    return f"{roi}/{sensor}/{day}/{sensor.lower()}_{season}_{number}_ImgNo_{day}_{when}_patch_{patch}.tif"


def place(patch: int, size: int = SIZE):
    """Patches lie in rows of four, 10 m a pixel."""
    column, row = patch % 4, patch // 4
    return from_origin(500_000 + column * size * 10, 4_000_000 - row * size * 10, 10, 10)


def write_series(
    root: Path, roi: str, patch: int, coverages: Sequence[float] = COVERAGES, size: int = SIZE, stored: bool = True
) -> None:
    """Thirty dates of one patch, and its record in the default store."""
    entries = {}
    for day, coverage in enumerate(coverages):
        path = root / series_path(roi, "S2", day, patch)
        write_geotiff(path, optical(patch, day, coverage, size), "EPSG:32633", place(patch, size), compress=None)
        mask = mask_of(coverage, size)
        entries[path.name] = MaskEntry(float(mask.mean(dtype=np.float64)), mask, path.stat().st_size)
        where = root / series_path(roi, "S1", day, patch)
        write_geotiff(where, radar(patch, day, size), "EPSG:32633", place(patch, size), compress=None)
    if stored:
        store = MaskStore(default_store(root), DETECTOR)
        write_record(store.folder(root) / roi / f"patch_{patch}.npz", entries)


def write_small_tree(root: Path) -> None:
    """Patches 9 and 10 of a test region and 3 of a training region; clear on dates 4 and 9."""
    for patch in (9, 10):
        write_series(root, ROI, patch, clear_at(*CLEAR))
    write_series(root, "ROIs1970/21", 3, clear_at(*CLEAR))


def at(root: Path, sensor: str, day: int, patch: int = 9) -> Path:
    return root / series_path(ROI, sensor, day, patch)


def days_of(day: date) -> int:
    return (day - date(2014, 4, 3)).days


def triplet_path(roi: str, sensor: str, patch: int) -> str:
    season, number = roi.split("/")
    return f"{season}_{sensor}/{sensor}_{number}/{season}_{sensor}_{number}_p{patch}.tif"


def write_triplet(root: Path, roi: str, patch: int, coverage: float = 0.4, members=("s1", "s2", "s2_cloudy")) -> None:
    """Radar, clear and cloudy image of one patch, and its record in the default store."""
    images = {"s1": radar(patch, 0), "s2": optical(patch, 0, 0.0), "s2_cloudy": optical(patch, 1, coverage)}
    for sensor in members:
        write_geotiff(root / triplet_path(roi, sensor, patch), images[sensor], "EPSG:32633", place(patch))
    cloudy = root / triplet_path(roi, "s2_cloudy", patch)
    if cloudy.is_file():
        mask = mask_of(coverage)
        entry = MaskEntry(float(mask.mean(dtype=np.float64)), mask, cloudy.stat().st_size)
        record = MaskStore(default_store(root), DETECTOR).folder(root) / triplet_path(roi, "s2_cloudy", patch)
        write_record(record.with_suffix(".npz"), {cloudy.name: entry})
