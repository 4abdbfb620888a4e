"""The plan of a reconstruction without making it: how the images are read, and the disk and time that it takes."""

import json
import time
import warnings
from collections.abc import Iterator

from common.cli import print_notes
from common.memory import memory_advice
from data.constants import N_S2
from scenes.inputs.open import open_series
from scenes.inputs.series import SceneSeries
from scenes.options import SceneOptions
from scenes.outputs.cog import BLOCK
from scenes.prediction.detectors import choose_detectors
from scenes.prediction.predict import Job, predict, read_tile
from scenes.prediction.tiles import Tile
from scenes.reconstruct import (
    MEMORY_ADVICE,
    count_workers,
    describe_periods,
    device_and_batch,
    plan_images,
    plan_job,
)
from scenes.requirements import VARIANCES, ModelRequirements, read_requirements
from scenes.summary import describe_series

_MEASURED_S = 3.0  # of reading and predicting tiles, after a first one
_TRIES = 9  # tiles that are searched for one with data, and measured
_WRITE_S = 1.2e-7  # seconds for each pixel of a map and band: blocks, and Cloud-Optimised GeoTIFFs from them
_DEFAULT_DATES = 3  # of each image of a series, where no network says it


def dry_run(options: SceneOptions) -> None:
    """Print the notes and the plan of a reconstruction, or its inputs as JSON; write no files.

    Only headers and sampled windows are read; for JSON, each image coarsely. With --weights the requirements of the
    network are checked, and without JSON some tiles are predicted to estimate the time.

    Raises:
        UsageError: if options contradict each other or the trained run.
        DataError: if inputs cannot be used.
    """
    requirements = read_requirements(options.weights)[0] if options.weights else None
    device, _ = device_and_batch(options)
    with (
        memory_advice(device, MEMORY_ADVICE),
        warnings.catch_warnings(record=options.json) as caught,
        open_series(options.inputs) as series,
    ):
        assumed = requirements or _assumed_requirements(series)
        images = plan_images(options, assumed, series)
        notes = [*series.notes, *describe_periods(options, series, images)]
        if requirements is not None:
            notes += requirements.check(len(images[0].dates), series.has_radar)
        detectors = choose_detectors(options.detector, series)
        notes += detectors.notes
        if options.json:
            summary = describe_series(series)
            notes += dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught or ())
            print(json.dumps(summary | {"notes": notes}, allow_nan=False, indent=1))
            return
        print_notes(notes)
        job = plan_job(options, assumed, series, images, device, detectors)
        for line in _plan_lines(options, job, requirements is not None):
            print(line)


def _assumed_requirements(series: SceneSeries) -> ModelRequirements:
    """Those of a network with all outputs that takes the scene."""
    return ModelRequirements("", series.has_radar, False, _DEFAULT_DATES, VARIANCES["nig"])


def _plan_lines(options: SceneOptions, job: Job, has_weights: bool) -> Iterator[str]:
    grid, plan, labels = job.series.grid, job.plan, job.series.labels
    workers = count_workers(options, job.device, len(plan), len(job.images))
    _, bounds = grid.footprint()
    where = (
        f", west {bounds[0]:.5f}, south {bounds[1]:.5f}, east {bounds[2]:.5f}, north {bounds[3]:.5f}" if bounds else ""
    )
    a, _, _, _, e = tuple(grid.transform)[:5]
    yield f"grid: {grid.height} x {grid.width} pixels of {a:.6g} x {-e:.6g}, {grid.crs_name}{where}"
    yield f"dates: {len(labels)}, {', '.join(labels)}"
    if options.is_series:
        first, last = job.images[0], job.images[-1]
        yield f"images: {len(job.images)}, {first.name} to {last.name}, each of {len(first.dates)} dates"
    tiles = _needed_tiles(job)
    unused = f" ({len(plan) - len(tiles)} more lie outside of the area)" if len(tiles) < len(plan) else ""
    processes = (
        f"cluster {options.scheduler}" if options.scheduler else f"{workers} process{'es' if workers > 1 else ''}"
    )
    yield f"tiles: {len(tiles)} of {plan.tile} pixels, overlap {plan.overlap}{unused}; {processes} on {job.device}"
    work, maps = disk_bytes(job, options.zarr)
    yield f"disk: at most {_size(work)} in --out/.work while it runs and {_size(maps)} of maps"
    if not has_weights:
        yield "time: --weights is needed to estimate it"
        return
    seconds = _tile_seconds(job, tiles)
    if seconds is None:
        yield "time: unknown, no tile with data was found"
        return
    predicting = seconds * len(tiles) * len(job.images) / (1 if options.scheduler else workers)
    writing = _WRITE_S * grid.window.size * _map_bands(job) * len(job.images)
    parallel = f", {workers} at a time" if workers > 1 else ""
    if options.scheduler:
        parallel = " here; the workers of the cluster share them"
    yield (
        f"time: about {_duration(predicting + writing)}: {seconds:.2g} s for each tile and image, measured{parallel}, "
        f"and {_duration(writing)} for writing the maps"
    )


