"""Pack a data set: one chunked, compressed HDF5 file for each region instead of thousands of GeoTIFFs.

    python -m util.pack_dataset --root SRC --out DST           pack the regions that are not packed yet
    python -m util.pack_dataset --root SRC --out DST --verify  compare a pack with its GeoTIFFs again
    python -m util.pack_dataset --out DST --verify             check a pack by its own checksums

Every flag that takes a folder of GeoTIFFs takes DST as well, for training, testing and computing masks: samples are
bitwise equal. Values are kept as stored, without loss; a region's file appears only after every pixel, date and
georeference in it has been compared with the GeoTIFFs. Run it again after an interruption: packed regions are skipped.
Cloud masks in SRC/.mask_store are copied. Layout: see data/raster/packed_store.py.
"""

import argparse
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import atomic_file, write_json
from common.parallel import map_in_processes, worker_count
from data.constants import REGIONS, SPLITS
from data.splits import DATASETS, rois

MASKS = ".mask_store"  # in the root, see `data.clouds.mask_store.default_store`


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m util.pack_dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of GeoTIFFs, of SEN12MS-CR-TS or SEN12MS-CR")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--dataset", choices=("auto", *DATASETS), default="auto")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=1,
        help="processes, each packs one region at a time; auto: one per core",
    )
    parser.add_argument("--verify", action="store_true", help="check the pack instead of writing it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Pack or verify from the command line."""
    args = build_parser().parse_args(argv)
    if args.root is None and not args.verify:
        raise UsageError("--root is not given: it is the folder of GeoTIFFs to pack")
    if args.root is not None and not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…")
    if args.verify:
        verify(args)
    else:
        pack(args)
    return 0


def pack(args: argparse.Namespace) -> None:
    """Pack all regions, then mark the folder as a pack."""
    from data.raster.image_store import dataset_of  # deferred: keeps --help fast
    from data.raster.pack_writer import update_roi  # deferred: keeps --help fast
    from data.raster.packed_store import FORMAT, MARK, roi_path  # deferred: keeps --help fast

    if (args.root / MARK).exists():
        raise UsageError(f"{args.root} is a pack already; --root names a folder of GeoTIFFs")
    dataset = dataset_of(args.root) if args.dataset == "auto" else args.dataset
    results = _map_rois(partial(update_roi, args.root, args.out, dataset), args, dataset, "packing")
    problems = [problem for result in results for problem in result.problems]
    images = sum(result.images for result in results)
    if not images and not problems:
        raise DataError(f"no images of {dataset}, split {args.split}, region {args.region}, in {args.root}")
    if problems:
        text = f"{len(problems)} regions could not be packed, the others are: {'; '.join(problems[:5])}"
        raise DataError(f"{text}; repair or remove these files and run it again")
    n_masks = _copy_masks(args.root, args.out)
    regions = [roi for roi in rois(dataset, "all") if roi_path(args.out, roi).is_file()]
    write_json(args.out / MARK, {"format": FORMAT, "dataset": dataset, "regions": regions})
    tif_bytes, packed_bytes = sum(r.tif_bytes for r in results), sum(r.packed_bytes for r in results)
    sizes = f"{packed_bytes / 1e9:.2f} GB instead of {tif_bytes / 1e9:.2f} ({packed_bytes / tif_bytes:.0%})"
    print(f"{images} images in {args.out}, bitwise equal to the GeoTIFFs: {sizes}")
    if n_masks:
        print(f"{n_masks} records of cloud masks copied")


def verify(args: argparse.Namespace) -> None:
    """Compare a pack with its GeoTIFFs or with its own checksums."""
    from data.raster.pack_writer import verify_roi  # deferred: keeps --help fast
    from data.raster.packed_store import PackedImages  # deferred: keeps --help fast

    pack = PackedImages(str(args.out))
    check = partial(verify_roi, args.root, args.out, pack.dataset, pack.listed)
    results = _map_rois(check, args, pack.dataset, "verifying")
    problems = [problem for result in results for problem in result.problems]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        advice = "remove the files of these regions and pack them again"
        raise DataError(f"{len(problems)} images have changed: {'; '.join(problems[:5])}{more}; {advice}")
    if args.root is None and not all(result.has_checksum for result in results):
        print("note: an earlier version packed this, names and georeferences have no checksum: verify them with --root")
    reference = "their checksums" if args.root is None else f"the GeoTIFFs in {args.root}"
    print(f"{sum(result.images for result in results)} images in {args.out} are equal to {reference}")


def _map_rois(function: Callable[[str], Any], args: argparse.Namespace, dataset: str, label: str) -> list[Any]:
    from tqdm import tqdm  # deferred: keeps --help fast

    names = rois(dataset, args.split, args.region)
    return list(tqdm(map_in_processes(function, names, args.workers), desc=label, total=len(names), unit="region"))


def _copy_masks(root: Path, out: Path) -> int:
    """Copy the cloud masks stored in the root that the pack lacks; returns the number of records."""
    source, count = root / MASKS, 0
    for record in sorted(source.rglob("*")):
        target = out / MASKS / record.relative_to(source)
        if record.is_file() and not record.name.startswith(".") and not target.exists():
            with atomic_file(target) as temporary:
                shutil.copyfile(record, temporary)
            count += record.suffix == ".npz"
    return count


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
