"""Samples per second of a `DataLoader`, batch by batch: the published way, the straightforward way, ours, and a pack.

    python -m util.make_sample_data OUT --size 256 --rois 3 --patches 4
    python -m benchmarks.data_loading --root OUT/SEN12MSCRTS --out benchmarks/results/data_loading.json

The GeoTIFFs are first written as the published ones are (uncompressed, pixel by pixel, strips of a line), their masks
computed once, and a pack made of them, all in --work. The ways take turns, several rounds of them; every round of a way
is a process of its own, whose peak memory is that way's. "cold": each sample once, its files out of the system's cache.

published    all 30 dates are read and a cloud mask is computed for each by s2cloudless, as published without stored
             coverage; only the pixels' way to float and back is written shorter than there
plain        masks and coverage from .npy files; the chosen dates are read by rasterio.open(...).read(), scaled by
             numpy, laid side by side by torch's own collation
geotiff      our loader
pack         our loader, its root a pack
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.provenance import provenance
from benchmarks.tables import median_range
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from data.batch import Batch, Collate
from data.datasets.date_selection import choose_dates
from data.datasets.sen12mscrts import SEN12MSCRTS
from data.loaders import EpochOrder, PatchLoader, Subset

INPUTS, BATCH = 3, 4
WAYS = tuple(f"{way}, {rest}" for rest in ("0 workers", "2 workers", "cold") for way in ("plain", "geotiff", "pack"))
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


class Plain(Dataset[Any]):
    """The straightforward loader: rasterio, numpy, and masks in .npy files.

    Args:
        root: folder of GeoTIFFs.
        masks: folder with `N.npy`, masks (30, H, W) of sample N, and `coverage_N.npy`; None computes them at each
            reading, as published.
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
            masks = np.stack([_published_mask(image) for image in raw])
            chosen = choose_dates(masks.mean(axis=(1, 2)), INPUTS)
            dates = (*chosen.inputs, chosen.target)
            s1, s2 = [radar[day] for day in dates], [_optical(raw[day]) for day in dates]
        else:
            masks = np.load(self.masks / f"{index}.npy", mmap_mode="r")
            chosen = choose_dates(np.load(self.masks / f"coverage_{index}.npy"), INPUTS)
            dates = (*chosen.inputs, chosen.target)
            s1 = [_sar(_read(self.root / paths["S1"][day])) for day in dates]
            s2 = [_optical(_read(self.root / paths["S2"][day])) for day in dates]
        inputs = {"S1": s1[:-1], "S2": s2[:-1], "masks": [np.array(masks[day]) for day in chosen.inputs]}
        return {"input": inputs, "target": {"S1": s1[-1:], "S2": s2[-1:], "masks": [np.array(masks[chosen.target])]}}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure and print; with --out write the same as JSON."""
    args = _parser().parse_args(argv)
    if args.one is not None:
        print(json.dumps(_one(args)))
        return 0
    if not args.root.is_dir():
        raise DataError(f"no folder {args.root} (--root); python -m util.make_sample_data makes one")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        places = _prepare(args.root, Path(folder))
        result = {**provenance("benchmarks.data_loading", argv), **_measure(args, places)}
    print(json.dumps(result, indent=4))
    if args.out is not None:
        write_json(args.out, result)
    return 0


def _prepare(root: Path, folder: Path) -> Path:
    """GeoTIFFs in the published form, masks for both, and the pack."""
    from util.pack_dataset import main as pack

    tree, packed = folder / "geotiff", folder / "pack"
    write_as_published(root, tree)
    pack(["--root", str(tree), "--out", str(packed)])
    series = SEN12MSCRTS(tree, "all", sample_type="generic")
    (folder / "masks").mkdir()
    for index in range(len(series)):
        sample = cast(dict[str, Any], series[index])
        np.save(folder / "masks" / f"{index}.npy", np.stack(sample["masks"]))
        np.save(folder / "masks" / f"coverage_{index}.npy", np.array(sample["coverage"]))
    return folder


def write_as_published(root: Path, tree: Path) -> None:
    """Write the GeoTIFFs of a data set as the published ones are, and detect their clouds into `tree/.mask_store`."""
    from rasterio import open as open_raster

    from util.pre_compute_data_samples import main as compute

    files = sorted(root.glob("ROIs*/*/S?/*/*.tif"))
    if not files:
        raise DataError(f"no images of SEN12MS-CR-TS in {root} (--root)")
    for path in files:
        target = tree / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_raster(path) as source:
            shape = {name: source.profile[name] for name in ("count", "height", "width", "dtype", "crs", "transform")}
            with open_raster(target, "w", driver="GTiff", interleave="pixel", blockysize=1, **shape) as copy:
                copy.write(source.read())
    compute(["--root", str(tree), "--out", str(tree / ".mask_store"), "--workers", str(os.cpu_count())])


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {}
    for turn in range(args.rounds):
        for name in WAYS:
            rounds.setdefault(name, []).append(_run(folder, name, args.samples))
        if turn < args.published_samples:
            rounds.setdefault("published", []).append(_run(folder, "published", 1))
    figures = {}
    for name, found in rounds.items():
        rates = [one["samples"] / one["seconds"] for one in found]
        figures[name] = {
            "samples per second": round(median(rates), 3),
            "least": round(min(rates), 3),
            "most": round(max(rates), 3),
            "processor ms a sample": round(median(1e3 * one["processor_s"] / one["samples"] for one in found), 2),
            "peak MB of the main process": round(max(one["peak_mb"] for one in found)),
            "rounds": len(found),
        }
    sizes = {name: _bytes(folder / name) for name in ("geotiff", "pack")}
    return {
        "samples in a round": args.samples,
        "figures": figures,
        "times as many samples per second": {goal[0]: _ratio(rounds, *goal[1:]) for goal in GOALS},
        "bytes": sizes | {"pack over geotiff": round(sizes["pack"] / sizes["geotiff"], 4), "goal": 0.7},
    }


def _ratio(rounds: dict[str, list[dict[str, float]]], fast: str, slow: str, goal: float | None) -> dict[str, Any]:
    """Of the rates, round by round; and of the processor time, which a busy machine changes less."""
    pairs = list(zip(rounds.get(fast, []), rounds.get(slow, []), strict=False))
    ratios = [one["samples"] / one["seconds"] * other["seconds"] / other["samples"] for one, other in pairs]
    if not ratios:
        return {}
    found = {name: round(value, 2) for name, value in median_range(ratios).items()}
    spent = [other["processor_s"] / other["samples"] * one["samples"] / one["processor_s"] for one, other in pairs]
    found["by processor time"] = round(median(spent), 2)
    return found if goal is None else found | {"goal": goal, "met": median(ratios) >= goal}


def _run(folder: Path, name: str, samples: int) -> dict[str, float]:
    """One round in a process of its own."""
    words = ["--root", str(folder), "--one", name, "--samples", str(samples)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.data_loading", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"the round {name!r} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _one(args: argparse.Namespace) -> dict[str, float]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    way, _, rest = args.one.partition(", ")
    workers, cold = 2 if rest == "2 workers" else 0, rest == "cold"
    if way == "published":
        _published_mask(np.full((13, 64, 64), 2000, np.float32))  # the trees are loaded once, not for every sample
    else:
        _go_through(_loader(args.root, way, 0, args.samples, repeat=False))  # imports; files in the cache
    if cold:
        _drop(args.root)
    start, spent = time.perf_counter(), _processor()
    count = _go_through(_loader(args.root, way, workers, args.samples, repeat=not cold))
    seconds, processor = time.perf_counter() - start, _processor() - spent
    return {"samples": count, "seconds": seconds, "processor_s": processor, "peak_mb": _peak_mb()}


def _go_through(loader: Iterable[Any]) -> int:
    return sum(batch.n if isinstance(batch, Batch) else len(batch["target"]["S2"][0]) for batch in loader)


def _loader(folder: Path, way: str, workers: int, samples: int, repeat: bool) -> Iterable[Any]:
    """Over so many samples, the data set's again and again, or each once."""
    if way in ("published", "plain"):
        plain = Plain(folder / "geotiff", folder / "masks" if way == "plain" else None)
        positions = _positions(len(plain), samples, repeat)
        return DataLoader(torch.utils.data.Subset(plain, positions), batch_size=BATCH, num_workers=workers)
    series = SEN12MSCRTS(folder / way, "all", n_input_samples=INPUTS)
    positions = _positions(len(series), samples, repeat)
    order = EpochOrder(len(positions), seed=1, shuffle=False)
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "collate_fn": Collate(use_sar=True)}
    return PatchLoader(Subset(series, positions), order, skip_bad=False, **options)


