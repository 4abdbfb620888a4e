"""`make bench`: every benchmark of speed that a CPU can run, one table and one plot.

    python -m benchmarks.suite --work bench

makes sample data, runs the benchmarks one after the other and writes benchmarks/results/*.json, benchmarks/RESULTS.md
and docs/images/speed.png. `--page` writes page and plot anew from the results that are there.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import header, line
from benchmarks.training_step import AUTO
from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import atomic_file
from evaluation.charts import plot_speed_ups

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, PLOT = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs" / "images"
DATA = "--size 256 --rois 6 --patches 1 --seed 1"
LARGER = "larger"  # kinds of goals
SMALLER = "smaller"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One measured ratio beside its goal.

    Attributes:
        what: is compared with what.
        median: over rounds.
        least: of them.
        most: of them.
        goal: NaN where there is none.
        sense: whether the goal is reached by a `LARGER` or a `SMALLER` figure.
        unit: behind the figure.
    """

    what: str
    median: float
    least: float
    most: float
    goal: float = math.nan
    sense: str = LARGER
    unit: str = "times"

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if math.isnan(self.goal):
            return None
        return self.median >= self.goal if self.sense == LARGER else self.median <= self.goal

    def cells(self) -> list[str]:
        """Of the table: what, figure, range, goal, reached."""
        sign = {LARGER: ">=", SMALLER: "<="}[self.sense]
        goal = "" if math.isnan(self.goal) else f"{sign} {_number(self.goal)}"
        spread = "" if self.least == self.most else f"{_number(self.least)} to {_number(self.most)}"
        reached = {True: "yes", False: "**no**", None: ""}[self.reached]
        return [self.what, f"{_number(self.median)} {self.unit}".strip(), spread, goal, reached]


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder, the words it is run with, and how its result is read.

    Attributes:
        module: its name; its result is `results/MODULE.json`.
        words: of its command line; {root} and {triplets} are those of the sample data.
        rows: what its result says.
    """

    module: str
    words: str
    rows: Callable[[Result], list[Row]]


def _of(what: str, found: Mapping[str, float], goal: float = math.nan, **more: Any) -> Row:
    return Row(what, found["median"], found["least"], found["most"], goal, **more)


def _data_loading(result: Result) -> list[Row]:
    ways = {
        "geotiff over published": "samples loaded, our loader over clouds detected on the fly",
        "geotiff over plain": "samples loaded, our loader over plain rasterio with stored masks",
        "geotiff over plain, cold": "our loader over plain rasterio, files not in memory",
        "pack over plain": "samples loaded, a packed data set over plain rasterio with stored masks",
        "pack over geotiff": "samples loaded, a packed data set over our loader of GeoTIFFs",
        "pack over geotiff, cold": "a packed data set over our loader of GeoTIFFs, files not in memory",
    }
    found = result["times as many samples per second"]
    rows = [_of(what, found[key], found[key].get("goal", math.nan)) for key, what in ways.items() if found.get(key)]
    size = result["bytes"]["pack over geotiff"]
    return [
        *rows,
        Row("a packed data set's space over the GeoTIFFs'", size, size, size, result["bytes"]["goal"], SMALLER),
    ]


def _cloud_masks(result: Result) -> list[Row]:
    what = "clouds detected, {images} images of {folder}, maps equal to the bit"
    return [_of(what.format(**data), data["times faster"], 4) for data in result["data"]]


def _training_step(result: Result) -> list[Row]:
    found = result["of auto"]
    what = "a training step as published, 256 x 256, --precision auto, over the published graph in fp32"
    processor = 1 / result["median of rounds"][AUTO["cpu"]]["cpu_s ratio"]
    memory = _of("its peak memory", found["share of peak"], found["share of peak"]["goal"], sense=SMALLER)
    faster = _of(what, found["times faster"], found["times faster"]["goal"])
    return [faster, Row("the same in processor time", processor, processor, processor, faster.goal), memory]


def _evaluation(result: Result) -> list[Row]:
    what = "a whole test (files, masks, metrics, baselines, exports) over its forward passes"
    return [_of(what, result["test / forward"], result["test / forward"]["goal"], sense=SMALLER)]


def _start_up(result: Result) -> list[Row]:
    helps, index = result["help, s"], result["index"]
    slowest = max((one for one in helps.values() if isinstance(one, Mapping)), key=lambda one: one["median"])
    of_tree = f"index of {index['patches']:,} patches, {index['files']:,} files"
    return [
        _of("the slowest --help of all commands", slowest, helps["goal"], sense=SMALLER, unit="s"),
        _of(of_tree, index["listed, s"], index["goal"], sense=SMALLER, unit="s"),
        _of("the same, from its cache", index["kept, s"], sense=SMALLER, unit="s"),
    ]


def _selective_scan(result: Result) -> list[Row]:
    row = result["rows"]["torch"]
    faster, share = row["times_faster"], row["share_of_peak"]
    return [
        Row("the selective scan, forward and backward, over a loop along time", faster, faster, faster),
        Row("its peak memory over the loop's", share, share, share, sense=SMALLER),
    ]


def _scene_speed(result: Result) -> list[Row]:
    growth, rows = result["peak memory at four times the area"], []
    for processes in (key for key in result if key.endswith("process") or key.endswith("processes")):
        size, found = list(result[processes].items())[-1]
        pace = found["megapixels_per_s"]
        what = f"a scene of {size} pixels, {result['model']}, three dates, radar and masks, {processes}"
        rows.append(Row(what, pace, pace, pace, unit="megapixels/s"))
    what = "its peak memory over that of a quarter of its area"
    return [*rows, Row(what, growth["ratio"], growth["ratio"], growth["ratio"], growth["goal"], SMALLER)]


BENCHMARKS = (
    Benchmark("data_loading", "--root {root} --samples 24 --rounds 3", _data_loading),
    Benchmark("cloud_masks", "--root {root} {triplets} --images 6 --rounds 3", _cloud_masks),
    Benchmark("training_step", "--rounds 3 --steps 2 --variants 'published fp32' 'ours bf16+keep'", _training_step),
    Benchmark("evaluation", "--root {root}", _evaluation),
    Benchmark("scene_speed", "--side 600", _scene_speed),
    Benchmark("start_up", "", _start_up),
    Benchmark("selective_scan", "", _selective_scan),
)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run what is asked for, and write the page."""
    args = _parser().parse_args(argv)
    unknown = set(args.only) - {benchmark.module for benchmark in BENCHMARKS}
    if unknown:
        raise UsageError(f"--only {' '.join(sorted(unknown))}: expected {', '.join(b.module for b in BENCHMARKS)}")
    if not args.page:
        run([benchmark for benchmark in BENCHMARKS if not args.only or benchmark.module in args.only], args.work)
    rows = write_page()
    missed = [row for row in rows if row.reached is False]
    print(f"{len(rows)} figures, {len(missed)} short of their goals: {PAGE.relative_to(ROOT)}")
    return 0


