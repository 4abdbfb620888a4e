"""Writes made-up scenes as the files of SEN12MS-CR-TS and SEN12MS-CR, and the truth beside them."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from tqdm import tqdm

from common.files import whole_file, write_json
from data.constants import N_DATES, REGIONS
from data.raster.geotiff import write_geotiff
from data.splits import SERIES, rois
from data.synthetic.clouds import Weather, make_sky, make_weather
from data.synthetic.covers import CLIMATES, REGION_CLIMATES
from data.synthetic.scene import Landscape, landscape_from_patch, make_landscape, observe, observe_radar

Ground = Sequence[tuple[np.ndarray, np.ndarray]]

FIRST_PATCH = {"series": 9, "mono": 98}  # numbers that sort otherwise by name than by value: 9, 10, 11
YEAR = 2018
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
    """A region of interest: its ground, the tiles it is cut into, where it lies, and its source of randomness."""

    land: Landscape
    tiles: tuple[tuple[int, int], ...]  # upper left pixels of the patches
    size: int
    crs: str
    origin: tuple[float, float]
    climate: str
    key: tuple[int, ...]

    def rng(self, *stream: int) -> np.random.Generator:
        """A Generator of its own for each stream, so that what one draws does not depend on the others."""
        return np.random.default_rng([*self.key, *stream])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the whole scene."""
        return self.land.cover.shape[0], self.land.cover.shape[1]

    def cut(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """The patches of an array (..., H, W), in order."""
        for top, left in self.tiles:
            yield array[..., top : top + self.size, left : left + self.size]

    def transform(self, patch: int) -> Affine:
        """Pixels of a patch to metres of the CRS."""
        top, left = self.tiles[patch]
        return Affine(10.0, 0.0, self.origin[0] + 10.0 * left, 0.0, -10.0, self.origin[1] - 10.0 * top)


def write_series(
    folder: Path, chosen: Sequence[tuple[str, str]], n_patches: int, size: int, seed: int, ground: Ground | None
) -> int:
    """Write SEN12MS-CR-TS files for (split, ROI) pairs below `folder`; the number of GeoTIFFs."""
    summary: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for split, roi in tqdm(chosen, desc="SEN12MS-CR-TS", unit="ROI"):
        region = next(name for name in REGIONS if name != "all" and roi in rois(SERIES, "all", name))
        turn = rois(SERIES, "all", region).index(
            roi
        )  # not the place in `chosen`: more ROIs leave the others as they are
        site = make_site(roi, region, turn, n_patches, size, seed, ground, 0)
        start_clouded = seen.setdefault(split, 0) % 2 == 0
        seen[split] += 1
        summary[roi] = {"split": split, "region": region} | _write_series_roi(folder, roi, site, start_clouded)
    write_json(folder / "truth" / "SEN12MSCRTS.json", summary)
    return len(chosen) * n_patches * N_DATES * 2


def _write_series_roi(folder: Path, roi: str, site: Site, start_clouded: bool) -> dict[str, Any]:
    season, number = roi.split("/")
    days, radar_days = draw_dates(site.rng(1))
    cloudy = np.cos(2 * np.pi * (days - site.land.climate.cloudy_day) / 365.0)
    weathers = make_weather(site.rng(2), N_DATES, site.land.climate.clear_share, cloudy, start_clouded)
    clear, masks, shadows = [], [], []
    for i, (day, radar_day, weather) in enumerate(zip(days, radar_days, weathers, strict=True)):
        rng = site.rng(3, i)
        scene = observe(rng, site.land, day, _sky(rng, site, weather))
        radar = observe_radar(site.rng(4, i), site.land, radar_day)
        for sensor, array, when in (("S2", scene.optical, day), ("S1", radar, radar_day)):
            for p, patch in enumerate(site.cut(array)):
                number_of_patch = FIRST_PATCH["series"] + p
                name = f"{sensor.lower()}_{season}_{number}_ImgNo_{i}_{_iso(when)}_patch_{number_of_patch}.tif"
                _write(folder / "SEN12MSCRTS" / season / number / sensor / str(i) / name, patch, site, p)
        clear.append(scene.clear)
        masks.append(scene.sky.cloud_mask)
        shadows.append(scene.sky.shadow_mask)
    patches = {}
    stacks = (np.stack(clear), np.stack(masks), np.stack(shadows))
    for p, (image, mask, shadow) in enumerate(zip(*(site.cut(stack) for stack in stacks), strict=True)):
        name = f"patch_{FIRST_PATCH['series'] + p}"
        _write_truth(folder / "truth" / "SEN12MSCRTS" / season / number / f"{name}.npz", image, mask, shadow)
        patches[name] = {"cloud_fraction": [round(float(m.mean()), 5) for m in mask]}
    return {
        "climate": site.climate,
        "dates_S2": [_iso(day) for day in days],
        "dates_S1": [_iso(day) for day in radar_days],
        "weather": [weather.kind for weather in weathers],
        "patches": patches,
    }


def write_mono(
    folder: Path, chosen: Sequence[tuple[str, str]], n_patches: int, size: int, seed: int, ground: Ground | None
) -> int:
    """Write SEN12MS-CR triplets for (split, ROI) pairs below `folder`; the number of GeoTIFFs."""
    summary: dict[str, Any] = {}
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
        clear = observe(site.rng(2), site.land, day, _sky(rng, site, Weather("clear", 0.0))).optical
        seen = observe(site.rng(3), site.land, cloudy_day, _sky(rng, site, weather))
        radar = observe_radar(site.rng(4), site.land, day)
        for kind_name, array in (("s2", clear), ("s2_cloudy", seen.optical), ("s1", radar)):
            for p, patch in enumerate(site.cut(array)):
                name = f"{season}_{kind_name}_{number}_p{FIRST_PATCH['mono'] + p}.tif"
                place = folder / "SEN12MSCR" / f"{season}_{kind_name}" / f"{kind_name}_{number}"
                _write(place / name, patch, site, p)
        patches = {}
        truth = (seen.clear, seen.sky.cloud_mask, seen.sky.shadow_mask)
        for p, (image, mask, shadow) in enumerate(zip(*(site.cut(stack) for stack in truth), strict=True)):
            name = f"p{FIRST_PATCH['mono'] + p}"
            _write_truth(folder / "truth" / "SEN12MSCR" / season / number / f"{name}.npz", image, mask, shadow)
            patches[name] = {"cloud_fraction": round(float(mask.mean()), 5)}
        summary[roi] = {"split": split, "climate": site.climate, "weather": weather.kind, "patches": patches}
    write_json(folder / "truth" / "SEN12MSCR.json", summary)
    return len(chosen) * n_patches * 3


def make_site(
    roi: str, region: str, turn: int, n_patches: int, size: int, seed: int, ground: Ground | None, dataset: int
) -> Site:
    """Draw the ground of an ROI, large enough for its patches side by side.

    Args:
        roi: its name; with `seed` and `dataset` it decides everything random.
        region: a key of `REGION_CLIMATES`.
        turn: which of the region's climates, counted round.
        n_patches: how many patches.
        size: pixels along each side of a patch.
        seed: of the whole tree.
        ground: real (optical, radar) pairs to use as ground, or None for made-up land.
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
        land = make_landscape(rng, shape, CLIMATES[name])
    else:
        optical, radar = ground[key[2] % len(ground)]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        optical, radar = (_fit(array, shape, turns, mirror) for array in (optical, radar))
        land = landscape_from_patch(rng, optical, radar, CLIMATES[name])
    return Site(land, tiles, size, crs, origin, name, key)


def draw_dates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Days of the year, irregular, of `N_DATES` acquisitions: (Sentinel-2, Sentinel-1); most of the latter differ.

    Sentinel-2 passes every fifth day and some passes are left out; Sentinel-1 passes up to six days off.
    """
    passes = np.sort(rng.choice(365 // REVISIT_DAYS, size=N_DATES, replace=False))
    days = (passes * REVISIT_DAYS + rng.integers(REVISIT_DAYS)).astype(float)
    off = rng.integers(-6, 7, size=N_DATES) * (rng.random(N_DATES) < 0.6)
    return days, days + off


def _sky(rng: np.random.Generator, site: Site, weather: Weather) -> Any:
    scale_px = float(np.clip(0.9 * site.size, 48, 150))
    return make_sky(rng, site.shape, weather, scale_px, sun_azimuth=float(rng.uniform(2.3, 2.8)))  # mid-morning


def _fit(array: np.ndarray, shape: tuple[int, int], turns: int, mirror: bool) -> np.ndarray:
    """Turn and mirror a patch, and cut it or repeat its mirror image to fill (H, W)."""
    array = np.rot90(array[..., ::-1] if mirror else array, turns, axes=(-2, -1))
    grow = [(0, 0), *((0, max(0, want - have)) for want, have in zip(shape, array.shape[1:], strict=True))]
    return np.ascontiguousarray(np.pad(array, grow, mode="symmetric")[:, : shape[0], : shape[1]])


def _iso(day: float) -> str:
    return (date(YEAR, 1, 1) + timedelta(days=int(day))).isoformat()


def _write(path: Path, patch: np.ndarray, site: Site, index: int) -> None:
    write_geotiff(path, np.ascontiguousarray(patch), site.crs, site.transform(index))


def _write_truth(path: Path, clear: np.ndarray, cloud: np.ndarray, shadow: np.ndarray) -> None:
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, clear=clear, cloud=cloud, shadow=shadow)
