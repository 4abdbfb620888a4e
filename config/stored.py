"""conf.json in and out, ours and those of published runs."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from common.errors import DataError
from config.schema import Config, ModelConfig
from data.constants import N_S2

# None and false stand for text that was not given: published files have "use_custom": false
_TYPES: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str, type(None), bool)}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_conf(path: str | Path) -> dict[str, Any]:
    """The flags in a conf.json, ours or a published one, whose missing `head` is inferred.

    Raises:
        DataError: if it cannot be read, is not JSON, holds no configuration, or a value of another type.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore it or give another with --load_config") from error
    if not isinstance(stored, dict) or "model" not in stored:
        raise DataError(f"{path} holds no configuration: expected the flags of a run by name, 'model' among them")
    _check_types(stored, path)
    return {"head": published_head(stored), **stored}


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
        DataError: if a value is of another type.
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
    flags: dict[str, Any] = {}
    for entry in fields(ModelConfig):
        if entry.name not in stored:
            continue
        value, expected = stored[entry.name], type(entry.default)
        value = tuple(value) if isinstance(value, list) else value
        valid = isinstance(value, expected) or (expected is float and isinstance(value, int))
        if not valid or (expected is int and isinstance(value, bool)):
            raise DataError(f"{source}: expected {expected.__name__} for {entry.name!r}, got {value!r}")
        if entry.name == "expert_configs":
            if not all(isinstance(expert, dict) and {"name", "flags"} <= expert.keys() for expert in value):
                raise DataError(f"{source}: expected name and flags of each expert for {entry.name!r}, got {value!r}")
        elif expected is tuple and not (value and all(isinstance(width, int) and width > 0 for width in value)):
            raise DataError(f"{source}: expected positive whole numbers for {entry.name!r}, got {list(value)!r}")
        flags[entry.name] = value
    return ModelConfig(**flags)


def _check_types(stored: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a stored flag whose value no command line can give; unknown flags are ignored."""
    hints = get_type_hints(Config)
    for entry in fields(Config):
        kind, value = hints[entry.name], stored.get(entry.name)
        if entry.name not in stored or kind not in _TYPES:
            continue
        if not isinstance(value, _TYPES[kind]) or (kind not in (bool, str) and isinstance(value, bool)):
            raise DataError(f"{path}: expected {_TYPE_NAMES[kind]} for {entry.name!r}, got {value!r}; restore the file")
        choices = entry.metadata["choices"]
        if choices and value and value not in choices:
            raise DataError(f"{path}: unknown {entry.name} {value!r}; choose from {', '.join(choices)}")
