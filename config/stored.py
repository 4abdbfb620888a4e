"""conf.json in and out, ours and those of published runs."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from common.errors import DataError, UsageError
from common.files import write_json
from common.json_files import PATH, Schema, check_schema, read_json
from config.schema import RESUME_FLAGS, WIDTHS, Config, ModelConfig
from config.validation import check_widths, range_violations
from data.constants import N_S2

# JSON schemas of flags by their type. None and false stand for text that was not given: published files have
# "use_custom": false
_TYPES: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": ["string", "null", "boolean"], "pattern": PATH["pattern"]},
    int | str: {"type": ["integer", "string"], "minimum": 0, "pattern": "^auto$"},
    int | None: {"type": ["integer", "null"]},
    tuple[int, ...]: {
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": WIDTHS.minimum, "maximum": WIDTHS.maximum},
    },
    tuple[str, ...]: {"type": "array", "items": PATH},
    tuple[Any, ...]: {  # expert_configs
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "flags"],
            "properties": {"name": {"type": "string"}, "flags": {"type": "object"}},
        },
    },
}
_ADVICE = "restore it, or give another conf.json"


def read_conf(path: str | Path) -> dict[str, Any]:
    """The flags in a conf.json, ours or a published one, whose missing `head` is inferred.

    Raises:
        DataError: if it cannot be read, is not JSON, or a flag has another type or is out of range.
    """
    stored = read_json(path, {**_schema(Config), "required": ["model"]}, _ADVICE)
    flags = _as_declared(Config, stored, str(path))
    return {"head": published_head(flags), **stored, **flags}


def write_conf(path: str | Path, config: Config, epoch: int = 0) -> None:
    """Write the conf.json of a training.

    Args:
        path: the file; that of a resumed training is there already.
        config: the flags.
        epoch: completed epochs. If a training resumes with other flags, `history` in the file has an entry with the
            first epoch trained with them, and `FLAG: [OLD, NEW]` of each.
    """
    content = config.to_json()
    if config.resume_from and Path(path).is_file():
        before = rewind(read_conf(path), epoch)
        changes = {name: [before[name], content[name]] for name in sorted(RESUME_FLAGS & before.keys())}
        changes = {name: values for name, values in changes.items() if values[0] != values[1]}
        history = [*before.get("history", []), *([{"epoch": epoch + 1, **changes}] if changes else [])]
        content |= {"history": history} if history else {}
    write_json(path, content)


def rewind(stored: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """The flags in a conf.json as they were after `epoch`, before later changes of its `history`."""
    flags, history = dict(stored), list(stored.get("history", []))
    while history and history[-1]["epoch"] > epoch:
        flags |= {name: values[0] for name, values in history.pop().items() if name != "epoch"}
    return {**flags, "history": history} if history else {key: flags[key] for key in flags if key != "history"}


def published_head(stored: Mapping[str, Any]) -> str:
    """The head of a run whose conf.json has none: Gaussian for GNLL and MGNLL, else the mean."""
    return "gaussian" if stored.get("loss", "MGNLL") in ("GNLL", "MGNLL") else "mean"


def read_model_config(path: str | Path) -> ModelConfig:
    """The flags of a network in a conf.json, ours or a published one; errors as of `read_conf`."""
    return model_config(read_conf(path), str(path))


def model_config(stored: Mapping[str, Any], source: str = "conf.json") -> ModelConfig:
    """The flags of a network among those of a stored run; absent flags take their default.

    Args:
        stored: flags by name; without `head` they are those of a published run.
        source: where they come from, for the error.

    Raises:
        DataError: if a flag has another type, is out of range, or contradicts another.
    """
    if stored.get("head"):
        return _parse_model_flags(stored, source)
    config = _parse_model_flags({**stored, "head": published_head(stored)}, source)
    return as_published(replace(config, covmode="uni" if config.loss == "GNLL" else config.covmode))


def as_published(config: ModelConfig) -> ModelConfig:
    """The flags that the published code really followed: its `uncrtaints` ignored two of them (known issue 17)."""
    padding = "reflect" if config.model == "uncrtaints" else config.padding_mode
    return replace(config, low_res_size=32, padding_mode=padding, out_conv=(*config.out_conv[:-1], N_S2))


def _parse_model_flags(stored: Mapping[str, Any], source: str) -> ModelConfig:
    check_schema(dict(stored), _schema(ModelConfig), source, _ADVICE)
    config = ModelConfig(**_as_declared(ModelConfig, stored, source))
    try:
        check_widths(config)
    except UsageError as error:
        raise DataError(f"{source}: {error}; {_ADVICE}") from error
    return config


@cache
def _schema(kind: type[ModelConfig]) -> Schema:
    """The JSON schema of a class of flags; all may be absent, those of the network not empty; others are ignored."""
    hints = get_type_hints(kind)
    absent = ["", None, False] if kind is Config else []
    properties = {}
    for entry in fields(kind):
        choices = entry.metadata["choices"]
        properties[entry.name] = {"enum": [*choices, *absent]} if choices else _TYPES[hints[entry.name]]
    if kind is Config:
        changes = {
            name: {"type": "array", "minItems": 2, "maxItems": 2, "items": properties[name]} for name in RESUME_FLAGS
        }
        entry_schema = {"type": "object", "required": ["epoch"], "additionalProperties": False}
        entry_schema["properties"] = {"epoch": {"type": "integer", "minimum": 1}, **changes}
        properties["history"] = {"type": "array", "items": entry_schema}
    return {"type": "object", "properties": properties}


def _as_declared(kind: type[ModelConfig], stored: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The stored flags of a class, in the types of a command line.

    Raises:
        DataError: if a number is out of range.
    """
    hints = get_type_hints(kind)
    flags = {}
    for name in stored.keys() & hints.keys():
        value, expected = stored[name], hints[name]
        if expected is str:
            value = value if isinstance(value, str) else ""  # text that was not given
        elif expected is int:
            value = int(value)  # JSON does not tell 16.0 from 16
        elif isinstance(value, list):
            value = tuple(value)
        flags[name] = value
    for problem in range_violations(flags):
        raise DataError(f"{source}: {problem}; {_ADVICE}")
    return flags
