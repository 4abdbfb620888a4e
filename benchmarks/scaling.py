"""Growth of the cost of a training step with pixels, dates, samples and processes.

The networks train on noise, one thread per process; every point is measured in processes of its own, alternating, so
that other load affects all alike. Powers are fitted to processor time, which such load hardly changes. Writes the
tables of docs/scaling.md:

    python -m benchmarks.scaling --out benchmarks/results/scaling.json --page docs/scaling.md
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.backbone_costs import MEASURED, measure_in_worker
from benchmarks.harness import benchmark_parser, in_turns, provenance, read_json
from benchmarks.measure import median_range
from benchmarks.tables import header, line, write_section
from common.cli import run_command
from common.files import write_json

FLAGS = "--use_sar --loss NIG --scale_by 10 --device cpu --precision fp32 --root1 none --root2 none"
MODELS = ("uncrtaints", "conv3d_mamba")
PATCHES, DATES, ROIS, TRAIN_ROIS = 15_578, 30, 53, 35  # of SEN12MS-CR-TS; the last: data/splits.json
EPOCHS = 20  # of the published training


class Point(NamedTuple):
    """A measurement: pixels across, dates, samples of a step, and the processes that share them."""

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
    parser = benchmark_parser("scaling", __doc__, "benchmarks/results/scaling.json")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="networks")
    parser.add_argument("--rounds", type=int, default=3, help="of every point, alternating")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a round, after a warm-up step")
    parser.add_argument("--page", type=Path, default=Path("docs/scaling.md"), help="page whose section is written")
    parser.add_argument("--only_page", action="store_true", help="write the page from the JSON file")
    options = parser.parse_args(argv)
    if options.only_page:
        report = read_json(Path(options.out))
    else:
        variants = [(model, point) for point in POINTS for model in options.models]
        runs = in_turns(variants, options.rounds, lambda variant: _measure(*variant, options.steps))
        report = {
            **provenance("scaling", argv),
            "flags": FLAGS,
            "rounds": options.rounds,
            "steps": options.steps,
            "networks": {model: summarise({p: runs[model, p] for p in POINTS}) for model in options.models},
        }
        write_json(options.out, report)
    write_section(options.page, "benchmarks.scaling", markdown(report))
    print(f"results: {options.out}\npage: {options.page}")
    return 0


def _measure(model: str, point: Point, steps: int) -> dict[str, Any]:
    line = f"{FLAGS} --model {model} --input_t {point.dates} --batch_size {point.batch}"
    return measure_in_worker(line, point.size, point.batch, steps, point.processes)


def summarise(runs: Mapping[Point, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The medians over rounds at each point, and the power with which processor time grows along each series.

    Args:
        runs: the measurements at each point, one per round.

    Returns:
        `weights`, `points` (each with `size`, `dates`, `batch`, `processes`, and median, least and most of every
        figure), and `powers`: of a figure that grows as x ** p from the first to the last of a series, p.
    """
    points = []
    for point, measured in runs.items():
        points.append(point._asdict() | {name: median_range(run[name] for run in measured) for name in MEASURED})
    powers = {}
    for name, series in SERIES.items():
        rows = [_row(points, point) for point in series]
        if name != "processes":
            x = [_along(name, point) for point in series]
            powers[name] = {
                key: math.log(rows[-1][key]["median"] / rows[0][key]["median"]) / math.log(x[-1] / x[0])
                for key in ("cpu_s", "peak_mb")
            }
    return {"weights": next(iter(runs.values()))[0]["parameters"], "points": points, "powers": powers}


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/scaling.md.

    Args:
        report: the content of benchmarks/results/scaling.json.
    """
    lines = [
        f"One training step in float32 on {report['device'].rsplit(',', 1)[0]}, one thread per process; medians of "
        f"{report['rounds']} rounds of {report['steps']} steps. The machine was shared: other load affects wall time, "
        "but hardly processor time.",
        "",
    ]
    for model, network in report["networks"].items():
        lines += [f"`{model}`, {network['weights']:,} weights:", ""]
        titles = ["pixels across", "dates", "samples of a step", "processes", "wall time", "processor, all processes"]
        lines += header([*titles, "memory of a process"])
        for row in network["points"]:
            numbers = [str(row[key]) for key in ("size", "dates", "batch", "processes")]
            wall, cpu, peak = (row[key]["median"] for key in MEASURED)
            lines.append(line([*numbers, f"{wall:.2f} s", f"{cpu:.2f} s", f"{peak:,.0f} MB"]))
        single, pair = (_row(network["points"], point) for point in SERIES["processes"])
        speed_up = single["wall_s"]["median"] / pair["wall_s"]["median"]
        cost = pair["cpu_s"]["median"] / single["cpu_s"]["median"]
        text = "; ".join(
            f"with {name} to the power {power['cpu_s']:.2f} (memory {power['peak_mb']:.2f})"
            for name, power in network["powers"].items()
        )
        lines += [
            "",
            f"Processor time grows {text}. Two processes are {speed_up:.2f} times as fast as one in wall time, at "
            f"{cost:.2f} times its processor time.",
            "",
        ]
    lines += ["```", report["command"], "```", ""]
    lines += [f"Commit {report['commit']}, torch {report['torch']}.", "", *_estimates(report)]
    return "\n".join(lines)


def _estimates(report: Mapping[str, Any]) -> list[str]:
    """The cost of an epoch of the full data set on one core, from a step of the published patches."""
    samples = round(PATCHES * TRAIN_ROIS / ROIS)
    lines = [
        f"Extrapolated from the step at {PUBLISHED.size} pixels and {PUBLISHED.dates} dates, for {TRAIN_ROIS} of "
        f"{ROIS} regions, about {samples:,} of {PATCHES:,} patches (if all regions were equally large):",
        "",
        *header(["estimate", "sample", "epoch", f"{EPOCHS} epochs"]),
    ]
    for model, network in report["networks"].items():
        row = _row(network["points"], PUBLISHED)
        seconds = row["cpu_s"]["median"] / PUBLISHED.batch
        hours = seconds * samples / 3600
        cells = [f"{seconds:.1f} s", f"{hours:,.1f} core-hours", f"{EPOCHS * hours:,.0f} core-hours"]
        lines.append(line([f"`{model}`, training on CPUs", *cells]))
    return lines


def _row(points: Sequence[Mapping[str, Any]], point: Point) -> Mapping[str, Any]:
    return next(row for row in points if all(row[key] == value for key, value in point._asdict().items()))


def _along(name: str, point: Point) -> int:
    return {"pixels": point.size**2, "dates": point.dates, "samples of a step": point.batch}[name]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
