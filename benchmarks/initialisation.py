"""Which start trains better: torch's own initialisation, or the published one (N(0, 1) biases, Xavier weights)?

Trains the same network on the same data from both starts for some seeds, everything else alike, and writes one table:

    python -m benchmarks.initialisation --root OUT/SEN12MSCRTS --masks OUT/masks --seeds 1 2 3
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from common.cli import run_command
from common.files import write_json
from config.resolve import resolve_config
from parse_args import parse

NETWORK = "--encoder_widths 64 --decoder_widths 64 64 64 --n_head 8 --d_model 128 --input_t 3 --use_sar --scale_by 10"
STARTS = ("torch", "published")
FIGURES = ("loss", "RMSE", "PSNR", "SSIM", "SAM", "ENCE")


def main(argv: Sequence[str] | None = None) -> int:
    """Train from both starts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--loss", default="NIG")
    parser.add_argument("--out", default="benchmarks/results/initialisation.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    rows = []
    for seed in options.seeds:
        for start in STARTS:
            row = {"seed": seed, "start": start, **run(options, seed, start)}
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
            rows.append(row)
    means = {}
    for start in STARTS:
        own = [row for row in rows if row["start"] == start]
        means[start] = {key: statistics.fmean(row[key] for row in own) for key in FIGURES}
    print(json.dumps(means, indent=4))
    write_json(options.out, {**provenance("benchmarks.initialisation", argv), "rows": rows, "means": means})
    return 0


def run(options: argparse.Namespace, seed: int, start: str) -> dict[str, Any]:
    """Train once; the figures of the last epoch on the validation split."""
    from torch.nn import Conv2d

    from common.run_folder import RunFolder
    from data.loaders import build_loaders
    from evaluation.evaluate import Evaluation
    from model.build import build_loss, build_model, build_optimizer, build_scheduler, initialise_as_published
    from model.runtime import Compute, choose_device, seed_everything
    from training.engine import TrainState, train_one_epoch

    with tempfile.TemporaryDirectory() as folder:
        line = f"{NETWORK} --root1 {options.root} --root2 {options.root} --precomputed {options.masks} --device cpu "
        line += (
            f"--loss {options.loss} --lr {options.lr} --epochs {options.epochs} --rdm_seed {seed} --res_dir {folder}"
        )
        values, typed = parse("train", line.split())
        config, _ = resolve_config(values, typed)
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
        metrics, _ = evaluation.run(model, loaders.val, "val", config.epochs)
    return {key: metrics[key] for key in FIGURES}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
