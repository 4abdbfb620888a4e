"""The loop over a scene: tiles are predicted batch by batch, blocks are written as soon as their tiles are there.

Memory does not grow with the scene: what is in it at a time is a batch of tiles and one block. On disk, tiles lie under
DIR/.work until the rows that need them are written. A killed run goes on from both.

How far a tiled prediction is from an untiled one depends on what a network looks at. Convolutions look at a few pixels,
and the border of a tile has no weight. Group norms, squeeze-excite and the pooled attention of `uncrtaints` look at the
whole tile: there, the tile is what the network was trained on (256 x 256 pixels of the published data), and a larger
image is something else, not something better. docs/usage.md tells measured differences.
"""

import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.constants import N_S2
from scenes.blending import blend, overlap_of
from scenes.inputs.grid import Window
from scenes.predict import CLEAR, MISSING, Job, Prepared, load_network, load_tile, prepare, spool_batch
from scenes.tiles import BLOCK, BlockRow

Batches = Sequence[range]
Runner = Callable[[Job, Batches], Generator[range, None, None]]
"""Predicts batches of tiles, given by their numbers, and tells each when it is done, in any order."""


class Products(Protocol):
    """Where blocks go, see `scenes.outputs.products.SceneProducts`."""

    def written(self) -> frozenset[Window]:
        """The blocks that are there."""

    def write(self, window: Window, fields: Mapping[str, np.ndarray]) -> None:
        """Add a block, whole or not at all."""


@dataclass(frozen=True)
class Pace:
    """How fast it went.

    Attributes:
        megapixels: predicted by this run: those of a run that was killed before do not count.
        seconds: of this run, without the making of products.
    """

    megapixels: float
    seconds: float

    def __str__(self) -> str:
        rate = self.megapixels / self.seconds if self.seconds > 0 else 0.0
        return f"{self.megapixels:.2f} megapixels in {self.seconds:.0f} s, {rate:.3f} megapixels per second"


def reconstruct(
    job: Job, products: Products, names: Sequence[str], batch_size: int, run: Runner, block: int = BLOCK
) -> Pace:
    """Predict all tiles that are not there yet, and write all blocks that are not.

    Args:
        job: what to predict.
        products: where blocks go; those that it holds already are left out.
        names: `mean`, and the variances that the network gives.
        batch_size: tiles that are predicted together; the same for the same bits.
        run: who predicts.
        block: pixels across of what is written at once.

    Returns:
        How fast it went.

    Raises:
        DataError: if inputs cannot be read, or files not be written.
    """
    from tqdm import tqdm

    plan, written = job.plan, products.written()
    rows = [row for row in plan.block_rows(block) if not written.issuperset(row.windows)]
    columns = len(plan.across.starts)
    needed = {number for row in rows for number in range(row.first * columns, row.end * columns)}
    missing = {number for number in needed if not job.path(plan[number]).is_file()}
    batches = [batch for batch in plan.batches(batch_size) if missing.intersection(batch)]
    pixels, started = 0, time.perf_counter()
    with tqdm(total=len(plan), initial=len(plan) - len(missing), desc="tiles", unit="tile") as bar:
        rows = _write_ready(job, products, names, rows, missing, written)
        with closing(run(job, batches)) as finished:
            for batch in finished:
                done = missing.intersection(batch)
                missing -= done
                cells = [plan[number].cell for number in done]
                pixels += sum(cell.height * cell.width for cell in cells)
                bar.update(len(done))
                rows = _write_ready(job, products, names, rows, missing, written)
    assert not rows, "every batch was done"
    return Pace(pixels / 1e6, time.perf_counter() - started)


def in_this_process(job: Job, batches: Batches) -> Generator[range, None, None]:
    """Predict one batch after the other, while a thread reads the next."""
    load_network(job.weights, job.device)  # an error of the weights comes before the first image is read

    def read(batch: range) -> list[Prepared]:
        return [prepare(job, job.plan[number]) for number in batch]

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, batches[0]) if batches else None
        for position, batch in enumerate(batches):
            assert coming is not None
            prepared = coming.result()
            later = position + 1
            coming = reader.submit(read, batches[later]) if later < len(batches) else None
            spool_batch(job, [job.plan[number] for number in batch], prepared)
            yield batch


def assemble(job: Job, window: Window, names: Sequence[str]) -> dict[str, np.ndarray]:
    """One block of the products, from the tiles that cover it.

    With `keep`, pixels that the latest date shows clear are that observation; nothing was predicted there, and their
    standard deviations are 0.

    Args:
        job: where the tiles are.
        window: which pixels.
        names: `mean`, and the variances that the network gives.

    Returns:
        `reflectance` (13, H, W); `aleatoric`, `epistemic`, `total`, standard deviations, where the network has them;
        `clouds` (T, H, W), where a detector looked: 0 clear, 1 clouded, 255 missing; `valid` (H, W), where any date saw
        the ground or a cloud; `observed` (H, W) with `keep`.
    """
    fields = blend(job.plan, window, names, lambda tile: load_tile(job, tile, names))
    states = np.full((len(job.series.days), window.height, window.width), MISSING, np.uint8)
    latest = np.zeros((N_S2, window.height, window.width), np.float32) if job.keep else None
    for tile in job.plan.covering(window):
        inside, target = overlap_of(tile.cell, window)
        if inside[0].start >= inside[0].stop or inside[1].start >= inside[1].stop:
            continue
        part = load_tile(job, tile, ("states", "observed"))
        states[(slice(None), *target)] = part["states"][(slice(None), *inside)]
        if latest is not None:
            latest[(slice(None), *target)] = part["observed"][(slice(None), *inside)]
    deviations = {name: np.sqrt(np.maximum(values, 0)) for name, values in fields.items() if name != "mean"}
    block = {"reflectance": fields["mean"], **deviations, "valid": (states != MISSING).any(axis=0)}
    if job.detector:
        block["clouds"] = states
    if latest is not None:
        block["observed"] = states[-1] == CLEAR
        block["reflectance"] = np.where(block["observed"], latest, block["reflectance"])
        for name in deviations:
            block[name] = np.where(block["observed"], np.float32(0), block[name])
    return block


def _write_ready(
    job: Job,
    products: Products,
    names: Sequence[str],
    rows: list[BlockRow],
    missing: set[int],
    written: frozenset[Window],
) -> list[BlockRow]:
    """Write the rows of blocks whose tiles are all there, top to bottom, and delete tiles that no other row needs.

    Returns:
        The rows that remain.
    """
    columns = len(job.plan.across.starts)
    while rows and missing.isdisjoint(range(rows[0].first * columns, rows[0].end * columns)):
        for window in rows[0].windows:
            if window not in written:
                products.write(window, assemble(job, window, names))
        rows = rows[1:]
        kept = rows[0].first if rows else len(job.plan.down.starts)
        for row in range(kept):
            shutil.rmtree(job.path(job.plan.at(row, 0)).parent, ignore_errors=True)
    return rows
