"""Reconstruct a whole scene without clouds: your GeoTIFFs in, maps for your GIS out, with their uncertainty."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError, run_command
from data.constants import DETECTORS

if TYPE_CHECKING:
    from scenes.inputs.series import SceneSeries
    from scenes.predict import Job
    from scenes.reconstruct import Runner
    from scenes.requirements import Needs

TILES_EACH = 12  # a process starts in the time of some tiles: fewer are not worth it
MOST_WORKERS = 8  # of --workers auto: each needs about 1.5 GB
TO_SAVE_MEMORY = "lower --batch_size, --workers or --tile, or use --precision bf16"
EXAMPLES = """examples:
  python reconstruct_scene.py --weights results/my_run --optical s2_*.tif --sar s1_*.tif --out maps/june
  python reconstruct_scene.py --weights results/my_run --list june.csv --workers 4 --out maps/june
  python reconstruct_scene.py --weights results/my_run --folder SEN12MSCRTS/ROIs1868/73 --numbers 3 4 5 --out maps/roi

Run it again after an interruption: it goes on where it was. docs/usage.md tells of inputs, products and clusters."""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.HelpFormatter):
    """Keeps the lines of the examples."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command; each may be spelt with dashes in place of underscores."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=_Help, allow_abbrev=False)

    def add(group: Any, names: str, text: str, **more: Any) -> None:
        spelled = dict.fromkeys(s for name in names.split() for s in (f"--{name}", f"--{name.replace('_', '-')}"))
        shown = list(spelled) if len(names.split()) > 1 else list(spelled)[:1]
        group.add_argument(*shown, help=text, **more)
        for hidden in [name for name in spelled if name not in shown]:
            kind = {key: value for key, value in more.items() if key != "default"}
            dest = shown[0].removeprefix("--")
            group.add_argument(hidden, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)

    group = parser.add_argument_group("what goes in: the network, and one of --optical, --list and --folder")
    many: dict[str, Any] = {"nargs": "+", "default": []}
    add(group, "weights", "a trained run: its folder, or a .pth.tar beside its conf.json", required=True, metavar="RUN")
    add(group, "optical", "Sentinel-2 GeoTIFFs on one grid, one for each date", metavar="TIF", **many)
    add(group, "sar", "Sentinel-1 GeoTIFFs, VV and VH; each date takes the nearest in time", metavar="TIF", **many)
    add(
        group,
        "dates",
        "of --optical, like 2018-06-21 (default: from tags or names); of --folder those that are wanted",
        metavar="DAY",
        **many,
    )
    add(group, "sar_dates", "of --sar", metavar="DAY", **many)
    add(group, "list", "CSV or JSON of one scene: optical, radar, date, radar_date", default="", metavar="FILE")
    add(group, "folder", "a region of SEN12MS-CR-TS, ROOT/ROIs1868/73", default="", metavar="DIR")
    add(group, "numbers", "which of the 30 dates of --folder (default: all)", type=int, metavar="N", **many)
    add(group, "offset", "of optical values: auto (as the product's tags say), none, or -1000", default="auto")
    add(group, "scale", "reflectance for each stored optical unit (default: as declared, else 0.0001)", type=float)
    add(group, "sar_units", "of --sar (default: db)", default="db", choices=("db", "power"))

    group = parser.add_argument_group("what comes out")
    add(group, "out", "folder of the maps", required=True, metavar="DIR")
    text = "pixels that the latest date shows clear: predict them too (default), or keep what was observed"
    add(group, "where_clear", text, default="predict", choices=("predict", "keep"))
    text = f"of clouds, for the mask and for keep (default: {DETECTORS[0]}); none makes no mask"
    add(group, "detector", text, default=DETECTORS[0], choices=(*DETECTORS, "none"))
    add(group, "overwrite", "replace what an earlier command with other settings left in --out", action="store_true")

    group = parser.add_argument_group("how it is computed")
    text = "pixels across of what the network sees at once: those it was trained on (default: 256)"
    add(group, "tile", text, type=int, default=256, metavar="PX")
    add(group, "overlap", "pixels that neighbours share (default: a quarter of --tile)", type=int, metavar="PX")
    add(group, "batch_size", "tiles predicted together (default: 1 on a CPU, 8 on a GPU)", type=int, metavar="N")
    text = f"processes, one core and about 1.5 GB each; auto: a core each, up to {MOST_WORKERS} (default: auto)"
    add(group, "workers", text, type=_workers, default=0, metavar="N")
    text = "a running Dask cluster in place of this process; --out must be a folder that its workers share"
    add(group, "scheduler", text, default="", metavar="ADDRESS")
    add(group, "device", "auto, cpu, cuda or cuda:1 (default: auto, a GPU if there is one)", default="auto")
    text = "of the network; auto takes bf16 where the device has it (default: fp32)"
    add(group, "precision", text, default="fp32", choices=("auto", "fp32", "bf16", "fp16"))
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct as the flags say; see `--help`."""
    args = build_parser().parse_args(argv)
    check_flags(args)
    from training.run import memory_advice

    with memory_advice(args.device, TO_SAVE_MEMORY):
        run(args)
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Fill in what follows from other flags, and refuse what contradicts itself, before anything is read."""
    given = [name for name in ("optical", "list", "folder") if getattr(args, name)]
    if len(given) != 1:
        came = " and ".join(f"--{name}" for name in given) or "none of them"
        raise UsageError(f"name the scene by one of --optical, --list and --folder; got {came}")
    if args.where_clear == "keep" and args.detector == "none":
        raise UsageError("--where_clear keep must know what is clear: name a --detector other than none")
    if args.batch_size is not None and args.batch_size < 1:
        raise UsageError(f"--batch_size takes a number from 1, not {args.batch_size}")
    if args.scheduler and args.workers > 1:
        raise UsageError("--scheduler has workers of its own; leave --workers out")
    if args.overlap is None:
        args.overlap = args.tile // 4
    if args.device == "auto":
        args.device = "cpu" if args.scheduler or args.workers > 1 else _best_device()
    if args.batch_size is None:
        args.batch_size = 1 if args.device == "cpu" else 8
    if args.workers > 1 and args.device != "cpu":
        raise UsageError(f"--workers shares the cores of a CPU; one process feeds {args.device}: leave --workers out")


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run(args: argparse.Namespace) -> None:
    """Plan, predict, and write the maps; say what is done and where it is."""
    from scenes.outputs.products import SceneProducts
    from scenes.reconstruct import reconstruct
    from scenes.requirements import read_needs
    from scenes.resume import Ledger

    needs, files = read_needs(args.weights)
    with ExitStack() as stack:
        series = stack.enter_context(_open(args))
        notes = [*series.notes, *needs.check(len(series.days), series.has_radar)]
        job = plan(args, needs, series)
        args.workers = _settle_workers(args.workers, args.device, len(job.plan))
        for text in notes:
            print(f"note: {text}")
        print(describe(args, needs, job))
        settings = settings_of(args, job, files)
        ledger = Ledger(args.out, settings)
        state = ledger.begin(args.overwrite)
        if state == "done":
            print(f"{args.out} is complete already, with these inputs and settings; nothing to do")
            return
        products = SceneProducts(
            args.out,
            series.grid,
            labels=series.labels,
            days=series.days,
            nodata=series.nodata,
            fields=fields_of(needs, job),
            settings=settings,
        )
        if state == "resumed":
            print("going on where an earlier command was interrupted")
        Path(job.spool).mkdir(parents=True, exist_ok=True)
        runner = _runner(args, stack)
        pace = reconstruct(job, products, ("mean", *needs.variances), args.batch_size, runner)
        print(pace)
        network = f"{needs.name}, {Path(args.weights).resolve()}"
        paths = products.finish(network=network, notes=notes, tags=tags_of(args))
        told = {"notes": notes, "network": network, "dates": series.labels, "megapixels": pace.megapixels}
        files_told = {name: str(path.name) for name, path in paths.items()}
        ledger.finish({**told, "seconds": pace.seconds, "products": files_told})
        for name, path in paths.items():
            print(f"{name}: {path}")


