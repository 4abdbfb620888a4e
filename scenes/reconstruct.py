"""Reconstruction of a scene: from the options of the command line to maps with their uncertainty."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.cli import print_notes
from common.errors import UsageError
from common.locks import folder_lock
from common.memory import memory_advice
from common.parallel import AUTO, available_cores
from model.runtime import choose_device
from scenes.inputs.dates import date_labels
from scenes.inputs.open import open_series
from scenes.inputs.series import SceneSeries
from scenes.inputs.values.radar import RadarDay
from scenes.options import MAX_WORKERS, RESAMPLING, SceneInputs, SceneOptions
from scenes.output_images import OutputImage, image_of_all, images_of_dates, images_of_periods
from scenes.outputs.fields import LATEST
from scenes.outputs.ndvi import NdviSums
from scenes.outputs.products import SceneProducts, stored_nodata
from scenes.outputs.series_products import finish_series
from scenes.prediction.dask_cluster import local_cluster, run_on_cluster
from scenes.prediction.detectors import Detectors, choose_detectors
from scenes.prediction.inference import Runner, run_inference, run_locally
from scenes.prediction.predict import Job
from scenes.prediction.tiles import TilePlan
from scenes.requirements import ModelRequirements, read_requirements
from scenes.resume import WORK, ResumeState, digest

TILES_PER_WORKER = 12  # a process starts in the time of some tiles: with fewer it does not pay
MEMORY_ADVICE = "lower --batch_size, --workers or --tile, or use --precision bf16"


def reconstruct_scene(options: SceneOptions) -> None:
    """Reconstruct a scene, or resume an interrupted reconstruction, and print the progress.

    Raises:
        UsageError: if options contradict each other or the trained run.
        DataError: if inputs cannot be used, or files cannot be written.
    """
    device, batch_size = device_and_batch(options)
    with memory_advice(device, MEMORY_ADVICE), ExitStack() as stack:
        requirements, weight_files = read_requirements(options.weights)
        series = stack.enter_context(open_series(options.inputs))
        images = plan_images(options, requirements, series)
        notes = [*series.notes, *requirements.check(len(images[0].dates), series.has_radar)]
        notes += describe_periods(options, series, images)
        detectors = choose_detectors(options.detector, series)
        notes += detectors.notes
        job = plan_job(options, requirements, series, images, device, detectors)
        workers = count_workers(options, device, len(job.plan), len(images))
        print_notes(notes)
        print(_describe(options, requirements, job, workers))
        settings = _settings(options, job, batch_size, weight_files, detectors.name)
        stack.enter_context(folder_lock(options.out, "--out"))
        state = ResumeState(options.out, settings)
        status = state.begin(options.overwrite)
        if status == "done":
            print(f"{options.out} is complete already, with these inputs and settings; nothing to do")
            return
        if status == "resumed":
            print("going on where an earlier command was interrupted")
        finished = {number: state.finished_image(number) for number in range(len(images))}
        pending = {number: _products(options, job, number) for number, record in finished.items() if record is None}
        Path(job.tile_folder).mkdir(parents=True, exist_ok=True)
        runner = _choose_runner(options, device, workers, stack)
        throughput = run_inference(job, pending, batch_size, runner)
        print(throughput)
        network = f"{requirements.name}, {job.weights}"
        for number, products in tqdm(pending.items(), desc="maps", unit="image", disable=not options.is_series):
            sums = products.ndvi_sums().to_json() if job.with_ndvi else None
            files = products.finish(network=network, notes=notes, tags=_tags(options, job, number, detectors.name))
            record = {"products": {name: path.name for name, path in files.items()}, "ndvi": sums}
            state.finish_image(number, record)
            finished[number] = record
        records = [record for _, record in sorted(finished.items()) if record is not None]
        details = {
            "notes": notes,
            "network": network,
            "dates": series.labels,
            "megapixels": throughput.megapixels,
            "seconds": throughput.seconds,
        }
        if not options.is_series:
            files = {name: Path(options.out, file) for name, file in records[0]["products"].items()}
        else:
            labels = {image.name: [series.labels[date] for date in image.dates] for image in images}
            details["images"] = labels
            files = finish_series(
                Path(options.out),
                series,
                images,
                [NdviSums.from_json(record["ndvi"]) for record in records],
                network=network,
                notes=notes,
                store_fields=_fields(job) if options.zarr else (),
                nodata=stored_nodata(series.nodata),
                work=state.work,
            )
            print(f"{len(images)} images: {Path(options.out, images[0].name)} to {images[-1].name}")
        state.finish({**details, "products": {name: path.name for name, path in files.items()}})
        for name, path in files.items():
            print(f"{name}: {path}")


def device_and_batch(options: SceneOptions) -> tuple[str, int]:
    """The device, and the number of tiles that it predicts together."""
    device = options.device
    if device == "auto":
        several = options.scheduler or options.workers not in (AUTO, 0, 1)
        device = "cuda" if torch.cuda.is_available() and not several else "cpu"
    return device, options.batch_size or (1 if device == "cpu" else 8)


def plan_images(options: SceneOptions, requirements: ModelRequirements, series: SceneSeries) -> tuple[OutputImage, ...]:
    """The images to make.

    Raises:
        UsageError: if the number of dates of each does not fit the network.
    """
    if not options.is_series:
        return (image_of_all(series.days),)
    count = options.window or (1 if requirements.single else requirements.dates)
    if not count:
        raise UsageError("conf.json of this run does not say from how many dates it was trained; give --window")
    if requirements.single and count > 1:
        raise UsageError(f"--window {count}: this run's network ({requirements.name}) takes one date; leave it out")
    if count == 1 and not requirements.single:
        raise UsageError("--window 1: a single clouded image cannot show the ground below its clouds; give 2 or more")
    if options.every_date:
        return images_of_dates(series.days, series.labels, count)
    return images_of_periods(series.days, options.composite, count)


def describe_periods(options: SceneOptions, series: SceneSeries, images: Sequence[OutputImage]) -> list[str]:
    """A note on the months or seasons that have too few dates."""
    if not options.composite:
        return []
    borrowed: dict[str, list[str]] = {}
    for image in images:
        days = {date: series.days[date] for date in image.dates}
        outside = [series.labels[date] for date, day in days.items() if not image.first_day <= day <= image.last_day]
        borrowed |= {image.name: outside} if outside else {}
    text = "; ".join(f"{name} takes {', '.join(labels)}" for name, labels in borrowed.items())
    return [f"too few dates of their own: {text}"] if borrowed else []


def _products(options: SceneOptions, job: Job, number: int) -> SceneProducts:
    """The products of an output image; those of a series have a folder each, and share one for unfinished files."""
    image, out = job.images[number], Path(options.out)
    if not options.is_series:
        return SceneProducts(out, job.series, _fields(job))
    series = job.series.select(image.dates)
    return SceneProducts(out / image.name, series, _fields(job), image, out / WORK / "images" / image.name)


def plan_job(
    options: SceneOptions,
    requirements: ModelRequirements,
    series: SceneSeries,
    images: tuple[OutputImage, ...],
    device: str,
    detectors: Detectors,
) -> Job:
    """Everything that is needed to predict the images."""
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
        detectors=detectors.of_dates,
        keep_clear=options.where_clear == "keep",
        images=images,
        with_ndvi=options.is_series,
    )


def count_workers(options: SceneOptions, device: str, n_tiles: int, n_images: int = 1) -> int:
    """As given, at most one for each tile; else one for each core, if each has enough work, up to `MAX_WORKERS`."""
    if options.workers != AUTO:
        return min(max(int(options.workers), 1), n_tiles)
    worthwhile = min(n_tiles, n_tiles * n_images // TILES_PER_WORKER)
    return max(1, min(available_cores(), MAX_WORKERS, worthwhile)) if device == "cpu" else 1


def _describe(options: SceneOptions, requirements: ModelRequirements, job: Job, workers: int) -> str:
    grid, labels, plan = job.series.grid, job.series.labels, job.plan
    where = f"on {job.device}" + (f", {workers} processes" if workers > 1 else "")
    if options.is_series:
        labels = (*labels[:1], "...", labels[-1]) if len(labels) > 3 else labels
    count = len(job.images[0].dates)
    images = f"{len(job.images)} images from {count} dates each; " if options.is_series else ""
    return (
        f"{requirements.name} of {options.weights}: {grid.height} x {grid.width} pixels, "
        f"{len(job.series.days)} dates {', '.join(labels)}; {images}"
        f"{len(plan)} tiles of {plan.tile}, overlap {plan.overlap}, "
        f"{'on the cluster ' + options.scheduler if options.scheduler else where}"
    )


def _settings(
    options: SceneOptions, job: Job, batch_size: int, weight_files: Sequence[Path], detector: str
) -> dict[str, Any]:
    """Everything that the result depends on, by the names that a user gives it."""
    inputs = options.inputs
    return {
        "inputs": digest(job.series.paths),
        "dates": [list(job.series.labels), list(job.dates)],
        "--weights": digest(weight_files),
        "--aoi, --bbox, --crs, --resolution or --resampling": _area_settings(inputs),
        "--offset, --scale or --sar_units": [inputs.offset, inputs.scale, _radar_units(job.series)],
        "--every_date, --composite, --window or --zarr": _series_settings(options, job),
        "--tile": job.plan.tile,
        "--overlap": job.plan.overlap,
        "--batch_size": batch_size,
        "--where_clear": options.where_clear,
        "--detector": detector,
        "--precision": options.precision,
        "--device": job.device.partition(":")[0],
    }


def _radar_units(series: SceneSeries) -> str:
    """Of the radar images, as given or by their values."""
    days = [source for source in series.radar if isinstance(source, RadarDay)]
    return ", ".join(sorted({image.units for day in days for image in day.images})) or "db"


def _series_settings(options: SceneOptions, job: Job) -> list[Any] | None:
    """None for a single image, as in records of earlier versions."""
    images = [[image.name, list(image.dates), image.kept] for image in job.images]
    return [images, options.zarr] if options.is_series else None


def _area_settings(inputs: SceneInputs) -> list[Any] | None:
    """What the place of the maps depends on besides the images; None for the grid of the images, as in old records."""
    aoi = digest([inputs.aoi]) if inputs.aoi else ""
    settings = [aoi, list(inputs.bbox), inputs.crs, inputs.resolution, inputs.resampling]
    return settings if any(settings[:-1]) or inputs.resampling != RESAMPLING[0] else None


def _fields(job: Job) -> list[str]:
    """The products, by name."""
    variances = job.outputs[1:]
    optional = {"total": variances, "clouds": job.detectors, "observed": job.keep_clear}
    return ["reflectance", *variances, *(name for name, wanted in optional.items() if wanted)]


def _tags(options: SceneOptions, job: Job, number: int, detector: str) -> dict[str, str]:
    """Metadata of the maps."""
    image, kept, time = job.images[number], LATEST, {}
    if options.is_series:
        kept = job.series.labels[image.kept]
        first, last = date_labels([image.first_day])[0], date_labels([image.last_day])[0]
        time = {"ACQUISITION_DATE": first} if options.every_date else {"PERIOD": f"{first}/{last}"}
    observed = f"observed where {kept} is clear (standard deviation 0 there)"
    return {
        **time,
        "PIXELS": observed if job.keep_clear else "predicted",
        "TILES": f"{job.plan.tile} pixels, overlap {job.plan.overlap}, blended",
        "CLOUD_DETECTOR": detector,
        "PRECISION": options.precision,
    }


def _choose_runner(options: SceneOptions, device: str, workers: int, stack: ExitStack) -> Runner:
    if workers <= 1 and not options.scheduler:
        choose_device(device)  # raises if there is no such device
        return run_locally
    address = options.scheduler or stack.enter_context(local_cluster(workers))
    return partial(run_on_cluster, address)
