"""Prediction of tiles: read, detect clouds, predict, and save the result of each tile and output image to a file.

A batch of tiles is the unit of work of this process, of others on this machine, and of a cluster's workers: it is read
once for all output images. Files are written atomically, and are the same to the bit on machines with the same
arithmetic.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from common.damage import DAMAGED_ARRAY
from common.errors import DataError
from common.files import atomic_file
from common.memory import keep_freed_memory
from data.constants import DETECTORS, REFLECTANCE_SCALE
from model.restore import Reconstruction, load_model
from model.runtime import autocast, choose_precision
from scenes.inputs.series import Pixels, SceneSeries
from scenes.output_images import OutputImage, image_of_all
from scenes.outputs.ndvi import ndvi
from scenes.prediction.detectors import date_clouds
from scenes.prediction.tiles import Tile, TilePlan

CLEAR, CLOUDED, MISSING = 0, 1, 255  # states of a pixel at a date
MARGIN = 16  # pixels around a cell in cloud detection: more than any detector's averaging, dilation and smoothing
_lock = Lock()  # threads of a worker share one network and one pool of open files


class Task(NamedTuple):
    """A batch of tiles and the output images that are predicted of them, all by their numbers."""

    tiles: range
    images: Sequence[int]


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to predict tiles of a scene; picklable.

    Attributes:
        series: the inputs.
        plan: the tiles.
        weights: the run, as `model.load_model` takes it.
        tile_folder: the folder of the tiles' files, shared by all processes.
        outputs: of the network: `mean`, then `aleatoric` and `epistemic` where it has them.
        device: cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16.
        uses_radar: whether the network takes radar.
        uses_dates: whether the network takes dates; those of single images do not.
        reference_day: days since 2014-04-03 of the day from which the network counts dates.
        detectors: of clouds at each date, see `scenes.prediction.detectors.Detectors.of_dates`; empty for no masks.
        keep_clear: whether clear pixels of an image's own date, of a single one the latest, replace the prediction.
        images: to reconstruct, in the order of time, so that few dates are held at once; by default one of all dates.
        with_ndvi: whether the NDVI of clear observations is kept as well.
    """

    series: SceneSeries
    plan: TilePlan
    weights: str
    tile_folder: str
    outputs: tuple[str, ...] = ("mean",)
    device: str = "cpu"
    precision: str = "fp32"
    uses_radar: bool = False
    uses_dates: bool = True
    reference_day: int = 0
    detectors: tuple[str, ...] = ()
    keep_clear: bool = False
    images: tuple[OutputImage, ...] = ()
    with_ndvi: bool = False

    def __post_init__(self) -> None:
        if not self.images:
            object.__setattr__(self, "images", (image_of_all(self.series.days),))

    def path(self, tile: Tile, image: int = 0) -> Path:
        """The file of a tile of an output image."""
        return Path(self.tile_folder) / f"{image:04d}" / f"{tile.row:05d}" / f"{tile.column:05d}.npz"

    @property
    def dates(self) -> tuple[float, ...]:
        """Days of the series as in training: since the reference day; with radar the mean of both sensors' dates."""
        days, radar = self.series.days, self.series.radar_days
        means = tuple((a + b) / 2 for a, b in zip(days, radar, strict=True)) if self.uses_radar else days
        return tuple(day - self.reference_day for day in means)


@dataclass(frozen=True)
class TileDate:
    """One date of a tile.

    Attributes:
        pixels: of the tile's window, with T = 1.
        states: (h, w) of its cell: `CLEAR`, `CLOUDED` or `MISSING`.
        raw: (13, h, w) of its cell, reflectance x 10000.
    """

    pixels: Pixels
    states: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True)
class TileInput:
    """The input of one tile for one output image.

    Attributes:
        x: (T, C, tile, tile) as the network takes it; None if no date has a valid pixel.
        states: (T, h, w) of its cell: `CLEAR`, `CLOUDED` or `MISSING`.
        observed: (13, h, w) reflectance of the kept date in its cell; None without `Job.keep_clear`.
        ndvi: (T, h, w) of its cell, NaN where dates are not known to be clear; None without `Job.with_ndvi`.
    """

    x: np.ndarray | None
    states: np.ndarray
    observed: np.ndarray | None
    ndvi: np.ndarray | None


