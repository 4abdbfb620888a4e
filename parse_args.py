"""The command lines of training and test, built from the flags of `config.schema`."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from config.schema import TEST_DEFAULTS, Config, ModelConfig, parse_widths, unset_value

__all__ = ["Config", "build_parser", "parse"]

_GROUPS = ("model", "training", "fusion", "data", "run")
_DESCRIPTIONS = {"train": "Train a network that reconstructs cloudy images.", "test": "Test a trained network."}


class _HelpFormatter(argparse.HelpFormatter):
    """Appends defaults, except empty ones and those of switches."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in ("", None, False, True, argparse.SUPPRESS):
            return text
        return f"{text} (default: {list(default) if isinstance(default, tuple) else default})"


def build_parser(mode: str, *, suppress_defaults: bool = False) -> argparse.ArgumentParser:
    """The parser of a script.

    Args:
        mode: "train" or "test", which differ in defaults.
        suppress_defaults: leave absent flags out of the result.
    """
    parser = argparse.ArgumentParser(description=_DESCRIPTIONS[mode], formatter_class=_HelpFormatter)
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    hints = get_type_hints(Config)
    shared = {entry.name for entry in fields(ModelConfig)}
    flags = [entry for entry in fields(Config) if entry.metadata["group"]]
    for entry in sorted(flags, key=lambda entry: entry.name in shared and entry.metadata["group"] in ("data", "run")):
        group, flag = groups[entry.metadata["group"]], entry.metadata
        default = unset_value(entry)
        if mode == "test":
            default = TEST_DEFAULTS.get(entry.name, default)
        common: dict[str, Any] = {
            "dest": entry.name,
            "default": argparse.SUPPRESS if suppress_defaults else default,
            "help": flag["text"],
        }
        names = [f"--{entry.name}"] + ([f"-{entry.name}"] if entry.name in ("root1", "root2", "root3") else [])
        if flag["off"]:
            group.add_argument(*names, f"--no-{entry.name}", action="store_false", **common)
        elif hints[entry.name] is bool:
            group.add_argument(*names, action="store_true", **common)
        elif flag["kind"] is parse_widths:
            group.add_argument(*names, nargs="+", metavar="N", **common)
        elif entry.name == "experts":
            group.add_argument(*names, nargs="+", metavar="NAME=RUN", **common)
        elif entry.name == "use_custom":
            group.add_argument(*names, nargs="?", const="published", metavar="LIST.json", **common)
        else:
            kind = flag["kind"] or hints[entry.name]
            choices = flag["choices"] or None
            metavar = None if choices else {float: "X", str: "TEXT"}.get(kind, "N")
            group.add_argument(*names, type=kind, choices=choices, metavar=metavar, **common)
    return parser


def parse(mode: str, argv: Sequence[str] | None) -> tuple[dict[str, Any], set[str]]:
    """The values of all flags, and the names of those given on the command line."""
    values = vars(build_parser(mode).parse_args(argv))
    typed = set(vars(build_parser(mode, suppress_defaults=True).parse_args(argv)))
    return values, typed
