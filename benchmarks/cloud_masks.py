"""Speed of cloud detection relative to s2cloudless itself, and a check that the masks are the same.

Works on any folders in the layout of SEN12MS-CR-TS or SEN12MS-CR, such as those of
`python -m util.make_sample_data OUT --size 256`:

    python -m benchmarks.cloud_masks --root OUT/SEN12MSCRTS OUT/SEN12MSCR --images 30

Both alternate on the same image, with the same number of threads. One thread is timed by the processor time of the
process, which other load on the machine hardly affects; more are timed by the clock.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.harness import benchmark_parser, publish
from benchmarks.measure import median_range, seconds
from common.cli import run_command
from common.errors import DataError
from data.clouds.detectors import detect_clouds, detector_settings
from data.clouds.mask_store import MaskStore
from data.constants import N_S2, REFLECTANCE_SCALE
from data.raster.geotiff import read_bands
from data.raster.image_store import dataset_of, image_series

_DETECTOR = "s2cloudless_mask"
_ALL_IMAGES = 15_578 * 30  # optical images of SEN12MS-CR-TS: patches x dates
_HOUR = 3600


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("cloud_masks", __doc__)
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="folders of SEN12MS-CR-TS or SEN12MS-CR")
    parser.add_argument("--images", type=int, default=10, help="images of each folder, evenly spaced (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating measurements of an image (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of both detectors (default: 1)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    results = {
        "detector": _DETECTOR,
        "threads of the detection": args.threads,
        "rounds": args.rounds,
        "data": [measure(root, args.images, args.rounds, args.threads) for root in args.root],
    }
    return publish("cloud_masks", argv, results, args.out)


def measure(root: Path, n_images: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds per image by s2cloudless and by `detect_clouds`, pixels in memory; and to fill a store from files.

    Args:
        root: folder of a data set.
        n_images: number of images, evenly spaced over all.
        rounds: alternating measurements of an image; its seconds are medians over them.
        threads: of both.

    Raises:
        DataError: if there are no images, or if the masks differ.
    """
    names, images = _images(root, n_images)
    clock = time.process_time if threads == 1 else time.perf_counter
    published, ours = [], []
    for name, image in zip(names, images, strict=True):
        if not np.array_equal(published_mask(image, threads), detect_clouds(image, _DETECTOR)):
            raise DataError(f"the mask of {name} is not that of s2cloudless; report this with the image")
        variants = partial(published_mask, image, threads), partial(detect_clouds, image, _DETECTOR)
        pairs = [tuple(seconds(variant, clock) for variant in variants) for _ in range(rounds)]
        published.append(median(pair[0] for pair in pairs))
        ours.append(median(pair[1] for pair in pairs))
    results: dict[str, Any] = {
        "folder": root.name,
        "images": len(images),
        "height": images[0].shape[1],
        "width": images[0].shape[2],
        "masks equal": len(images),
        "published_s": median_range(published, ".4g"),
        "now_s": median_range(ours, ".4g"),
        "times faster": median_range([slow / fast for slow, fast in zip(published, ours, strict=True)], ".4g"),
    }
    if threads == 1:
        with tempfile.TemporaryDirectory() as folder:
            store = MaskStore(folder, _DETECTOR, must_store=True)
            fill_s = seconds(lambda: [store.masks(root, [name]) for name in names], clock) / len(names)
        files_s = max(0.0, fill_s - float(np.mean(ours)))
        hours = {"by s2cloudless": float(np.mean(published)) + files_s, "now": fill_s, "of it files": files_s}
        scale = _ALL_IMAGES / _HOUR * 256**2 / images[0][0].size
        title = f"core-hours to store {_ALL_IMAGES} masks of 256 x 256, extrapolated from these images"
        results[title] = {part: float(f"{value * scale:.3g}") for part, value in hours.items()}
    return results


def published_mask(image: np.ndarray, threads: int | None = None) -> np.ndarray:
    """The mask (H, W) of an image (13, H, W), raw values, by s2cloudless itself with the published settings.

    Args:
        image: reflectance x 10000.
        threads: of LightGBM (default: its own).
    """
    scale = np.float32(REFLECTANCE_SCALE)
    reflectance = np.moveaxis(np.clip(image.astype(np.float32), 0, scale) / scale, 0, -1)[None]
    options = {} if threads is None else {"num_threads": threads}
    mask: np.ndarray = _published_detector().get_cloud_masks(np.ascontiguousarray(reflectance), **options)[0]
    return mask.astype(np.float32)


@lru_cache(maxsize=1)
def _published_detector() -> Any:
    from s2cloudless import S2PixelCloudDetector  # deferred: OMP_NUM_THREADS must be set before it loads OpenMP

    settings = detector_settings(_DETECTOR)
    names = ("threshold", "average_over", "dilation_size", "all_bands")
    return S2PixelCloudDetector(**{name: settings[name] for name in names})


def _images(root: Path, n_images: int) -> tuple[list[str], list[np.ndarray]]:
    series = image_series(root, dataset_of(root), "all", "all")
    names = [name for paths in series for name in paths]
    if not names:
        raise DataError(f"no optical images in {root}")
    chosen = [names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, n_images).round())]
    return chosen, [read_bands(root / name, N_S2) for name in chosen]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
