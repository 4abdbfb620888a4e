"""Simulated clouds: fractal clouds of varying thickness, their shadows, cirrus, and their effect on an image.

A cloud of optical thickness t reflects R = t / (t + 8) of what an infinitely thick one does (two-stream limit of a
scattering layer with the asymmetry of water droplets) and transmits (1 - R) ** 1.5 of the ground's light on its way
down and up. All functions are pure; random numbers come from a Generator.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from data.constants import band_index
from data.synthetic.covers import CLOUD, ICE, PATH_RADIANCE, FloatArray

HALF_THICKNESS = 8.0  # optical thickness at which half of the limit is reflected
# A pixel is cloudy if the layer reflects more than this fraction of the limit: for liquid, for ice (visible in B10)
CLOUD_REFLECTANCE, CIRRUS_REFLECTANCE = 0.12, 0.06
SHADOW_DEPTH = 0.15  # a pixel is in shadow if the layer on its path to the sun reflects more than this fraction
# Fraction of the ground's light that an opaque cloud blocks: diffuse light remains at short wavelengths.
SHADE = np.array([0.35, 0.42, 0.5, 0.55, 0.58, 0.62, 0.63, 0.65, 0.66, 0.66, 0.0, 0.72, 0.75], dtype=np.float32)


@dataclass(frozen=True)
class Weather:
    """Weather of one date.

    Attributes:
        kind: a key of `KINDS`, or "clear".
        cover: fraction of the scene under cloud, in [0, 1].
    """

    kind: str
    cover: float


@dataclass(frozen=True)
class CloudKind:
    """Parameters of one kind of cloud.

    Attributes:
        exponent: slope of the amplitude spectrum; low is ragged, high is smooth.
        edge: noise units over which the optical thickness grows by e; small is sharp-edged.
        thickest: largest optical thickness.
        ice: fraction of ice, in [0, 1]; ice clouds are high and visible in B10.
    """

    exponent: float
    edge: float
    thickest: float
    ice: float


KINDS: dict[str, CloudKind] = {
    "cumulus": CloudKind(1.65, 0.13, 45.0, 0.0),
    "layer": CloudKind(1.8, 0.20, 30.0, 0.0),
    "thin": CloudKind(1.9, 0.50, 6.0, 0.0),
    "cirrus": CloudKind(1.8, 0.50, 3.5, 1.0),
    "deck": CloudKind(1.60, 0.25, 60.0, 0.1),
    "front": CloudKind(1.70, 0.30, 70.0, 0.7),
}
PARTIAL_KINDS, PARTIAL_ODDS = ("cumulus", "layer", "thin", "cirrus"), (0.45, 0.35, 0.12, 0.08)
OVERCAST_KINDS = ("deck", "deck", "front")


@dataclass(frozen=True)
class CloudField:
    """Clouds over a scene of (H, W) pixels.

    Attributes:
        opacity: fraction of the limiting reflectance, (H, W) in [0, 1).
        shade: opacity between each pixel and the sun, (H, W) in [0, 1).
        ice: fraction of ice in the clouds, in [0, 1].
    """

    opacity: FloatArray
    shade: FloatArray
    ice: float

    @property
    def cloud_mask(self) -> np.ndarray:
        """Cloud mask, (H, W) bool."""
        return self.opacity > _minimum_opacity(self.ice)

    @property
    def shadow_mask(self) -> np.ndarray:
        """Mask of cloud shadow on visible ground, (H, W) bool."""
        return (self.shade > SHADOW_DEPTH) & ~self.cloud_mask


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], exponent: float, outer_px: float | None = None
) -> FloatArray:
    """Gaussian noise with a power-law amplitude spectrum.

    Args:
        rng: source of randomness.
        shape: (H, W).
        exponent: slope of the amplitude; 1 is grainy, 2 is smooth.
        outer_px: wavelength above which the spectrum is flat, which limits the size of features; None: no limit.

    Returns:
        (H, W), mean 0 and standard deviation 1 over the scene.
    """
    height, width = (fft.next_fast_len(n + n // 4, real=True) for n in shape)  # the margin hides the periodicity
    white = rng.standard_normal((height, width), dtype=np.float32)
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    floor = 1.0 / max(height, width) if outer_px is None else 1.0 / outer_px
    spectrum = fft.rfft2(white) * np.maximum(frequency, floor) ** -exponent
    spectrum[0, 0] = 0.0
    noise = fft.irfft2(spectrum, s=(height, width))[: shape[0], : shape[1]]
    spread = float(noise.std())
    return ((noise - noise.mean()) / (spread or 1.0)).astype(np.float32)


def simulate_weather(
    rng: np.random.Generator, n_dates: int, clear_share: float, season: npt.NDArray[np.float64], cloudy_start: bool
) -> tuple[Weather, ...]:
    """Draw the weather of a series: clear dates, partial cover of 10 to 95 %, and overcast dates, autocorrelated.

    Args:
        rng: source of randomness.
        n_dates: number of dates.
        clear_share: fraction of dates without clouds; at least two are clear.
        season: (n_dates,) cloudiness of the season, about -1 to 1.
        cloudy_start: cover 45 to 85 % of the first four dates.

    Returns:
        One `Weather` for each date.
    """
    latent = rng.standard_normal(n_dates)
    for i in range(1, n_dates):
        latent[i] = 0.55 * latent[i - 1] + 0.83 * latent[i]  # autocorrelation; the variance stays near 1
    latent += 0.6 * season
    if cloudy_start:
        latent[:4] += 6.0
    order = np.argsort(np.argsort(latent, kind="stable"), kind="stable")
    n_clear = min(n_dates, max(2, round(clear_share * n_dates)))
    n_overcast = round(0.17 * n_dates)
    series = []
    for i, rank in enumerate(order):
        kind = PARTIAL_KINDS[int(rng.choice(len(PARTIAL_KINDS), p=PARTIAL_ODDS))]
        overcast = OVERCAST_KINDS[int(rng.integers(len(OVERCAST_KINDS)))]
        cloudiness = (rank - n_clear) / max(1, n_dates - n_overcast - n_clear - 1)
        cover = float(np.clip(0.1 + 0.85 * cloudiness + rng.normal(0, 0.05), 0.1, 0.95))
        start_cover = float(rng.uniform(0.45, 0.85))
        if cloudy_start and i < 4:
            series.append(Weather(kind, start_cover))
        elif rank < n_clear:
            series.append(Weather("clear", 0.0))
        elif rank >= n_dates - n_overcast:
            series.append(Weather(overcast, 1.0))
        else:
            series.append(Weather(kind, cover))
    return tuple(series)


def simulate_clouds(
    rng: np.random.Generator, shape: tuple[int, int], weather: Weather, scale_px: float, sun_azimuth: float
) -> CloudField:
    """Draw the clouds of one date.

    Args:
        rng: source of randomness.
        shape: (H, W) of the scene.
        weather: kind and cover of the clouds.
        scale_px: size of the largest clouds; shadows are displaced by a fraction of it.
        sun_azimuth: radians clockwise from north.

    Returns:
        The clouds; all zeros in clear weather.
    """
    if weather.kind == "clear":
        empty = np.zeros(shape, dtype=np.float32)
        return CloudField(empty, empty, 0.0)
    kind = KINDS[weather.kind]
    reach = rng.uniform(0.12, 0.35) * scale_px  # displacement of the shadow: cloud height / tan(sun elevation)
    dy, dx = round(np.cos(sun_azimuth) * reach), round(-np.sin(sun_azimuth) * reach)  # rows grow southwards
    pad = int(np.ceil(0.36 * scale_px))
    noise = fractal_noise(rng, (shape[0] + 2 * pad, shape[1] + 2 * pad), kind.exponent, scale_px)
    inner = noise[pad : pad + shape[0], pad : pad + shape[1]]
    if weather.cover >= 1.0:
        height = noise - inner.min() + kind.edge * rng.uniform(2.5, 4.0)  # at least e ** 2.5 times the minimum
    else:
        height = noise - np.quantile(inner, 1.0 - weather.cover)
    minimum = _minimum_opacity(kind.ice)
    thickness = HALF_THICKNESS * minimum / (1.0 - minimum) * np.exp(np.clip(height / kind.edge, -8.0, 8.0))
    thickness = np.minimum(thickness, kind.thickest) * (thickness > 0.06)
    opacity = (thickness / (thickness + HALF_THICKNESS)).astype(np.float32)
    rows, columns = slice(pad - dy, pad - dy + shape[0]), slice(pad - dx, pad - dx + shape[1])
    return CloudField(opacity[pad : pad + shape[0], pad : pad + shape[1]], opacity[rows, columns], kind.ice)


def apply_clouds(clear: FloatArray, clouds: CloudField, vapour: float) -> FloatArray:
    """The reflectance of a clear scene under clouds, before noise.

    Args:
        clear: (13, H, W) reflectance x 10000 without clouds.
        clouds: clouds over the same pixels.
        vapour: reflectance of B09 relative to B8A at this date; clouds lie above a part of the vapour.

    Returns:
        (13, H, W) reflectance x 10000; equals `clear` where there are neither clouds nor shadows.
    """
    # subtracted, not multiplied: without shade the value is bitwise unchanged
    shaded = clear - np.maximum(clear - PATH_RADIANCE[:, None, None], 0.0) * (SHADE[:, None, None] * clouds.shade)
    spectrum = CLOUD * (1.0 - clouds.ice) + ICE * clouds.ice
    spectrum[band_index("B09")] = spectrum[band_index("B8A")] * vapour * (1.35 + 0.9 * clouds.ice)
    spectrum[band_index("B10")] = 22.0 + 1900.0 * clouds.ice
    return (shaded * (1.0 - clouds.opacity) ** 1.5 + spectrum[:, None, None] * clouds.opacity).astype(np.float32)


def _minimum_opacity(ice: float) -> float:
    return CLOUD_REFLECTANCE + ice * (CIRRUS_REFLECTANCE - CLOUD_REFLECTANCE)
