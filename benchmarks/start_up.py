"""How long a user waits before anything happens: `--help` of each command, and the index of a whole data set.

    python -m benchmarks.start_up --out benchmarks/results/start_up.json

The data set is a made-up one in --work: empty files under the names of SEN12MS-CR-TS, 15,578 patches of 30 dates and
two sensors in 53 regions, removed afterwards. Every figure is of a fresh process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.tables import median_range
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from data.constants import N_DATES
from data.datasets.index_cache import SWITCH
from data.splits import SERIES, rois

PATCHES = 15_578  # of SEN12MS-CR-TS
COMMANDS = (
    ("train_reconstruct.py",),
    ("test_reconstruct.py",),
    ("ensemble_reconstruct.py",),
    ("reconstruct_scene.py",),
    ("standalone_dataloader.py",),
    ("-m", "util.pre_compute_data_samples"),
    ("-m", "util.pack_dataset"),
    ("-m", "util.export_hdf5"),
    ("-m", "util.compare_runs"),
    ("-m", "util.make_sample_data"),
    ("-m", "util.download_data"),
)
HELP_GOAL_S, INDEX_GOAL_S = 1.0, 10.0
_SETTLE_S = 4  # folders that have changed within three seconds are not kept in the cache
_INDEX = """
import sys, time
from data.datasets.file_index import index_series
from data.splits import SERIES, rois
start, spent = time.perf_counter(), time.process_time()
patches, _ = index_series(sys.argv[1], rois(SERIES, "all"))
print(len(patches), time.perf_counter() - start, time.process_time() - spent)
"""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure and print; with --out write the same as JSON."""
    args = _parser().parse_args(argv)
    helps = {" ".join(words).removeprefix("-m "): _help(words, args.rounds) for words in COMMANDS}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        root = Path(folder, "tree")
        made = write_tree(root, args.patches)
        time.sleep(_SETTLE_S)
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(folder, "cache"))}
        listed = [_index(root, made, environment | {SWITCH: "off"}) for _ in range(args.rounds)]
        _index(root, made, environment)  # writes the cache
        kept = [_index(root, made, environment) for _ in range(args.rounds)]
        cache_bytes = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*") if path.is_file())
    result = {
        **provenance("benchmarks.start_up", argv),
        "help, s": helps | {"goal": HELP_GOAL_S, "met": all(one["median"] < HELP_GOAL_S for one in helps.values())},
        "index": {
            "patches": made,
            "files": made * 2 * N_DATES,
            "listed, s": _spread([wall for wall, _ in listed]),
            "listed, processor s": _spread([cpu for _, cpu in listed]),
            "kept, s": _spread([wall for wall, _ in kept]),
            "kept, processor s": _spread([cpu for _, cpu in kept]),
            "cache bytes": cache_bytes,
            "goal": INDEX_GOAL_S,
            "met": median(wall for wall, _ in listed) < INDEX_GOAL_S,
        },
    }
    print(json.dumps(result, indent=4))
    if args.out is not None:
        write_json(args.out, result)
    return 0


def write_tree(root: Path, n_patches: int) -> int:
    """Empty files under the names of SEN12MS-CR-TS.

    Args:
        root: folder to make.
        n_patches: spread evenly over all regions.

    Returns:
        How many patches there are.
    """
    members = rois(SERIES, "all")
    shares = [n_patches // len(members) + (at < n_patches % len(members)) for at in range(len(members))]
    for roi, count in zip(members, shares, strict=True):
        season, number = roi.split("/")
        for sensor in ("S1", "S2"):
            for date in range(N_DATES):
                folder = root / roi / sensor / str(date)
                folder.mkdir(parents=True)
                day = f"2018-{1 + date * 12 // N_DATES:02d}-{1 + date * 7 % 28:02d}"
                start = f"{folder}/{sensor.lower()}_{season}_{number}_ImgNo_{date}_{day}_patch_"
                for patch in range(count):
                    os.close(os.open(f"{start}{patch}.tif", os.O_CREAT | os.O_WRONLY))
    return sum(shares)


def _index(root: Path, expected: int, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of one index, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _INDEX, str(root)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise DataError(f"the index failed: {done.stderr.strip()[-500:]}")
    count, wall, cpu = done.stdout.split()
    if int(count) != expected:
        raise DataError(f"the index holds {count} patches of {expected}")
    return float(wall), float(cpu)


def _help(words: Sequence[str], rounds: int) -> dict[str, float]:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise DataError(f"{' '.join(words)} --help ended with {done.returncode}")
    return _spread(seconds)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in median_range(values).items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start_up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--patches", type=int, default=PATCHES, help="of the made-up data set")
    parser.add_argument("--rounds", type=int, default=5, help="of every figure; medians are reported")
    parser.add_argument("--work", type=Path, help="where to write the tree (default: the system's folder)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