def read_inputs(job: Job, tiles: Sequence[Tile], images: Sequence[int]) -> Iterator[tuple[int, list[TileInput]]]:
    """Read tiles once for several output images: a date is read when the first image needs it, and kept until the last.

    Args:
        job: names inputs and images.
        tiles: a batch.
        images: numbers of images, ascending.

    Yields:
        The number of an image, and its input of each tile.

    Raises:
        DataError: if inputs cannot be read.
    """
    last_use = {date: index for index in images for date in job.images[index].dates}
    held: dict[int, list[TileDate]] = {}
    for index in images:
        dates = job.images[index].dates
        held |= {date: [read_date(job, tile, date) for tile in tiles] for date in dates if date not in held}
        inputs = [_image_input(job, index, [held[date][position] for date in dates]) for position in range(len(tiles))]
        held = {date: parts for date, parts in held.items() if last_use[date] > index}
        yield index, inputs


def read_tile(job: Job, tile: Tile, image: int = 0) -> TileInput:
    """The input of one tile for one output image."""
    return next(read_inputs(job, [tile], [image]))[1][0]


def read_date(job: Job, tile: Tile, date: int) -> TileDate:
    """Read one date of a tile, and detect its clouds."""
    detector = job.detectors[date] if job.detectors else ""
    surroundings = tile.cell.padded(MARGIN).intersection(job.plan.window) if detector in DETECTORS else tile.cell
    window = tile.window.hull(surroundings)
    pixels = job.series.read(window, [date])
    area = job.series.area
    if area is not None and not area.inside(tile.window).any():
        pixels.valid[:] = False  # nothing of the tile is needed
    visible = pixels.crop(surroundings.relative_to(window))
    states = np.where(visible.valid[0], np.uint8(CLEAR), np.uint8(MISSING))
    if detector and visible.valid.any():
        clouds = date_clouds(job.series, date, surroundings, visible.raw[0], detector)
        states[visible.valid[0] & clouds] = CLOUDED
    if area is not None:
        states[~area.inside(surroundings)] = MISSING
    cell = (..., *tile.cell.relative_to(surroundings).slices)
    return TileDate(pixels.crop(tile.window.relative_to(window)), states[cell], visible.raw[0][cell])


def _image_input(job: Job, image: int, dates: Sequence[TileDate]) -> TileInput:
    """The input for an output image, from its dates."""
    states = np.stack([date.states for date in dates])
    kept = dates[job.images[image].kept_position].raw
    observed = kept / np.float32(REFLECTANCE_SCALE) if job.keep_clear else None
    values = None
    if job.with_ndvi:
        clear = (states == CLEAR) & bool(job.detectors)  # without masks clouds would pass as observations
        values = np.where(clear, np.stack([ndvi(date.raw) for date in dates]), np.float32(np.nan))
    pixels = Pixels.stack([date.pixels for date in dates])
    x = network_input(pixels, job, image) if pixels.valid.any() else None
    return TileInput(x, states, observed, values)


def network_input(pixels: Pixels, job: Job, image: int = 0) -> np.ndarray:
    """(T, C, tile, tile), radar first if the network takes it; a scene smaller than a tile is padded by reflection."""
    days = [job.series.days[date] for date in job.images[image].dates]
    optical = fill_missing(pixels.optical, pixels.valid, days)
    x = np.concatenate([pixels.radar, optical], axis=1) if job.uses_radar and pixels.radar is not None else optical
    below, right = job.plan.tile - x.shape[-2], job.plan.tile - x.shape[-1]
    return np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect") if below or right else x


def fill_missing(optical: np.ndarray, valid: np.ndarray, days: Sequence[float]) -> np.ndarray:
    """Fill missing pixels from the date nearest in time that has them, else from the nearest pixel.

    To a network a missing value is black, darker than any shadow, which corrupts its output for other dates and for
    neighbouring pixels.

    Args:
        optical: (T, 13, h, w).
        valid: (T, h, w), False where a value is missing; True somewhere.
        days: (T), dates.

    Returns:
        The same array if nothing is missing, else a copy without gaps.
    """
    if valid.all():
        return optical
    filled = optical.copy()
    for date, day in enumerate(days):
        missing = ~valid[date]
        for source in sorted(range(len(days)), key=lambda i: abs(days[i] - day)):
            available = missing & valid[source]
            filled[date][:, available] = optical[source][:, available]
            missing &= ~available
    anywhere = valid.any(axis=0)
    if not anywhere.all():
        _, (rows, columns) = distance_transform_edt(~anywhere, return_indices=True)
        filled = filled[:, :, rows, columns]
    return filled


