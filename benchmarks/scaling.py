"""How the cost of a training step grows with pixels, dates, samples and processes.

Noise goes through the networks of the command line, one thread a process; every point is measured in processes of its
own, in turns, so that other load falls on all. Processor time, which such load hardly moves, is what powers are fitted
to. Writes the tables of docs/scaling.md:

    python -m benchmarks.scaling --out benchmarks/results/scaling.json --page docs/scaling.md
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.provenance import provenance
from benchmarks.tables import header, line, median_range, write_section
from common import process_group
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from config.resolve import resolve_config
from parse_args import parse

ROOT = Path(__file__).resolve().parent.parent
SECTION = "benchmarks.scaling"
FLAGS = "--use_sar --loss NIG --scale_by 10 --device cpu --root1 none --root2 none"
MODELS = ("uncrtaints", "conv3d_mamba")
MEASURED = ("wall_s", "cpu_s", "peak_mb")
PATCHES, DATES, ROIS, TRAIN_ROIS = 15_578, 30, 53, 35  # of SEN12MS-CR-TS; the last: data/splits.json
EPOCHS = 20  # of the published training


class Point(NamedTuple):
    """What is measured: pixels across, dates, samples of a step, and the processes that share them."""

    size: int
    dates: int
    batch: int
    processes: int = 1


SERIES = {
    "pixels": [Point(64, 3, 1), Point(128, 3, 1), Point(256, 3, 1)],
    "dates": [Point(128, 2, 1), Point(128, 3, 1), Point(128, 6, 1), Point(128, 12, 1)],
    "samples of a step": [Point(128, 3, 1), Point(128, 3, 2), Point(128, 3, 4)],
    "processes": [Point(128, 3, 4), Point(128, 3, 4, 2)],
}
POINTS = list(dict.fromkeys(point for points in SERIES.values() for point in points))
PUBLISHED = Point(256, 3, 1)  # patches and dates of the published training


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every point, then write results and page."""
    options = _parser().parse_args(argv)
    if options.worker:
        with process_group.session():
            model, size, dates, batch = options.worker
            work(model, size, dates, batch, options.steps)
        return 0
    if options.only_page:
        report = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        runs: dict[str, dict[Point, list[dict[str, float]]]] = {model: {} for model in options.models}
        for number in range(options.rounds):
            for point in POINTS:
                for model in options.models:
                    run = in_own_process(model, point, options.steps)
                    runs[model].setdefault(point, []).append(run)
                    print(f"round {number + 1}, {model}, {point}: {_words(run)}", file=sys.stderr, flush=True)
        report = {
            **provenance("benchmarks.scaling", argv),
            "flags": FLAGS,
            "rounds": options.rounds,
            "steps": options.steps,
            "networks": {model: summarise(found) for model, found in runs.items()},
        }
        write_json(options.out, report)
    write_section(options.page, SECTION, markdown(report))
    print(f"results: {options.out}\npage: {options.page}")
    return 0


