"""Compare tested runs on one page: `python -m util.compare_runs RUN RUN ... --out compare.html`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import run_command
from common.errors import UsageError
from common.locks import folder_lock


def main(argv: Sequence[str] | None = None) -> int:
    """Compare tested runs; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m util.compare_runs",
        description="One page of HTML about several tested runs: figures, calibration, and cards of the same samples "
        "from runs that were tested with --export_every 1.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a tested run or ensemble: RES_DIR/EXPERIMENT")
    parser.add_argument("--out", default="compare.html", help="the page to write (default: compare.html)")
    parser.add_argument(
        "--root", default="", help="the data set, for the inputs (default: that of the runs, if it exists)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.root and not Path(args.root).is_dir():
        raise UsageError(f"--root {args.root}: there is no such folder; name the data set that the runs were tested on")
    from report.comparison_page import read_runs, write_comparison_page  # deferred: torch, which --help does not need

    runs = read_runs([Path(folder) for folder in args.runs])
    command = shlex.join(["python", "-m", "util.compare_runs", *(sys.argv[1:] if argv is None else argv)])
    with folder_lock(args.out, "--out", as_sibling=True):
        print(f"comparison: {write_comparison_page(runs, Path(args.out), args.root, command)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
