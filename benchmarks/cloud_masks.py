"""How many times faster clouds are detected than by s2cloudless as it is, and that the masks are the same.

Works on any folders in the layout of SEN12MS-CR-TS or SEN12MS-CR, such as those of
`python -m util.make_sample_data OUT --size 256`:

    python -m benchmarks.cloud_masks --root OUT/SEN12MSCRTS OUT/SEN12MSCR --images 30

Both ways take turns on the same image, on the same number of threads. One thread is timed by the processor time of the
process, so that a busy machine changes little; more are timed by the clock.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from benchmarks.tables import median_range
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from data.clouds.detectors import detect_clouds, detector_settings
from data.clouds.mask_store import MaskStore
from data.constants import N_S2, REFLECTANCE_SCALE
from data.raster.geotiff import read_bands
from data.raster.image_store import dataset_of, image_series

_DETECTOR = "s2cloudless_mask"
_WHOLE = 15_578 * 30  # optical images of SEN12MS-CR-TS: patches x dates
_HOUR = 3600


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure and print; with --out write the same as JSON."""
    args = _parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    result: dict[str, Any] = {**provenance("benchmarks.cloud_masks", argv), "detector": _DETECTOR}
    result |= {"threads of the detection": args.threads, "rounds": args.rounds, "data": []}
    for root in args.root:
        result["data"].append(measure(root, args.images, args.rounds, args.threads))
    print(json.dumps(result, indent=4))
    if args.out is not None:
        write_json(args.out, result)
    return 0


def measure(root: Path, n_images: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds an image by s2cloudless and by `detect_clouds`, pixels in memory; and to fill a store from files.

    Args:
        root: a data set's folder.
        n_images: how many of its images to take, evenly over all.
        rounds: times that both ways take turns on an image; its seconds are medians over them.
        threads: of both ways.

    Raises:
        DataError: if there are no images, or if the masks differ.
    """
    names, images = _images(root, n_images)
    detector = _published_detector()
    clock = time.process_time if threads == 1 else time.perf_counter
    published, ours = [], []
    for name, image in zip(names, images, strict=True):
        if not np.array_equal(_published_mask(detector, image, threads), detect_clouds(image, _DETECTOR)):
            raise DataError(f"the mask of {name} is not that of s2cloudless; report this with the image")
        ways = partial(_published_mask, detector, image, threads), partial(detect_clouds, image, _DETECTOR)
        pairs = [tuple(_seconds(clock, way) for way in ways) for _ in range(rounds)]
        published.append(median(pair[0] for pair in pairs))
        ours.append(median(pair[1] for pair in pairs))
    ratios = [slow / fast for slow, fast in zip(published, ours, strict=True)]
    result: dict[str, Any] = {
        "folder": root.name,
        "images": len(images),
        "height": images[0].shape[1],
        "width": images[0].shape[2],
        "masks equal": len(images),
        "published_s": _summary(published),
        "now_s": _summary(ours),
        "times faster": _summary(ratios),
    }
    if threads == 1:
        with tempfile.TemporaryDirectory() as folder:
            store = MaskStore(folder, _DETECTOR, must_store=True)
            fill_s = _seconds(clock, lambda: [store.masks(root, [name]) for name in names]) / len(names)
        besides = max(0.0, fill_s - float(np.mean(ours)))
        hours = {"by s2cloudless": float(np.mean(published)) + besides, "now": fill_s, "of it files": besides}
        scale = _WHOLE / _HOUR * 256**2 / images[0][0].size
        title = f"core-hours to store {_WHOLE} masks of 256 x 256, extrapolated from these images"
        result[title] = {what: float(f"{seconds * scale:.3g}") for what, seconds in hours.items()}
    return result


def _images(root: Path, n_images: int) -> tuple[list[str], list[np.ndarray]]:
    series = image_series(root, dataset_of(root), "all", "all")
    names = [name for paths in series for name in paths]
    if not names:
        raise DataError(f"no optical images in {root}")
    chosen = [names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, n_images).round())]
    return chosen, [read_bands(root / name, N_S2) for name in chosen]


def _published_detector() -> Any:
    from s2cloudless import S2PixelCloudDetector

    settings = detector_settings(_DETECTOR)
    names = ("threshold", "average_over", "dilation_size", "all_bands")
    return S2PixelCloudDetector(**{name: settings[name] for name in names})


def _published_mask(detector: Any, image: np.ndarray, threads: int) -> np.ndarray:
    reflectance = np.moveaxis(_reflectance(image), 0, -1)[None]
    mask: np.ndarray = detector.get_cloud_masks(np.ascontiguousarray(reflectance), num_threads=threads)[0]
    return mask.astype(np.float32)


def _reflectance(image: np.ndarray) -> np.ndarray:
    reflectance: np.ndarray = np.clip(image.astype(np.float32), 0, REFLECTANCE_SCALE) / np.float32(REFLECTANCE_SCALE)
    return reflectance


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in median_range(values).items()}


def _seconds(clock: Callable[[], float], action: Callable[[], object]) -> float:
    start = clock()
    action()
    return clock() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cloud_masks", description=__doc__)
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="folders of SEN12MS-CR-TS or SEN12MS-CR")
    parser.add_argument("--images", type=int, default=10, help="images of each folder, evenly over all (10)")
    parser.add_argument("--rounds", type=int, default=5, help="times that both ways take turns on an image (5)")
    parser.add_argument("--threads", type=int, default=1, help="of both ways (1)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