def work(model: str, size: str, dates: str, batch: str, steps: int) -> None:
    """Measure training steps in this process, one of those that share a batch, and print one line of JSON.

    `wall_s` is the median step from barrier to barrier, `cpu_s` the processor time of all processes, `peak_mb` what
    the largest of them grew by; `weights` are the network's.
    """
    import torch

    from benchmarks.backbone_costs import made_up_batch
    from common.memory import keep_freed_memory
    from data.batch import SampleInfo
    from model.build import build_loss, build_model, build_optimizer
    from model.runtime import Compute, count_parameters, seed_everything
    from training.distributed import LossModule, convert_sync_batchnorm, wrap_ddp

    device = torch.device("cpu")
    process_group.init_process_group(device)
    keep_freed_memory()
    values, typed = parse("train", [*FLAGS.split(), "--model", model, "--input_t", dates, "--batch_size", batch])
    with process_group.rank_zero_only():
        config, _ = resolve_config(values, typed)
    seed_everything(config.rdm_seed)
    n = config.batch_size // process_group.world_size()
    unknown = SampleInfo(0, "", "", (), None, (), (), "")
    own = replace(made_up_batch(config, int(size), n), info=(unknown,) * n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = build_model(config).train()
    convert_sync_batchnorm(network)
    optimizer = build_optimizer(network, config.lr)
    loss_of = wrap_ddp(LossModule(network, build_loss(config), Compute(device).predict), device)
    walls, cpus = [], []
    for _ in range(steps + 1):
        process_group.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        loss_of(own).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cpus.append(sum(process_group.all_gather_object(time.process_time() - cpu)))
        walls.append(time.perf_counter() - wall)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    peak = max(process_group.all_gather_object(grown))
    if process_group.is_rank_zero():
        found = {"wall_s": statistics.median(walls[1:]), "cpu_s": statistics.median(cpus[1:]), "peak_mb": peak}
        print(json.dumps({**found, "weights": count_parameters(network)}))


def in_own_process(model: str, point: Point, steps: int) -> dict[str, float]:
    """What `work` finds at a point, in a fresh process or as many as the point has."""
    words = [model, str(point.size), str(point.dates), str(point.batch)]
    launcher = ["-m", "torch.process_group.run", "--standalone", "--nproc_per_node", str(point.processes)]
    command = [sys.executable, *(launcher if point.processes > 1 else []), "-m", "benchmarks.scaling"]
    done = subprocess.run(
        [*command, "--worker", *words, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise DataError(f"measuring {model} at {point} stopped: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(found: Mapping[Point, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The medians over rounds at each point, and the power with which processor time grows along each series.

    Args:
        found: what was measured, round by round.

    Returns:
        `weights`, `points` (each with `size`, `dates`, `batch`, `processes`, and median, least and most of every
        figure), and `powers`: of a figure that grows as x ** p from the first to the last of a series, p.
    """
    points = []
    for point, runs in found.items():
        row: dict[str, Any] = dict(point._asdict())
        for name in MEASURED:
            values = [run[name] for run in runs]
            row[name] = median_range(values)
        points.append(row)
    powers = {}
    for name, series in SERIES.items():
        rows = [_row(points, point) for point in series]
        if name != "processes":
            x = [_along(name, point) for point in series]
            powers[name] = {
                key: math.log(rows[-1][key]["median"] / rows[0][key]["median"]) / math.log(x[-1] / x[0])
                for key in ("cpu_s", "peak_mb")
            }
    return {"weights": next(iter(found.values()))[0]["weights"], "points": points, "powers": powers}


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/scaling.md.

    Args:
        report: what benchmarks/results/scaling.json holds.
    """
    lines = [
        f"One training step of float32 on {report['device'].rsplit(',', 1)[0]}, one thread a process; medians of "
        f"{report['rounds']} rounds of {report['steps']} steps. The machine was shared: time on the clock suffers from "
        "other load, processor time hardly.",
        "",
    ]
    for model, found in report["networks"].items():
        lines += [f"`{model}`, {found['weights']:,} weights:", ""]
        titles = ["pixels across", "dates", "samples of a step", "processes", "clock", "processor, all processes"]
        lines += header([*titles, "memory of a process"])
        for row in found["points"]:
            numbers = [str(row[key]) for key in ("size", "dates", "batch", "processes")]
            wall, cpu, peak = (row[key]["median"] for key in MEASURED)
            lines.append(line([*numbers, f"{wall:.2f} s", f"{cpu:.2f} s", f"{peak:,.0f} MB"]))
        one, two = (_row(found["points"], point) for point in SERIES["processes"])
        faster = one["wall_s"]["median"] / two["wall_s"]["median"]
        dearer = two["cpu_s"]["median"] / one["cpu_s"]["median"]
        text = "; ".join(
            f"with {name} to the power {power['cpu_s']:.2f} (memory {power['peak_mb']:.2f})"
            for name, power in found["powers"].items()
        )
        lines += [
            "",
            f"Processor time grows {text}. Two processes are {faster:.2f} times as fast on the clock as one, at "
            f"{dearer:.2f} times its processor time.",
            "",
        ]
    lines += ["```", report["command"], "```", ""]
    lines += [f"Commit {report['commit']}, torch {report['torch']}.", "", *_estimates(report)]
    return "\n".join(lines)


def _estimates(report: Mapping[str, Any]) -> list[str]:
    """What an epoch of the whole data set costs on one core, from the step of the published patches."""
    samples = round(PATCHES * TRAIN_ROIS / ROIS)
    lines = [
        f"Extrapolated from the step at {PUBLISHED.size} pixels and {PUBLISHED.dates} dates, for {TRAIN_ROIS} of "
        f"{ROIS} regions, about {samples:,} of {PATCHES:,} patches (as if all regions were of one size):",
        "",
        *header(["estimate", "a sample", "an epoch", f"{EPOCHS} epochs"]),
    ]
    for model, found in report["networks"].items():
        row = _row(found["points"], PUBLISHED)
        seconds = row["cpu_s"]["median"] / PUBLISHED.batch
        hours = seconds * samples / 3600
        cells = [f"{seconds:.1f} s", f"{hours:,.1f} core-hours", f"{EPOCHS * hours:,.0f} core-hours"]
        lines.append(line([f"`{model}`, training on processors", *cells]))
    return lines


def _row(points: Sequence[Mapping[str, Any]], point: Point) -> Mapping[str, Any]:
    return next(row for row in points if all(row[key] == value for key, value in point._asdict().items()))


def _along(name: str, point: Point) -> int:
    return {"pixels": point.size**2, "dates": point.dates, "samples of a step": point.batch}[name]


def _words(run: Mapping[str, float]) -> str:
    return f"{run['wall_s']:.2f} s, processor {run['cpu_s']:.2f} s, {run['peak_mb']:.0f} MB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The cost of a training step by pixels, dates, samples and processes.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="networks")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every point")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a turn, after one that is not")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scaling.json", help="JSON file")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/scaling.md", help="page whose section is written")
    parser.add_argument("--only_page", action="store_true", help="write the page anew from the JSON file")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