def run(benchmarks: Sequence[Benchmark], work: Path) -> None:
    """Make the sample data where it is missing, and run some benchmarks.

    Raises:
        DataError: if one of them stops.
    """
    data = work / "data"
    places = {"root": data / "SEN12MSCRTS", "triplets": data / "SEN12MSCR"}
    if not data.is_dir():
        _call(f"-m util.make_sample_data {data} {DATA}")
    for benchmark in benchmarks:
        out = RESULTS / f"{benchmark.module}.json"
        _call(f"-m benchmarks.{benchmark.module} {benchmark.words.format(**places)} --out {out.relative_to(ROOT)}")


def write_page() -> list[Row]:
    """`RESULTS.md` and the plot from the results that are there.

    Returns:
        All rows.
    """
    found = {b: json.loads(path.read_text(encoding="utf-8")) for b in BENCHMARKS if (path := _path(b)).is_file()}
    lines = [
        "# Speed, measured",
        "",
        "Ratios taken in one run on one machine, the two ways in turns; medians over rounds and their range. Times of "
        "busy machines vary, ratios less. `make bench` measures anew; below the table stands where each figure comes "
        "from.",
        "",
        "![Times faster, with goals](../docs/images/speed.png)",
        "",
        *header(["what", "measured", "range", "goal", "reached"]),
    ]
    rows = [row for benchmark, result in found.items() for row in benchmark.rows(result)]
    lines += [line(row.cells()) for row in rows]
    lines += ["", *header(["result", "commit", "device", "command"])]
    for benchmark, result in found.items():
        where = f"[{benchmark.module}](results/{benchmark.module}.json)"
        lines.append(line([where, result["commit"], result.get("gpu") or result["device"], f"`{result['command']}`"]))
    with atomic_file(PAGE) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    bars = {
        row.what: {key: getattr(row, key) for key in ("median", "least", "most", "goal")} for row in rows if _bar(row)
    }
    plot_speed_ups({_wrapped(what): bar for what, bar in bars.items()}, PLOT / "speed.png", "times faster")
    return rows


def _bar(row: Row) -> bool:
    return row.sense == LARGER and row.unit == "times"


def _wrapped(text: str, width: int = 44) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _path(benchmark: Benchmark) -> Path:
    return RESULTS / f"{benchmark.module}.json"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _call(words: str) -> None:
    """Run a command line of this project."""
    print(f"\n$ python {words}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *shlex.split(words)], check=False, cwd=ROOT)
    if done.returncode:
        raise DataError(f"python {words} ended with exit code {done.returncode}; its message is above")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Benchmarks of speed on this machine, one table and one plot.")
    parser.add_argument("--work", type=Path, default=Path("bench"), help="folder for sample data (default: bench)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these only; the page shows all")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from the results")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
