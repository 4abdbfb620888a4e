"""Combine several tested models into one: mixture moments of their exports, metrics, plots and exports."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import run_command
from common.locks import folder_lock
from common.memory import memory_advice
from common.ranges import number
from evaluation.mixture import UNCERTAINTIES


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "exports",
        nargs="+",
        metavar="EXPORT_DIR",
        help="a member's exports, RUN/export/epoch_E/test, or RUN",
    )
    parser.add_argument("--root", default="", help="the data set, for targets that were not exported and for inputs")
    parser.add_argument(
        "--uncertainty",
        choices=UNCERTAINTIES,
        default="both",
        help="aleatoric: mean of the members' variances; epistemic: variance of their means; both: the sum (default)",
    )
    parser.add_argument("--res_dir", default="./ensemble", help="folder of metrics, plots and exports")
    parser.add_argument("--allow_missing", action="store_true", help="average over the members that have a sample")
    parser.add_argument(
        "--plot_every", type=number(int, -1), default=-1, help="plot every N-th sample; -1 none (default)"
    )
    parser.add_argument(
        "--export_every", type=number(int, -1), default=1, help="export every N-th sample; -1 none (default 1)"
    )
    parser.add_argument("--device", default="cpu", help="device of the metrics: cpu (default), cuda, cuda:N")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate an ensemble and report on it; see `--help`."""
    args = build_parser().parse_args(argv)
    from evaluation.ensemble import evaluate_ensemble  # deferred: torch, which --help does not need
    from report.ensemble_page import report_ensemble  # deferred: torch, which --help does not need

    flags = {name: value for name, value in vars(args).items() if name != "debug"}
    options = {name: value for name, value in flags.items() if name not in ("exports", "res_dir")}
    command, out = ["ensemble_reconstruct.py", *(sys.argv[1:] if argv is None else argv)], Path(args.res_dir)
    advice = "samples are mixed one by one; use --device cpu, or a machine with more memory"
    with folder_lock(out, "--res_dir"), memory_advice(args.device, advice):
        result = evaluate_ensemble(args.exports, out, **options)
        report_ensemble(out, result, flags, command)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
