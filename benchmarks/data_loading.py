"""Samples per second of a `DataLoader`, batch by batch: as published, by plain rasterio, our loader, and a pack.

    python -m util.make_sample_data OUT --size 256 --rois 3 --patches 4
    python -m benchmarks.data_loading --root OUT/SEN12MSCRTS --out benchmarks/results/data_loading.json

In --work, the GeoTIFFs are first written as the published ones are (uncompressed, pixel by pixel, strips of a line),
their masks computed once, and a pack made of them. The loaders alternate over several rounds; every round of a loader
is a process of its own, whose peak memory is that loader's. "cold": each sample once, its files not in the page cache.

published    reads all 30 dates and computes a cloud mask of each by s2cloudless, as published without stored
             coverage; only the conversion of pixels to float and back is shorter
plain        masks and coverage from .npy files; the chosen dates are read by rasterio.open(...).read(), scaled by
             numpy, collated by torch
geotiff      our loader
pack         our loader, its root a pack
"""

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import rasterio
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.cloud_masks import published_mask
from benchmarks.harness import benchmark_parser, publish, run_worker
from benchmarks.measure import evict, median_range, peak_memory
from common.cli import run_command
from common.errors import DataError
from data.batch import Batch, Collate
from data.datasets.date_selection import choose_dates
from data.datasets.sen12mscrts import SEN12MSCRTS
from data.loaders import EpochOrder, PatchLoader, Subset
from util.pack_dataset import main as pack_dataset
from util.pre_compute_data_samples import main as pre_compute

INPUTS, BATCH = 3, 4
LOADERS = tuple(
    f"{name}, {mode}" for mode in ("0 workers", "2 workers", "cold") for name in ("plain", "geotiff", "pack")
)
GOALS = (
    ("geotiff over published", "geotiff, 0 workers", "published", 300.0),
    ("geotiff over plain", "geotiff, 0 workers", "plain, 0 workers", 2.0),
    ("geotiff over plain, 2 workers", "geotiff, 2 workers", "plain, 2 workers", 2.0),
    ("geotiff over plain, cold", "geotiff, cold", "plain, cold", 2.0),
    ("pack over geotiff", "pack, 0 workers", "geotiff, 0 workers", 3.0),
    ("pack over geotiff, 2 workers", "pack, 2 workers", "geotiff, 2 workers", 3.0),
    ("pack over geotiff, cold", "pack, cold", "geotiff, cold", 3.0),
    ("pack over plain", "pack, 0 workers", "plain, 0 workers", None),
    ("pack over plain, cold", "pack, cold", "plain, cold", None),
)

Round = dict[str, float]


