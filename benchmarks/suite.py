"""`make bench`: every benchmark of speed that runs on a CPU, one table and one plot.

    python -m benchmarks.suite --work bench

makes sample data, runs the benchmarks in sequence and writes benchmarks/results/*.json, benchmarks/RESULTS.md and
docs/images/speed.png. `--page` writes page and plot from the existing results.
"""

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, read_json
from benchmarks.tables import header, line
from benchmarks.training_step import AUTO
from common.cli import run_command
from common.errors import UsageError
from common.files import write_text
from evaluation.charts import plot_speed_ups
from util.demo import run_step

RESULTS, PAGE, PLOT = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs" / "images"
DATA = "--size 256 --rois 6 --patches 1 --seed 1"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A measured ratio and its goal.

    Attributes:
        title: what is compared.
        median: over rounds.
        least: smallest of the rounds.
        most: largest of the rounds.
        goal: NaN if there is none.
        smaller: whether figures at most the goal reach it; else those at least the goal.
        unit: of the figure.
    """

    title: str
    median: float
    least: float
    most: float
    goal: float = math.nan
    smaller: bool = False
    unit: str = "times"

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if math.isnan(self.goal):
            return None
        return self.median <= self.goal if self.smaller else self.median >= self.goal

    def cells(self) -> list[str]:
        """Cells of the table: title, figure, range, goal, reached."""
        goal = "" if math.isnan(self.goal) else f"{'<=' if self.smaller else '>='} {_number(self.goal)}"
        spread = "" if self.least == self.most else f"{_number(self.least)} to {_number(self.most)}"
        reached = {True: "yes", False: "**no**", None: ""}[self.reached]
        return [self.title, f"{_number(self.median)} {self.unit}".strip(), spread, goal, reached]


def _row(title: str, figures: Mapping[str, float] | float, goal: float = math.nan, **options: Any) -> Row:
    """A row of `median`, `least` and `most`, with its `goal` if it has one; or of a single value."""
    if not isinstance(figures, Mapping):
        return Row(title, figures, figures, figures, goal, **options)
    return Row(title, figures["median"], figures["least"], figures["most"], figures.get("goal", goal), **options)


def _data_loading(result: Result) -> list[Row]:
    titles = {
        "geotiff over published": "loading samples: our loader vs. clouds detected on the fly",
        "geotiff over plain": "loading samples: our loader vs. plain rasterio with stored masks",
        "geotiff over plain, cold": "our loader vs. plain rasterio, files not in the page cache",
        "pack over plain": "loading samples: packed data set vs. plain rasterio with stored masks",
        "pack over geotiff": "loading samples: packed data set vs. our loader of GeoTIFFs",
        "pack over geotiff, cold": "packed data set vs. our loader of GeoTIFFs, files not in the page cache",
    }
    ratios, sizes = result["times as many samples per second"], result["bytes"]
    rows = [_row(title, ratios[key]) for key, title in titles.items() if ratios.get(key)]
    return [
        *rows,
        _row("disk space: packed data set / GeoTIFFs", sizes["pack over geotiff"], sizes["goal"], smaller=True),
    ]


def _cloud_masks(result: Result) -> list[Row]:
    title = "cloud detection vs. s2cloudless, {images} images of {folder}, masks equal to the bit"
    return [_row(title.format(**data), data["times faster"], 4) for data in result["data"]]


def _training_step(result: Result) -> list[Row]:
    auto, goal = result["of auto"], result["of auto"]["times faster"]["goal"]
    title = "training step, 256 x 256, --precision auto vs. the published graph in fp32"
    return [
        _row(title, auto["times faster"]),
        _row(
            "the same training step in processor time", 1 / result["median of rounds"][AUTO["cpu"]]["cpu_s ratio"], goal
        ),
        _row("peak memory of these steps", auto["share of peak"], smaller=True),
    ]


def _evaluation(result: Result) -> list[Row]:
    title = "complete test (files, masks, metrics, baselines, exports) / its forward passes"
    return [_row(title, result["test / forward"], smaller=True)]


def _start_up(result: Result) -> list[Row]:
    helps, index = result["help, s"], result["index"]
    slowest = max((row for row in helps.values() if isinstance(row, Mapping)), key=lambda row: row["median"])
    title = f"index of {index['patches']:,} patches, {index['files']:,} files"
    return [
        _row("slowest --help of all commands", slowest, helps["goal"], smaller=True, unit="s"),
        _row(title, index["listed, s"], index["goal"], smaller=True, unit="s"),
        _row("the same, from its cache", index["kept, s"], smaller=True, unit="s"),
    ]


def _selective_scan(result: Result) -> list[Row]:
    row = result["rows"]["torch"]
    return [
        _row("selective scan, forward and backward, vs. a loop over time", row["times_faster"]),
        _row("peak memory: selective scan / loop", row["share_of_peak"], smaller=True),
    ]


def _scene_speed(result: Result) -> list[Row]:
    growth, rows = result["peak memory at four times the area"], []
    for processes in (key for key in result if key.endswith(("process", "processes"))):
        size, figures = list(result[processes].items())[-1]
        title = f"scene of {size} pixels, {result['model']}, three dates, radar and masks, {processes}"
        rows.append(_row(title, figures["megapixels_per_s"], unit="megapixels/s"))
    return [
        *rows,
        _row("peak memory: this scene / a quarter of its area", growth["ratio"], growth["goal"], smaller=True),
    ]


# module -> its command line, {root} and {triplets} being those of the sample data, and the rows of its result
BENCHMARKS: dict[str, tuple[str, Callable[[Result], list[Row]]]] = {
    "data_loading": ("--root {root} --samples 24 --rounds 3", _data_loading),
    "cloud_masks": ("--root {root} {triplets} --images 6 --rounds 3", _cloud_masks),
    "training_step": ("--rounds 3 --steps 2 --variants 'published fp32' 'ours bf16+keep'", _training_step),
    "evaluation": ("--root {root}", _evaluation),
    "scene_speed": ("--side 600", _scene_speed),
    "start_up": ("", _start_up),
    "selective_scan": ("", _selective_scan),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the selected benchmarks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench"), help="folder for sample data (default: bench)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run only these; the page lists all")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from the results")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    unknown = set(args.only) - set(BENCHMARKS)
    if unknown:
        raise UsageError(f"--only {' '.join(sorted(unknown))}: expected {', '.join(BENCHMARKS)}")
    if not args.page:
        run([module for module in BENCHMARKS if not args.only or module in args.only], args.work)
    rows = write_page()
    missed = [row for row in rows if row.reached is False]
    print(f"{len(rows)} figures, {len(missed)} miss their goals: {PAGE.relative_to(ROOT)}")
    return 0


def run(modules: Sequence[str], work: Path) -> None:
    """Make the sample data if it is missing, and run some benchmarks.

    Raises:
        DataError: if one of them fails.
    """
    data = work / "data"
    places = {"root": data / "SEN12MSCRTS", "triplets": data / "SEN12MSCR"}
    if not data.is_dir():
        run_step("sample data", f"-m util.make_sample_data {data} {DATA}")
    for module in modules:
        words = BENCHMARKS[module][0].format(**places)
        run_step(module, f"-m benchmarks.{module} {words} --out {_path(module).relative_to(ROOT)}")


def write_page() -> list[Row]:
    """Write `RESULTS.md` and the plot from the existing results.

    Returns:
        All rows.
    """
    results = {module: read_json(path) for module in BENCHMARKS if (path := _path(module)).is_file()}
    rows = [row for module, result in results.items() for row in BENCHMARKS[module][1](result)]
    lines = [
        "# Speed benchmarks",
        "",
        "Ratios of two variants measured alternately in one run on one machine: medians over rounds, with their range. "
        "Times vary on busy machines, ratios less. `make bench` repeats the measurements; the second table lists the "
        "origin of each figure.",
        "",
        "![Times faster, with goals](../docs/images/speed.png)",
        "",
        *header(["benchmark", "measured", "range", "goal", "reached"]),
        *(line(row.cells()) for row in rows),
        "",
        *header(["result", "commit", "device", "command"]),
    ]
    for module, result in results.items():
        link = f"[{module}](results/{module}.json)"
        lines.append(line([link, result["commit"], result.get("gpu") or result["device"], f"`{result['command']}`"]))
    write_text(PAGE, "\n".join(lines) + "\n")
    bars = {
        textwrap.fill(row.title, 44): {key: getattr(row, key) for key in ("median", "least", "most", "goal")}
        for row in rows
        if not row.smaller and row.unit == "times"
    }
    plot_speed_ups(bars, PLOT / "speed.png", "times faster")
    return rows


def _path(module: str) -> Path:
    return RESULTS / f"{module}.json"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
