"""One tile after the other: read it, look for clouds, predict, and put the outcome into a file of its own.

A batch of tiles is the unit of work, whoever does it: this process, others on this machine, or a cluster's workers.
What it leaves is a file for each tile, whole or not at all, and the same to the bit on machines that compute alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from common.errors import DataError
from common.files import whole_file
from data.clouds.detectors import detect_clouds
from data.constants import REFLECTANCE_SCALE
from scenes.inputs.grid import Window
from scenes.inputs.series import Pixels, SceneSeries
from scenes.tiles import Tile, TilePlan

if TYPE_CHECKING:
    from model.restore import Reconstruction

CLEAR, CLOUDED, MISSING = 0, 1, 255  # what is known of a pixel at a date
MARGIN = 16  # pixels around which clouds are looked for: more than any detector's averaging, dilation and smoothing
HALF_CLOUDED = 0.5  # of a detector that gives more than 0 and 1
_one_at_a_time = Lock()  # a worker with several threads has one network and one set of open files


@dataclass(frozen=True)
class Job:
    """All that a process must know to predict tiles of a scene; picklable.

    Attributes:
        series: the inputs.
        plan: the tiles.
        weights: the run, as `model.load_model` takes it.
        spool: the folder of the tiles' files, which all processes share.
        device: cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16.
        uses_radar: whether the network takes radar.
        dated: whether it takes dates; those of single images do not.
        detector: of clouds, see `data.clouds.detectors`; empty: nobody asks for clouds.
        keep: whether observations of the latest date are wanted too.
    """

    series: SceneSeries
    plan: TilePlan
    weights: str
    spool: str
    device: str = "cpu"
    precision: str = "fp32"
    uses_radar: bool = False
    dated: bool = True
    detector: str = ""
    keep: bool = False

    def path(self, tile: Tile) -> Path:
        """The file of a tile."""
        return Path(self.spool) / f"{tile.row:05d}" / f"{tile.column:05d}.npz"

    @property
    def dates(self) -> tuple[float, ...]:
        """Days since 2014-04-03 of the series' dates, as in training: the mean of both sensors' where radar goes in."""
        days, radar = self.series.days, self.series.radar_days
        return tuple((a + b) / 2 for a, b in zip(days, radar, strict=True)) if self.uses_radar else days


@dataclass(frozen=True)
class Prepared:
    """A tile that has been read.

    Attributes:
        x: (T, C, tile, tile) as the network takes it; None where no date has a single pixel of it.
        states: (T, h, w) of its cell: `CLEAR`, `CLOUDED` or `MISSING`.
        observed: (13, h, w) reflectance of the latest date in its cell; None where nobody wants it.
    """

    x: np.ndarray | None
    states: np.ndarray
    observed: np.ndarray | None


def prepare(job: Job, tile: Tile) -> Prepared:
    """Read a tile, fill what is missing, and find its clouds."""
    around = widened(tile.cell, MARGIN, job.plan) if job.detector else tile.cell
    whole = _hull(tile.window, around)
    pixels = job.series.read(whole)
    seen = _crop(pixels, whole, around)
    inner = _shifted(tile.cell, around).slices
    states = np.where(seen.valid, np.uint8(CLEAR), np.uint8(MISSING))
    if job.detector:
        for date, valid in enumerate(seen.valid):
            if valid.any():
                states[date][valid & (detect_clouds(seen.raw[date], job.detector) >= HALF_CLOUDED)] = CLOUDED
    observed = seen.raw[-1][(slice(None), *inner)] / np.float32(REFLECTANCE_SCALE) if job.keep else None
    tile_pixels = _crop(pixels, whole, tile.window)
    x = network_input(tile_pixels, job) if tile_pixels.valid.any() else None
    return Prepared(x, states[(slice(None), *inner)], observed)


def network_input(pixels: Pixels, job: Job) -> np.ndarray:
    """(T, C, tile, tile): radar first where the network takes it; a small scene is filled up with its mirror image."""
    optical = fill_missing(pixels.optical, pixels.valid, job.series.days)
    parts = [pixels.radar, optical] if job.uses_radar and pixels.radar is not None else [optical]
    x = np.concatenate(parts, axis=1)
    below, right = job.plan.tile - x.shape[-2], job.plan.tile - x.shape[-1]
    return np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect") if below or right else x


def fill_missing(optical: np.ndarray, valid: np.ndarray, days: Sequence[float]) -> np.ndarray:
    """Values for pixels that a date lacks: of the date nearest in time that has them, else of the nearest pixel.

    To a network a missing value is a black one, darker than any shadow, which spoils what it makes of the other dates
    and of the pixels around.

    Args:
        optical: (T, 13, h, w).
        valid: (T, h, w), False where a value is missing; True somewhere.
        days: (T), when.

    Returns:
        The same array, if nothing is missing, or a copy without gaps.
    """
    if valid.all():
        return optical
    filled = optical.copy()
    for date, day in enumerate(days):
        missing = ~valid[date]
        for other in sorted(range(len(days)), key=lambda i: abs(days[i] - day)):
            take = missing & valid[other]
            filled[date][:, take] = optical[other][:, take]
            missing &= ~take
    anywhere = valid.any(axis=0)
    if not anywhere.all():
        from scipy.ndimage import distance_transform_edt

        _, (rows, columns) = distance_transform_edt(~anywhere, return_indices=True)
        filled = filled[:, :, rows, columns]
    return filled


def predict_batch(job: Job, numbers: Sequence[int]) -> None:
    """Predict the tiles of these numbers and write their files.

    Raises:
        DataError: if inputs or weights cannot be read, the disk is full, or the network predicts NaN.
    """
    with _one_at_a_time:
        tiles = [job.plan[number] for number in numbers]
        spool_batch(job, tiles, [prepare(job, tile) for tile in tiles])


def spool_batch(job: Job, tiles: Sequence[Tile], prepared: Sequence[Prepared]) -> None:
    """Predict tiles that have been read and write their files."""
    given = [one.x for one in prepared if one.x is not None]
    fields = iter(predict(job, np.stack(given))) if given else iter(())
    for tile, one in zip(tiles, prepared, strict=True):
        content: dict[str, Any] = {"states": one.states} | ({} if one.observed is None else {"observed": one.observed})
        if one.x is not None:
            part = next(fields)
            content |= {name: maps[:, : tile.window.height, : tile.window.width] for name, maps in part.items()}
            if not np.isfinite(content["mean"]).all():
                raise DataError(f"the network predicts NaN at {tile.window}; try --precision fp32, or other weights")
        with whole_file(job.path(tile)) as temporary:
            np.savez(temporary, **content)


def load_tile(job: Job, tile: Tile, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What `spool_batch` wrote about a tile, those of `names` that are there.

    Raises:
        DataError: if the file is not there or cannot be read.
    """
    path = job.path(tile)
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names if name in content.files}
    except (OSError, ValueError, BadZipFile) as error:
        advice = "workers must share this folder; run again to go on"
        raise DataError(f"cannot read the tile {path}: {error}; {advice}") from error


