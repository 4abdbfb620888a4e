"""Which initialisation trains better: that of torch, or the published one (N(0, 1) biases, Xavier weights)?

Trains the same network on the same data from both with several seeds, all else equal, and writes one table:

    python -m benchmarks.initialisation --root OUT/SEN12MSCRTS --masks OUT/masks --seeds 1 2 3
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.nn import Conv2d

from benchmarks.harness import benchmark_parser, provenance
from common.cli import run_command
from common.files import write_json
from common.run_folder import RunFolder
from config.resolve import resolve_config
from data.loaders import build_loaders
from evaluation.evaluate import Evaluation
from model.build import build_loss, build_model, build_optimizer, build_scheduler, initialise_as_published
from model.runtime import Compute, choose_device, seed_everything
from parse_args import parse
from training.engine import TrainState, train_one_epoch

NETWORK = "--encoder_widths 64 --decoder_widths 64 64 64 --n_head 8 --d_model 128 --input_t 3 --use_sar --scale_by 10"
STARTS = ("torch", "published")
FIGURES = ("loss", "RMSE", "PSNR", "SSIM", "SAM", "ENCE")


def main(argv: Sequence[str] | None = None) -> int:
    """Train from both initialisations and print the table."""
    parser = benchmark_parser("initialisation", __doc__, "benchmarks/results/initialisation.json")
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--loss", default="NIG")
    options = parser.parse_args(argv)
    rows = []
    for seed in options.seeds:
        for start in STARTS:
            figures = run(options, seed, start)
            print(seed, start, {key: round(value, 4) for key, value in figures.items()}, flush=True)
            rows.append({"seed": seed, "start": start, **figures})
    means = {
        start: {key: fmean(row[key] for row in rows if row["start"] == start) for key in FIGURES} for start in STARTS
    }
    print(json.dumps(means, indent=4))
    write_json(options.out, {**provenance("initialisation", argv), "rows": rows, "means": means})
    return 0


def run(options: argparse.Namespace, seed: int, start: str) -> dict[str, Any]:
    """Train once; the figures of the last epoch on the validation split."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--root1", options.root, "--root2", options.root, "--precomputed", options.masks, "--res_dir", folder]
        flags = f"{NETWORK} --device cpu --loss {options.loss} --lr {options.lr} --epochs {options.epochs}"
        config, _ = resolve_config(*parse("train", [*words, *flags.split(), "--rdm_seed", str(seed)]))
        seed_everything(seed)
        loaders = build_loaders(config)
        model = build_model(config)
        if start == "published":
            model.netG.apply(initialise_as_published)
            last = model.netG.last_conv
            assert isinstance(last, Conv2d)
            model.head.initialise(last)
        optimizer = build_optimizer(model, config.lr)
        state = TrainState(model, optimizer, build_scheduler(optimizer, config.gamma))
        evaluation = Evaluation(
            config, RunFolder(Path(folder), "run"), build_loss(config), Compute(choose_device("cpu")), None
        )
        for epoch in range(1, config.epochs + 1):
            loaders.set_epoch(epoch)
            train_one_epoch(state, loaders.train, evaluation.criterion, evaluation.compute, steps=len(loaders.train))
            state.epoch = epoch
        assert loaders.val is not None
        metrics = evaluation.run(model, loaders.val, "val", config.epochs).metrics
    return {key: metrics[key] for key in FIGURES}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
