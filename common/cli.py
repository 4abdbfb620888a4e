"""Shared parts of the command lines: exit codes, one-line errors and warnings."""

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer, current_thread, main_thread
from types import FrameType

from common.errors import DATA, UserError

INTERRUPTED = 130  # exit code, as of a shell
_LONGEST = 2000  # characters of a line; a damaged file may bring a name of any length into an error
_END_S = 10.0  # after which an interrupted command ends even if a library has swallowed the interruption
_AGAIN_S = 0.02  # after which an interruption is raised again that Python itself has swallowed


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        main: takes the arguments after the program name; None stands for those of this process.
        argv: passed to `main`.

    Returns:
        The return value of `main` (None counts as 0), or the exit code of the `UserError` it raised, which is
        printed to stderr as one line. Any other OSError is printed the same way, with exit code 1. With `--debug`
        among the arguments the traceback is printed as well, and warnings name the line that issued them. Ctrl-C gives
        the line "interrupted" and exit code 130; a second one ends the process at once.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_environment()
    debug = "--debug" in arguments
    format_warning = warnings.formatwarning
    if not debug:
        warnings.formatwarning = _format_warning
    interrupts = _Interrupts()
    try:
        with interrupts:
            return main(argv) or 0
    except KeyboardInterrupt:
        return _end_interrupted()
    except Exception as error:
        if interrupts.received:  # a consequence, such as a lost process
            return _end_interrupted()
        if debug and isinstance(error, UserError | OSError):
            traceback.print_exc()
        if isinstance(error, UserError):
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return error.exit_code
        if isinstance(error, OSError):  # a failing disk, an unreadable folder: one line instead of a traceback
            path = f"{error.filename}: " if error.filename else ""
            print(f"error: {_one_line(path + str(error.strerror or error))} (--debug shows where)", file=sys.stderr)
            return DATA
        raise
    finally:
        warnings.formatwarning = format_warning


def print_notes(notes: Iterable[str]) -> None:
    """Print notes for the user, one per line."""
    for note in notes:
        print(f"note: {note}")


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _prepare_environment() -> None:
    """Let commands run without a home, and print any text."""
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry of the user, as in containers: numba and matplotlib would fail
        os.environ["HOME"] = os.devnull
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths need not be UTF-8, and a terminal may be ASCII
            stream.reconfigure(errors="backslashreplace")


class _Interrupts:
    """Within, Ctrl-C raises KeyboardInterrupt once; a second one, or ten seconds, end this process at once.

    Python drops an exception raised in a destructor or in a callback of a weak reference, after it has called
    `sys.unraisablehook`: it is then raised again. Libraries may swallow others. Ending at once is safe: files are
    written atomically, and workers end with their parent.

    Attributes:
        received: whether there was a Ctrl-C.
    """

    received = False
    _lost = False

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        self._hook_before = sys.unraisablehook
        # only the main thread may set handlers; a process in the background of a shell ignores Ctrl-C
        if current_thread() is main_thread() and self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_interrupt)
            sys.unraisablehook = self._on_unraisable

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook_before
        self._lost = False
        if self.received:  # the handler stays: libraries end their processes when this one ends
            self._timer.cancel()
        elif self._before is signal.default_int_handler and current_thread() is main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._lost:
            self._lost = False
            raise KeyboardInterrupt
        if self.received:
            _end_now()
        self.received = True
        self._timer = _start_timer(_END_S, _end_now)
        raise KeyboardInterrupt

    def _on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook_before(unraisable)
            return
        self._lost = True
        _start_timer(_AGAIN_S, self._interrupt_again)

    def _interrupt_again(self) -> None:
        if self._lost:
            os.kill(os.getpid(), signal.SIGINT)


def _start_timer(seconds: float, function: Callable[[], None]) -> Timer:
    timer = Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer


def _end_interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


def _end_now() -> None:
    with suppress(OSError):  # not print: this process may be in the middle of printing
        os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {_one_line(message)}\n"
