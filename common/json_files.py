"""Our own JSON files, validated against a JSON schema when they are read."""

import json
import reprlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import DataError

LARGEST_BYTES = 256 << 20  # parsed, a file takes ten times its size in memory
PATH = {"type": "string", "pattern": "^[^\\x00]*$"}  # no system call takes a NUL

Schema = Mapping[str, Any]
"""A JSON schema (draft 7), beside the code that writes the file."""


def read_json(path: str | Path, schema: Schema, advice: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        schema: what it must contain.
        advice: what to do about a file that cannot be used, for the error.

    Raises:
        DataError: if it cannot be read, is larger than `LARGEST_BYTES`, is not JSON in UTF-8, or does not follow the
            schema; the message names the entry.
    """
    return parse_json(read_bytes(path, advice), schema, str(path), advice)


def read_bytes(path: str | Path, advice: str) -> bytes:
    """The content of a small file; errors as of `read_json`."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise DataError(f"{path} is not a file; {advice}")
        if path.stat().st_size > LARGEST_BYTES:
            raise DataError(f"{path} is larger than {LARGEST_BYTES >> 20} MiB; {advice}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {advice}") from error


def parse_json(content: bytes | str, schema: Schema, source: str, advice: str) -> Any:
    """As `read_json`, from the content of a file, which errors call `source`."""
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise DataError(f"{source} is nested too deeply; {advice}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        raise DataError(f"{source} is not valid JSON ({error}); {advice}") from error
    check_schema(value, schema, source, advice)
    return value


def check_schema(value: Any, schema: Schema, source: str, advice: str) -> None:
    """Raise a `DataError` that names the first entry of a value that does not follow a schema."""
    from fastjsonschema import JsonSchemaValueException  # deferred: keeps --help fast

    try:
        _validator(json.dumps(schema, sort_keys=True))(value)
    except JsonSchemaValueException as error:
        problem = error.message.removeprefix("data")  # as ".samples[0].id must be integer"
        subject = {".": "", "[": "entry ", " ": "the content "}.get(problem[:1], "")
        raise DataError(
            f"{source}: {subject}{problem.lstrip('. ')}, got {reprlib.repr(error.value)}; {advice}"
        ) from error


def _integer(digits: str) -> int:
    if len(digits) > 19:  # beyond 64 bits: converted to float or an array, it would overflow
        raise ValueError(f"number of {len(digits)} digits")
    return int(digits)


@cache
def _validator(schema: str) -> Any:
    from fastjsonschema import compile as compile_schema  # deferred: keeps --help fast

    return compile_schema(json.loads(schema))