def plan(args: argparse.Namespace, needs: "Needs", series: "SceneSeries") -> "Job":
    """What every process must know."""
    from scenes.predict import Job
    from scenes.resume import WORK
    from scenes.tiles import TilePlan

    return Job(
        series=series,
        plan=TilePlan(series.grid.height, series.grid.width, args.tile, args.overlap),
        weights=str(Path(args.weights).resolve()),
        spool=str((Path(args.out) / WORK / "tiles").resolve()),
        device=args.device,
        precision=args.precision,
        uses_radar=needs.radar,
        dated=not needs.single,
        detector="" if args.detector == "none" else args.detector,
        keep=args.where_clear == "keep",
    )


def describe(args: argparse.Namespace, needs: "Needs", job: "Job") -> str:
    """One line about what will be done."""
    grid, dates = job.series.grid, job.series.labels
    where = f"on {args.device}" + (f", {args.workers} processes" if args.workers > 1 else "")
    return (
        f"{needs.name} of {args.weights}: {grid.height} x {grid.width} pixels, {len(dates)} dates {', '.join(dates)}; "
        f"{len(job.plan)} tiles of {args.tile}, overlap {args.overlap}, "
        f"{'on the cluster ' + args.scheduler if args.scheduler else where}"
    )


def settings_of(args: argparse.Namespace, job: "Job", weights: Sequence[Path]) -> dict[str, Any]:
    """Everything that the result depends on, by the words that a user knows it by."""
    from scenes.resume import digest

    return {
        "inputs": digest(job.series.paths),
        "dates": [list(job.series.labels), list(job.dates)],
        "--weights": digest(weights),
        "--offset, --scale or --sar_units": [args.offset, args.scale, args.sar_units],
        "--tile": args.tile,
        "--overlap": args.overlap,
        "--batch_size": args.batch_size,
        "--where_clear": args.where_clear,
        "--detector": args.detector,
        "--precision": args.precision,
        "--device": args.device.partition(":")[0],
    }


