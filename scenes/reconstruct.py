"""Reconstruction of a scene: from the options of the command line to maps with their uncertainty."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.cli import print_notes
from common.locks import folder_lock
from common.memory import memory_advice
from common.parallel import AUTO, available_cores
from model.runtime import choose_device
from scenes.dask_cluster import local_cluster, run_on_cluster
from scenes.inference import Runner, run_inference, run_locally
from scenes.inputs.open import open_series
from scenes.inputs.series import SceneSeries
from scenes.options import MAX_WORKERS, RESAMPLING, SceneInputs, SceneOptions
from scenes.outputs.products import SceneProducts
from scenes.predict import Job
from scenes.requirements import ModelRequirements, read_requirements
from scenes.resume import WORK, ResumeState, digest
from scenes.tiles import TilePlan

TILES_PER_WORKER = 12  # a process starts in the time of some tiles: with fewer it does not pay
MEMORY_ADVICE = "lower --batch_size, --workers or --tile, or use --precision bf16"


def reconstruct_scene(options: SceneOptions) -> None:
    """Reconstruct a scene, or resume an interrupted reconstruction, and print the progress.

    Raises:
        UsageError: if options contradict each other or the trained run.
        DataError: if inputs cannot be used, or files cannot be written.
    """
    device, batch_size = _choose_device(options)
    with memory_advice(device, MEMORY_ADVICE), ExitStack() as stack:
        requirements, weight_files = read_requirements(options.weights)
        series = stack.enter_context(open_series(options.inputs))
        notes = [*series.notes, *requirements.check(len(series.days), series.has_radar)]
        job = _plan(options, requirements, series, device)
        workers = _count_workers(options, device, len(job.plan))
        print_notes(notes)
        print(_describe(options, requirements, job, workers))
        settings = _settings(options, job, batch_size, weight_files)
        stack.enter_context(folder_lock(options.out, "--out"))
        state = ResumeState(options.out, settings)
        status = state.begin(options.overwrite)
        if status == "done":
            print(f"{options.out} is complete already, with these inputs and settings; nothing to do")
            return
        if status == "resumed":
            print("going on where an earlier command was interrupted")
        products = SceneProducts(options.out, series, _fields(job))
        Path(job.tile_folder).mkdir(parents=True, exist_ok=True)
        runner = _choose_runner(options, device, workers, stack)
        throughput = run_inference(job, {0: products}, batch_size, runner)
        print(throughput)
        network = f"{requirements.name}, {job.weights}"
        files = products.finish(network=network, notes=notes, tags=_tags(options, job))
        state.finish(
            {
                "notes": notes,
                "network": network,
                "dates": series.labels,
                "megapixels": throughput.megapixels,
                "seconds": throughput.seconds,
                "products": {name: path.name for name, path in files.items()},
            }
        )
        for name, path in files.items():
            print(f"{name}: {path}")


def _choose_device(options: SceneOptions) -> tuple[str, int]:
    """The device, and the number of tiles that it predicts together."""
    device = options.device
    if device == "auto":
        several = options.scheduler or options.workers not in (AUTO, 0, 1)
        device = "cuda" if torch.cuda.is_available() and not several else "cpu"
    return device, options.batch_size or (1 if device == "cpu" else 8)


def _plan(options: SceneOptions, requirements: ModelRequirements, series: SceneSeries, device: str) -> Job:
    overlap = options.tile // 4 if options.overlap is None else options.overlap
    return Job(
        series=series,
        plan=TilePlan(series.grid.height, series.grid.width, options.tile, overlap),
        weights=str(Path(options.weights).resolve()),
        tile_folder=str((Path(options.out) / WORK / "tiles").resolve()),
        outputs=("mean", *requirements.variances),
        device=device,
        precision=options.precision,
        uses_radar=requirements.radar,
        uses_dates=not requirements.single,
        reference_day=requirements.reference_day,
        detector="" if options.detector == "none" else options.detector,
        keep_clear=options.where_clear == "keep",
    )


def _count_workers(options: SceneOptions, device: str, n_tiles: int) -> int:
    """As given, at most one for each tile; else one for each core, if each has enough tiles, up to `MAX_WORKERS`."""
    if options.workers != AUTO:
        return min(max(int(options.workers), 1), n_tiles)
    return max(1, min(available_cores(), MAX_WORKERS, n_tiles // TILES_PER_WORKER)) if device == "cpu" else 1


def _describe(options: SceneOptions, requirements: ModelRequirements, job: Job, workers: int) -> str:
    grid, labels, plan = job.series.grid, job.series.labels, job.plan
    where = f"on {job.device}" + (f", {workers} processes" if workers > 1 else "")
    return (
        f"{requirements.name} of {options.weights}: {grid.height} x {grid.width} pixels, "
        f"{len(labels)} dates {', '.join(labels)}; {len(plan)} tiles of {plan.tile}, overlap {plan.overlap}, "
        f"{'on the cluster ' + options.scheduler if options.scheduler else where}"
    )


def _settings(options: SceneOptions, job: Job, batch_size: int, weight_files: Sequence[Path]) -> dict[str, Any]:
    """Everything that the result depends on, by the names that a user gives it."""
    inputs = options.inputs
    return {
        "inputs": digest(job.series.paths),
        "dates": [list(job.series.labels), list(job.dates)],
        "--weights": digest(weight_files),
        "--aoi, --bbox, --crs, --resolution or --resampling": _area_settings(inputs),
        "--offset, --scale or --sar_units": [inputs.offset, inputs.scale, inputs.radar_units],
        "--tile": job.plan.tile,
        "--overlap": job.plan.overlap,
        "--batch_size": batch_size,
        "--where_clear": options.where_clear,
        "--detector": options.detector,
        "--precision": options.precision,
        "--device": job.device.partition(":")[0],
    }


def _area_settings(inputs: SceneInputs) -> list[Any] | None:
    """What the place of the maps depends on besides the images; None for the grid of the images, as in old records."""
    aoi = digest([inputs.aoi]) if inputs.aoi else ""
    settings = [aoi, list(inputs.bbox), inputs.crs, inputs.resolution, inputs.resampling]
    return settings if any(settings[:-1]) or inputs.resampling != RESAMPLING[0] else None


def _fields(job: Job) -> list[str]:
    """The products, by name."""
    variances = job.outputs[1:]
    optional = {"total": variances, "clouds": job.detector, "observed": job.keep_clear}
    return ["reflectance", *variances, *(name for name, wanted in optional.items() if wanted)]


def _tags(options: SceneOptions, job: Job) -> dict[str, str]:
    """Metadata of the maps."""
    observed = "observed where the latest date is clear (standard deviation 0 there)"
    return {
        "PIXELS": observed if job.keep_clear else "predicted",
        "TILES": f"{job.plan.tile} pixels, overlap {job.plan.overlap}, blended",
        "CLOUD_DETECTOR": options.detector,
        "PRECISION": options.precision,
    }


def _choose_runner(options: SceneOptions, device: str, workers: int, stack: ExitStack) -> Runner:
    if workers <= 1 and not options.scheduler:
        choose_device(device)  # raises if there is no such device
        return run_locally
    address = options.scheduler or stack.enter_context(local_cluster(workers))
    return partial(run_on_cluster, address)
