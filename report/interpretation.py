"""Calibration figures explained in words for readers who do not know them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from report.tables import NARROW, format_figure

_TOLERANCE = 0.02  # a coverage this close to its level is right in practice


@dataclass(frozen=True)
class Statement:
    """A question, a short answer, and the figures behind it."""

    question: str
    verdict: str
    text: str


def interpret_calibration(metrics: Mapping[str, Any]) -> list[Statement]:
    """Statements about ENCE, coverage, NLL, sharpness and AUSE; none for a network without a variance."""
    if "ENCE" not in metrics:
        return []
    statements = (_size(metrics), _coverage(metrics), _likelihood(metrics), _order(metrics))
    return [statement for statement in statements if statement is not None]


def _size(metrics: Mapping[str, Any]) -> Statement | None:
    ence, sharpness = metrics["ENCE"], metrics.get("sharpness", math.nan)
    if not math.isfinite(ence):
        return None
    verdict = "yes, nearly" if ence < 0.1 else "roughly" if ence < 0.3 else "no"
    text = (
        f"The stated deviation is {format_figure('RMSE', sharpness)} reflectance on the whole (root mean variance). "
        f"Sorted into 20 groups by what the network states, the true error is off by {100 * ence:.0f}{NARROW}% of the "
        f"stated one on average (ENCE {ence:.3f}; 0 is perfect)."
    )
    return Statement("Are errors as large as the network says?", verdict, text)


def _coverage(metrics: Mapping[str, Any]) -> Statement | None:
    inside = metrics.get("coverage 90", math.nan)
    if not math.isfinite(inside):
        return None
    verdict = "over-confident" if inside < 0.9 else "too cautious"
    if abs(inside - 0.9) <= _TOLERANCE:
        verdict = "about right"
    others = " and ".join(
        f"{format_figure('coverage', metrics[f'coverage {level}'])} in the {level}{NARROW}% interval"
        for level in (50, 95)
        if f"coverage {level}" in metrics
    )
    text = (
        f"An interval that should hold 90 of 100 true values holds {100 * inside:.1f} ({others}). Fewer than promised "
        "means over-confident, more means too cautious."
    )
    return Statement("Do its 90 % intervals keep their promise?", verdict, text)


def _likelihood(metrics: Mapping[str, Any]) -> Statement | None:
    nll = metrics.get("NLL", math.nan)
    if not math.isfinite(nll):
        return None
    text = (
        f"The negative log-likelihood of a true value is {format_figure('NLL', nll)} on average. It scores mean and "
        "deviation at once. Alone it says little: compare it with that of another network on the same samples, where "
        "lower is better; 0.1 lower means that the truth was given a density 1.1 times as high."
    )
    return Statement("How plausible does it find the truth?", f"NLL {format_figure('NLL', nll)}", text)


def _order(metrics: Mapping[str, Any]) -> Statement | None:
    ause = metrics.get("AUSE", math.nan)
    if not math.isfinite(ause):
        return None
    text = (
        "If the pixels that it trusts least are left out, the error of the rest should fall as if the worst pixels had "
        f"been known. The area between the two curves is {ause:.2f} (AUSE; 0 is perfect)."
    )
    return Statement("Does it know where it is wrong?", "AUSE " + format_figure("AUSE", ause), text)
