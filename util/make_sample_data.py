"""Write a small, seeded tree of sample data in the layouts of SEN12MS-CR-TS and SEN12MS-CR.

    python -m util.make_sample_data OUT [--rois N --patches N --size PX --seed S --base DIR]

OUT/SEN12MSCRTS holds 30 dates of S1 and S2 for each region of interest (ROI), OUT/SEN12MSCR triplets, OUT/truth what
lies under the clouds. ROIs are drawn from the splits in turn, about 60 % train, 15 % val and 25 % test, so that from
three ROIs on no split is empty; all 53 can be asked for. Every second ROI of a split begins with four clouded dates.
The same arguments give the same bytes.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UsageError, run_command
from data.constants import N_DATES
from data.splits import MONO, SERIES, rois

SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
SMALLEST_PX = 16
SEASONS = ("fall", "spring", "summer", "winter")
REGIONS = ("europa", "asiaEast", "africa", "america", "asiaWest")
BYTES_PER_PIXEL = 2 * 13 + 2 * 4  # one date, before compression


def choose_rois(dataset: str, n: int) -> list[tuple[str, str]]:
    """Pick ROIs from the splits in turn.

    Args:
        dataset: `data.splits.SERIES` or `data.splits.MONO`.
        n: how many; more than there are is an error.

    Returns:
        n pairs (split, ROI): each time the split that lags most behind its share of `SHARES`; in SEN12MS-CR-TS
        the ROIs of a split come from the regions of the Earth in turn.

    Raises:
        UsageError: if n is below one or above the number of ROIs.
    """
    left = {split: _region_order(dataset, split) for split in SHARES}
    total = sum(map(len, left.values()))
    if not 1 <= n <= total:
        raise UsageError(f"--rois {n}: choose 1 to {total}, as {dataset} has no more")
    chosen: list[tuple[str, str]] = []
    for k in range(1, n + 1):
        taken = {split: sum(s == split for s, _ in chosen) for split in SHARES}
        # while a split is empty it comes first, so that three ROIs are enough for all splits
        lag = {s: SHARES[s] * k - taken[s] + (taken[s] == 0 and k <= 3) for s in SHARES if left[s]}
        split = max(lag, key=lambda s: lag[s])
        chosen.append((split, left[split].pop(0)))
    return chosen


def _region_order(dataset: str, split: str) -> list[str]:
    """The ROIs of a split, taken in turn from the regions of the Earth, or from the seasons of SEN12MS-CR."""
    if dataset == MONO:
        names = rois(dataset, split)
        queues = [[roi for roi in names if f"_{season}/" in roi] for season in SEASONS]
    else:
        queues = [list(rois(dataset, split, region)) for region in REGIONS]
    order: list[str] = []
    while any(queues):
        order.extend(queue.pop(0) for queue in queues if queue)
    return order


def make_sample_data(
    out: str | Path, n_rois: int, n_patches: int, size: int, seed: int, base: str | Path | None = None
) -> dict[str, Any]:
    """Write both data sets and the truth; what stands at `out` afterwards is whole, or nothing is.

    Args:
        out: folder to make; it may exist if it is empty, or holds sample data of the same arguments.
        n_rois: regions of interest in each data set.
        n_patches: neighbouring patches in each ROI.
        size: pixels along each side of a patch.
        seed: of everything random.
        base: folder in the layout of SEN12MS-CR whose clear patches are laid under the clouds.

    Returns:
        What was asked for and how many files were written.

    Raises:
        UsageError: if an argument is out of range, or `out` holds something else.
        DataError: if `base` has no triplet, or the disk is too small.
    """
    from data.synthetic.writer import write_mono, write_series  # rasterio is slow to import

    out = Path(out)
    if n_patches < 1 or size < SMALLEST_PX or seed < 0:
        raise UsageError(
            f"--patches {n_patches} --size {size} --seed {seed}: expected at least one patch of at least "
            f"{SMALLEST_PX} pixels, and a seed from 0"
        )
    series, mono = choose_rois(SERIES, n_rois), choose_rois(MONO, n_rois)
    asked = {"rois": n_rois, "patches": n_patches, "size": size, "seed": seed, "base": str(base) if base else None}
    if (found := _already_there(out, asked)) is not None:
        return found
    _check_disk(out, n_rois * n_patches * N_DATES * size * size * BYTES_PER_PIXEL * 2)
    with _whole_folder(out) as folder:
        ground = _read_base(base) if base else None
        n_files = write_series(folder, series, n_patches, size, seed, ground)
        n_files += write_mono(folder, mono, n_patches, size, seed, ground)
        summary = asked | {
            "files": n_files,
            "series": {split: [roi for s, roi in series if s == split] for split in SHARES},
            "mono": {split: [roi for s, roi in mono if s == split] for split in SHARES},
        }
        _write_json(folder / "sample_data.json", summary)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m util.make_sample_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", metavar="OUT", help="folder to make; SEN12MSCRTS, SEN12MSCR and truth go into it")
    parser.add_argument("--rois", type=int, default=6, help="regions of interest in each data set, 1 to 53 (6)")
    parser.add_argument("--patches", type=int, default=2, help="neighbouring patches in each region (2)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="pixels along each side of a patch (128)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same bytes (1)")
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="a folder in the layout of SEN12MS-CR: its clear patches lie under the clouds instead of made-up land "
        "(turned and mirrored; with few patches the splits then show the same ground)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    summary = make_sample_data(args.out, args.rois, args.patches, args.size, args.seed, args.base)
    counts = ", ".join(f"{len(names)} {split}" for split, names in summary["series"].items())
    print(f"sample data in {args.out}: {summary['files']} GeoTIFFs of {args.size} x {args.size}; ROIs: {counts}")
    print(f"  --root1 {args.out}/SEN12MSCRTS --root2 {args.out}/SEN12MSCRTS --root3 {args.out}/SEN12MSCR")
    return 0


def _already_there(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    import json

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder to make")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    note = out / "sample_data.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    except ValueError:  # whatever it is, it is not ours
        found = {}
    if not isinstance(found, dict):
        found = {}
    if any(found.get(key, "") != value for key, value in asked.items()):
        came = "sample data of other arguments" if found else "other files"
        raise UsageError(f"{out} holds {came}; name a new folder, or remove it first")
    return found


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is removed when not."""
    unfinished = out.resolve().with_name(f"{out.resolve().name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"cannot write {unfinished}: {error.strerror}; choose another folder") from error
    try:
        yield unfinished
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_disk(out: Path, needed: int) -> None:
    place = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DataError(
            f"{out}: {needed / 1e9:.1f} GB may be needed, {free / 1e9:.1f} GB are free; lower --rois, --patches or "
            "--size, or choose another disk"
        )


def _read_base(base: str | Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clear optical and radar arrays of every patch below `base` that has both."""
    from data.raster.geotiff import read_bands

    pairs = []
    for clear in sorted(Path(base).glob("ROIs*_s2/s2_*/*.tif")):
        season = f"{clear.parts[-3].removesuffix('_s2')}_s1"
        radar = Path(base) / season / clear.parent.name.replace("s2_", "s1_") / clear.name.replace("_s2_", "_s1_")
        if radar.is_file():
            optical = read_bands(clear, expected_bands=13)
            pairs.append((optical, read_bands(radar, expected_bands=2, expected_size=optical.shape[1:])))
    if not pairs:
        raise DataError(
            f"--base {base}: no clear patch with its radar twin there; expected the layout of SEN12MS-CR, "
            "ROIs1970_fall_s2/s2_139/ROIs1970_fall_s2_139_p839.tif and the same below ROIs1970_fall_s1"
        )
    return pairs


def _write_json(path: Path, value: Any) -> None:
    from common.files import write_json

    write_json(path, value)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
