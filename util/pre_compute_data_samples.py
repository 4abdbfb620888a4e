"""Compute the cloud masks of a data set ahead of time, so that training only reads them.

Run it again after an interruption: what is stored is left out. On a cluster, let task i of n pass `--shard i/n`.
"""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from common.errors import DataError, UsageError, run_command
from common.parallel import in_processes
from data.constants import DETECTORS, REGIONS, SPLITS
from data.splits import MONO, SERIES, rois

_SERIES_IMAGE = re.compile(r"s2_.*_ImgNo_(\d+)_.*_patch_(\d+)\.tif")
_MONO_IMAGE = re.compile(r".*_p(\d+)\.tif")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Fill a mask store from the command line."""
    args = _parser().parse_args(argv)
    shard, shards = _shard(args.shard)
    if not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…")
    dataset = dataset_in(args.root) if args.dataset == "auto" else args.dataset
    series = list(image_series(args.root, dataset, args.split, args.region))[shard - 1 :: shards]
    if not series:
        raise DataError(f"no optical images of {dataset}, split {args.split}, region {args.region}, in {args.root}")
    if args.import_file is not None:
        return _import(args, series)
    return _compute(args, series)


def dataset_in(root: Path) -> str:
    """Which data set a folder or a pack holds, see `data.raster.image_store.dataset_of`."""
    from data.raster.image_store import dataset_of

    return dataset_of(root)


def image_series(root: Path, dataset: str, split: str, region: str) -> Iterator[tuple[str, ...]]:
    """The optical images that share a record of the store: all dates of a patch, or one cloudy image.

    Args:
        root: the data set's folder.
        dataset: "SEN12MS-CR-TS" or "SEN12MS-CR".
        split: as in `data.splits.rois`.
        region: as in `data.splits.rois`.

    Yields:
        POSIX paths below the root, by date; patches in natural order. Whatever is there: downloads may be partial.
    """
    for roi in rois(dataset, split, region):
        if dataset == MONO:
            season, number = roi.split("/")
            folder = Path(f"{season}_s2_cloudy", f"s2_cloudy_{number}")
            found = [
                (int(m[1]), name) for name in _listed(root, folder.as_posix()) if (m := _MONO_IMAGE.fullmatch(name))
            ]
            yield from (((folder / name).as_posix(),) for _, name in sorted(found))
            continue
        patches: dict[int, list[tuple[int, str]]] = {}
        for day in _listed(root, f"{roi}/S2"):
            for name in _listed(root, f"{roi}/S2/{day}"):
                if match := _SERIES_IMAGE.fullmatch(name):
                    patches.setdefault(int(match[2]), []).append((int(match[1]), f"{roi}/S2/{day}/{name}"))
        yield from (tuple(path for _, path in sorted(patches[patch])) for patch in sorted(patches))


def _compute(args: argparse.Namespace, series: list[tuple[str, ...]]) -> int | None:
    from tqdm import tqdm

    from data.clouds.mask_store import MaskStore

    if args.device != "cpu":
        from training.run import choose_device

        choose_device(args.device)
    store = MaskStore(args.out, args.detector, must_store=True)
    todo = [images for images in tqdm(series, desc="looking", unit="patch") if store.missing(args.root, images)]
    print(f"{len(series)} patches, {len(series) - len(todo)} of them stored already in {store.folder(args.root)}")
    fill = partial(_fill, args.root, args.out, args.detector, args.device)
    outcomes: Iterable[str] = map(fill, todo) if args.workers <= 1 else in_processes(fill, todo, args.workers)
    bad = [problem for problem in tqdm(outcomes, desc=args.detector, total=len(todo), unit="patch") if problem]
    print(f"{len(todo) - len(bad)} patches computed")
    if bad:
        listing = "; ".join(sorted(bad)[:5])
        raise DataError(f"{len(bad)} of {len(series)} patches could not be done, the others are stored: {listing}")
    return 0


def _fill(root: Path, out: Path, detector: str, device: str, images: tuple[str, ...]) -> str:
    """Store the masks of one series; the reason why not, or nothing."""
    from data.clouds.mask_store import MaskStore, StoreWriteError

    store = MaskStore(out, detector, must_store=True, device=device)
    try:
        store.masks(root, images)
    except StoreWriteError:  # no use in going on
        raise
    except DataError as error:
        return str(error)
    return ""


def _import(args: argparse.Namespace, series: list[tuple[str, ...]]) -> int | None:
    from data.clouds.mask_store import MaskStore
    from data.clouds.published_coverage import published_name, read_published

    facts = published_name(args.import_file)
    if facts is not None and facts[3] != args.detector:
        raise UsageError(f"{args.import_file} is of {facts[3]}; add --detector {facts[3]}")
    imported = read_published(args.import_file)
    images = [path for paths in series for path in paths]
    MaskStore(None, args.detector, imported=imported).require_overlap(images)
    store = MaskStore(args.out, args.detector, must_store=True)
    added = sum(store.add_imported(args.root, paths, imported) for paths in series)
    print(f"imported {added} coverages for {len(images)} images into {store.folder(args.root)}")
    print("masks are computed when they are asked for, or now by the same command without --import")
    return 0


def _listed(root: Path, folder: str) -> list[str]:
    from data.raster.image_store import open_images

    return sorted(open_images(root).names(folder))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard takes i/n with i from 1 to n, such as 1/8, not {text!r}")
    return int(match[1]), int(match[2])


def _workers(text: str) -> int:
    if text != "auto":
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m util.pre_compute_data_samples", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of SEN12MS-CR-TS or SEN12MS-CR, or a pack")
    parser.add_argument("--out", type=Path, required=True, help="folder of the store; give it to --precomputed")
    parser.add_argument("--detector", choices=DETECTORS, default=DETECTORS[0])
    parser.add_argument("--dataset", choices=("auto", SERIES, MONO), default="auto")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument("--workers", type=_workers, default=1, help="processes, one thread each; auto: one per core")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda, cuda:N: where s2cloudless's trees are evaluated"
    )
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n parts, i from 1 to n")
    parser.add_argument(
        "--import", dest="import_file", type=Path, metavar="FILE.npy",
        help="take coverages from a published generic_N_SPLIT_REGION_DETECTOR.npy, and compute nothing",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
