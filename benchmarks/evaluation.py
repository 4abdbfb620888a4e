"""Time of a test relative to its forward passes: files, masks, metrics, baselines and exports included.

Works on any folder in the layout of SEN12MS-CR-TS, such as that of

    python -m util.make_sample_data OUT --size 256 --rois 6 --patches 1
    python -m benchmarks.evaluation --root OUT/SEN12MSCRTS

The GeoTIFFs are first written as the published ones are, and their clouds detected. The network is the published one
with random weights. Forward passes on batches in memory and tests with `--export_every 1` alternate in one process; a
test costs the same for each sample, so a few samples, each tested several times, stand for a thousand.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.data_loading import write_as_published
from benchmarks.harness import benchmark_parser, publish
from benchmarks.measure import median_range, seconds
from common.cli import run_command
from common.memory import keep_freed_memory
from common.run_folder import RunFolder
from config.resolve import resolve_config
from config.schema import Config
from data.batch import Collate
from data.loaders import EpochOrder, PatchLoader, Subset, build_loader
from evaluation.evaluate import Evaluation
from model.build import build_loss, build_model
from model.runtime import Compute, choose_device, choose_precision
from parse_args import parse

GOAL = 1.2  # of the forward passes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; with --out write the same as JSON."""
    parser = benchmark_parser("evaluation", __doc__)
    parser.add_argument("--root", type=Path, required=True, help="data in the layout of SEN12MS-CR-TS")
    parser.add_argument("--samples", type=int, default=24, help="samples of a test (default: 24)")
    parser.add_argument("--batch_size", type=int, default=4, help="samples of a forward pass (default: 4)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--precision", default="auto", help="as for tests (default: auto)")
    parser.add_argument("--device", default="cpu", help="as for tests (default: cpu)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating measurements (default: 3)")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_as_published(args.root, Path(folder, "data"))
        results = measure(args, Path(folder, "data"))
    return publish("evaluation", argv, results, args.out)


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Seconds of forward passes and of tests of the same samples, alternating.

    Args:
        args: of the command line.
        root: the data, with stored masks.

    Returns:
        Counts, `rounds` (seconds of each), and `test / forward` with median, least and most.
    """
    torch.set_num_threads(args.threads)
    words = ["--experiment_name", "speed", "--root1", str(root), "--root2", str(root), "--use_sar"]
    words += ["--precomputed", str(root / ".mask_store"), "--input_t", "3", "--batch_size", str(args.batch_size)]
    words += ["--loss", "MGNLL", "--covmode", "diag", "--scale_by", "10", "--precision", args.precision]
    words += ["--device", args.device]
    config, _ = resolve_config(*parse("train", [*words, "--export_every", "1"]))
    device = choose_device(config.device)
    compute = Compute(device, choose_precision(config.precision, device)[0])
    model, loader = build_model(config).to(device).eval(), repeated_loader(config, args.samples, args.workers)
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
            evaluation.run(model, loader, "test", 1, detailed=True)

    forward()  # warm-up
    rounds = [
        {"forward_s": seconds(forward, device=device), "test_s": seconds(test, device=device)}
        for _ in range(args.rounds)
    ]
    return {
        "samples": sum(batch.n for batch in batches),
        "pixels across": batches[0].x.shape[-1],
        "threads": args.threads,
        "workers": args.workers,
        "precision": str(compute.dtype or "float32"),
        "rounds": rounds,
        "test / forward": {**median_range(row["test_s"] / row["forward_s"] for row in rounds), "goal": GOAL},
    }


def repeated_loader(config: Config, n: int, workers: int) -> PatchLoader:
    """A loader of n samples, repeating those of all splits until there are enough."""
    dataset = build_loader(config, "all", keep=lambda *_: True).patches.dataset
    subset = Subset(dataset, [index % len(dataset) for index in range(n)], config.use_sar)
    options = {"num_workers": workers, "collate_fn": Collate(config.use_sar)}
    return PatchLoader(subset, EpochOrder(n, 0, False), False, config.batch_size, **options)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
