"""Errors for the person at the terminal; `common.cli.run_command` turns them into exit codes."""

USAGE, DATA = 2, 1  # exit codes


class UserError(Exception):
    """An error that the user can fix; its text says what was expected, what was found, and what to try."""

    exit_code = DATA


class DataError(UserError):
    """Files or values that cannot be used: exit code 1."""


class UsageError(UserError):
    """Flags that are invalid or contradict each other: exit code 2."""

    exit_code = USAGE
