"""Errors for the person at the terminal; `common.cli.run_command` turns them into exit codes."""

from collections.abc import Sequence

USAGE, DATA = 2, 1  # exit codes


class UserError(Exception):
    """An error that the user can fix; its text says what was expected, what was found, and what to try."""

    exit_code = DATA


class DataError(UserError):
    """Files or values that cannot be used: exit code 1."""


class UsageError(UserError):
    """Flags that are invalid or contradict each other: exit code 2."""

    exit_code = USAGE


def list_some(items: Sequence[str], limit: int = 3, length: int = 100) -> str:
    """A list for a message: the first `limit` items, cut to `length` characters, and the number of the others."""
    shown = [item if len(item) <= length else item[: length - 3] + "..." for item in items[:limit]]
    others = [f"and {len(items) - limit:,} more"] if len(items) > limit else []
    return ", ".join([*shown, *others])
