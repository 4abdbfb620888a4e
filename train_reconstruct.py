"""Train a network that reconstructs cloudy images, then test its best epoch."""

from collections.abc import Sequence

from common import process_group
from common.cli import print_notes, run_command
from config.resolve import resolve_training
from parse_args import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Train; see `--help`. Processes started by torchrun train together."""
    with process_group.rank_zero_only():
        values, typed = parse("train", argv)
    with process_group.session():
        config, checkpoint, notes = resolve_training(values, typed)
        print_notes(notes)
        from training.trainer import fit  # deferred: torch, which --help does not need

        fit(config, checkpoint)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
