"""Simulated landscapes of fields, grass, forest, water, towns, roads and dryland, with seasonal vegetation.

A landscape consists of two images of the same ground, bare and in full leaf, and the season that each pixel follows.
Static properties (borders, texture, soil) are drawn once; data/synthetic/scene.py simulates its acquisitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial import cKDTree

from data.constants import band_index
from data.synthetic import covers
from data.synthetic.clouds import fractal_noise
from data.synthetic.covers import FloatArray, Pulse

YEAR = 365.0


@dataclass(frozen=True)
class Seasons:
    """Greenness over the year for n units of land.

    Attributes:
        base: (n,) greenness outside the growing periods, of 1.
        pulses: (4, n, P) start, end, height and ramp of the growing periods, see `Pulse`; unused ones have height 0.
    """

    base: FloatArray
    pulses: FloatArray

    def greenness(self, day: float) -> FloatArray:
        """Greenness on a day of the year, (n,) in [0, 1]."""
        years = np.array([-YEAR, 0.0, YEAR], dtype=np.float32)[:, None, None]
        start, end, height, ramp = self.pulses
        rise, fall = _logistic((day + years - start) / ramp), _logistic((day + years - end) / ramp)
        total = self.base + (height * (rise - fall)).sum(axis=(0, 2))
        return np.clip(total, 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Landscape:
    """Static ground, H x W pixels of 10 m.

    Attributes:
        bare, green: (13, H, W) reflectance x 10000 without vegetation and in full leaf.
        unit: (H, W) int, the row of `seasons` that each pixel follows.
        seasons: greenness of each unit over the year.
        radar_bare, radar_green: (2, H, W) dB of VV and VH.
        moisture_db: (H, W) increase of the backscatter with soil moisture, dB.
        water: (H, W) bool; its backscatter depends on wind.
        cover: (H, W) uint8, index into `data.synthetic.covers.COVER_NAMES`.
        climate: the climate, varied for this landscape.
    """

    bare: FloatArray
    green: FloatArray
    unit: np.ndarray
    seasons: Seasons
    radar_bare: FloatArray
    radar_green: FloatArray
    moisture_db: FloatArray
    water: np.ndarray
    cover: np.ndarray
    climate: covers.Climate


def simulate_landscape(rng: np.random.Generator, shape: tuple[int, int], climate: covers.Climate) -> Landscape:
    """Draw a landscape of fields, grass, forest, water, towns, roads and dryland.

    Args:
        rng: source of randomness.
        shape: (H, W) pixels.
        climate: its parameters are varied a little.

    Returns:
        The landscape.
    """
    climate = _vary(rng, climate)
    cover, field = _draw_cover(rng, shape, climate)
    n_fields = int(field.max()) + 1
    field_rows, field_crops = _field_seasons(rng, n_fields, climate)
    shift = climate.shift_days
    cycles = [covers.FOREST_CYCLES[str(name)] for name in rng.choice(climate.forests, 6)]
    grass = (0.5, (Pulse(80, 305, 0.35, 25),)) if climate.vapour > 0.21 else (0.25, (Pulse(150, 315, 0.6, 22),))
    dry = (0.06, (Pulse(70, 170, 0.3, 25),)) if climate.vapour > 0.35 else (0.1, (Pulse(165, 310, 0.5, 22),))
    extra = [*cycles, grass, dry, (0.35, (Pulse(100, 300, 0.3, 25),)), (0.0, ())]
    seasons = _tabulate([*field_rows, *((base, [_shifted(p, shift) for p in pulses]) for base, pulses in extra)])

    stand = _voronoi(rng, shape, (28.0, 28.0), 0.0)  # a forest consists of stands
    unit = field.copy()
    unit[cover == covers.FOREST] = n_fields + stand[cover == covers.FOREST] % len(cycles)
    for offset, which in enumerate((covers.GRASS, covers.DRYLAND, covers.TOWN)):
        unit[cover == which] = n_fields + len(cycles) + offset
    unit[(cover == covers.WATER) | (cover == covers.ROAD)] = n_fields + len(extra) - 1

    bare, green = _draw_reflectance(rng, cover, field, field_crops, climate)
    radar_bare, radar_green, moisture_db = _draw_radar(rng, cover, field, n_fields)
    water = cover == covers.WATER
    return Landscape(bare, green, unit, seasons, radar_bare, radar_green, moisture_db, water, cover, climate)


def landscape_from_patch(
    rng: np.random.Generator, optical: np.ndarray, radar: np.ndarray, climate: covers.Climate
) -> Landscape:
    """Turn a real clear patch into a landscape whose vegetation changes with the season.

    Args:
        rng: source of randomness.
        optical: (13, H, W) digital numbers of a clear image, used as the state in full leaf.
        radar: (2, H, W) dB of the same ground.
        climate: the calendar and the weather.

    Returns:
        The landscape, which equals the patch in its greenest season; radar is smoothed, so that new speckle can be
        added.
    """
    climate = _vary(rng, climate)
    green = np.clip(optical.astype(np.float32), 1.0, 10000.0)
    red, infrared = green[band_index("B04")], green[band_index("B08")]
    ndvi = (infrared - red) / (infrared + red)
    plants = np.clip((ndvi - 0.1) / 0.55, 0.0, 1.0)
    bare = np.maximum(green + 0.7 * plants * (covers.SOIL_BROWN - covers.CROP_TEMPERATE)[:, None, None], 0.6 * green)
    smooth = 10.0 * np.log10(uniform_filter(10.0 ** (np.nan_to_num(radar) / 10.0), size=(0, 5, 5)) + 1e-4)
    water = (ndvi < 0) & (infrared < 1000)
    cover = np.where(water, covers.WATER, covers.FIELD).astype(np.uint8)
    seasons = _tabulate([(0.25, [_shifted(Pulse(100, 290, 0.6, 25), climate.shift_days)])])
    radar_green = smooth.astype(np.float32)
    radar_bare = radar_green - plants * np.array([1.2, 2.4], dtype=np.float32)[:, None, None]
    unit = np.zeros(cover.shape, dtype=np.int64)
    moisture_db = np.where(water, 0.0, 0.8).astype(np.float32)
    return Landscape(bare, green, unit, seasons, radar_bare, radar_green, moisture_db, water, cover, climate)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _vary(rng: np.random.Generator, climate: covers.Climate) -> covers.Climate:
    """The climate of one landscape, with slightly varied area fractions, soils, air and calendar."""
    water, forest, town, dryland = (share * float(rng.uniform(0.4, 1.7)) for share in climate.shares)
    return replace(
        climate,
        shares=(water, forest, town, dryland),
        soil_gain=climate.soil_gain * float(rng.normal(1, 0.04)),
        vapour=climate.vapour * float(rng.normal(1, 0.08)),
        cloudy_day=climate.cloudy_day + float(rng.normal(0, 20)),
        clear_share=float(np.clip(climate.clear_share + rng.normal(0, 0.04), 0.2, 0.45)),
        shift_days=climate.shift_days + float(rng.normal(0, 10)),
    )


def _voronoi(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float], angle: float) -> np.ndarray:
    """Labels of polygons that tile the scene, (H, W) int: jittered cells of a rotated grid, by Chebyshev distance."""
    rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    warp = [2.0 * gaussian_filter(fractal_noise(rng, shape, 2.0, 120.0), 8.0) for _ in range(2)]
    y, x = rows + warp[0], columns + warp[1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    points = np.stack([along / cell[0], across / cell[1]], axis=-1).reshape(-1, 2)
    low, high = np.floor(points.min(axis=0)).astype(int) - 1, np.ceil(points.max(axis=0)).astype(int) + 1
    grid = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    seeds = grid.reshape(-1, 2) + rng.uniform(-0.42, 0.42, (grid.size // 2, 2))
    nearest = cKDTree(seeds).query(points, p=np.inf)[1]
    return np.unique(nearest, return_inverse=True)[1].reshape(shape).astype(np.int64)


def _draw_cover(
    rng: np.random.Generator, shape: tuple[int, int], climate: covers.Climate
) -> tuple[np.ndarray, np.ndarray]:
    """Land cover (H, W) uint8 and field number (H, W) int."""
    water, forest, town, dryland = climate.shares
    angle = float(rng.uniform(0, np.pi / 2))
    size = float(rng.uniform(7, 18))
    field = _voronoi(rng, shape, (size * float(rng.uniform(1.2, 2.6)), size), angle)
    cover = np.full(shape, covers.FIELD, dtype=np.uint8)
    relief = fractal_noise(rng, shape, 1.7, 110.0)
    soil = fractal_noise(rng, shape, 1.7, 110.0)
    meadow = rng.random(int(field.max()) + 1) < rng.uniform(0.1, 0.3)
    cover[meadow[field]] = covers.GRASS
    cover[soil > np.quantile(soil, 1 - dryland)] = covers.DRYLAND
    cover[relief + 0.15 * soil > np.quantile(relief + 0.15 * soil, 1 - forest)] = covers.FOREST
    density = fractal_noise(rng, shape, 1.8, 70.0)
    cover[density > np.quantile(density, 1 - town)] = covers.TOWN
    road = _voronoi(rng, shape, (size * 5, size * 4), angle + 0.1)
    edge = (road != np.roll(road, 1, 0)) | (road != np.roll(road, 1, 1))
    edge[0], edge[:, 0] = False, False
    cover[edge & (cover != covers.FOREST)] = covers.ROAD
    river = np.abs(fractal_noise(rng, shape, 2.2, 160.0))
    lake = relief + 0.1 * density
    cover[lake < np.quantile(lake, 0.6 * water)] = covers.WATER
    cover[river < np.quantile(river, 0.4 * water)] = covers.WATER
    return cover, field


def _field_seasons(
    rng: np.random.Generator, n: int, climate: covers.Climate
) -> tuple[list[tuple[float, Sequence[Pulse]]], np.ndarray]:
    """Season and crop index of each field; sowing and harvest differ by some days between fields."""
    crops = rng.integers(len(climate.crops), size=n)
    rows: list[tuple[float, Sequence[Pulse]]] = []
    for crop in crops:
        base, pulses = covers.CROPS[climate.crops[crop]]
        shift, vigour = float(rng.normal(0, 8)) + climate.shift_days, float(np.clip(rng.normal(0.95, 0.1), 0.5, 1.1))
        rows.append((base, [replace(_shifted(p, shift), height=p.height * vigour) for p in pulses]))
    return rows, crops


def _shifted(pulse: Pulse, days: float) -> Pulse:
    return replace(pulse, start=pulse.start + days, end=pulse.end + days)


def _tabulate(rows: Sequence[tuple[float, Sequence[Pulse]]], width: int = 2) -> Seasons:
    unused = Pulse(0.0, 1.0, 0.0)
    table = np.array(
        [[(p.start, p.end, p.height, p.ramp_days) for p in [*pulses, *[unused] * width][:width]] for _, pulses in rows],
        dtype=np.float32,
    )
    return Seasons(np.array([base for base, _ in rows], dtype=np.float32), np.moveaxis(table, -1, 0))


def _draw_reflectance(
    rng: np.random.Generator, cover: np.ndarray, field: np.ndarray, crops: np.ndarray, climate: covers.Climate
) -> tuple[FloatArray, FloatArray]:
    """Reflectance of the ground, bare and in full leaf, (13, H, W) each, with texture."""
    n = len(crops)
    mix = rng.beta(1.5, 1.5, n).astype(np.float32)[:, None]
    gain = (climate.soil_gain * np.clip(rng.normal(1, 0.06, (n, 1)), 0.85, 1.12)).astype(np.float32)
    soils = _brighten(climate.soils[0] * mix + climate.soils[1] * (1 - mix), gain)
    tint = 1 + 0.03 * np.clip(rng.standard_normal((len(climate.crops), 13), dtype=np.float32), -2, 2)
    leaves = _brighten(climate.crop, tint[crops] * np.clip(rng.normal(1, 0.04, (n, 1)), 0.9, 1.08).astype(np.float32))
    bare, green = np.moveaxis(soils[field], -1, 0).copy(), np.moveaxis(leaves[field], -1, 0).copy()
    turbid = np.float32(rng.beta(1.2, 1.2))
    lake = covers.WATER_TURBID * turbid + covers.WATER_CLEAR * (1 - turbid)
    dry_soil = _brighten(climate.soils[0], np.float32(1.1 * climate.soil_gain))
    pairs = {
        covers.WATER: (lake, lake),
        covers.GRASS: ((covers.STUBBLE + covers.PASTURE) / 2, (covers.PASTURE + climate.crop) / 2),
        covers.FOREST: (covers.FOREST_BARE, covers.FOREST_LEAF),
        covers.ROAD: (covers.ASPHALT, covers.ASPHALT),
        covers.DRYLAND: (dry_soil, _brighten(covers.PASTURE, np.float32(1.1))),
    }
    for which, (low, high) in pairs.items():
        mask = cover == which
        bare[:, mask], green[:, mask] = low[:, None], high[:, None]
    town = cover == covers.TOWN
    houses = _voronoi(rng, cover.shape, (3.0, 2.5), float(rng.uniform(0, 1.5)))
    roofs = np.stack([covers.ROOF_DARK, covers.ROOF_GREY, covers.ROOF_BRIGHT, covers.ASPHALT, covers.PASTURE])
    roof = roofs[rng.choice(len(roofs), p=[0.25, 0.3, 0.1, 0.15, 0.2], size=int(houses.max()) + 1)]
    roof = _brighten(roof, rng.normal(1, 0.1, (len(roof), 1)).astype(np.float32))
    bare[:, town] = roof[houses[town]].T
    garden = bare[:, town] * 0.75 + 0.25 * covers.PASTURE[:, None]
    green[:, town] = garden
    spread = np.take(np.array([covers.TEXTURE[c] for c in range(len(covers.COVER_NAMES))], dtype=np.float32), cover)
    common = 0.75 * fractal_noise(rng, cover.shape, 0.9, 20.0) + 0.66 * rng.standard_normal(cover.shape)
    own = 0.25 * rng.standard_normal(bare.shape, dtype=np.float32)
    texture = 1 + spread * (np.clip(common, -3, 3).astype(np.float32) + own)
    path = covers.PATH_RADIANCE[:, None, None]
    return path + (bare - path) * texture, path + (green - path) * texture


def _brighten(spectra: FloatArray, gain: Any) -> FloatArray:
    """Scale the ground's reflectance, (..., 13), but not the path radiance."""
    return np.asarray(covers.PATH_RADIANCE + (spectra - covers.PATH_RADIANCE) * gain, dtype=np.float32)


def _draw_radar(
    rng: np.random.Generator, cover: np.ndarray, field: np.ndarray, n_fields: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Backscatter bare and in full leaf (2, H, W) dB each, and its increase with moisture (H, W) dB."""
    levels = np.array([covers.BACKSCATTER[c] for c in range(len(covers.COVER_NAMES))], dtype=np.float32)
    local = 0.5 * fractal_noise(rng, cover.shape, 1.0, 30.0)
    rough = np.where(cover == covers.FIELD, rng.normal(0, 0.9, n_fields)[field], 0.0)  # tillage, row direction
    corner = (cover == covers.TOWN) * np.clip(rng.gumbel(-1.0, 2.6, cover.shape), -5, 9)  # walls facing the radar
    corner = uniform_filter(corner, 2)
    offset = (local + rough + corner).astype(np.float32)
    bare, green = (np.moveaxis(levels[cover, i], -1, 0) + offset for i in (0, 1))
    moisture = np.array([covers.MOISTURE_DB[c] for c in range(len(covers.COVER_NAMES))], dtype=np.float32)
    return bare, green, moisture[cover]
