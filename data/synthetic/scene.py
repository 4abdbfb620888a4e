"""Simulated Sentinel-2 and Sentinel-1 acquisitions of a landscape.

A landscape (data/synthetic/land.py) is static; an acquisition adds the state of the vegetation, soil moisture, the
atmosphere, clouds (data/synthetic/clouds.py), speckle and sensor noise. Levels are those of real patches
(data/synthetic/covers.py). There is no snow.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from data.constants import band_index
from data.synthetic import covers
from data.synthetic.clouds import CloudField, apply_clouds
from data.synthetic.covers import FloatArray
from data.synthetic.land import YEAR, Landscape

BANDS_20M = tuple(band_index(name) for name in ("B05", "B06", "B07", "B8A", "B11", "B12"))
BANDS_60M = tuple(band_index(name) for name in ("B01", "B09", "B10"))


@dataclass(frozen=True)
class Observation:
    """An optical acquisition.

    Attributes:
        optical: (13, H, W) uint16, the Sentinel-2 image with clouds.
        clear: (13, H, W) uint16, the same without clouds and shadows; equals `optical` in clear weather.
        clouds: the clouds.
    """

    optical: np.ndarray
    clear: np.ndarray
    clouds: CloudField


def observe_optical(rng: np.random.Generator, land: Landscape, day: float, clouds: CloudField) -> Observation:
    """Simulate a Sentinel-2 acquisition.

    Args:
        rng: source of randomness: atmosphere and sensor noise.
        land: the ground.
        day: day of the year.
        clouds: clouds over the landscape.

    Returns:
        The image with and without clouds.
    """
    climate = land.climate
    greenness = land.seasons.greenness(day)[land.unit]
    ground = land.bare + greenness * (land.green - land.bare)
    season = soil_moisture(climate, day)
    wet = season + rng.normal(0, 0.12)
    path = covers.PATH_RADIANCE[:, None, None]  # independent of the ground: only the rest is scaled
    ground -= 0.07 * np.clip(wet, -1.0, 1.5) * (1.0 - greenness) * ~land.water * (ground - path)
    vapour = float(np.clip(climate.vapour * (1.0 - climate.vapour_swing * season) * rng.normal(1, 0.04), 0.08, 0.6))
    ground[band_index("B09")] = ground[band_index("B8A")] * vapour
    ground[band_index("B10")] = 8.0 + 75.0 * vapour**2
    gain, haze = rng.normal(1.0, 0.012), min(0.6, abs(rng.normal(0, 0.25)))
    clear = path + (ground - path) * gain + haze * covers.HAZE[:, None, None]
    noise = rng.standard_normal(clear.shape, dtype=np.float32) * covers.SENSOR_NOISE[:, None, None]
    return Observation(_measure(apply_clouds(clear, clouds, vapour), noise), _measure(clear, noise), clouds)


def observe_radar(rng: np.random.Generator, land: Landscape, day: float) -> FloatArray:
    """Simulate a Sentinel-1 acquisition.

    Args:
        rng: source of randomness: weather and speckle.
        land: the ground.
        day: day of the year.

    Returns:
        (2, H, W) backscatter of VV and VH in dB, float32.
    """
    greenness = land.seasons.greenness(day)[land.unit]
    level = land.radar_bare + greenness * (land.radar_green - land.radar_bare)
    wet = soil_moisture(land.climate, day) + rng.normal(0, 0.3)
    level = level + wet * land.moisture_db * np.array([1.0, 0.6], dtype=np.float32)[:, None, None]
    level += land.water * rng.normal(0, 1.3) + rng.normal(0, 0.1)  # wind on water; calibration
    looks = rng.standard_normal((2 * covers.SPECKLE_LOOKS, *level.shape), dtype=np.float32)
    sigma = covers.SPECKLE_CORRELATION_PX
    field = gaussian_filter(looks, sigma=(0, 0, sigma, sigma), mode="wrap", truncate=3.0)
    power = np.square(field).mean(axis=0)  # gamma distributed, SPECKLE_LOOKS looks
    power /= power.mean(axis=(1, 2), keepdims=True)
    return (level + 10.0 * np.log10(np.maximum(power, 1e-3))).astype(np.float32)


def soil_moisture(climate: covers.Climate, day: float) -> float:
    """Soil moisture relative to its annual mean, -1 to 1."""
    return float(np.cos(2 * np.pi * (day - climate.wet_day) / YEAR))


def _measure(image: FloatArray, noise: FloatArray) -> np.ndarray:
    """Reduce the bands to their ground resolution, add noise, and round to digital numbers."""
    image = image.copy()
    for bands, factor in ((BANDS_20M, 2), (BANDS_60M, 6)):
        image[list(bands)] = _coarsen(image[list(bands)] + noise[list(bands)], factor) - noise[list(bands)]
    return np.clip(np.rint(image + noise), 1, 65535).astype(np.uint16)


def _coarsen(image: FloatArray, factor: int) -> FloatArray:
    """Replace blocks of factor x factor pixels by their mean; blocks at the border may be smaller."""
    height, width = image.shape[-2:]
    pad = ((0, 0), (0, -height % factor), (0, -width % factor))
    padded = np.pad(image, pad, mode="edge")
    blocks = padded.reshape(len(image), padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    means = blocks.mean(axis=(2, 4))
    return means.repeat(factor, axis=1).repeat(factor, axis=2)[:, :height, :width]
