"""Whether the flags in a conf.json are of the kinds that a command line would have given."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from common.errors import DataError

# None and false stand for text that was not given: published files say "use_custom": false
_KINDS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str, type(None), bool)}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_stored(stored: Mapping[str, Any], path: str | Path, flags: type) -> None:
    """Refuse a stored flag whose value no command line could give.

    Args:
        stored: flags by name; those that `flags` does not know are passed over.
        path: where they were stored, for the error.
        flags: a dataclass of flags whose fields carry `choices` in their metadata.

    Raises:
        DataError: naming the file, the flag, what was expected and what came.
    """
    hints = get_type_hints(flags)
    for entry in fields(flags):
        kind, value = hints[entry.name], stored.get(entry.name)
        if entry.name not in stored or kind not in _KINDS:
            continue
        fits = isinstance(value, _KINDS[kind]) and (kind in (bool, str) or not isinstance(value, bool))
        choices = entry.metadata["choices"]
        if not fits:
            raise DataError(f"{path}: expected {_NAMES[kind]} for {entry.name!r}, got {value!r}; restore the file")
        if choices and value and value not in choices:
            raise DataError(f"{path}: unknown {entry.name} {value!r}; choose from {', '.join(choices)}")