def _positions(n: int, samples: int, repeat: bool) -> list[int]:
    return [index % n for index in range(samples if repeat else min(n, samples))]


def _read(path: Path) -> np.ndarray:
    import rasterio

    with rasterio.open(path) as source:
        pixels: np.ndarray = source.read().astype(np.float32)
    return pixels


def _optical(raw: np.ndarray) -> np.ndarray:
    """The published pre-processing."""
    return np.nan_to_num(np.clip(raw, 0, 10000) / 10000)


def _sar(decibel: np.ndarray) -> np.ndarray:
    """The published pre-processing."""
    return np.nan_to_num((np.clip(decibel, -25, 0) + 25) / 25)


def _published_mask(raw: np.ndarray) -> np.ndarray:
    """The mask of one image (13, H, W) by s2cloudless itself, with the published settings."""
    mask: np.ndarray = _detector().get_cloud_masks(np.moveaxis(np.clip(raw, 0, 10000) / 10000, 0, -1)[None])[0]
    return mask.astype(np.float32)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from s2cloudless import S2PixelCloudDetector

    return S2PixelCloudDetector(threshold=0.4, all_bands=True, average_over=4, dilation_size=2)


def _drop(folder: Path) -> None:
    """Take all files out of the operating system's cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _processor() -> float:
    """Seconds of processor time of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb() -> float:
    """Of this process alone: getrusage would tell the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _bytes(folder: Path) -> int:
    """Of the images, without masks."""
    return sum(p.stat().st_size for kind in ("*.tif", "*.h5") for p in folder.rglob(kind))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="a folder in the layout of SEN12MS-CR-TS")
    parser.add_argument("--work", type=Path, help="where to write the trees (default: the system's folder)")
    parser.add_argument("--rounds", type=int, default=7, help="of every way, in turn; medians are reported")
    parser.add_argument("--samples", type=int, default=96, help="in a round")
    parser.add_argument("--published_samples", type=int, default=3, help="of the published way, one a round")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one round, --root being what this script has prepared
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
