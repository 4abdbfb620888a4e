"""Compute the cloud masks of a data set in advance, so that training only reads them.

Run it again after an interruption: stored masks are skipped. On a cluster, pass `--shard i/n` to task i of n.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.cli import run_command
from common.errors import DataError, UsageError
from common.parallel import map_in_processes, worker_count
from data.constants import DETECTORS, REGIONS, SPLITS
from data.splits import MONO, SERIES


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog="python -m util.pre_compute_data_samples", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of SEN12MS-CR-TS or SEN12MS-CR, or a pack")
    parser.add_argument("--out", type=Path, required=True, help="folder of the store, for --precomputed")
    parser.add_argument("--detector", choices=DETECTORS, default=DETECTORS[0])
    parser.add_argument("--dataset", choices=("auto", SERIES, MONO), default="auto")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument(
        "--workers", type=worker_count, default=1, help="processes with one thread each; auto: one per core"
    )
    parser.add_argument("--device", default="cpu", help="accepted for compatibility; detection runs on processor cores")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="process the i-th of n parts, i from 1 to n")
    parser.add_argument(
        "--import", dest="import_file", type=Path, metavar="FILE.npy",
        help="import coverages from a published generic_N_SPLIT_REGION_DETECTOR.npy, and compute nothing",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Fill a mask store from the command line."""
    args = build_parser().parse_args(argv)
    shard = re.fullmatch(r"(\d+)/(\d+)", args.shard)
    if shard is None or not 1 <= int(shard[1]) <= int(shard[2]):
        raise UsageError(f"--shard takes i/n with i from 1 to n, such as 1/8, not {args.shard!r}")
    if re.fullmatch(r"cpu|cuda(:\d+)?", args.device) is None:
        raise UsageError(f"--device takes cuda, cuda:N or cpu, got {args.device!r}")
    if args.device != "cpu":
        print(f"--device {args.device}: cloud detection runs on processor cores; --workers auto uses all of them")
    if not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…")
    from data.raster.image_store import dataset_of, image_series  # deferred: keeps --help fast

    dataset = dataset_of(args.root) if args.dataset == "auto" else args.dataset
    series = list(image_series(args.root, dataset, args.split, args.region))[int(shard[1]) - 1 :: int(shard[2])]
    if not series:
        raise DataError(f"no optical images of {dataset}, split {args.split}, region {args.region}, in {args.root}")
    if args.import_file is not None:
        import_coverages(args, series)
    else:
        compute_masks(args, series)
    return 0


def compute_masks(args: argparse.Namespace, series: list[tuple[str, ...]]) -> None:
    """Compute and store the missing masks."""
    from tqdm import tqdm  # deferred: keeps --help fast

    from data.clouds.mask_store import MaskStore  # deferred: keeps --help fast

    store = MaskStore(args.out, args.detector, must_store=True)
    missing = [images for images in tqdm(series, desc="checking", unit="patch") if store.missing(args.root, images)]
    print(f"{len(series)} patches, {len(series) - len(missing)} of them stored already in {store.folder(args.root)}")
    errors = map_in_processes(partial(_fill, args.root, args.out, args.detector), missing, args.workers)
    failed = [error for error in tqdm(errors, desc=args.detector, total=len(missing), unit="patch") if error]
    print(f"{len(missing) - len(failed)} patches computed")
    if failed:
        text = f"{len(failed)} of {len(series)} patches could not be computed, the others are stored"
        raise DataError(f"{text}: {'; '.join(sorted(failed)[:5])}")


def _fill(root: Path, out: Path, detector: str, images: tuple[str, ...]) -> str:
    """Store the masks of one series; returns an error message, empty on success."""
    from data.clouds.mask_store import MaskStore, StoreWriteError  # deferred: keeps --help fast

    try:
        MaskStore(out, detector, must_store=True).masks(root, images)
    except StoreWriteError:  # would fail for every series
        raise
    except DataError as error:
        return str(error)
    return ""


def import_coverages(args: argparse.Namespace, series: list[tuple[str, ...]]) -> None:
    """Store the coverages of a published file."""
    from data.clouds.mask_store import MaskStore  # deferred: keeps --help fast
    from data.clouds.published_coverage import published_name, read_published  # deferred: keeps --help fast

    parts = published_name(args.import_file)
    if parts is not None and parts[3] != args.detector:
        raise UsageError(f"{args.import_file} is of {parts[3]}; add --detector {parts[3]}")
    imported = read_published(args.import_file)
    images = [path for paths in series for path in paths]
    MaskStore(None, args.detector, imported=imported).require_overlap(images)
    store = MaskStore(args.out, args.detector, must_store=True)
    added = sum(store.add_imported(args.root, paths, imported) for paths in series)
    print(f"imported {added} coverages for {len(images)} images into {store.folder(args.root)}")
    print("masks are computed on demand, or now by the same command without --import")


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
