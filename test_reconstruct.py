"""Test a trained network: restore its run, predict the test split, and write metrics, plots and exports."""

import sys
from collections.abc import Sequence

from common import process_group
from common.cli import print_notes, run_command
from config.resolve import resolve_test
from parse_args import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Test; see `--help`. Processes started by torchrun share the samples."""
    with process_group.rank_zero_only():
        values, typed = parse("test", argv)
    with process_group.session():
        config, weights, notes = resolve_test(values, typed)
        print_notes(notes)
        from training.tester import test_run  # deferred: torch, which --help does not need

        test_run(config, weights, ["test_reconstruct.py", *(sys.argv[1:] if argv is None else argv)])
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