def predict(job: Job, x: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Predict a batch; on a GPU from page-locked memory, while the next batch is read (no GPU has run this yet).

    Args:
        job: names the network.
        x: (B, T, C, H, W).

    Yields:
        For each tile `mean`, and `aleatoric` and `epistemic` where the network has them, (13, H, W) float32.
    """
    import torch

    from training.run import autocast, choose_precision

    network = load_network(job.weights, job.device)
    device = torch.device(job.device)
    batch = torch.from_numpy(x)
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    days = torch.tensor(job.dates, dtype=torch.float32).expand(len(x), -1) if job.dated else None
    with one_thread(), torch.inference_mode(), autocast(device, choose_precision(job.precision, device)[0]):
        prediction = network(batch, days)
    maps: Mapping[str, Any] = {name: getattr(prediction, name) for name in ("mean", "aleatoric", "epistemic")}
    arrays = {name: m[:, 0].float().cpu().numpy() for name, m in maps.items() if m is not None}
    for item in range(len(x)):
        yield {name: array[item] for name, array in arrays.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone.

    Sums that several threads share depend on how many they are, in the last digits: a scene must not depend on the
    machine's cores. Processes that take a tile each use them as well.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def load_network(weights: str, device: str) -> "Reconstruction":
    """The network, loaded once in each process."""
    from common.memory import keep_freed_memory
    from model import load_model

    if device == "cpu":
        keep_freed_memory()
    return load_model(weights, device)


def widened(window: Window, margin: int, plan: TilePlan) -> Window:
    """A window with a margin, as far as the scene reaches."""
    top, left = max(0, window.top - margin), max(0, window.left - margin)
    bottom, right = min(plan.height, window.bottom + margin), min(plan.width, window.right + margin)
    return Window(top, left, bottom - top, right - left)


def _hull(a: Window, b: Window) -> Window:
    top, left = min(a.top, b.top), min(a.left, b.left)
    return Window(top, left, max(a.bottom, b.bottom) - top, max(a.right, b.right) - left)


def _shifted(window: Window, whole: Window) -> Window:
    return Window(window.top - whole.top, window.left - whole.left, window.height, window.width)


def _crop(pixels: Pixels, whole: Window, window: Window) -> Pixels:
    part = (..., *_shifted(window, whole).slices)
    radar = None if pixels.radar is None else pixels.radar[part]
    return Pixels(pixels.raw[part], pixels.optical[part], radar, pixels.valid[part])