class Plain(Dataset[Any]):
    """The plain loader: rasterio, numpy, and masks in .npy files.

    Args:
        root: folder of GeoTIFFs.
        masks: folder with `N.npy`, masks (30, H, W) of sample N, and `coverage_N.npy`; None computes them at each
            access, as published.
    """

    def __init__(self, root: Path, masks: Path | None) -> None:
        self.root, self.masks = root, masks
        self.paths = SEN12MSCRTS(root, "all", cloud_masks=None).paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths = self.paths[index]
        if self.masks is None:
            radar = [_sar(_read(self.root / path)) for path in paths["S1"]]
            raw = [_read(self.root / path) for path in paths["S2"]]
            masks = np.stack([published_mask(image) for image in raw])
            chosen = choose_dates(masks.mean(axis=(1, 2)), INPUTS)
            dates = (*chosen.inputs, chosen.target)
            s1, s2 = [radar[date] for date in dates], [_optical(raw[date]) for date in dates]
        else:
            masks = np.load(self.masks / f"{index}.npy", mmap_mode="r")
            chosen = choose_dates(np.load(self.masks / f"coverage_{index}.npy"), INPUTS)
            dates = (*chosen.inputs, chosen.target)
            s1 = [_sar(_read(self.root / paths["S1"][date])) for date in dates]
            s2 = [_optical(_read(self.root / paths["S2"][date])) for date in dates]
        inputs = {"S1": s1[:-1], "S2": s2[:-1], "masks": [np.array(masks[date]) for date in chosen.inputs]}
        return {"input": inputs, "target": {"S1": s1[-1:], "S2": s2[-1:], "masks": [np.array(masks[chosen.target])]}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("data_loading", __doc__)
    parser.add_argument("--root", type=Path, required=True, help="a folder in the layout of SEN12MS-CR-TS")
    parser.add_argument("--work", type=Path, help="where to write the trees (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=7, help="of every loader, alternating; medians are reported")
    parser.add_argument("--samples", type=int, default=96, help="in a round")
    parser.add_argument("--published_samples", type=int, default=3, help="of the published loader, one per round")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a single round, --root being the prepared folder
    args = parser.parse_args(argv)
    if args.one is not None:
        print(json.dumps(_measure_round(args)))
        return 0
    if not args.root.is_dir():
        raise DataError(f"no folder {args.root} (--root); python -m util.make_sample_data makes one")
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        folder = Path(temporary).resolve()
        _prepare(args.root, folder)
        results = _measure(args, folder)
    return publish("data_loading", argv, results, args.out)


def _prepare(root: Path, folder: Path) -> None:
    """GeoTIFFs in the published form, masks for both, and the pack."""
    tree = folder / "geotiff"
    write_as_published(root, tree)
    pack_dataset(["--root", str(tree), "--out", str(folder / "pack")])
    series = SEN12MSCRTS(tree, "all", sample_type="generic")
    (folder / "masks").mkdir()
    for index in range(len(series)):
        sample = cast(dict[str, Any], series[index])
        np.save(folder / "masks" / f"{index}.npy", np.stack(sample["masks"]))
        np.save(folder / "masks" / f"coverage_{index}.npy", np.array(sample["coverage"]))


def write_as_published(root: Path, tree: Path) -> None:
    """Write the GeoTIFFs of a data set as the published ones are, and detect their clouds into `tree/.mask_store`."""
    files = sorted(root.glob("ROIs*/*/S?/*/*.tif"))
    if not files:
        raise DataError(f"no images of SEN12MS-CR-TS in {root} (--root)")
    for path in files:
        target = tree / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as source:
            shape = {name: source.profile[name] for name in ("count", "height", "width", "dtype", "crs", "transform")}
            with rasterio.open(target, "w", driver="GTiff", interleave="pixel", blockysize=1, **shape) as copy:
                copy.write(source.read())
    pre_compute(["--root", str(tree), "--out", str(tree / ".mask_store"), "--workers", str(os.cpu_count())])


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds: dict[str, list[Round]] = {}
    for turn in range(args.rounds):
        for name in LOADERS:
            rounds.setdefault(name, []).append(_run(folder, name, args.samples))
        if turn < args.published_samples:
            rounds.setdefault("published", []).append(_run(folder, "published", 1))
    figures = {}
    for name, measured in rounds.items():
        rates = [row["samples"] / row["seconds"] for row in measured]
        figures[name] = {
            "samples per second": round(median(rates), 3),
            "least": round(min(rates), 3),
            "most": round(max(rates), 3),
            "processor ms a sample": round(median(1e3 * row["processor_s"] / row["samples"] for row in measured), 2),
            "peak MB of the main process": round(max(row["peak_mb"] for row in measured)),
            "rounds": len(measured),
        }
    sizes = {name: _bytes(folder / name) for name in ("geotiff", "pack")}
    return {
        "samples in a round": args.samples,
        "figures": figures,
        "times as many samples per second": {goal[0]: _ratio(rounds, *goal[1:]) for goal in GOALS},
        "bytes": sizes | {"pack over geotiff": round(sizes["pack"] / sizes["geotiff"], 4), "goal": 0.7},
    }


def _ratio(rounds: dict[str, list[Round]], fast: str, slow: str, goal: float | None) -> dict[str, Any]:
    """Ratio of the rates within each round; and of the processor time, which other load affects less."""
    pairs = list(zip(rounds.get(fast, []), rounds.get(slow, []), strict=False))
    ratios = [ours["samples"] / ours["seconds"] * base["seconds"] / base["samples"] for ours, base in pairs]
    if not ratios:
        return {}
    processor = [base["processor_s"] / base["samples"] * ours["samples"] / ours["processor_s"] for ours, base in pairs]
    figures = {**median_range(ratios, ".2f"), "by processor time": round(median(processor), 2)}
    return figures if goal is None else figures | {"goal": goal, "met": median(ratios) >= goal}


def _run(folder: Path, name: str, samples: int) -> Round:
    """One round in a process of its own."""
    words = ["--root", str(folder), "--one", name, "--samples", str(samples)]
    return run_worker("data_loading", words, f"the round {name!r}", launcher=("-W", "ignore"))


def _measure_round(args: argparse.Namespace) -> Round:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, _, mode = args.one.partition(", ")
    workers, cold = 2 if mode == "2 workers" else 0, mode == "cold"
    if name == "published":
        published_mask(np.full((13, 64, 64), 2000, np.float32))  # the trees are loaded once, not for every sample
    else:
        _consume(_loader(args.root, name, 0, args.samples, repeat=False))  # imports; files in the page cache
    if cold:
        for path in args.root.rglob("*"):
            if path.is_file():
                evict(path)
    start, processor = time.perf_counter(), _processor_s()
    count = _consume(_loader(args.root, name, workers, args.samples, repeat=not cold))
    elapsed, processor = time.perf_counter() - start, _processor_s() - processor
    return {"samples": count, "seconds": elapsed, "processor_s": processor, "peak_mb": peak_memory() / 2**20}


def _consume(loader: Iterable[Any]) -> int:
    """The number of samples of a loader, all loaded."""
    return sum(batch.n if isinstance(batch, Batch) else len(batch["target"]["S2"][0]) for batch in loader)


def _loader(folder: Path, name: str, workers: int, samples: int, repeat: bool) -> Iterable[Any]:
    """A loader of so many samples, repeating those of the data set; of each at most once without `repeat`."""
    if name in ("published", "plain"):
        plain = Plain(folder / "geotiff", folder / "masks" if name == "plain" else None)
        positions = _positions(len(plain), samples, repeat)
        return DataLoader(torch.utils.data.Subset(plain, positions), batch_size=BATCH, num_workers=workers)
    series = SEN12MSCRTS(folder / name, "all", n_input_samples=INPUTS)
    positions = _positions(len(series), samples, repeat)
    order = EpochOrder(len(positions), seed=1, shuffle=False)
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "collate_fn": Collate(use_sar=True)}
    return PatchLoader(Subset(series, positions), order, skip_bad=False, **options)


def _positions(n: int, samples: int, repeat: bool) -> list[int]:
    return [index % n for index in range(samples if repeat else min(n, samples))]


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        pixels: np.ndarray = source.read().astype(np.float32)
    return pixels


def _optical(raw: np.ndarray) -> np.ndarray:
    """The published pre-processing."""
    return np.nan_to_num(np.clip(raw, 0, 10000) / 10000)


def _sar(decibel: np.ndarray) -> np.ndarray:
    """The published pre-processing."""
    return np.nan_to_num((np.clip(decibel, -25, 0) + 25) / 25)


def _processor_s() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _bytes(folder: Path) -> int:
    """Size of the images, without masks."""
    return sum(path.stat().st_size for kind in ("*.tif", "*.h5") for path in folder.rglob(kind))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
