"""Export SEN12MS-CR-TS to HDF5: scenes joined from their patches, or the patches as series.

    python -m util.export_hdf5 --root ROOT --out OUT --split test [--layout patches] [--cloud_masks]

ROOT is a folder of GeoTIFFs or a pack. OUT/SPLIT.hdf5 has a group for each region, /ROIs1868/73, which links to a file
of its own, OUT/SPLIT/ROIs1868_73.hdf5; keep both together. Files are written atomically, and a second run skips regions
that are exported.

--layout scenes (T dates in order, H x W of the scene, values as stored):
    /ROIs1868/73/S2/S2          (T, 13, H, W) uint16, reflectance x 10000; 0 outside the patches
    /ROIs1868/73/S2/S2_dates    (T,) text, 2018-06-21
    /ROIs1868/73/S2/cloud_mask  (T, 1, H, W) uint8, with --cloud_masks (detected by patch, then joined)
    /ROIs1868/73/S1/S1          (T, 2, H, W) float, dB; NaN outside the patches
    /ROIs1868/73/S1/S1_dates    (T,) text
    /ROIs1868/73/covered        (H, W) bool, pixels within patches
    /ROIs1868/73/patches        (P, 3) patch number, its first row and column in the scene
    attributes of the region    crs (WKT), transform (6 numbers, pixels to the CRS), patch_size

--layout patches (groups and names of the published converter, h and w of one patch):
    /ROIs1868/73/ROIs1868_73_patch_171/S2/{S2 (T, 13, h, w), S2_dates (T,), cloud_mask (T, 1, h, w)}
    /ROIs1868/73/ROIs1868_73_patch_171/S1/{S1 (T, 2, h, w), S1_dates (T,)}
    The published cloud_prob, raw probabilities of s2cloudless, is not written.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from common.cli import run_command
from common.errors import DataError
from common.locks import folder_lock
from data.constants import DETECTORS, REGIONS, SPLITS
from data.layout import EXAMPLES
from data.splits import SERIES, rois

LAYOUTS = ("scenes", "patches")


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m util.export_hdf5", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of SEN12MS-CR-TS, or a pack of it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument(
        "--cloud_masks", action="store_true", help="add cloud_mask; masks that are not stored are computed"
    )
    parser.add_argument("--detector", choices=tuple(name for name in DETECTORS if name != "s2cloudless_map"),
                        default=DETECTORS[0], help="of --cloud_masks")  # fmt: skip
    parser.add_argument("--precomputed", type=Path, help="the mask store (default: the one in the root)")
    parser.add_argument("--skip_bad_samples", action="store_true", help="leave out incomplete patches")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Export from the command line."""
    args = build_parser().parse_args(argv)
    if not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…, or a pack")
    from tqdm import tqdm  # deferred: keeps --help fast

    from data.clouds.mask_store import open_mask_store  # deferred: keeps --help fast
    from data.datasets.file_index import index_series  # deferred: keeps --help fast
    from data.datasets.hdf5_export import is_written, write_links, write_region  # deferred: keeps --help fast
    from data.raster.image_store import open_images  # deferred: keeps --help fast

    images = open_images(args.root)
    regions = [roi for roi in rois(SERIES, args.split, args.region) if images.names(roi)]
    store = None
    if args.cloud_masks:
        store = open_mask_store(args.precomputed, args.detector, n_inputs=3, split=args.split, region=args.region)
    exported = []
    with folder_lock(args.out / args.split, "--out"):
        for roi in tqdm(regions, desc="exporting", unit="region"):
            patches, _ = index_series(args.root, [roi], args.skip_bad_samples)
            if not patches:
                continue
            target = args.out / args.split / f"{roi.replace('/', '_')}.hdf5"
            if not is_written(target, args.layout):
                write_region(target, args.layout, images, roi, patches, store)
            exported.append((roi, target))
        if not exported:
            raise DataError(f"no patch of {SERIES}, split {args.split!r}, in {args.root}; expected {EXAMPLES[SERIES]}")
        write_links(args.out / f"{args.split}.hdf5", exported)
    print(f"{len(exported)} regions of split {args.split} in {args.out / args.split}.hdf5, layout {args.layout}")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
