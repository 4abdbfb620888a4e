"""Which dates of a series become the inputs and the target, from their cloud coverage alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from data.constants import CLEAR_COVERAGE

Rule = Literal["fixed", "fixedsubset", "random"]
RULES: tuple[str, ...] = get_args(Rule)


@dataclass(frozen=True)
class Selection:
    """Positions of the chosen dates in the series, and whether they meet the wish for coverage."""

    inputs: tuple[int, ...]
    target: int
    matched: bool


def choose_dates(
    coverage: Sequence[float] | np.ndarray,
    n_inputs: int,
    rule: str = "fixed",
    min_cov: float = 0.0,
    max_cov: float = 1.0,
    rng: np.random.Generator | np.random.RandomState | None = None,
    legacy: bool = False,
    earliest: int = 0,
    latest: int | None = None,
) -> Selection:
    """Choose the target date and the input dates of one series.

    Args:
        coverage: share of cloud of each date, (n,), in [0, 1].
        n_inputs: how many input dates to choose, 1 to n - 1.
        rule: `fixed`: the earliest clearest date is the target, the first dates whose coverage lies in
            [min_cov, max_cov] are the inputs, else the first dates of all. `fixedsubset`: the same among the dates
            [earliest, latest), and among all where that does not meet the wish. `random`: the target is drawn among
            the clear dates (the clearest where none is clear), its neighbours are the inputs.
        min_cov: least coverage wished for the inputs; `random` does not look at it.
        max_cov: largest coverage wished for the inputs.
        rng: draws the target of `random`; the other rules need none.
        legacy: the published choice: the target may be among its own inputs, and ties between clearest dates fall as
            numpy's unstable sort has them.
        earliest: first date of the range of `fixedsubset`.
        latest: first date after that range; None stands for the end of the series.

    Returns:
        The choice; its inputs ascend, and the target is never among them unless `legacy`.

    Raises:
        ValueError: if the rule is unknown, a random draw has no generator, or the series is too short.

    Source:
        Ebel et al. 2022 (SEN12MS-CR-TS), as in UnCRtainTS. Changes: the target is taken out of the candidates for
        inputs, and the sort is stable.
    """
    values = np.asarray(coverage, dtype=np.float64)
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} for choosing dates; choose from {', '.join(RULES)}")
    if values.ndim != 1 or not 1 <= n_inputs < len(values):
        raise ValueError(f"{n_inputs} input dates and a target cannot be chosen from coverages of shape {values.shape}")
    if rule == "random":
        if rng is None:
            raise ValueError("the rule 'random' draws the target: give it a generator, rng=np.random.default_rng(seed)")
        target = draw_target(values, rng)
        return Selection(neighbours(target, len(values), n_inputs), target, True)
    if rule == "fixedsubset":
        within = values[earliest:latest]
        if len(within) > n_inputs:
            part = _choose_fixed(within, n_inputs, min_cov, max_cov, legacy)
            if part.matched:
                return Selection(tuple(date + earliest for date in part.inputs), part.target + earliest, True)
    return _choose_fixed(values, n_inputs, min_cov, max_cov, legacy)


def draw_target(coverage: np.ndarray, rng: np.random.Generator | np.random.RandomState) -> int:
    """Draw one of the clear dates; where none is clear, the earliest clearest date, without a draw."""
    clear = np.flatnonzero(coverage < CLEAR_COVERAGE)
    if len(clear) == 0:
        return int(np.argmin(coverage))
    position = rng.integers(len(clear)) if isinstance(rng, np.random.Generator) else rng.randint(0, len(clear))
    return int(clear[position])


def neighbours(target: int, n_dates: int, n_inputs: int) -> tuple[int, ...]:
    """The dates around `target`: of all windows of n_inputs + 1 dates that hold it, the middle one, without it.

    Away from both ends the target is in the middle of its window, with one date more after it where n_inputs is odd.
    """
    first_start = max(0, target - n_inputs)
    last_start = min(target, n_dates - n_inputs - 1)
    start = first_start + (last_start - first_start + 1) // 2
    return tuple(date for date in range(start, start + n_inputs + 1) if date != target)


def _choose_fixed(coverage: np.ndarray, n_inputs: int, min_cov: float, max_cov: float, legacy: bool) -> Selection:
    order = np.argsort(coverage) if legacy else np.argsort(coverage, kind="stable")
    target = int(order[0])
    others = [date for date in range(len(coverage)) if date != target]
    candidates = list(range(len(coverage))) if legacy else others
    inputs = [date for date in candidates if min_cov <= coverage[date] <= max_cov][:n_inputs]
    matched = len(inputs) == n_inputs
    if not matched:
        inputs = others[:n_inputs]
    return Selection(tuple(inputs), target, matched and bool(coverage[target] <= CLEAR_COVERAGE))
