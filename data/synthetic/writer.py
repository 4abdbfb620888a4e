"""Write simulated scenes as files of SEN12MS-CR-TS and SEN12MS-CR, with their ground truth."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from tqdm import tqdm

from common.errors import DataError
from common.files import atomic_file, write_json
from data.constants import N_DATES, N_S1, N_S2, REGIONS
from data.raster.geotiff import read_bands, write_geotiff
from data.splits import SERIES, rois
from data.synthetic.clouds import CloudField, Weather, simulate_clouds, simulate_weather
from data.synthetic.covers import CLIMATES, REGION_CLIMATES
from data.synthetic.land import YEAR, Landscape, landscape_from_patch, simulate_landscape
from data.synthetic.scene import Observation, observe_optical, observe_radar

Ground = Sequence[tuple[np.ndarray, np.ndarray]]
"""Real (optical, radar) pairs to use as ground."""

FIRST_PATCH = {"series": 9, "mono": 98}  # numbers whose order by name differs from that by value: 9, 10, 11
CALENDAR_YEAR = 2018
REVISIT_DAYS = 5  # of the two Sentinel-2 satellites together
UTM_ZONES = {
    "europa": (32630, 32636, 4.6e6, 5.9e6),
    "asiaEast": (32644, 32652, 2.2e6, 4.4e6),
    "africa": (32628, 32637, 0.6e6, 3.2e6),
    "america": (32610, 32621, 1.0e6, 4.9e6),
    "asiaWest": (32636, 32643, 2.6e6, 4.6e6),
}  # EPSG codes and northings
SEASON_DAY = {"spring": 105, "summer": 196, "fall": 288, "winter": 15}


@dataclass(frozen=True)
class Site:
    """A region of interest.

    Attributes:
        land: its ground.
        tiles: first row and column of each patch.
        size: pixels along each side of a patch.
        crs: its coordinate system.
        origin: upper left corner, in metres of the CRS.
        climate: a key of `CLIMATES`.
        key: seed of its random numbers.
    """

    land: Landscape
    tiles: tuple[tuple[int, int], ...]
    size: int
    crs: str
    origin: tuple[float, float]
    climate: str
    key: tuple[int, ...]

    def rng(self, *stream: int) -> np.random.Generator:
        """An independent Generator for each stream."""
        return np.random.default_rng([*self.key, *stream])

    def patches(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """The patches of an array (..., H, W), in order."""
        for top, left in self.tiles:
            yield array[..., top : top + self.size, left : left + self.size]

    def transform(self, patch: int) -> Affine:
        """Transform from pixels of a patch to metres of the CRS."""
        top, left = self.tiles[patch]
        return Affine(10.0, 0.0, self.origin[0] + 10.0 * left, 0.0, -10.0, self.origin[1] - 10.0 * top)

    def clouds(self, rng: np.random.Generator, weather: Weather) -> CloudField:
        """Draw the clouds of one date."""
        scale_px = float(np.clip(0.9 * self.size, 48, 150))
        azimuth = float(rng.uniform(2.3, 2.8))  # mid-morning
        height, width = self.land.cover.shape
        return simulate_clouds(rng, (height, width), weather, scale_px, azimuth)

    def write_images(self, folder: Path, prefix: str, first_patch: int, array: np.ndarray) -> None:
        """Write the patches of an image (C, H, W) as `folder/{prefix}{number}.tif`."""
        for index, patch in enumerate(self.patches(array)):
            path = folder / f"{prefix}{first_patch + index}.tif"
            write_geotiff(path, np.ascontiguousarray(patch), self.crs, self.transform(index))

    def write_truth(
        self, folder: Path, prefix: str, first_patch: int, scenes: Sequence[Observation]
    ) -> dict[str, list[float]]:
        """Write clear images and masks of each patch as `folder/{prefix}{number}.npz`; returns their cloud cover."""
        truth = {
            "clear": np.stack([scene.clear for scene in scenes]),
            "cloud": np.stack([scene.clouds.cloud_mask for scene in scenes]),
            "shadow": np.stack([scene.clouds.shadow_mask for scene in scenes]),
        }
        fractions = {}
        for index, arrays in enumerate(zip(*(self.patches(array) for array in truth.values()), strict=True)):
            name = f"{prefix}{first_patch + index}"
            content = dict(zip(truth, arrays if len(scenes) > 1 else (array[0] for array in arrays), strict=True))
            with atomic_file(folder / f"{name}.npz") as temporary:
                np.savez_compressed(temporary, **content)
            fractions[name] = [round(float(mask.mean()), 5) for mask in arrays[1]]
        return fractions


def write_series(
    folder: Path, chosen: Sequence[tuple[str, str]], n_patches: int, size: int, seed: int, ground: Ground | None
) -> int:
    """Write SEN12MS-CR-TS files for (split, ROI) pairs below `folder`; returns the number of GeoTIFFs."""
    summary: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for split, roi in tqdm(chosen, desc="SEN12MS-CR-TS", unit="ROI"):
        region = next(name for name in REGIONS if name != "all" and roi in rois(SERIES, "all", name))
        # index among all ROIs, not in `chosen`: a ROI does not depend on how many are chosen
        turn = rois(SERIES, "all", region).index(roi)
        site = make_site(roi, region, turn, n_patches, size, seed, ground, 0)
        cloudy_start = counts.setdefault(split, 0) % 2 == 0
        counts[split] += 1
        summary[roi] = {"split": split, "region": region} | _write_series_roi(folder, roi, site, cloudy_start)
    write_json(folder / "truth" / "SEN12MSCRTS.json", summary)
    return len(chosen) * n_patches * N_DATES * 2


def _write_series_roi(folder: Path, roi: str, site: Site, cloudy_start: bool) -> dict[str, Any]:
    season, number = roi.split("/")
    days, radar_days = draw_dates(site.rng(1))
    climate, first = site.land.climate, FIRST_PATCH["series"]
    cloudiness = np.cos(2 * np.pi * (days - climate.cloudy_day) / YEAR)
    weathers = simulate_weather(site.rng(2), N_DATES, climate.clear_share, cloudiness, cloudy_start)
    scenes = []
    for i, (day, radar_day, weather) in enumerate(zip(days, radar_days, weathers, strict=True)):
        rng = site.rng(3, i)
        scenes.append(observe_optical(rng, site.land, day, site.clouds(rng, weather)))
        radar = observe_radar(site.rng(4, i), site.land, radar_day)
        for sensor, array, acquired in (("S2", scenes[-1].optical, day), ("S1", radar, radar_day)):
            prefix = f"{sensor.lower()}_{season}_{number}_ImgNo_{i}_{_iso(acquired)}_patch_"
            site.write_images(folder / "SEN12MSCRTS" / roi / sensor / str(i), prefix, first, array)
    fractions = site.write_truth(folder / "truth" / "SEN12MSCRTS" / roi, "patch_", first, scenes)
    return {
        "climate": site.climate,
        "dates_S2": [_iso(day) for day in days],
        "dates_S1": [_iso(day) for day in radar_days],
        "weather": [weather.kind for weather in weathers],
        "patches": {name: {"cloud_fraction": cover} for name, cover in fractions.items()},
    }


def write_mono(
    folder: Path, chosen: Sequence[tuple[str, str]], n_patches: int, size: int, seed: int, ground: Ground | None
) -> int:
    """Write SEN12MS-CR triplets for (split, ROI) pairs below `folder`; returns the number of GeoTIFFs."""
    summary: dict[str, Any] = {}
    first = FIRST_PATCH["mono"]
    for split, roi in tqdm(chosen, desc="SEN12MS-CR", unit="ROI"):
        season, number = roi.split("/")
        regions = list(REGION_CLIMATES)
        draw = zlib.crc32(roi.encode())
        region = regions[draw % len(regions)]  # SEN12MS-CR has no regions
        site = make_site(roi, region, draw // len(regions), n_patches, size, seed, ground, 1)
        rng = site.rng(1)
        day = float(SEASON_DAY[season.split("_")[1]] + rng.integers(-30, 31))
        cloudy_day = day + float(rng.choice([-1, 1]) * rng.integers(2, 16))
        overcast = Weather("deck", 1.0) if rng.random() < 0.15 else None
        kind = str(rng.choice(["cumulus", "layer", "thin"], p=[0.45, 0.4, 0.15]))
        weather = overcast or Weather(kind, float(rng.uniform(0.2, 0.9)))
        clear = observe_optical(site.rng(2), site.land, day, site.clouds(rng, Weather("clear", 0.0)))
        cloudy = observe_optical(site.rng(3), site.land, cloudy_day, site.clouds(rng, weather))
        images = {"s2": clear.optical, "s2_cloudy": cloudy.optical, "s1": observe_radar(site.rng(4), site.land, day)}
        for sensor, array in images.items():
            target = folder / "SEN12MSCR" / f"{season}_{sensor}" / f"{sensor}_{number}"
            site.write_images(target, f"{season}_{sensor}_{number}_p", first, array)
        fractions = site.write_truth(folder / "truth" / "SEN12MSCR" / roi, "p", first, [cloudy])
        patches = {name: {"cloud_fraction": cover[0]} for name, cover in fractions.items()}
        summary[roi] = {"split": split, "climate": site.climate, "weather": weather.kind, "patches": patches}
    write_json(folder / "truth" / "SEN12MSCR.json", summary)
    return len(chosen) * n_patches * 3


def make_site(
    roi: str, region: str, turn: int, n_patches: int, size: int, seed: int, ground: Ground | None, dataset: int
) -> Site:
    """Simulate the ground of an ROI, large enough for its neighbouring patches.

    Args:
        roi: its name; together with `seed` and `dataset` it seeds all random numbers.
        region: a key of `REGION_CLIMATES`.
        turn: index of the region's climate, taken modulo their number.
        n_patches: number of patches.
        size: pixels along each side of a patch.
        seed: of the sample data.
        ground: real patches to use as ground, or None for simulated land.
        dataset: 0 for SEN12MS-CR-TS, 1 for SEN12MS-CR.
    """
    key = (seed, dataset, zlib.crc32(roi.encode()))
    rng = np.random.default_rng([*key, 0])
    columns = int(np.ceil(np.sqrt(n_patches)))
    shape = (-(-n_patches // columns) * size, columns * size)
    tiles = tuple((p // columns * size, p % columns * size) for p in range(n_patches))
    name = REGION_CLIMATES[region][turn % len(REGION_CLIMATES[region])]
    zone, last_zone, south, north = UTM_ZONES[region]
    crs = f"EPSG:{rng.integers(zone, last_zone + 1)}"
    origin = (round(float(rng.uniform(3e5, 7e5)), 3), round(float(rng.uniform(south, north)), 3))
    if ground is None:
        land = simulate_landscape(rng, shape, CLIMATES[name])
    else:
        optical, radar = ground[key[2] % len(ground)]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        optical, radar = (_fit(array, shape, turns, mirror) for array in (optical, radar))
        land = landscape_from_patch(rng, optical, radar, CLIMATES[name])
    return Site(land, tiles, size, crs, origin, name, key)


def draw_dates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Irregular days of the year of `N_DATES` acquisitions by Sentinel-2 and by Sentinel-1.

    Sentinel-2 passes every fifth day, and some passes are skipped; most Sentinel-1 passes are up to six days off.
    """
    passes = np.sort(rng.choice(365 // REVISIT_DAYS, size=N_DATES, replace=False))
    days = (passes * REVISIT_DAYS + rng.integers(REVISIT_DAYS)).astype(float)
    offset = rng.integers(-6, 7, size=N_DATES) * (rng.random(N_DATES) < 0.6)
    return days, days + offset


def read_base(base: str | Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (optical, radar) pairs of all clear patches in a folder in the layout of SEN12MS-CR.

    Raises:
        DataError: if there is none.
    """
    pairs = []
    for clear in sorted(Path(base).glob("ROIs*_s2/s2_*/*.tif")):
        season = f"{clear.parts[-3].removesuffix('_s2')}_s1"
        radar = Path(base) / season / clear.parent.name.replace("s2_", "s1_") / clear.name.replace("_s2_", "_s1_")
        if radar.is_file():
            optical = read_bands(clear, expected_bands=N_S2)
            pairs.append((optical, read_bands(radar, expected_bands=N_S1, expected_size=optical.shape[1:])))
    if not pairs:
        raise DataError(
            f"--base {base}: no clear patch with its radar twin there; expected the layout of SEN12MS-CR, "
            "ROIs1970_fall_s2/s2_139/ROIs1970_fall_s2_139_p839.tif and the same below ROIs1970_fall_s1"
        )
    return pairs


def _fit(array: np.ndarray, shape: tuple[int, int], turns: int, mirror: bool) -> np.ndarray:
    """Rotate and mirror a patch, then crop it or pad it by reflection to (H, W)."""
    array = np.rot90(array[..., ::-1] if mirror else array, turns, axes=(-2, -1))
    padding = [(0, 0), *((0, max(0, want - have)) for want, have in zip(shape, array.shape[1:], strict=True))]
    return np.ascontiguousarray(np.pad(array, padding, mode="symmetric")[:, : shape[0], : shape[1]])


def _iso(day: float) -> str:
    return (date(CALENDAR_YEAR, 1, 1) + timedelta(days=int(day))).isoformat()