def fields_of(needs: "Needs", job: "Job") -> tuple[str, ...]:
    """The products that the network can give, by name."""
    total = ("total",) if needs.variances else ()
    masks = (*(("clouds",) if job.detector else ()), *(("observed",) if job.keep else ()))
    return ("reflectance", *needs.variances, *total, *masks)


def tags_of(args: argparse.Namespace) -> dict[str, str]:
    """What the files tell about how they were made."""
    kept = "observed where the latest date is clear (standard deviation 0 there)"
    return {
        "PIXELS": kept if args.where_clear == "keep" else "predicted",
        "TILES": f"{args.tile} pixels, overlap {args.overlap}, blended",
        "CLOUD_DETECTOR": args.detector,
        "PRECISION": args.precision,
    }


def _open(args: argparse.Namespace) -> "SceneSeries":
    from scenes.inputs.series import open_series

    try:
        offset = args.offset if args.offset in ("auto", "none") else float(args.offset)
    except ValueError as error:
        raise UsageError(f"--offset takes auto, none or a number such as -1000, not {args.offset!r}") from error
    return open_series(
        args.optical,
        args.sar,
        dates=args.dates or None,
        radar_dates=args.sar_dates or None,
        listing=args.list,
        folder=args.folder,
        numbers=args.numbers,
        offset=offset,
        scale=args.scale,
        radar_units=args.sar_units,
    )


def _runner(args: argparse.Namespace, stack: ExitStack) -> "Runner":
    from scenes.reconstruct import in_this_process

    if args.workers <= 1 and not args.scheduler:
        from training.run import choose_device

        choose_device(args.device)
        return in_this_process
    from scenes.dask_cluster import local_cluster, on_cluster

    address = args.scheduler or stack.enter_context(local_cluster(args.workers))
    return partial(on_cluster, address)


def _workers(text: str) -> int:
    """A number of processes; auto stands for 0, to be settled when the tiles are known."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected auto or a number from 1, got {text!r}")
    return int(text)


def _settle_workers(wanted: int, device: str, tiles: int) -> int:
    """How many processes: as asked; else one for each core, if there is enough to do for each, up to a few."""
    if wanted or device != "cpu":
        return wanted or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, tiles // TILES_EACH))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
