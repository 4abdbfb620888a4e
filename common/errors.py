"""Errors for the person at the terminal, and the one place that turns them into an exit code."""

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

USAGE, DATA = 2, 1  # exit codes


class UserError(Exception):
    """Something the user can mend; its text says what was expected, what came, and what to try."""

    exit_code = DATA


class DataError(UserError):
    """Files or values that cannot be used: exit code 1."""


class UsageError(UserError):
    """Flags that cannot be followed: exit code 2."""

    exit_code = USAGE


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        main: takes the arguments after the program's name; None stands for those of this process.
        argv: what to hand to `main`.

    Returns:
        What `main` returned (None counts as 0), or the exit code of the `UserError` it raised, which is
        printed to stderr as one line; an OSError that nobody else told is printed so too, with exit code 1.
        With `--debug` among the arguments the traceback is printed as well, and warnings name the line they come from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    format_warning = warnings.formatwarning
    if "--debug" not in words:
        warnings.formatwarning = _warning_in_one_line
    try:
        return main(argv) or 0
    except UserError as error:
        if "--debug" in words:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # what no module expects: a disk that fails, a folder that closes; tell it in one line
        if "--debug" in words:
            traceback.print_exc()
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error} (--debug shows where)", file=sys.stderr)
        return DATA
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = format_warning


def _warning_in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
