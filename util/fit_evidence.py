"""Fit the evidence of a trained run: how its uncertainty grows where inputs are unlike its training data.

    python -m util.fit_evidence results/RUN [--root1 ROOT ... flags of test_reconstruct.py]

Takes one pass over the training split of the run and several over the images that no weight saw (held-out regions and
validation). The result goes into the run's checkpoint, under a key of its own; weights stay. `load_model`, tests and
maps of scenes follow it from then on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import run_command
from common.locks import folder_lock


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command, besides those of a test."""
    parser = argparse.ArgumentParser(
        prog="python -m util.fit_evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the evidence of a run from the command line."""
    args, words = build_parser().parse_known_args(argv)
    from config.resolve import resolve_test  # deferred: keeps --help fast
    from data.holdout import build_evidence_split  # deferred: keeps --help fast
    from model.evidence.fit import fit_evidence  # deferred: torch
    from model.restore import EVIDENCE, WEIGHTS, restore_model  # deferred: torch
    from model.runtime import Compute, choose_device, choose_precision, seed_everything  # deferred: torch
    from model.weights import load_checkpoint, save_checkpoint  # deferred: torch
    from parse_args import parse  # deferred: keeps --help fast

    folder = args.run.resolve()
    run = ["--experiment_name", folder.name, "--weight_folder", str(folder.parent), "--res_dir", str(folder.parent)]
    config, _, notes = resolve_test(*parse("test", [*run, *words]))
    for note in notes:
        print(f"note: {note}")
    device = choose_device(config.device)
    compute = Compute(device, choose_precision(config.precision, device)[0])
    seed_everything(config.rdm_seed)
    with folder_lock(folder, "RUN"):
        checkpoint = folder / WEIGHTS
        model, _ = restore_model(config, checkpoint, device)
        train, held_out = build_evidence_split(config)
        evidence = fit_evidence(model, train, held_out, compute, config.rdm_seed)
        save_checkpoint(checkpoint, load_checkpoint(checkpoint) | {EVIDENCE: evidence.state()})
    print(
        f"{checkpoint}: a usual pixel counts as {evidence.n_effective:.0f} independent observations per feature; "
        f"doubt grows with power {evidence.power:g} of novelty"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
