"""Write a small, seeded tree of sample data in the layouts of SEN12MS-CR-TS and SEN12MS-CR.

    python -m util.make_sample_data OUT [--rois N --patches N --size PX --seed S --base DIR]

OUT/SEN12MSCRTS holds 30 dates of S1 and S2 for each region of interest (ROI), OUT/SEN12MSCR triplets, OUT/truth the
ground truth under the clouds. ROIs are taken from the splits in turn, about 60 % train, 15 % val and 25 % test, so that
three ROIs fill every split; there are 53. Every second ROI of a split begins with four cloudy dates. The same arguments
give the same bytes.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import check_disk_space, write_json
from common.json_files import Schema, read_json
from common.locks import folder_lock
from common.ranges import Range
from data.constants import N_DATES
from data.splits import MONO, SERIES, rois

SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
RANGES = {"patches": Range(1, 10_000), "size": Range(16, 4096), "seed": Range(0, 2**62)}
SEASONS = ("fall", "spring", "summer", "winter")
REGIONS = ("europa", "asiaEast", "africa", "america", "asiaWest")
BYTES_PER_PIXEL = 2 * 13 + 2 * 4  # one date, before compression
SUMMARY = "sample_data.json"
_SCHEMA: Schema = {
    "type": "object",
    "required": ["files", "series"],
    "properties": {
        "files": {"type": "integer"},
        "series": {"type": "object", "additionalProperties": {"type": "array"}},
    },
}


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog="python -m util.make_sample_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", metavar="OUT", help="folder to create, with SEN12MSCRTS, SEN12MSCR and truth")
    parser.add_argument("--rois", type=int, default=6, help="regions of interest in each data set, 1 to 53 (6)")
    parser.add_argument("--patches", type=int, default=2, help="neighbouring patches in each region (2)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="pixels along each side of a patch (128)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same bytes (1)")
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="a folder in the layout of SEN12MS-CR whose clear patches are used instead of simulated land "
        "(rotated and mirrored; with few patches the splits share the same ground)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write sample data from the command line."""
    args = build_parser().parse_args(argv)
    summary = make_sample_data(args.out, args.rois, args.patches, args.size, args.seed, args.base)
    counts = ", ".join(f"{len(names)} {split}" for split, names in summary["series"].items())
    print(f"sample data in {args.out}: {summary['files']} GeoTIFFs of {args.size} x {args.size}; ROIs: {counts}")
    print(f"  --root1 {args.out}/SEN12MSCRTS --root2 {args.out}/SEN12MSCRTS --root3 {args.out}/SEN12MSCR")
    return 0


def make_sample_data(
    out: str | Path, n_rois: int, n_patches: int, size: int, seed: int, base: str | Path | None = None
) -> dict[str, Any]:
    """Write both data sets and the ground truth; the folder appears only when it is complete.

    Args:
        out: folder to create; it may exist if it is empty, or holds sample data of the same arguments.
        n_rois: regions of interest in each data set.
        n_patches: neighbouring patches in each ROI.
        size: pixels along each side of a patch.
        seed: of all random numbers.
        base: folder in the layout of SEN12MS-CR whose clear patches are used as ground.

    Returns:
        The arguments, the ROIs of each split and the number of files.

    Raises:
        UsageError: if an argument is out of range, or `out` holds something else.
        DataError: if `base` has no triplet, or the disk is too small.
    """
    out = Path(out)
    for (name, allowed), value in zip(RANGES.items(), (n_patches, size, seed), strict=True):
        if violation := allowed.violation(value):
            raise UsageError(f"--{name} {violation}")
    series, mono = choose_rois(SERIES, n_rois), choose_rois(MONO, n_rois)
    arguments = {"rois": n_rois, "patches": n_patches, "size": size, "seed": seed, "base": str(base) if base else None}
    if (existing := _existing_summary(out, arguments)) is not None:
        return existing
    advice = "lower --rois, --patches or --size, or choose another disk"
    check_disk_space(out, n_rois * n_patches * N_DATES * size * size * BYTES_PER_PIXEL * 2, advice)
    from data.synthetic.writer import read_base, write_mono, write_series  # deferred: keeps --help fast

    with folder_lock(out, "OUT", as_sibling=True):
        if (existing := _existing_summary(out, arguments)) is not None:  # finished by another command just now
            return existing
        with _atomic_folder(out) as folder:
            ground = read_base(base) if base else None
            n_files = write_series(folder, series, n_patches, size, seed, ground)
            n_files += write_mono(folder, mono, n_patches, size, seed, ground)
            summary = arguments | {
                "files": n_files,
                "series": {split: [roi for s, roi in series if s == split] for split in SHARES},
                "mono": {split: [roi for s, roi in mono if s == split] for split in SHARES},
            }
            write_json(folder / SUMMARY, summary)
    return summary


def choose_rois(dataset: str, n: int) -> list[tuple[str, str]]:
    """Choose ROIs from the splits in turn.

    Args:
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        n: how many.

    Returns:
        n pairs (split, ROI): each time from the split that lags most behind its share of `SHARES`; in SEN12MS-CR-TS
        the ROIs of a split come from the regions of the Earth in turn.

    Raises:
        UsageError: if n is below one or above the number of ROIs.
    """
    remaining = {split: _rois_in_turn(dataset, split) for split in SHARES}
    total = sum(map(len, remaining.values()))
    if not 1 <= n <= total:
        raise UsageError(f"--rois {n}: choose 1 to {total}, as {dataset} has no more")
    chosen: list[tuple[str, str]] = []
    for k in range(1, n + 1):
        taken = {split: sum(s == split for s, _ in chosen) for split in SHARES}
        # empty splits come first, so that three ROIs fill all splits
        lag = {s: SHARES[s] * k - taken[s] + (taken[s] == 0 and k <= 3) for s in SHARES if remaining[s]}
        split = max(lag, key=lambda s: lag[s])
        chosen.append((split, remaining[split].pop(0)))
    return chosen


def _rois_in_turn(dataset: str, split: str) -> list[str]:
    """The ROIs of a split, in turn from the regions of the Earth, or from the seasons of SEN12MS-CR."""
    if dataset == MONO:
        names = rois(dataset, split)
        queues = [[roi for roi in names if f"_{season}/" in roi] for season in SEASONS]
    else:
        queues = [list(rois(dataset, split, region)) for region in REGIONS]
    order: list[str] = []
    while any(queues):
        order.extend(queue.pop(0) for queue in queues if queue)
    return order


def _existing_summary(out: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of sample data of the same arguments in `out`, None if it is missing or empty."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder to create")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    try:
        summary: dict[str, Any] = read_json(out / SUMMARY, _SCHEMA, "")
    except DataError as error:  # not written by this command
        raise UsageError(f"{out} holds other files; name a new folder, or remove it first") from error
    if any(summary.get(name, "") != value for name, value in arguments.items()):
        raise UsageError(f"{out} holds sample data of other arguments; name a new folder, or remove it first")
    return summary


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that replaces `out` when the block succeeds, and is removed otherwise."""
    unfinished = out.resolve().with_name(f"{out.resolve().name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed run
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"cannot write {unfinished}: {error.strerror}; choose another folder") from error
    try:
        yield unfinished
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
