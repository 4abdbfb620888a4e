"""Shared by the tests of scenes: synthetic series in memory or as GeoTIFFs, tiny networks, products in memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from config.stored import model_config
from data.raster.geotiff import write_geotiff
from data.raster.rescaling import optical_to_unit, sar_to_unit
from model.build import build_model
from model.weights import save_checkpoint
from scenes.inputs.rasters.grid import Window
from scenes.inputs.series import Pixels
from scenes.prediction.tiles import TilePlan

DAYS = ("2018-06-01", "2018-06-11", "2018-06-21")
CRS, ORIGIN = "EPSG:32632", (500_000.0, 5_400_000.0)
BANDS = np.array([12, 11, 10, 9, 12, 20, 25, 26, 28, 9, 1, 22, 14])[:, None, None] * 100
CLOUD = np.array([60] * 9 + [45, 15, 60, 60])[:, None, None] * 100
TILINGS = [  # (size, tile, overlap)
    *((1200, 256, 64), (900, 256, 64), (257, 256, 64), (256, 256, 64), (100, 256, 64), (449, 256, 64)),
    *((640, 64, 0), (500, 64, 32), (70, 64, 16)),
]
TINY: dict[str, dict[str, Any]] = {
    "uncrtaints": {"encoder_widths": [8], "decoder_widths": [8, 8], "n_head": 2, "d_model": 8},
    "conv3d_mamba": {"encoder_widths": [8, 8], "decoder_widths": [8, 8], "encoder_norm": "batch"},
    "unet": {"encoder_widths": [8, 8], "decoder_widths": [8, 8], "pretrain": True},
}


@dataclass(frozen=True)
class MemorySeries:
    """A series of three dates in memory, in place of `scenes.inputs.series.SceneSeries`."""

    raw: np.ndarray
    valid: np.ndarray
    radar: np.ndarray | None = None
    days: tuple[int, ...] = (1520, 1530, 1540)
    area: None = None

    @property
    def radar_days(self) -> tuple[int, ...]:
        return () if self.radar is None else self.days

    def read(self, window: Window, dates: Sequence[int] | None = None) -> Pixels:
        part = (slice(None) if dates is None else list(dates), ..., *window.slices)
        radar = None if self.radar is None else self.radar[part]
        return Pixels(self.raw[part], optical_to_unit(self.raw[part]), radar, self.valid[part])


@dataclass
class MemoryProducts:
    """Blocks of a scene joined in memory, in place of `scenes.outputs.products.SceneProducts`."""

    height: int
    width: int
    maps: dict = field(default_factory=dict)
    done: set = field(default_factory=set)

    def written(self) -> frozenset:
        return frozenset(self.done)

    def write(self, window: Window, fields: Mapping[str, np.ndarray]) -> None:
        assert window not in self.done, "a block is written once"
        for name, values in fields.items():
            field_map = self.maps.setdefault(
                name, np.zeros((*values.shape[:-2], self.height, self.width), values.dtype)
            )
            field_map[(..., *window.slices)] = values
        self.done.add(window)


def ground(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth clear image with some texture, uint16 (13, H, W)."""
    rng = np.random.default_rng(seed)
    relief = gaussian_filter(rng.standard_normal((height, width)), 9, mode="reflect")
    texture = rng.standard_normal((height, width))
    return np.clip(BANDS * (1 + 3 * relief + 0.02 * texture), 1, 10000).astype(np.uint16)


def clouded(clear: np.ndarray, seed: int) -> np.ndarray:
    """The same image with blobs of cloud, bright in all bands but least in B09 and B10, over a third of it."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(clear.shape[1:]), 15, mode="reflect")
    cover = np.clip((field / field.std() - 0.2) * 2, 0, 1)
    return (clear * (1 - cover) + CLOUD * cover).astype(np.uint16)


def radar_of(clear: np.ndarray, seed: int) -> np.ndarray:
    """Backscatter in dB that follows the ground, float32 (2, H, W)."""
    speckle = np.random.default_rng(seed).standard_normal((2, *clear.shape[1:]))
    return (np.array([-10, -16])[:, None, None] + clear[7] / 1000 + speckle).astype(np.float32)


def memory_series(height: int, width: int, radar: bool = False) -> MemorySeries:
    clear = ground(height, width)
    raw = np.stack([clouded(clear, seed) for seed in (1, 2, 3)])
    backscatter = np.stack([sar_to_unit(radar_of(clear, seed)) for seed in (1, 2, 3)]) if radar else None
    return MemorySeries(raw, np.ones((3, height, width), np.bool_), backscatter)


@dataclass(frozen=True)
class SceneFiles:
    """GeoTIFFs of a scene, one for each date and sensor, and the ground without clouds."""

    optical: list[Path]
    radar: list[Path]
    clear: np.ndarray

    def words(self, *, radar: bool = False) -> list:
        return ["--optical", *self.optical, *(["--sar", *self.radar] if radar else [])]


def write_scene(
    folder: Path,
    height: int,
    width: int,
    *,
    nodata: int | None = None,
    radar: bool = True,
    days: Sequence[str] = DAYS,
) -> SceneFiles:
    """A synthetic scene as GeoTIFFs."""
    clear, transform = ground(height, width), from_origin(*ORIGIN, 10, 10)
    optical, backscatter = [], []
    for number, day in enumerate(days):
        optical.append(folder / f"s2_{day}.tif")
        write_geotiff(optical[-1], clouded(clear, number + 1), CRS, transform)
        if radar:
            backscatter.append(folder / f"s1_{day}.tif")
            write_geotiff(backscatter[-1], radar_of(clear, number + 1), CRS, transform)
        if nodata is not None:
            with rasterio.open(optical[-1], "r+") as image:
                image.nodata = nodata
    return SceneFiles(optical, backscatter, clear)


def write_run(folder: Path, model: str = "uncrtaints", *, seed: int = 0, **changes: Any) -> Path:
    """A run's folder with a tiny network of random weights."""
    conf = {"model": model, "head": "nig", "loss": "NIG", "scale_by": 10.0, "input_t": 3, **TINY[model], **changes}
    torch.manual_seed(seed)
    network = build_model(model_config(conf))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conf.json").write_text(json.dumps(conf), encoding="utf-8")
    save_checkpoint(folder / "model.pth.tar", {"state_dict_G": network.netG.state_dict(), "epoch": 1, "version": 1})
    return folder


def border_steps(image: np.ndarray, plan: TilePlan, period: int) -> float:
    """Steps between neighbouring pixels across the borders of tiles, as a multiple of those elsewhere.

    Networks that halve the image, and bands of 20 m, have a pattern of that period: steps are compared with others at
    the same place in it.
    """
    ratios = []
    for axis, steps in (
        (plan.across, np.abs(np.diff(image, axis=2)).mean(axis=(0, 1))),
        (plan.down, np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))),
    ):
        starts = [start - 1 for start in axis.starts if start > 0]
        ends = [start + axis.length - 1 for start in axis.starts if start + axis.length < axis.size]
        borders = sorted({*starts, *ends})
        phases = {border % period for border in borders}
        others = [i for i in range(len(steps)) if i % period in phases and i not in borders]
        ratios.append(steps[borders].mean() / steps[others].mean())
    return max(ratios)


def maps_in(out: Path) -> dict[str, np.ndarray]:
    """The products of a folder by the names of their files."""
    maps = {}
    for path in sorted(out.glob("*.tif")):
        with rasterio.open(path) as source:
            maps[path.stem] = source.read()
    return maps
