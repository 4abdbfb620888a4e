"""The loop over a scene: tiles are predicted batch by batch, blocks are written as soon as their tiles are complete.

All output images of a series are made in one pass: a batch of tiles is read once and predicted for each image. Memory
grows neither with the scene nor with the length of a series: it holds a batch of tiles at the dates of one image, and
one block. Tiles lie on disk under DIR/.work until the blocks that need them are written. An interrupted run resumes
from both.

docs/usage.md explains how much a tiled prediction differs from an untiled one, with measurements.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.constants import N_S2
from scenes.inputs.rasters.grid import Window
from scenes.outputs.cog import BLOCK
from scenes.outputs.products import SceneProducts
from scenes.prediction.blending import blend
from scenes.prediction.predict import (
    CLEAR,
    MISSING,
    Job,
    Task,
    TileInput,
    load_network,
    load_tile,
    predict_tiles,
    read_inputs,
)
from scenes.prediction.tiles import BlockRow, Tile

Runner = Callable[[Job, Sequence[Task]], Generator[Task, None, None]]
"""Predicts batches of tiles for output images, and yields each task, or parts of it, when finished, in any order."""
TileLoader = Callable[[Job, Tile, Sequence[str], int], dict[str, np.ndarray]]
"""Returns those of the named arrays of a tile of an output image that it has; see `predict.load_tile`."""


@dataclass(frozen=True)
class Throughput:
    """The speed of a run.

    Attributes:
        megapixels: of all images, predicted by this run, without those of an interrupted run before it.
        seconds: of this run, without the conversion to products.
    """

    megapixels: float
    seconds: float

    def __str__(self) -> str:
        rate = self.megapixels / self.seconds if self.seconds > 0 else 0.0
        return f"{self.megapixels:.2f} megapixels in {self.seconds:.0f} s, {rate:.3f} megapixels per second"


def run_inference(
    job: Job, products: Mapping[int, SceneProducts], batch_size: int, runner: Runner, block: int = BLOCK
) -> Throughput:
    """Predict all missing tiles, and write all missing blocks.

    Args:
        job: what to predict.
        products: the destination of blocks, by the number of the output image; images without one are left out, as are
            existing blocks.
        batch_size: tiles predicted together; results are the same to the bit only for the same size.
        runner: where batches are predicted, `run_locally` or on a cluster.
        block: pixels along a side of a block.

    Raises:
        DataError: if inputs cannot be read, or files cannot be written.
    """
    plan = job.plan
    progress = {image: _Progress(job, image, target, block) for image, target in products.items()}
    tasks = []
    for batch in plan.batches(batch_size):
        images = [image for image, state in progress.items() if state.missing.intersection(batch)]
        if images:
            tasks.append(Task(batch, images))
    pixels, started = 0, time.perf_counter()
    total = len(plan) * len(products)
    n_missing = sum(len(state.missing) for state in progress.values())
    with tqdm(total=total, initial=total - n_missing, desc="tiles", unit="tile") as bar:
        for state in progress.values():
            state.write_complete()
        with closing(runner(job, tasks)) as finished:
            for part in finished:
                for image in part.images:
                    done = progress[image].finish(part.tiles)
                    pixels += sum(plan[number].cell.size for number in done)
                    bar.update(len(done))
    assert not any(state.rows for state in progress.values()), "every batch was done"
    return Throughput(pixels / 1e6, time.perf_counter() - started)


class _Progress:
    """What remains of one output image.

    Attributes:
        rows: of blocks that are not written, from the top.
        missing: the numbers of the tiles that these need and that are not predicted.
    """

    def __init__(self, job: Job, image: int, products: SceneProducts, block: int) -> None:
        self.job, self.image, self.products = job, image, products
        self.rows: deque[BlockRow] = deque(job.plan.block_rows(block, products.written()))
        needed = {number for row in self.rows for number in job.plan.numbers(row.tile_rows)}
        self.missing = {number for number in needed if not job.path(job.plan[number], image).is_file()}

    def finish(self, tiles: range) -> set[int]:
        """Take note of predicted tiles and write blocks that are complete; returns those of them that were missing."""
        done = self.missing.intersection(tiles)
        self.missing -= done
        self.write_complete()
        return done

    def write_complete(self) -> None:
        """Write the first rows of blocks, as far as their tiles are complete, and delete tiles that no other needs."""
        plan, rows = self.job.plan, self.rows
        while rows and self.missing.isdisjoint(plan.numbers(rows[0].tile_rows)):
            for window in rows.popleft().windows:
                self.products.write(window, assemble_block(self.job, window, self.image))
            for tile_row in range(rows[0].tile_rows.start if rows else len(plan.down.starts)):
                shutil.rmtree(self.job.path(plan.at(tile_row, 0), self.image).parent, ignore_errors=True)


def run_locally(job: Job, tasks: Sequence[Task]) -> Generator[Task, None, None]:
    """Predict batches in this process, image by image, while a thread reads the next input; a `Runner`."""
    load_network(job.weights, job.device)  # errors of the weights come before the first image is read

    def read_all() -> Generator[tuple[Task, list[TileInput]], None, None]:
        for task in tasks:
            for image, inputs in read_inputs(job, [job.plan[number] for number in task.tiles], task.images):
                yield Task(task.tiles, [image]), inputs

    steps = read_all()
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, steps, None)
        while (step := following.result()) is not None:
            following = reader.submit(next, steps, None)
            part, inputs = step
            predict_tiles(job, [job.plan[number] for number in part.tiles], inputs, part.images[0])
            yield part


def assemble_block(job: Job, window: Window, image: int = 0, load: TileLoader = load_tile) -> dict[str, np.ndarray]:
    """A block of the products of an output image, from the tiles that cover it.

    With `Job.keep_clear`, clear pixels of the image's own date, of a single one the latest, are that observation; they
    are not predicted, and their standard deviations are 0.

    Args:
        job: what is predicted.
        window: the pixels.
        image: number of the output image.
        load: returns arrays of a tile.

    Returns:
        `reflectance` (13, H, W); `aleatoric`, `epistemic`, `total`, standard deviations, where the network has them;
        `clouds` (T, H, W) with a detector: 0 clear, 1 clouded, 255 missing; `valid` (H, W), where any date has data;
        `observed` (H, W) with `keep_clear`; `ndvi` (T, H, W) with `Job.with_ndvi`, NaN where a date is not clear.
    """
    dates = job.images[image].dates
    blended = blend(job.plan, window, job.outputs, lambda tile: load(job, tile, job.outputs, image))
    states = np.full((len(dates), *window.shape), MISSING, np.uint8)
    kept = np.zeros((N_S2, *window.shape), np.float32)
    observed_ndvi = np.full((len(dates), *window.shape), np.nan, np.float32)
    for tile in job.plan.covering(window):
        shared = tile.cell.intersection(window)
        if not shared.size:
            continue
        in_block, in_cell = ((..., *shared.relative_to(origin).slices) for origin in (window, tile.cell))
        stored = load(job, tile, ("states", "observed", "ndvi"), image)
        states[in_block] = stored["states"][in_cell]
        if job.keep_clear:
            kept[in_block] = stored["observed"][in_cell]
        if job.with_ndvi:
            observed_ndvi[in_block] = stored["ndvi"][in_cell]
    deviations = {name: np.sqrt(np.maximum(values, 0)) for name, values in blended.items() if name != "mean"}
    block = {"reflectance": blended["mean"], **deviations, "valid": (states != MISSING).any(axis=0)}
    if job.detectors:
        block["clouds"] = states
    if job.with_ndvi:
        block["ndvi"] = observed_ndvi
    if job.keep_clear:
        observed = states[job.images[image].kept_position] == CLEAR
        block["observed"] = observed
        block["reflectance"] = np.where(observed, kept, block["reflectance"])
        block |= {name: np.where(observed, np.float32(0), values) for name, values in deviations.items()}
    return block
