"""Speed of reading a .SAFE archive, whose JPEG 2000 is slow to decode, against the same scene as GeoTIFFs.

    python -m benchmarks.product_speed --out benchmarks/results/product_speed.json

Three dates of a synthetic scene with noise, which neither format compresses well, are written as archives of .SAFE
products (blocks of 1024 pixels, bands at their three resolutions) and as GeoTIFFs with all bands. Every figure is of a
fresh process: `read_s` opens a series and reads its tiles, `whole_s` is `reconstruct_scene.py` with a small network of
random weights, cloud masks included. Peak memory is the largest resident set of one process.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import benchmark_parser, in_turns, publish, run_python, run_worker
from benchmarks.scene_speed import DATES, run_command_measured
from common.cli import run_command
from data.raster.geotiff import write_geotiff
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from scenes.prediction.tiles import TilePlan
from tests.support.safe_files import CRS, grid_of, write_safe, write_zip
from tests.support.scene_cases import write_run

GOAL = 2.0  # times the time of GeoTIFFs, for the whole command
_BLOCK = 1024  # pixels along a side of the blocks of real products
_KINDS = {"GeoTIFF": "s2_*.tif", "SAFE archive": "*.zip"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("product_speed", __doc__)
    parser.add_argument("--side", type=int, default=2048, help="pixels across of the scene (default: 2048)")
    parser.add_argument("--tile", type=int, default=256, help="pixels across of a tile (default: 256)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each kind, in turns (default: 1)")
    parser.add_argument("--work", type=Path, help="folder for scenes and maps (default: the system's temporary folder)")
    parser.add_argument("--read", nargs="+", metavar="FILE", help=argparse.SUPPRESS)  # a process that reads
    parser.add_argument("--write", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # a process that writes the scene
    args = parser.parse_args(argv)
    if args.write:
        write_scene(args.write, args.side)
        return 0
    if args.read:
        return read_tiles(args.read, args.tile)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder).resolve()
        run = write_run(work / "run", input_t=len(DATES))
        # in a process of its own: those started later would inherit its peak memory
        run_python(["-m", "benchmarks.product_speed", "--write", str(work), "--side", str(args.side)], "writing")
        measured = in_turns(list(_KINDS), args.rounds, lambda kind: measure(args, work, run, kind))
    best = {kind: min(results, key=lambda result: result["whole_s"]) for kind, results in measured.items()}
    tiff, safe = best.values()
    ratios = {name: safe[name] / tiff[name] for name in ("read_s", "whole_s")}
    results = {
        "scene": f"{args.side} x {args.side}, {len(DATES)} dates",
        "tile": args.tile,
        "workers": args.workers,
        **best,
        "times the time of GeoTIFF": ratios | {"goal of whole_s": GOAL, "met": ratios["whole_s"] <= GOAL},
    }
    return publish("product_speed", argv, results, args.out)


def measure(args: argparse.Namespace, work: Path, run: Path, kind: str) -> dict[str, Any]:
    """Read the scene, then reconstruct it, from files of one kind."""
    paths = [str(path) for path in sorted(work.glob(_KINDS[kind]))]
    read = run_worker("product_speed", ["--tile", str(args.tile), "--read", *paths], f"reading {kind}")
    words = ["--weights", str(run), "--optical", *paths, "--out", str(work / f"maps {kind}"), "--device", "cpu"]
    words += ["--overwrite", "--tile", str(args.tile), "--workers", str(args.workers)]
    return {**read, **run_command_measured(words, args.workers)}


def read_tiles(paths: Sequence[str], tile: int) -> int:
    """Open a series, read all its tiles as a reconstruction does, and print the times as JSON; the exit code 0."""
    started = time.perf_counter()
    with open_series(SceneInputs(optical=paths)) as series:
        opened = time.perf_counter()
        plan = TilePlan(series.grid.height, series.grid.width, tile, tile // 4)
        for number in range(len(plan)):
            for date in range(len(series.days)):
                series.read(plan[number].window, [date])
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = {"open_s": opened - started, "read_s": ended - started, "read_peak_mb": peak}
    print(str(results).replace("'", '"'))
    return 0


def write_scene(folder: Path, side: int) -> None:
    """Write each date as a GeoTIFF and as an archive of a .SAFE."""
    rng = np.random.default_rng(side)
    for date in DATES:
        level = rng.integers(300, 6000, (1, side // 16 + 1, side // 16 + 1)).repeat(16, 1).repeat(16, 2)
        pixels = (level[:, :side, :side] + rng.integers(0, 200, (13, side, side))).astype(np.uint16)
        pixels[10] = 5 + pixels[10] % 16  # B10, near 0
        write_geotiff(folder / f"s2_{date}.tif", pixels, CRS, grid_of(1))
        safe = write_safe(folder / "unpacked", pixels, day=date, block=_BLOCK, baseline="02.06")
        write_zip(folder / f"{safe.stem}.zip", safe)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
