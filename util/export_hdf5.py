"""Export SEN12MS-CR-TS to HDF5: whole scenes put together from their patches, or the patches as series.

    python -m util.export_hdf5 --root ROOT --out OUT --split test [--layout patches] [--cloud_masks]

ROOT is a folder of GeoTIFFs or a pack. OUT/SPLIT.hdf5 has a group for each region, /ROIs1868/73, which lies in a file
of its own, OUT/SPLIT/ROIs1868_73.hdf5, and is opened through the first one; keep both together. Files are written
whole, and a second run leaves out regions that are there.

--layout scenes (T dates in order, H x W of the whole scene, values as stored):
    /ROIs1868/73/S2/S2          (T, 13, H, W) uint16, reflectance x 10000; 0 where no patch lies
    /ROIs1868/73/S2/S2_dates    (T,) text, 2018-06-21
    /ROIs1868/73/S2/cloud_mask  (T, 1, H, W) uint8, with --cloud_masks (detected patch by patch, joined)
    /ROIs1868/73/S1/S1          (T, 2, H, W) float, dB; NaN where no patch lies
    /ROIs1868/73/S1/S1_dates    (T,) text
    /ROIs1868/73/covered        (H, W) bool, where patches lie
    /ROIs1868/73/patches        (P, 3) number of the patch, its first row and column in the scene
    attributes of the region    crs (WKT), transform (6 numbers, pixels to the CRS), patch_size

--layout patches (the published converter's groups and names, h and w of one patch):
    /ROIs1868/73/ROIs1868_73_patch_171/S2/{S2 (T, 13, h, w), S2_dates (T,), cloud_mask (T, 1, h, w)}
    /ROIs1868/73/ROIs1868_73_patch_171/S1/{S1 (T, 2, h, w), S1_dates (T,)}
    The published cloud_prob, raw probabilities of s2cloudless, is not written.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError, run_command
from common.files import whole_file
from data.constants import DETECTORS, N_DATES, REGIONS, SPLITS
from data.splits import SERIES, rois

if TYPE_CHECKING:
    from data.clouds.mask_store import MaskStore
    from data.datasets.file_index import SeriesPaths
    from data.raster.image_store import Images
    from data.raster.patch_mosaic import Mosaic

LAYOUTS = ("scenes", "patches")
_GZIP = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Export from the command line."""
    args = _parser().parse_args(argv)
    if not args.root.is_dir():
        raise DataError(f"no such folder: {args.root}; --root names the folder that holds ROIs…, or a pack")
    from tqdm import tqdm

    from data.clouds.mask_store import open_mask_store
    from data.datasets.file_index import LAYOUT, index_series
    from data.raster.image_store import open_images

    images = open_images(args.root)
    members = [roi for roi in rois(SERIES, args.split, args.region) if images.holds(roi)]
    store = None
    if args.cloud_masks:
        options = {"n_inputs": 3, "split": args.split, "region": args.region}
        store = open_mask_store(args.precomputed, args.detector, **options)
    done = []
    for roi in tqdm(members, desc="exporting", unit="region"):
        patches, _ = index_series(args.root, [roi], args.skip_bad_samples)
        if not patches:
            continue
        target = args.out / args.split / f"{roi.replace('/', '_')}.hdf5"
        if not _is_there(target, args.layout):
            _write_roi(target, args, images, roi, patches, store)
        done.append((roi, target))
    if not done:
        raise DataError(f"no patch of {SERIES}, split {args.split!r}, in {args.root}; expected {LAYOUT}")
    _write_index(args.out / f"{args.split}.hdf5", done)
    print(f"{len(done)} regions of split {args.split} in {args.out / args.split}.hdf5, layout {args.layout}")
    return 0


def _write_roi(
    target: Path, args: argparse.Namespace, images: "Images", roi: str, patches: "list[SeriesPaths]",
    store: "MaskStore | None",
) -> None:  # fmt: skip
    import h5py

    from data.raster.packed_store import patch_number

    with whole_file(target) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file.attrs["layout"] = args.layout
        group = file.create_group(roi)
        if args.layout == "scenes":
            _write_scene(group, args.root, images, patches, store)
            return
        for paths in patches:
            name = f"{roi.replace('/', '_')}_patch_{patch_number(paths['S2'][0])}"
            _write_patch(group.create_group(name), args.root, images, paths, store)


