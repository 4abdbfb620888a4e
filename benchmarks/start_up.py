"""Start-up time: `--help` of each command, and the index of a data set of full size.

    python -m benchmarks.start_up --out benchmarks/results/start_up.json

The data set is a temporary one in --work: empty files under the names of SEN12MS-CR-TS, 15,578 patches of 30 dates and
two sensors in 53 regions. Every figure is of a fresh process.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import benchmark_parser, publish, run_python
from benchmarks.measure import median_range, seconds
from common.cli import run_command
from common.errors import DataError
from data.constants import N_DATES
from data.datasets.index_cache import SWITCH
from data.splits import SERIES, rois

PATCHES = 15_578  # of SEN12MS-CR-TS
COMMANDS = [
    "train_reconstruct.py",
    "test_reconstruct.py",
    "ensemble_reconstruct.py",
    "reconstruct_scene.py",
    "standalone_dataloader.py",
    "util.pre_compute_data_samples",
    "util.pack_dataset",
    "util.export_hdf5",
    "util.compare_runs",
    "util.make_sample_data",
    "util.download_data",
]
HELP_GOAL_S, INDEX_GOAL_S = 1.0, 10.0
_CACHE_DELAY_S = 4  # folders that have changed within three seconds are not cached
_INDEX = """
import sys, time
from data.datasets.file_index import index_series
from data.splits import SERIES, rois
start, spent = time.perf_counter(), time.process_time()
patches, _ = index_series(sys.argv[1], rois(SERIES, "all"))
print(len(patches), time.perf_counter() - start, time.process_time() - spent)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("start_up", __doc__)
    parser.add_argument("--patches", type=int, default=PATCHES, help="of the temporary data set")
    parser.add_argument("--rounds", type=int, default=5, help="of every figure; medians are reported")
    parser.add_argument("--work", type=Path, help="folder for the data set (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    helps: dict[str, Any] = {command: _help_s(command, args.rounds) for command in COMMANDS}
    met = all(row["median"] < HELP_GOAL_S for row in helps.values())
    results = {
        "help, s": helps | {"goal": HELP_GOAL_S, "met": met},
        "index": _measure_index(args.work, args.patches, args.rounds),
    }
    return publish("start_up", argv, results, args.out)


def write_tree(root: Path, n_patches: int) -> int:
    """Empty files under the names of SEN12MS-CR-TS.

    Args:
        root: folder to make.
        n_patches: spread evenly over all regions.

    Returns:
        The number of patches.
    """
    members = rois(SERIES, "all")
    counts = [n_patches // len(members) + (index < n_patches % len(members)) for index in range(len(members))]
    for roi, count in zip(members, counts, strict=True):
        season, number = roi.split("/")
        for sensor in ("S1", "S2"):
            for date in range(N_DATES):
                folder = root / roi / sensor / str(date)
                folder.mkdir(parents=True)
                day = f"2018-{1 + date * 12 // N_DATES:02d}-{1 + date * 7 % 28:02d}"
                start = f"{folder}/{sensor.lower()}_{season}_{number}_ImgNo_{date}_{day}_patch_"
                for patch in range(count):
                    os.close(os.open(f"{start}{patch}.tif", os.O_CREAT | os.O_WRONLY))
    return sum(counts)


def _measure_index(work: Path | None, n_patches: int, rounds: int) -> dict[str, Any]:
    """Seconds of an index from listed folders, and of one from its cache."""
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        root, cache = Path(temporary, "tree").resolve(), Path(temporary, "cache").resolve()
        count = write_tree(root, n_patches)
        time.sleep(_CACHE_DELAY_S)
        environment = {"XDG_CACHE_HOME": str(cache)}
        listed = [_index(root, count, environment | {SWITCH: "off"}) for _ in range(rounds)]
        _index(root, count, environment)  # writes the cache
        cached = [_index(root, count, environment) for _ in range(rounds)]
        cache_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    figures: dict[str, Any] = {"patches": count, "files": count * 2 * N_DATES}
    for name, runs in (("listed", listed), ("kept", cached)):
        figures[f"{name}, s"] = median_range([wall for wall, _ in runs], ".3f")
        figures[f"{name}, processor s"] = median_range([cpu for _, cpu in runs], ".3f")
    met = figures["listed, s"]["median"] < INDEX_GOAL_S
    return figures | {"cache bytes": cache_bytes, "goal": INDEX_GOAL_S, "met": met}


def _index(root: Path, expected: int, environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of one index, in a fresh process."""
    count, wall, cpu = run_python(["-c", _INDEX, str(root)], "the index", environment).split()
    if int(count) != expected:
        raise DataError(f"the index holds {count} patches of {expected}")
    return float(wall), float(cpu)


def _help_s(command: str, rounds: int) -> dict[str, float]:
    words = [*([] if command.endswith(".py") else ["-m"]), command, "--help"]
    return median_range([seconds(lambda: run_python(words, command)) for _ in range(rounds)], ".3f")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
