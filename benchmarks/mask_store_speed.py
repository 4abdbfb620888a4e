"""Speed of reading a sample's masks and coverages from the store relative to computing them.

Works on any folder in the layout of SEN12MS-CR-TS, such as one of `python -m util.make_sample_data OUT --size 256`:

    python -m benchmarks.mask_store_speed --root OUT/SEN12MSCRTS
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.harness import benchmark_parser, publish
from benchmarks.measure import evict, seconds
from common.cli import run_command
from common.errors import DataError
from data.clouds.detectors import detect_clouds
from data.clouds.mask_store import MaskStore
from data.constants import DETECTORS, N_S2
from data.raster.geotiff import read_bands
from data.raster.image_store import image_series
from data.splits import SERIES

_READINGS = 20  # of each patch; the median is reported
_INPUTS = 3  # dates whose masks a training sample reads, in addition to the target


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("mask_store_speed", __doc__)
    parser.add_argument("--root", type=Path, required=True, help="a folder in the layout of SEN12MS-CR-TS")
    parser.add_argument("--detector", choices=DETECTORS, default=DETECTORS[0])
    parser.add_argument("--patches", type=int, default=1, help="number of patches to measure")
    args = parser.parse_args(argv)
    series = list(image_series(args.root, SERIES, "all", "all"))[: args.patches]
    if not series:
        raise DataError(f"no patches of {SERIES} in {args.root}")
    patches = []
    for images in series:
        with tempfile.TemporaryDirectory() as folder:
            patches.append(measure(args.root, Path(folder), args.detector, images))
    results = {
        "detector": args.detector,
        "patches": patches,
        "times faster, all dates": round(median(p["compute_s"] / p["load_all_s"] for p in patches), 1),
        "times faster, a training sample": round(median(p["compute_s"] / p["load_sample_s"] for p in patches), 1),
    }
    return publish("mask_store_speed", argv, results, args.out)


def measure(root: Path, folder: Path, detector: str, images: tuple[str, ...]) -> dict[str, float]:
    """Seconds to compute the masks and coverages of one patch, and to read them from the store, images in memory.

    Args:
        root: folder of the data set.
        folder: where to put the store.
        detector: one of `data.constants.DETECTORS`.
        images: the optical images of one patch, paths below the root.

    Returns:
        compute_s: all dates, from pixels in memory, the smaller of wall and processor time, so that a busy machine
        does not flatter the store; load_all_s: coverages and masks of all dates, by a fresh reader, not in the page
        cache; load_sample_s: coverages of all dates, masks of four; and the shape.
    """
    pixels = [read_bands(root / path, N_S2) for path in images]
    detect_clouds(pixels[0], detector)  # the detector is loaded once, not for every sample
    cpu_start = time.process_time()
    wall_s = seconds(lambda: [detect_clouds(image, detector).mean() for image in pixels])
    compute_s = min(wall_s, time.process_time() - cpu_start)
    store = MaskStore(folder, detector, must_store=True)
    computed = store.masks(root, images, pixels)
    record = next(store.folder(root).rglob("*.npz"))

    def load(n_masks: int) -> list[np.ndarray]:
        fresh = MaskStore(folder, detector, read_only=True)
        fresh.coverages(root, images)
        return fresh.masks(root, images[:n_masks])

    if not all(map(np.array_equal, computed, load(len(images)))):
        raise DataError("the masks read from the store differ from those computed; report this with the image")
    height, width = pixels[0].shape[1:]
    return {
        "dates": len(images),
        "height": height,
        "width": width,
        "record_bytes": record.stat().st_size,
        "compute_s": compute_s,
        "load_all_s": _cold_median(record, lambda: load(len(images))),
        "load_sample_s": _cold_median(record, lambda: load(_INPUTS + 1)),
    }


def _cold_median(record: Path, load: Callable[[], object]) -> float:
    times = []
    for _ in range(_READINGS):
        evict(record)
        times.append(seconds(load))
    return median(times)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