def _write_scene(
    group: Any, root: Path, images: "Images", patches: "list[SeriesPaths]", store: "MaskStore | None"
) -> None:
    import numpy as np

    from data.raster.patch_mosaic import lay_out

    scene = lay_out(images, patches)
    group.attrs.update({"crs": scene.crs, "transform": scene.transform, "patch_size": scene.patch_size})
    group["patches"] = scene.places
    group.create_dataset("covered", data=scene.covered(), **_GZIP)
    for sensor in ("S1", "S2"):
        part = group.create_group(sensor)
        _write_dates(part, sensor, [[paths[sensor][date] for paths in patches] for date in range(N_DATES)])
        pixels: Any = None
        for date in range(N_DATES):
            read = partial(_native, images, scene)
            whole = scene.join([paths[sensor][date] for paths in patches], read)
            if pixels is None:
                chunk = (1, *whole.shape[:1], *scene.patch_size)
                pixels = part.create_dataset(sensor, (N_DATES, *whole.shape), whole.dtype, chunks=chunk, **_GZIP)
            pixels[date] = whole
    if store is not None:
        known = store

        def masks(path: str) -> np.ndarray:
            return known.masks(root, [path])[0][None].astype(np.uint8)

        shape, chunk = (N_DATES, 1, *scene.shape), (1, 1, *scene.patch_size)
        clouds = group["S2"].create_dataset("cloud_mask", shape, np.uint8, chunks=chunk, **_GZIP)
        for date in range(N_DATES):
            clouds[date] = scene.join([paths["S2"][date] for paths in patches], masks)


def _native(images: "Images", scene: "Mosaic", path: str) -> Any:
    from data.raster.patch_mosaic import read_native

    return read_native(images, path, scene.patch_size)


def _write_patch(group: Any, root: Path, images: "Images", paths: "SeriesPaths", store: "MaskStore | None") -> None:
    import numpy as np

    from data.raster.patch_mosaic import read_native

    for sensor in ("S1", "S2"):
        part = group.create_group(sensor)
        part.create_dataset(sensor, data=np.stack([read_native(images, path) for path in paths[sensor]]), **_GZIP)
        _write_dates(part, sensor, [[path] for path in paths[sensor]])
    if store is not None:
        masks = np.stack(store.masks(root, paths["S2"]))[:, None].astype(np.uint8)
        group["S2"].create_dataset("cloud_mask", data=masks, **_GZIP)


def _write_dates(group: Any, sensor: str, paths: list[list[str]]) -> None:
    """The day of acquisition of each date; of several, that of most patches."""
    from collections import Counter

    from data.raster.geotiff import acquisition_date

    days = []
    for date, here in enumerate(paths):
        counts = Counter(acquisition_date(path).isoformat() for path in here)
        day, count = counts.most_common(1)[0]
        if count < len(here):
            text = f"{group.name}, date {date}: {len(here) - count} of {len(here)} patches are of other days than {day}"
            warnings.warn(text, stacklevel=2)
        days.append(day)
    group[f"{sensor}_dates"] = days


def _is_there(target: Path, layout: str) -> bool:
    import h5py

    if not target.is_file():
        return False
    try:
        with h5py.File(target, "r", locking=False) as file:
            found = file.attrs.get("layout")
    except OSError:  # of a damaged disk: it is made again
        return False
    if found != layout:
        raise DataError(f"{target} is of layout {found}, not {layout}; name another --out, or remove it")
    return True


def _write_index(path: Path, regions: Sequence[tuple[str, Path]]) -> None:
    import h5py

    with whole_file(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        for roi, target in regions:
            file[roi] = h5py.ExternalLink(target.relative_to(path.parent).as_posix(), f"/{roi}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m util.export_hdf5",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of SEN12MS-CR-TS, or a pack of it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--split", choices=SPLITS, default="all")
    parser.add_argument("--region", choices=REGIONS, default="all")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument("--cloud_masks", action="store_true", help="add cloud_mask; what is not stored is computed")
    parser.add_argument("--detector", choices=tuple(name for name in DETECTORS if name != "s2cloudless_map"),
                        default=DETECTORS[0], help="of --cloud_masks")  # fmt: skip
    parser.add_argument("--precomputed", type=Path, help="the store of masks (default: beside the images)")
    parser.add_argument("--skip_bad_samples", action="store_true", help="leave out incomplete patches")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(run_command(main))