def predict_task(job: Job, task: Task) -> None:
    """Read and predict tiles, and write their files.

    Raises:
        DataError: if inputs or weights cannot be read, the disk is full, or the network predicts NaN.
    """
    with _lock:
        tiles = [job.plan[number] for number in task.tiles]
        for image, inputs in read_inputs(job, tiles, task.images):
            predict_tiles(job, tiles, inputs, image)


def predict_tiles(job: Job, tiles: Sequence[Tile], inputs: Sequence[TileInput], image: int = 0) -> None:
    """Predict tiles of an output image and write their files; raises as `predict_task` does."""
    for tile, content in zip(tiles, tile_contents(job, tiles, inputs, image), strict=True):
        with atomic_file(job.path(tile, image)) as temporary:
            np.savez(temporary, **content)


def tile_contents(
    job: Job,
    tiles: Sequence[Tile],
    inputs: Sequence[TileInput],
    image: int = 0,
    network: Reconstruction | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict tiles of an output image.

    Args:
        job: what is predicted.
        tiles: a batch.
        inputs: of each tile.
        image: number of the output image.
        network: if not the one that `job` names.

    Yields:
        For each tile `states`, and the outputs of the network in its window unless no date has a valid pixel; also
        `observed` and `ndvi` if the inputs have them.

    Raises:
        DataError: if weights cannot be read, or the network predicts NaN.
    """
    stacked = [entry.x for entry in inputs if entry.x is not None]
    outputs = iter(predict(job, np.stack(stacked), image, network) if stacked else ())
    for tile, entry in zip(tiles, inputs, strict=True):
        optional = {"observed": entry.observed, "ndvi": entry.ndvi}
        content: dict[str, Any] = {"states": entry.states}
        content |= {name: values for name, values in optional.items() if values is not None}
        if entry.x is not None:
            height, width = tile.window.height, tile.window.width
            content |= {name: values[:, :height, :width] for name, values in next(outputs).items()}
            if not np.isfinite(content["mean"]).all():
                raise DataError(f"the network predicts NaN at {tile.window}; try --precision fp32, or other weights")
        yield content


def load_tile(job: Job, tile: Tile, names: Sequence[str], image: int = 0) -> dict[str, np.ndarray]:
    """The arrays in the file of a tile of an output image, those of `names` that it has.

    Raises:
        DataError: if the file is missing or cannot be read.
    """
    path = job.path(tile, image)
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names if name in content.files}
    except DAMAGED_ARRAY as error:
        advice = "workers must share this folder; run again to go on"
        raise DataError(f"cannot read the tile {path}: {error}; {advice}") from error


def predict(
    job: Job, x: np.ndarray, image: int = 0, network: Reconstruction | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Predict a batch; on a GPU from page-locked memory, while the next batch is read (no GPU has run this yet).

    Args:
        job: names the network.
        x: (B, T, C, H, W).
        image: number of the output image, of whose dates `x` is.
        network: if not the one that `job` names.

    Yields:
        For each tile the outputs of the network, (13, H, W) float32.
    """
    network = load_network(job.weights, job.device) if network is None else network
    device = torch.device(job.device)
    batch = torch.from_numpy(x)
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    dates = [job.dates[date] for date in job.images[image].dates]
    days = torch.tensor(dates, dtype=torch.float32).expand(len(x), -1) if job.uses_dates else None
    with single_thread(), torch.inference_mode(), autocast(device, choose_precision(job.precision, device)[0]):
        prediction = network(batch, days)
    arrays = {name: getattr(prediction, name)[:, 0].float().cpu().numpy() for name in job.outputs}
    for item in range(len(x)):
        yield {name: array[item] for name, array in arrays.items()}


@contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch to one thread.

    The last digits of a sum depend on the number of threads that share it, and a scene must not depend on the number
    of cores. Processes that each predict a tile use the cores as well.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def load_network(weights: str, device: str) -> Reconstruction:
    """The network, loaded once in each process."""
    if device == "cpu":
        keep_freed_memory()
    return load_model(weights, device)
