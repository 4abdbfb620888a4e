"""Selection of input and target dates of a series by their cloud coverage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from data.constants import CLEAR_COVERAGE

Rule = Literal["fixed", "fixedsubset", "random"]
RULES: tuple[str, ...] = get_args(Rule)


@dataclass(frozen=True)
class Selection:
    """Indexes of the chosen dates in the series, and whether they have the preferred coverage."""

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
        coverage: cloud cover of each date, (n,), in [0, 1].
        n_inputs: number of input dates, 1 to n - 1.
        rule: `fixed`: the target is the earliest clearest date, the inputs are the first dates with coverage in
            [min_cov, max_cov] or, if there are too few, the first dates. `fixedsubset`: the same among the dates
            [earliest, latest), or among all if those do not match. `random`: the target is drawn from the clear dates
            (or is the clearest date if none is clear), the inputs are its neighbours.
        min_cov: preferred minimum coverage of the inputs; ignored by `random`.
        max_cov: preferred maximum coverage of the inputs.
        rng: draws the target of `random`; unused by the other rules.
        legacy: the published selection: the target may be among its own inputs, and numpy's unstable sort decides
            between equally clear dates.
        earliest: first date of the range of `fixedsubset`.
        latest: first date after that range; None is the end of the series.

    Returns:
        The selection; its inputs are in ascending order, and the target is never among them unless `legacy`.

    Raises:
        ValueError: if the rule is unknown, a random draw has no generator, or the series is too short.

    Source:
        Ebel et al. 2022 (SEN12MS-CR-TS), as in UnCRtainTS. Changes: the target is excluded from the inputs, and the
        sort is stable.
    """
    values = np.asarray(coverage, dtype=np.float64)
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} for choosing dates; choose from {', '.join(RULES)}")
    if values.ndim != 1 or not 1 <= n_inputs < len(values):
        raise ValueError(f"{n_inputs} input dates and a target cannot be chosen from coverages of shape {values.shape}")
    if rule == "random":
        if rng is None:
            raise ValueError("the rule 'random' draws the target: pass a generator, rng=np.random.default_rng(seed)")
        target = draw_target(values, rng)
        return Selection(neighbours(target, len(values), n_inputs), target, True)
    if rule == "fixedsubset":
        subset = values[earliest:latest]
        if len(subset) > n_inputs:
            chosen = _choose_fixed(subset, n_inputs, min_cov, max_cov, legacy)
            if chosen.matched:
                return Selection(tuple(date + earliest for date in chosen.inputs), chosen.target + earliest, True)
    return _choose_fixed(values, n_inputs, min_cov, max_cov, legacy)


def draw_target(coverage: np.ndarray, rng: np.random.Generator | np.random.RandomState) -> int:
    """Draw a clear date; if none is clear, return the earliest clearest date without a draw."""
    clear = np.flatnonzero(coverage < CLEAR_COVERAGE)
    if len(clear) == 0:
        return int(np.argmin(coverage))
    position = rng.integers(len(clear)) if isinstance(rng, np.random.Generator) else rng.randint(0, len(clear))
    return int(clear[position])


def neighbours(target: int, n_dates: int, n_inputs: int) -> tuple[int, ...]:
    """The dates around `target`: the middle one of all windows of n_inputs + 1 dates that contain it, without it.

    Away from both ends the target is the centre of its window, with one more date after it if n_inputs is odd.
    """
    first_start = max(0, target - n_inputs)
    last_start = min(target, n_dates - n_inputs - 1)
    start = first_start + (last_start - first_start + 1) // 2
    return tuple(date for date in range(start, start + n_inputs + 1) if date != target)


def _choose_fixed(coverage: np.ndarray, n_inputs: int, min_cov: float, max_cov: float, legacy: bool) -> Selection:
    order = np.argsort(coverage) if legacy else np.argsort(coverage, kind="stable")
    target = int(order[0])
    remaining = [date for date in range(len(coverage)) if date != target]
    candidates = list(range(len(coverage))) if legacy else remaining
    inputs = [date for date in candidates if min_cov <= coverage[date] <= max_cov][:n_inputs]
    matched = len(inputs) == n_inputs
    if not matched:
        inputs = remaining[:n_inputs]
    return Selection(tuple(inputs), target, matched and bool(coverage[target] <= CLEAR_COVERAGE))
