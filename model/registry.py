"""Backbones by name."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from common.errors import UsageError

Builder = Callable[[Any, Sequence[int]], nn.Module]  # (config, widths of the last layers) -> forward(x, dates) -> raw
Decorated = Callable[..., nn.Module]

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Decorated], Decorated]:
    """Make a builder known under `name`; a decorator.

    Raises:
        ValueError: if the name is taken.
    """

    def keep(builder: Decorated) -> Decorated:
        if name in _BUILDERS:
            raise ValueError(f"two backbones are called {name!r}")
        _BUILDERS[name] = builder
        return builder

    return keep


def names() -> tuple[str, ...]:
    """The names of all backbones, sorted."""
    import_module("model.backbones")  # registers them
    return tuple(sorted(_BUILDERS))


def get(name: str) -> Builder:
    """The builder of that name.

    Raises:
        UsageError: if there is none; the message lists the names.
    """
    if name in names():
        return _BUILDERS[name]
    raise UsageError(f"unknown backbone {name!r}; choose --model {', '.join(names())}")
