"""The guard: a fusion is used only where regions that nothing was fitted on show that it is better than each expert."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STANDARD_ERRORS = 2.5  # by which a mean gain must exceed zero
LESS = 1.645  # the same (one chance in 20) where falling back would be the greater risk
LEAST_CLUSTERS = 5  # fewer regions say too little about how much regions differ
LEAST_GAIN = 1e-4  # of the better expert's error: below it lies rounding


@dataclass(frozen=True)
class Gain:
    """A paired difference, better expert minus rule: positive where the rule is better.

    Attributes:
        mean: over images.
        error: standard error of the mean, by clusters; NaN with fewer than two of them.
        counts: whether there are enough clusters, and the mean exceeds rounding.
        accepted: whether it counts and exceeds 2.5 standard errors.
    """

    mean: float
    error: float
    counts: bool
    accepted: bool

    @property
    def units(self) -> float:
        """The mean in standard errors; NaN where neither says anything."""
        if self.error > 0:
            return self.mean / self.error
        return math.copysign(math.inf, self.mean) if self.error == 0 and self.mean else math.nan

    def outweighs(self, lead: float) -> bool:
        """Whether a rule with this gain over the better expert should answer instead of it.

        A gain of 2.5 standard errors is enough. One of 1.645 is enough if it is better founded than the choice of the
        expert to fall back on: where experts are hardly apart, falling back on one of them is a bet as well.

        Args:
            lead: of the better expert over the next one, in standard errors.
        """
        return self.accepted or (self.counts and self.units > max(LESS, lead))


def clustered_gain(before: Array, after: Array, clusters: Sequence[str]) -> Gain:
    """Compare two scores of the same images, smaller being better.

    Args:
        before: (N,), of the better expert.
        after: (N,), of the rule.
        clusters: what each image belongs to; images of one cluster are alike and count together.

    Returns:
        The mean gain; its standard error is that of a mean of values in G clusters, with the factor G / (G - 1) under
        the root. Too few clusters accept nothing.
    """
    gains = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    mean = float(gains.mean())
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return Gain(mean, math.nan, False, False)
    sums = np.bincount(member, weights=gains - mean)
    error = math.sqrt(len(names) / (len(names) - 1) * float((sums**2).sum())) / len(gains)
    counts = len(names) >= LEAST_CLUSTERS and mean > LEAST_GAIN * abs(float(np.mean(before)))
    return Gain(mean, error, counts, counts and mean > STANDARD_ERRORS * error)


def choose_clusters(rois: Sequence[str], patches: Sequence[str]) -> tuple[list[str], str, str]:
    """What counts as independent: regions, or patches where there are too few regions.

    Args:
        rois: the region of each image.
        patches: its patch.

    Returns:
        The cluster of each image, what they are ("region" or "patch"), and a remark on their number or "".
    """
    n_rois = len(set(rois))
    if n_rois >= LEAST_CLUSTERS:
        return list(rois), "region", ""
    by_patch = [f"{roi}, patch {patch}" for roi, patch in zip(rois, patches, strict=True)]
    n_patches = len(set(by_patch))
    few = f"{n_rois} region{'s' if n_rois != 1 else ''} to judge by, fewer than {LEAST_CLUSTERS}"
    if n_patches < LEAST_CLUSTERS:
        return by_patch, "patch", f"{few}, and only {n_patches} patches: no fusion can be accepted"
    return by_patch, "patch", f"{few}: patches are taken for independent, which makes the errors look smaller"


@dataclass(frozen=True)
class Row:
    """One line of the table: an expert or a rule on the guard's images.

    Attributes:
        name: the expert's or the rule's.
        rmse: mean over images.
        ratio: to the better expert's.
        nll: with the variance that the verdict chose.
        ence: of that belief.
        coverage: share of targets inside the central 90 % interval of that belief.
        auc: how well the first expert's weight tells which expert is nearer (two experts), NaN where there is none.
        gain: of the mean, in RMSE; None for experts.
        variance: whose it is: own, recalibrated or fused.
        accepted: whether the mean is used.
    """

    name: str
    rmse: float
    ratio: float
    nll: float
    ence: float
    coverage: float
    auc: float = math.nan
    gain: Gain | None = None
    variance: str = "own"
    accepted: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the guard decided and why.

    Attributes:
        rule: the one that was asked for.
        better: the better expert's name.
        lead: by how many standard errors its RMSE is below that of the next; NaN where nothing says so.
        accepted: whether the rule's mean is used; else the better expert answers.
        variance: whose variance is used: own, recalibrated or fused.
        experts: names.
        clustered_by: region or patch.
        n_clusters: how many.
        n_images: on which it was judged.
        r: the smaller mean squared error over the larger, of the first two experts, all bands.
        rho: correlation of their errors.
        hopeless: bands in which no constant weight between the two can help, rho >= sqrt(r).
        rows: the table.
        notes: what the reader should know.
    """

    rule: str
    better: str
    lead: float
    accepted: bool
    variance: str
    experts: tuple[str, ...]
    clustered_by: str
    n_clusters: int
    n_images: int
    r: float
    rho: float
    hopeless: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that do not exist as None."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain

    def sentence(self) -> str:
        """The decision in one line."""
        if self.accepted:
            return f"the guard accepts {self.rule}: its mean is used, with the {self.variance} variance"
        if self.rule == "best":
            return f"{self.better} is the better expert and answers, with its {self.variance} variance"
        return f"the guard does not accept {self.rule}: {self.better} answers, with its {self.variance} variance"

    def markdown(self) -> str:
        """The table and what stands below it, for the terminal and for `guard.md`."""
        head = (
            "| | RMSE | ratio | gain in RMSE, standard errors | NLL | ENCE | inside 90 % | AUC of w | variance | mean |"
        )
        lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
        for row in self.rows:
            gain = ""
            if row.gain is not None:
                gain = f"{row.gain.mean:+.6f}, {_number(row.gain.units, '+.1f')}"
            used = "" if row.gain is None else "accepted" if row.accepted else "not accepted"
            figures = [f"{row.rmse:.5f}", f"{row.ratio:.3f}", gain, _number(row.nll, ".4f"), _number(row.ence, ".3f")]
            figures += [_number(row.coverage, ".3f"), _number(row.auc, ".3f"), row.variance, used]
            lines.append(f"| {row.name} | {' | '.join(figures)} |")
        r_text = f"r = V1/V2 = {self.r:.3f}, correlation of the errors rho = {self.rho:.3f}"
        if self.hopeless:
            r_text += f"; no constant weight can help in {len(self.hopeless)} bands ({', '.join(self.hopeless)})"
        plural = "s" if self.n_clusters != 1 else ""
        kind = f"{self.clustered_by}{plural}".replace("patchs", "patches")
        lines += ["", f"{self.n_images} images of {self.n_clusters} {kind} that nothing was fitted on; {r_text}."]
        if math.isfinite(self.lead):
            lines.append(f"{self.better} is ahead of the next expert by {self.lead:.1f} standard errors.")
        lines += [f"Note: {note}." for note in self.notes]
        return "\n".join([*lines, f"Verdict: {self.sentence()}."])


def _number(value: float, shape: str) -> str:
    return format(value, shape) if math.isfinite(value) else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
