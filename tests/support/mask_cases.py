"""Small images for the mask store, and coverage files in the published format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rasterio.transform import from_origin

from data.clouds.detectors import detect_clouds
from data.raster.geotiff import read_bands, write_geotiff
from tests.support.fake_trees import ROI, series_path

RULES = "cloud_cloudshadow_mask"  # takes milliseconds an image


def optical_path(patch: int, date: int, roi: str = ROI) -> str:
    return series_path(roi, "S2", date, patch)


def write_image(path: Path, seed: int, size: int = 16) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 2000, (13, size, size))
    image[:, : rng.integers(size), :] += 5000  # a cloud over a part of it
    write_geotiff(path, image.astype(np.uint16), "EPSG:32631", from_origin(0, 0, 10, 10))


def write_images(root: Path, n_patches: int, n_dates: int = 5) -> list[list[str]]:
    """Write some dates of some patches; returns the paths of each patch."""
    series = [[optical_path(patch, date) for date in range(n_dates)] for patch in range(n_patches)]
    for seed, path in enumerate(path for paths in series for path in paths):
        write_image(root / path, seed)
    return series


def detect_files(root: Path, paths: Sequence[str], detector: str = RULES) -> list[np.ndarray]:
    """The masks of images, computed without a store."""
    return [detect_clouds(read_bands(root / path), detector) for path in paths]


def published_samples(patches: Sequence[int], folder: str = "SEN12MSCRTS/", dates: int = 30, as_tensor: bool = True):
    """The content of a published file: collated tensors of one value, paths that begin with the root's name."""
    samples = {}
    for position, patch in enumerate(patches):
        values = [(patch + date) % 10 / 10 for date in range(dates)]
        samples[position] = {
            "coverage": [torch.tensor([value]) if as_tensor else value for value in values],
            "paths": {s: [folder + series_path(ROI, s, date, patch) for date in range(dates)] for s in ("S1", "S2")},
        }
    return samples


def save_npy(path: Path, content: object) -> Path:
    np.save(path, content, allow_pickle=True)
    return path
