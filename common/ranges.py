"""Ranges of numbers, on command lines and in stored configurations."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Number = TypeVar("Number", int, float)
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 1e30  # below the largest of single precision, 3.4e38: networks multiply


@dataclass(frozen=True)
class Range:
    """Finite numbers from `minimum` to `maximum`, both included; `open`: without `minimum` itself."""

    minimum: float
    maximum: float
    open: bool = False

    def __contains__(self, value: float) -> bool:  # NaN is in no range
        return (self.minimum < value if self.open else self.minimum <= value) and value <= self.maximum

    def violation(self, value: float) -> str:
        """The bound that a number violates, as "must be above 0, got -1"; empty within the range."""
        if value in self:
            return ""
        if value > self.maximum:
            bound = f"at most {self.maximum}"
        else:
            bound = f"{'above' if self.open else 'at least'} {self.minimum}"
        return f"must be {bound}, got {str(value)[:40]}"


def number(
    kind: type[Number], minimum: float, maximum: float | None = None, *, open: bool = False
) -> Callable[[str], Number]:
    """An argparse type.

    Args:
        kind: int or float.
        minimum: the smallest number accepted; of an `open` range numbers above it.
        maximum: the largest; by default `LARGEST_INT` or `LARGEST_FLOAT`.
        open: whether `minimum` itself is refused.
    """
    allowed = Range(minimum, default_maximum(kind) if maximum is None else maximum, open)

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError as error:
            name = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a {name}, got {text[:40]!r}") from error
        if violation := allowed.violation(value):
            raise argparse.ArgumentTypeError(violation)
        return value

    return parse


def default_maximum(kind: type) -> float:
    """The largest number of a type that a flag accepts where nothing else is given."""
    return LARGEST_INT if kind is int else LARGEST_FLOAT
