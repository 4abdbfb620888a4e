"""How much longer a test takes than its forward passes: files, masks, metrics, baselines and exports included.

Works on any folder in the layout of SEN12MS-CR-TS, such as that of

    python -m util.make_sample_data OUT --size 256 --rois 6 --patches 1
    python -m benchmarks.evaluation --root OUT/SEN12MSCRTS

The GeoTIFFs are first written as the published ones are, and their clouds detected. The network is the published one
with random weights. Forward passes on batches in memory and the whole test, with `--export_every 1`, take turns in one
process; a test costs the same for each sample, so a few, of which each is tested several times, stand for a thousand.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data_loading import write_as_published
from benchmarks.provenance import provenance
from benchmarks.tables import median_range
from common.cli import run_command
from common.files import write_json

if TYPE_CHECKING:
    from data.loaders import PatchLoader
    from parse_args import Config

GOAL = 1.2  # of the forward passes


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure and print; with --out write the same as JSON."""
    args = _parser().parse_args(argv)
    from common.memory import keep_freed_memory

    if args.device == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_as_published(args.root, Path(folder, "data"))
        result = provenance("benchmarks.evaluation", argv) | measure(args, Path(folder, "data"))
    print(json.dumps(result, indent=4))
    if args.out is not None:
        write_json(args.out, result)
    return 0


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Seconds of forward passes and of whole tests of the same samples, in turns.

    Args:
        args: of the command line.
        root: the data, with stored masks.

    Returns:
        Counts, `rounds` (seconds of each), and `test / forward` with median, least and most.
    """
    import torch

    from common.run_folder import RunFolder
    from config.resolve import resolve_config
    from evaluation.evaluate import Evaluation
    from evaluation.showing import SplitLog
    from model.build import build_loss, build_model
    from model.runtime import Compute, choose_device, choose_precision
    from parse_args import parse

    torch.set_num_threads(args.threads)
    words = ["--experiment_name", "speed", "--root1", str(root), "--root2", str(root), "--use_sar"]
    words += ["--precomputed", str(root / ".mask_store"), "--input_t", "3", "--batch_size", str(args.batch_size)]
    words += ["--loss", "MGNLL", "--covmode", "diag", "--scale_by", "10", "--precision", args.precision]
    words += ["--device", args.device]
    config, _ = resolve_config(*parse("train", [*words, "--export_every", "1"]))
    device = choose_device(config.device)
    compute = Compute(device, choose_precision(config.precision, device)[0])
    model, loader = build_model(config).to(device).eval(), again_and_again(config, args.samples, args.workers)
    batches = list(loader)

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            compute.predict(model, batch.to(device, non_blocking=True))

    def test() -> None:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            run = RunFolder(Path(folder), config.experiment_name)
            run.create()
            evaluation = Evaluation(config, run, build_loss(config), compute, None)
            evaluation.run(model, loader, "test", 1, baselines=True, samples=SplitLog())

    forward()  # warm
    rounds = [{"forward_s": seconds(forward), "test_s": seconds(test)} for _ in range(args.rounds)]
    ratios = [row["test_s"] / row["forward_s"] for row in rounds]
    return {
        "samples": sum(batch.n for batch in batches),
        "pixels across": batches[0].x.shape[-1],
        "threads": args.threads,
        "workers": args.workers,
        "precision": str(compute.dtype or "float32"),
        "rounds": rounds,
        "test / forward": {**median_range(ratios), "goal": GOAL},
    }


def again_and_again(config: "Config", n: int, workers: int) -> "PatchLoader":
    """A loader of n samples, those of all splits in turns until there are enough."""
    from data.batch import Collate
    from data.loaders import EpochOrder, PatchLoader, Subset, build_loader

    whole = build_loader(config, "all", keep=lambda *_: True).patches.whole
    subset = Subset(whole, [index % len(whole) for index in range(n)], config.use_sar)
    options = {"num_workers": workers, "collate_fn": Collate(config.use_sar)}
    return PatchLoader(subset, EpochOrder(n, 0, False), False, config.batch_size, **options)


def seconds(work: Callable[[], None]) -> float:
    """Of one call, by the clock, the device's queue included."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A whole test against its forward passes.")
    parser.add_argument("--root", type=Path, required=True, help="data in the layout of SEN12MS-CR-TS")
    parser.add_argument("--samples", type=int, default=24, help="samples of a test (default: 24)")
    parser.add_argument("--batch_size", type=int, default=4, help="samples of a forward pass (default: 4)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--precision", default="auto", help="as for tests (default: auto)")
    parser.add_argument("--device", default="cpu", help="as for tests (default: cpu)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
