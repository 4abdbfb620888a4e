"""Shared parts of the command lines: exit codes, one-line errors and warnings."""

import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence

from common.errors import DATA, UserError


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        main: takes the arguments after the program name; None stands for those of this process.
        argv: passed to `main`.

    Returns:
        The return value of `main` (None counts as 0), or the exit code of the `UserError` it raised, which is
        printed to stderr as one line. Any other OSError is printed the same way, with exit code 1. With `--debug`
        among the arguments the traceback is printed as well, and warnings name the line that issued them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    format_warning = warnings.formatwarning
    if not debug:
        warnings.formatwarning = _format_warning
    try:
        return main(argv) or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a failing disk, an unreadable folder: one line instead of a traceback
        if debug:
            traceback.print_exc()
        path = f"{error.filename}: " if error.filename else ""
        print(f"error: {path}{error.strerror or error} (--debug shows where)", file=sys.stderr)
        return DATA
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = format_warning


def print_notes(notes: Iterable[str]) -> None:
    """Print notes for the user, one per line."""
    for note in notes:
        print(f"note: {note}")


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
