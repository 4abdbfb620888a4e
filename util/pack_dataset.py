"""Pack a data set: one chunked, compressed HDF5 file for each region in place of thousands of GeoTIFFs.

    python -m util.pack_dataset --root SRC --out DST           pack what is not packed yet
    python -m util.pack_dataset --root SRC --out DST --verify  compare a pack with its GeoTIFFs again
    python -m util.pack_dataset --out DST --verify             check a pack by its own checksums

Every flag that names a folder of GeoTIFFs takes DST as well, for training, testing and computing masks: samples are
the same to the bit. Values are kept as stored, without loss; a region's file gets its name when every pixel, date and
georeference in it has been compared with the GeoTIFFs. Run it again after an interruption: regions that are packed
are left out. Cloud masks that lie in SRC/.mask_store come along. Layout: see data/raster/packed_store.py.
"""

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import DataError, UsageError, run_command
from common.files import whole_file, write_json
from common.parallel import in_processes
from data.constants import REGIONS, SPLITS
from data.splits import DATASETS, rois

MASKS = ".mask_store"  # beside the images, see `data.clouds.mask_store.default_store`


def main(argv: Sequence[str] | None = None) -> int | None:
    """Pack or verify from the command line."""
    args = _parser().parse_args(argv)
    if args.root is None and not args.verify:
        raise UsageError("--root is not given: it is the folder of GeoTIFFs to pack")
    if args.root is not None and not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…")
    return _verify(args) if args.verify else _pack(args)


def _pack(args: argparse.Namespace) -> int | None:
    from data.raster.image_store import dataset_of
    from data.raster.packed_store import FORMAT, MARK

    if (args.root / MARK).exists():
        raise UsageError(f"{args.root} is a pack already; --root names a folder of GeoTIFFs")
    dataset = dataset_of(args.root) if args.dataset == "auto" else args.dataset
    done = _each_roi(partial(_pack_one, args.root, args.out, dataset), args, dataset, "packing")
    if not any(region.images or region.problems for region in done):
        raise DataError(f"no images of {dataset}, split {args.split}, region {args.region}, in {args.root}")
    problems = [problem for region in done for problem in region.problems]
    if problems:
        text = f"{len(problems)} regions could not be packed, the others are: {'; '.join(problems[:5])}"
        raise DataError(f"{text}; run it again when these files are mended or removed")
    n_masks = _bring_masks(args.root, args.out)
    write_json(args.out / MARK, {"format": FORMAT, "dataset": dataset})
    images, before, after = (sum(getattr(region, name) for region in done) for name in ("images", "before", "after"))
    sizes = f"{after / 1e9:.2f} GB for {before / 1e9:.2f} ({after / before:.0%})"
    print(f"{images} images in {args.out}, equal to the GeoTIFFs to the bit: {sizes}")
    if n_masks:
        print(f"{n_masks} records of cloud masks brought along")
    return 0


def _verify(args: argparse.Namespace) -> int | None:
    from data.raster.packed_store import Pack

    dataset = Pack(str(args.out)).dataset
    done = _each_roi(partial(_check_one, args.root, args.out, dataset), args, dataset, "verifying")
    problems = [problem for region in done for problem in region.problems]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        advice = "remove the files of these regions and pack them again"
        raise DataError(f"{len(problems)} images are not as they were: {'; '.join(problems[:5])}{more}; {advice}")
    against = "their checksums" if args.root is None else f"the GeoTIFFs in {args.root}"
    print(f"{sum(region.images for region in done)} images in {args.out} are equal to {against}")
    return 0


@dataclass(frozen=True)
class _Region:
    """What came of a region: images, bytes of their GeoTIFFs, bytes of its file, what was wrong."""

    images: int = 0
    before: int = 0
    after: int = 0
    problems: tuple[str, ...] = ()


def _pack_one(root: Path, out: Path, dataset: str, roi: str) -> _Region:
    """Pack a region unless it is packed already."""
    from data.clouds.mask_store import sweep
    from data.raster.image_store import Folder
    from data.raster.pack_writer import is_packed, list_roi, pack_roi
    from data.raster.packed_store import roi_path

    images, target = Folder(str(root)), roi_path(out, roi)
    try:
        listing = list_roi(images, dataset, roi)
        if not listing:
            return _Region()
        sweep(target.parent)
        if not is_packed(images, listing, target):
            pack_roi(images, listing, out, dataset, roi)
    except DataError as error:
        return _Region(problems=(str(error),))
    paths = [path for stack in listing.values() for path in stack.values()]
    return _Region(len(paths), sum(images.file_bytes(path) for path in paths), target.stat().st_size)


def _check_one(root: Path | None, out: Path, dataset: str, roi: str) -> _Region:
    """Compare a region with its GeoTIFFs, or with its own checksums."""
    from data.raster.image_store import Folder
    from data.raster.pack_writer import damaged, differences, list_roi
    from data.raster.packed_store import RoiFile, roi_path

    target = roi_path(out, roi)
    try:
        listing = {} if root is None else list_roi(Folder(str(root)), dataset, roi)
        if not target.is_file():
            return _Region(problems=(f"{roi} is not packed",) if listing else ())
        packed = RoiFile(target)
        found = damaged(packed) if root is None else differences(Folder(str(root)), listing, packed)
        return _Region(sum(1 for _ in packed.slots()), problems=tuple(found))
    except DataError as error:
        return _Region(problems=(str(error),))


def _each_roi(act: Callable[[str], _Region], args: argparse.Namespace, dataset: str, what: str) -> list[_Region]:
    from tqdm import tqdm

    members = rois(dataset, args.split, args.region)
    outcomes = map(act, members) if args.workers <= 1 else in_processes(act, members, args.workers)
    return list(tqdm(outcomes, desc=what, total=len(members), unit="region"))


def _bring_masks(root: Path, out: Path) -> int:
    """Copy the records of cloud masks that lie beside the GeoTIFFs and are not there yet; how many."""
    source, count = root / MASKS, 0
    for record in sorted(source.rglob("*")):
        target = out / MASKS / record.relative_to(source)
        if record.is_file() and not record.name.startswith(".") and not target.exists():
            with whole_file(target) as temporary:
                shutil.copyfile(record, temporary)
            count += record.suffix == ".npz"
    return count


def _workers(text: str) -> int:
    return (os.cpu_count() or 1) if text == "auto" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m util.pack_dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, help="folder of GeoTIFFs, of SEN12MS-CR-TS or SEN12MS-CR")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--dataset", choices=("auto", *DATASETS), default="auto")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument("--workers", type=_workers, default=1, help="processes, a region each; auto: one per core")
    parser.add_argument("--verify", action="store_true", help="pack nothing; check what is packed")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
