"""Made-up skies: fractal clouds of any thickness, the shadows they cast, cirrus, and what a sensor sees through them.

A cloud of optical thickness t reflects R = t / (t + 8) of what an endlessly thick one does (two-stream limit of a
scattering layer with the asymmetry of water droplets) and lets (1 - R) ** 1.5 of the ground's light through, once down
and once up. Everything is pure: randomness comes in as a Generator.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from data.constants import band_index
from data.synthetic.covers import CLOUD, ICE, PATH_RADIANCE, FloatArray

HALF_THICKNESS = 8.0  # optical thickness that reflects half of the limit
# A pixel counts as cloud when the layer reflects more than this share of the limit: of liquid, of ice (which B10 sees)
CLOUD_REFLECTANCE, CIRRUS_REFLECTANCE = 0.12, 0.06
SHADOW_DEPTH = 0.15  # a pixel counts as shadow when the layer above its sun path reflects more than this share
# Share of the ground's light that a fully opaque cloud takes away: the sky still lights the short waves.
SHADE = np.array([0.35, 0.42, 0.5, 0.55, 0.58, 0.62, 0.63, 0.65, 0.66, 0.66, 0.0, 0.72, 0.75], dtype=np.float32)


@dataclass(frozen=True)
class Weather:
    """The sky of one date.

    Attributes:
        kind: a key of `KINDS`, or "clear".
        cover: share of the scene under cloud, in [0, 1].
    """

    kind: str
    cover: float


@dataclass(frozen=True)
class CloudKind:
    """How one kind of cloud looks.

    Attributes:
        exponent: slope of the amplitude spectrum; low is ragged, high is smooth.
        edge: noise units over which the optical thickness grows by e; small is sharp-edged.
        thickest: largest optical thickness.
        ice: share of ice, in [0, 1]; ice is high: B10 sees it, and its shadow falls outside.
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
class Sky:
    """Clouds over a scene of (H, W) pixels.

    Attributes:
        opacity: share of the limiting reflectance, (H, W) in [0, 1).
        shade: opacity of what lies between each pixel and the sun, (H, W) in [0, 1).
        ice: share of ice in the clouds, in [0, 1].
    """

    opacity: FloatArray
    shade: FloatArray
    ice: float

    @property
    def cloud_mask(self) -> np.ndarray:
        """Where the truth says cloud, (H, W) bool."""
        return self.opacity > _bounding_opacity(self.ice)

    @property
    def shadow_mask(self) -> np.ndarray:
        """Where a cloud's shadow lies on ground that is seen, (H, W) bool."""
        return (self.shade > SHADOW_DEPTH) & ~self.cloud_mask


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], exponent: float, outer_px: float | None = None
) -> FloatArray:
    """Gaussian noise whose amplitude spectrum falls as a power of the frequency.

    Args:
        rng: source of randomness.
        shape: (H, W).
        exponent: slope of the amplitude; 1 is grainy, 2 is smooth.
        outer_px: wavelength above which the spectrum is flat, so that nothing larger stands out; None: no limit.

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


def make_weather(
    rng: np.random.Generator, n_dates: int, clear_share: float, season: npt.NDArray[np.float64], start_clouded: bool
) -> tuple[Weather, ...]:
    """The skies of a series: wholly clear dates, partial cover of 10 to 95 %, overcast dates; clouded spells last.

    Args:
        rng: source of randomness.
        n_dates: how many dates.
        clear_share: share of dates without any cloud; at least two are.
        season: (n_dates,) cloudiness of the season, about -1 to 1.
        start_clouded: whether the first four dates are to be clouded by 45 to 85 % of the scene.

    Returns:
        One `Weather` for each date.
    """
    latent = rng.standard_normal(n_dates)
    for i in range(1, n_dates):
        latent[i] = 0.55 * latent[i - 1] + 0.83 * latent[i]  # spells of weather; the variance stays near 1
    latent += 0.6 * season
    if start_clouded:
        latent[:4] += 6.0
    order = np.argsort(np.argsort(latent, kind="stable"), kind="stable")
    n_clear = min(n_dates, max(2, round(clear_share * n_dates)))
    n_overcast = round(0.17 * n_dates)
    skies = []
    for i, rank in enumerate(order):
        kind = PARTIAL_KINDS[int(rng.choice(len(PARTIAL_KINDS), p=PARTIAL_ODDS))]
        overcast = OVERCAST_KINDS[int(rng.integers(len(OVERCAST_KINDS)))]
        place = (rank - n_clear) / max(1, n_dates - n_overcast - n_clear - 1)
        cover = float(np.clip(0.1 + 0.85 * place + rng.normal(0, 0.05), 0.1, 0.95))
        clouded_start = float(rng.uniform(0.45, 0.85))
        if start_clouded and i < 4:
            skies.append(Weather(kind, clouded_start))
        elif rank < n_clear:
            skies.append(Weather("clear", 0.0))
        elif rank >= n_dates - n_overcast:
            skies.append(Weather(overcast, 1.0))
        else:
            skies.append(Weather(kind, cover))
    return tuple(skies)


def make_sky(
    rng: np.random.Generator, shape: tuple[int, int], weather: Weather, scale_px: float, sun_azimuth: float
) -> Sky:
    """Draw clouds for one date.

    Args:
        rng: source of randomness.
        shape: (H, W) of the scene.
        weather: kind of cloud and share of the scene under it.
        scale_px: size of the largest cloud forms; shadows fall a fraction of it away.
        sun_azimuth: where the sun stands, in radians clockwise from north.

    Returns:
        The sky; all zeros when the weather is clear.
    """
    if weather.kind == "clear":
        empty = np.zeros(shape, dtype=np.float32)
        return Sky(empty, empty, 0.0)
    kind = KINDS[weather.kind]
    reach = rng.uniform(0.12, 0.35) * scale_px  # how far the shadow falls: height over the tangent of the sun's height
    dy, dx = round(np.cos(sun_azimuth) * reach), round(-np.sin(sun_azimuth) * reach)  # rows grow southwards
    pad = int(np.ceil(0.36 * scale_px))
    noise = fractal_noise(rng, (shape[0] + 2 * pad, shape[1] + 2 * pad), kind.exponent, scale_px)
    inner = noise[pad : pad + shape[0], pad : pad + shape[1]]
    if weather.cover >= 1.0:
        height = noise - inner.min() + kind.edge * rng.uniform(2.5, 4.0)  # at least e ** 2.5 times the bounding value
    else:
        height = noise - np.quantile(inner, 1.0 - weather.cover)
    bounding = _bounding_opacity(kind.ice)
    thickness = HALF_THICKNESS * bounding / (1.0 - bounding) * np.exp(np.clip(height / kind.edge, -8.0, 8.0))
    thickness = np.minimum(thickness, kind.thickest) * (thickness > 0.06)
    opacity = (thickness / (thickness + HALF_THICKNESS)).astype(np.float32)
    rows, columns = slice(pad - dy, pad - dy + shape[0]), slice(pad - dx, pad - dx + shape[1])
    return Sky(opacity[pad : pad + shape[0], pad : pad + shape[1]], opacity[rows, columns], kind.ice)


def see_through(clear: FloatArray, sky: Sky, vapour: float) -> FloatArray:
    """What the sensor sees of a clear scene under this sky, before noise.

    Args:
        clear: (13, H, W) reflectance x 10000 without clouds.
        sky: clouds over the same pixels.
        vapour: reflectance of B09 relative to B8A at this date; clouds stand above part of the vapour.

    Returns:
        (13, H, W) reflectance x 10000; where the sky is empty it equals `clear`.
    """
    # taken off, not multiplied: where there is no shade, not even the last digit changes
    below = clear - np.maximum(clear - PATH_RADIANCE[:, None, None], 0.0) * (SHADE[:, None, None] * sky.shade)
    cloud = CLOUD * (1.0 - sky.ice) + ICE * sky.ice
    cloud[band_index("B09")] = cloud[band_index("B8A")] * vapour * (1.35 + 0.9 * sky.ice)
    cloud[band_index("B10")] = 22.0 + 1900.0 * sky.ice
    return (below * (1.0 - sky.opacity) ** 1.5 + cloud[:, None, None] * sky.opacity).astype(np.float32)


def _bounding_opacity(ice: float) -> float:
    return CLOUD_REFLECTANCE + ice * (CIRRUS_REFLECTANCE - CLOUD_REFLECTANCE)