def disk_bytes(job: Job, zarr: bool = False) -> tuple[int, int]:
    """Upper bounds of the disk space of a reconstruction.

    Args:
        job: what is made.
        zarr: whether the images are written into a Zarr store as well.

    Returns:
        Bytes of unfinished files, and of maps. Both hold without compression, which takes about a third of them away.
    """
    pixels, n_images = job.series.grid.window.size, len(job.images)
    n_dates = max(len(image.dates) for image in job.images)
    values = 4 * N_S2 * len(job.outputs) * job.plan.tile**2  # float32
    side = min(job.plan.tile, max(job.plan.down.length, job.plan.across.length))
    cell = n_dates * (1 + 4 * job.with_ndvi) + 4 * N_S2 * job.keep_clear
    rows = max(len(row.tile_rows) for row in job.plan.block_rows(BLOCK)) + 1
    tiles = min(rows, len(job.plan.down.starts)) * len(job.plan.across.starts) * (values + cell * side**2)
    masks = (n_dates if job.detectors else 0) + job.keep_clear
    blocks = pixels * (2 * _map_bands(job) + 2 * masks)
    maps = pixels * (2 * _map_bands(job) + masks) * 4 // 3  # with overviews
    store = pixels * (2 * _map_bands(job) + masks) if zarr else 0
    return n_images * (tiles + blocks), n_images * (maps + store)


def _map_bands(job: Job) -> int:
    """Bands of reflectance and of its standard deviations."""
    variances = len(job.outputs) - 1
    return N_S2 * (1 + variances + (variances > 0))


def _needed_tiles(job: Job) -> list[Tile]:
    """The tiles with any pixel of the area."""
    tiles = [job.plan[number] for number in range(len(job.plan))]
    area = job.series.area
    return tiles if area is None else [tile for tile in tiles if area.inside(tile.window).any()]


def _tile_seconds(job: Job, tiles: list[Tile]) -> float | None:
    """Seconds to read and predict one tile of one image, measured from the middle outwards; None without any data."""
    middle = len(tiles) // 2
    order = sorted(range(len(tiles)), key=lambda number: abs(number - middle))
    candidates = [tiles[number] for number in order[:: max(1, len(order) // _TRIES)]]

    def measure(tile: Tile) -> float | None:
        started = time.perf_counter()
        entry = read_tile(job, tile)
        if entry.x is None:
            return None
        list(predict(job, entry.x[None]))
        return time.perf_counter() - started

    first = next((index for index, tile in enumerate(candidates) if measure(tile) is not None), None)  # warm-up
    if first is None:
        return None
    seconds: list[float] = []
    for tile in candidates[first:]:
        duration = measure(tile)
        seconds += [] if duration is None else [duration]
        if sum(seconds) > _MEASURED_S:
            break
    return sum(seconds) / len(seconds)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(1, round(number / 1e6))} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
