"""The loop over a scene: tiles are predicted batch by batch, blocks are written as soon as their tiles are complete.

Memory does not grow with the scene: it holds a batch of tiles and one block. Tiles lie on disk under DIR/.work until
the blocks that need them are written. An interrupted run resumes from both.

docs/usage.md explains how much a tiled prediction differs from an untiled one, with measurements.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.constants import N_S2
from scenes.blending import blend
from scenes.inputs.grid import Window
from scenes.outputs.cog import BLOCK
from scenes.outputs.products import SceneProducts
from scenes.predict import CLEAR, MISSING, Job, TileInput, load_network, load_tile, predict_tiles, read_tile
from scenes.tiles import BlockRow

Batches = Sequence[range]
Runner = Callable[[Job, Batches], Generator[range, None, None]]
"""Predicts batches of tiles, given by their numbers, and yields each one when it is finished, in any order."""


@dataclass(frozen=True)
class Throughput:
    """The speed of a run.

    Attributes:
        megapixels: predicted by this run, without those of an interrupted run before it.
        seconds: of this run, without the conversion to products.
    """

    megapixels: float
    seconds: float

    def __str__(self) -> str:
        rate = self.megapixels / self.seconds if self.seconds > 0 else 0.0
        return f"{self.megapixels:.2f} megapixels in {self.seconds:.0f} s, {rate:.3f} megapixels per second"


def run_inference(job: Job, products: SceneProducts, batch_size: int, runner: Runner, block: int = BLOCK) -> Throughput:
    """Predict all missing tiles, and write all missing blocks.

    Args:
        job: what to predict.
        products: the destination of blocks; existing ones are skipped.
        batch_size: tiles predicted together; results are the same to the bit only for the same size.
        runner: where batches are predicted, `run_locally` or on a cluster.
        block: pixels along a side of a block.

    Raises:
        DataError: if inputs cannot be read, or files cannot be written.
    """
    plan = job.plan
    rows = deque(plan.block_rows(block, products.written()))
    needed = {number for row in rows for number in plan.numbers(row.tile_rows)}
    missing = {number for number in needed if not job.path(plan[number]).is_file()}
    batches = [batch for batch in plan.batches(batch_size) if missing.intersection(batch)]
    pixels, started = 0, time.perf_counter()
    with tqdm(total=len(plan), initial=len(plan) - len(missing), desc="tiles", unit="tile") as bar:
        _write_complete(job, products, rows, missing)
        with closing(runner(job, batches)) as finished:
            for batch in finished:
                done = missing.intersection(batch)
                missing -= done
                pixels += sum(plan[number].cell.size for number in done)
                bar.update(len(done))
                _write_complete(job, products, rows, missing)
    assert not rows, "every batch was done"
    return Throughput(pixels / 1e6, time.perf_counter() - started)


def run_locally(job: Job, batches: Batches) -> Generator[range, None, None]:
    """Predict batches in this process, while a thread reads the next one; a `Runner`."""
    load_network(job.weights, job.device)  # errors of the weights come before the first image is read

    def read(batch: range) -> list[TileInput]:
        return [read_tile(job, job.plan[number]) for number in batch]

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, batches[0]) if batches else None
        for position, batch in enumerate(batches, start=1):
            assert following is not None
            inputs = following.result()
            following = reader.submit(read, batches[position]) if position < len(batches) else None
            predict_tiles(job, [job.plan[number] for number in batch], inputs)
            yield batch


def assemble_block(job: Job, window: Window) -> dict[str, np.ndarray]:
    """A block of the products, from the tiles that cover it.

    With `Job.keep_clear`, clear pixels of the latest date are that observation; they are not predicted, and their
    standard deviations are 0.

    Args:
        job: what is predicted.
        window: the pixels.

    Returns:
        `reflectance` (13, H, W); `aleatoric`, `epistemic`, `total`, standard deviations, where the network has them;
        `clouds` (T, H, W) with a detector: 0 clear, 1 clouded, 255 missing; `valid` (H, W), where any date has data;
        `observed` (H, W) with `keep_clear`.
    """
    blended = blend(job.plan, window, job.outputs, lambda tile: load_tile(job, tile, job.outputs))
    states = np.full((len(job.series.days), window.height, window.width), MISSING, np.uint8)
    latest = np.zeros((N_S2, window.height, window.width), np.float32)
    for tile in job.plan.covering(window):
        shared = tile.cell.intersection(window)
        if not shared.size:
            continue
        in_block, in_cell = ((..., *shared.relative_to(origin).slices) for origin in (window, tile.cell))
        stored = load_tile(job, tile, ("states", "observed"))
        states[in_block] = stored["states"][in_cell]
        if job.keep_clear:
            latest[in_block] = stored["observed"][in_cell]
    deviations = {name: np.sqrt(np.maximum(values, 0)) for name, values in blended.items() if name != "mean"}
    block = {"reflectance": blended["mean"], **deviations, "valid": (states != MISSING).any(axis=0)}
    if job.detector:
        block["clouds"] = states
    if job.keep_clear:
        observed = states[-1] == CLEAR
        block["observed"] = observed
        block["reflectance"] = np.where(observed, latest, block["reflectance"])
        block |= {name: np.where(observed, np.float32(0), values) for name, values in deviations.items()}
    return block


def _write_complete(job: Job, products: SceneProducts, rows: deque[BlockRow], missing: set[int]) -> None:
    """Write the first rows of blocks, as far as their tiles are complete, and delete tiles that no other row needs."""
    while rows and missing.isdisjoint(job.plan.numbers(rows[0].tile_rows)):
        for window in rows.popleft().windows:
            products.write(window, assemble_block(job, window))
        for tile_row in range(rows[0].tile_rows.start if rows else len(job.plan.down.starts)):
            shutil.rmtree(job.path(job.plan.at(tile_row, 0)).parent, ignore_errors=True)
