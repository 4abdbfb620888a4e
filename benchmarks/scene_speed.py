"""Speed of reconstructing scenes, and whether memory grows with their size.

    python -m benchmarks.scene_speed --out benchmarks/results/scene_speed.json

The scenes are synthetic: neither speed nor memory depends on their content. The network has the default widths and
random weights. Every figure is of a fresh process that runs `reconstruct_scene.py` from three optical and three radar
GeoTIFFs to the products, cloud masks included. Megapixels per second are those that the command prints: without
start-up and the writing of products, which `whole_s` includes. Peak memory is the largest resident set of one process.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from benchmarks.harness import benchmark_parser, publish, read_json, run_python
from common.cli import run_command
from common.files import write_json
from config.resolve import resolve_config
from data.constants import S2_BANDS
from data.raster.geotiff import write_geotiff
from model.build import build_model
from model.weights import save_checkpoint
from parse_args import parse

DATES = ("2018-06-01", "2018-06-11", "2018-06-21")
GROWTH_GOAL = 1.1  # of peak memory, at four times the area
_RUN = """
import resource, sys
from common.cli import run_command
from reconstruct_scene import main
code = run_command(main, sys.argv[1:])
print("peak", *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("scene_speed", __doc__)
    parser.add_argument("--weights", type=Path, help="a trained run (default: random weights)")
    parser.add_argument("--model", default="uncrtaints", choices=("uncrtaints", "conv3d_mamba"))
    parser.add_argument("--side", type=int, default=1000, help="pixels across of the smaller scene (default: 1000)")
    parser.add_argument("--tile", type=int, default=256, help="pixels across of a tile (default: 256)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the last measurement (default: 2)")
    parser.add_argument("--work", type=Path, help="folder for scenes and maps (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder).resolve()
        run = args.weights.resolve() if args.weights else write_run(work / "run", args.model)
        scenes = {f"{side} x {side}": write_scene(work / str(side), side) for side in (args.side, 2 * args.side)}
        small, large = (
            measure(args, run, scene, work / f"{number}", 1) for number, scene in enumerate(scenes.values())
        )
        parallel = measure(args, run, list(scenes.values())[1], work / "parallel", args.workers)
    growth = large["peak_mb"] / small["peak_mb"]
    results = {
        "model": args.model if args.weights is None else str(args.weights),
        "tile": args.tile,
        "one process": dict(zip(scenes, (small, large), strict=True)),
        f"{args.workers} processes": {list(scenes)[1]: parallel},
        "peak memory at four times the area": {"ratio": growth, "goal": GROWTH_GOAL, "met": growth < GROWTH_GOAL},
    }
    return publish("scene_speed", argv, results, args.out)


def measure(args: argparse.Namespace, run: Path, scene: Path, out: Path, workers: int) -> dict[str, float]:
    """Reconstruct one scene with a number of processes.

    Returns:
        `megapixels`, `seconds`, `megapixels_per_s` as the command reports them, and those of `run_command_measured`.

    Raises:
        DataError: if the command fails.
    """
    words = ["--weights", str(run), "--optical", *map(str, sorted(scene.glob("s2_*.tif")))]
    words += ["--sar", *map(str, sorted(scene.glob("s1_*.tif")))]
    words += ["--out", str(out), "--tile", str(args.tile), "--workers", str(workers), "--device", "cpu"]
    measured = run_command_measured(words, workers)
    reported: dict[str, Any] = read_json(out / "reconstruction.json")
    return {
        "megapixels": reported["megapixels"],
        "seconds": reported["seconds"],
        "megapixels_per_s": reported["megapixels"] / reported["seconds"],
        **measured,
    }


def run_command_measured(words: Sequence[str], workers: int) -> dict[str, float]:
    """Run `reconstruct_scene.py` in a fresh process.

    Returns:
        `whole_s` from its start to its end; `peak_mb` of its own process, `worker_peak_mb` of the largest of its
        workers.

    Raises:
        DataError: if the command fails.
    """
    started = time.perf_counter()
    output = run_python(["-c", _RUN, *words], "reconstruct_scene.py")
    elapsed = time.perf_counter() - started
    own_peak, worker_peak = (int(text) / 1024 for text in output.split("peak")[-1].split())
    return {"whole_s": elapsed, "peak_mb": own_peak, **({"worker_peak_mb": worker_peak} if workers > 1 else {})}


def write_scene(folder: Path, side: int) -> Path:
    """Write three dates of both sensors, `side` x `side` pixels; returns the folder."""
    rng, transform = np.random.default_rng(side), from_origin(500_000, 5_400_000, 10, 10)
    for date in DATES:
        level = rng.integers(300, 6000, (1, side // 16 + 1, side // 16 + 1)).repeat(16, 1).repeat(16, 2)
        level = level[:, :side, :side]
        optical = level + rng.integers(0, 200, (13, side, side))
        radar = rng.normal(-12, 3, (2, side, side))
        write_geotiff(folder / f"s2_{date}.tif", optical.astype(np.uint16), "EPSG:32632", transform)
        with rasterio.open(folder / f"s2_{date}.tif", "r+") as image:
            image.descriptions = S2_BANDS  # noise does not show the order of bands
        write_geotiff(folder / f"s1_{date}.tif", radar.astype(np.float32), "EPSG:32632", transform)
    return folder


def write_run(folder: Path, model: str) -> Path:
    """Write a run of the default widths with random weights; returns the folder."""
    words = ["--model", model, "--use_sar", "--input_t", "3", "--loss", "NIG", "--scale_by", "10", "--root1", "-"]
    config, _ = resolve_config(*parse("train", [*words, "--device", "cpu"]))
    torch.manual_seed(config.rdm_seed)
    network = build_model(config)
    folder.mkdir(parents=True)
    write_json(folder / "conf.json", config.to_json())
    save_checkpoint(folder / "model.pth.tar", {"state_dict_G": network.netG.state_dict(), "epoch": 0, "version": 1})
    return folder


if __name__ == "__main__":
    raise SystemExit(run_command(main))
