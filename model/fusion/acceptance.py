"""The acceptance test: a fusion is used only if it is better than each expert in regions that nothing was fitted on."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batch import Batch
from data.constants import N_S2, S2_BANDS
from model.fusion.network import FUSED, OWN, RECALIBRATED, VARIANCE_SOURCES, FusionNet
from model.fusion.rules import usable_rules
from model.fusion.stacked import StackedPredictions, broadcast_bands
from model.fusion.statistics import MAX_PIXELS, ErrorGram, PixelErrors, WeightAUC, gather_pixels
from model.nig import NIG
from model.registry import FUSION_RULES
from model.student_t import student_t_nll

Array = npt.NDArray[np.float64]

MIN_STANDARD_ERRORS = 2.5  # of a mean gain that is accepted
MIN_STANDARD_ERRORS_CLOSE = 1.645  # the same (one chance in 20) if falling back would be the greater risk
MIN_CLUSTERS = 5  # fewer regions do not show how much regions differ
MIN_GAIN = 1e-4  # relative to the better expert's error: smaller ones are rounding
COARSE_SIZE = 64  # pixels across for the experts' likelihoods; of larger images every second, fourth, ... pixel


@dataclass(frozen=True)
class Gain:
    """A paired difference, better expert minus rule: positive if the rule is better.

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
    def standard_errors(self) -> float:
        """The mean in standard errors; NaN if both are zero or unknown."""
        if self.error > 0:
            return self.mean / self.error
        return math.copysign(math.inf, self.mean) if self.error == 0 and self.mean else math.nan

    def outweighs(self, lead: float) -> bool:
        """Whether a rule with this gain over the better expert should replace it.

        A gain of 2.5 standard errors is enough. One of 1.645 is enough if it is more significant than the choice of the
        expert to fall back on: if the experts hardly differ, falling back on one of them is a risk as well.

        Args:
            lead: of the better expert over the next one, in standard errors.
        """
        return self.accepted or (self.counts and self.standard_errors > max(MIN_STANDARD_ERRORS_CLOSE, lead))


def clustered_gain(before: Array, after: Array, clusters: Sequence[str]) -> Gain:
    """Compare two scores of the same images, smaller being better.

    Args:
        before: (N,), of the better expert.
        after: (N,), of the rule.
        clusters: the cluster of each image; images of a cluster are correlated and count together.

    Returns:
        The mean gain; its standard error is that of a mean of values in G clusters, with the factor G / (G - 1) under
        the root. With too few clusters nothing is accepted.
    """
    gains = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    mean = float(gains.mean())
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return Gain(mean, math.nan, False, False)
    sums = np.bincount(member, weights=gains - mean)
    error = math.sqrt(len(names) / (len(names) - 1) * float((sums**2).sum())) / len(gains)
    counts = len(names) >= MIN_CLUSTERS and mean > MIN_GAIN * abs(float(np.mean(before)))
    return Gain(mean, error, counts, counts and mean > MIN_STANDARD_ERRORS * error)


def choose_clusters(rois: Sequence[str], patches: Sequence[str]) -> tuple[list[str], str, str]:
    """The independent units of images: regions, or patches if there are too few regions.

    Args:
        rois: the region of each image.
        patches: its patch.

    Returns:
        The cluster of each image, the kind of clusters ("region" or "patch"), and a remark on their number or "".
    """
    n_rois = len(set(rois))
    if n_rois >= MIN_CLUSTERS:
        return list(rois), "region", ""
    by_patch = [f"{roi}, patch {patch}" for roi, patch in zip(rois, patches, strict=True)]
    n_patches = len(set(by_patch))
    few = f"{n_rois} region{'s' if n_rois != 1 else ''} to test on, fewer than {MIN_CLUSTERS}"
    if n_patches < MIN_CLUSTERS:
        return by_patch, "patch", f"{few}, and only {n_patches} patches: no fusion can be accepted"
    return by_patch, "patch", f"{few}: patches are treated as independent, which underestimates the standard errors"


@dataclass(frozen=True)
class Row:
    """A row of the table: an expert or a rule on the images of the test.

    Attributes:
        name: the expert's or the rule's.
        rmse: mean over images.
        ratio: to the better expert's.
        nll: with the variance that was chosen.
        ence: with that variance.
        coverage: share of targets inside the central 90 % interval, with that variance.
        auc: of the first expert's weight as a classifier of the better of two experts; NaN without weights.
        gain: of the mean, in RMSE; None for experts.
        variance: its source: own, recalibrated or fused.
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


@dataclass(frozen=True, kw_only=True)
class AcceptanceResult:
    """The decision and its reasons, as in guard.json.

    Attributes:
        rule: the rule of the fusion.
        better: the better expert's name.
        lead: by how many standard errors its RMSE is below that of the next; NaN if unknown.
        accepted: whether the rule's mean is used; else the better expert's.
        variance: source of the variance: own, recalibrated or fused.
        experts: names.
        clustered_by: region or patch.
        n_clusters: number of clusters.
        n_images: number of images.
        r: the smaller mean squared error over the larger, of the first two experts, all bands.
        rho: correlation of their errors.
        hopeless: bands in which no constant weight between the two can help, rho >= sqrt(r).
        rows: the table.
        notes: for the user.
    """

    rule: str
    better: str
    lead: float = math.nan
    accepted: bool = False
    variance: str = "own"
    experts: tuple[str, ...]
    clustered_by: str = "patch"
    n_clusters: int = 0
    n_images: int = 0
    r: float = math.nan
    rho: float = math.nan
    hopeless: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN and infinity as None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain

    def sentence(self) -> str:
        """The decision in one line."""
        if self.accepted:
            return f"the guard accepts {self.rule}: its mean is used, with the {self.variance} variance"
        if self.rule == "best":
            return f"{self.better} is the better expert and is used, with its {self.variance} variance"
        return f"the guard does not accept {self.rule}: {self.better} is used, with its {self.variance} variance"

    def markdown(self) -> str:
        """The table with notes, for the terminal and for `guard.md`."""
        head = (
            "| | RMSE | ratio | gain in RMSE, standard errors | NLL | ENCE | inside 90 % | AUC of w | variance | mean |"
        )
        lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
        for row in self.rows:
            gain, mean = "", ""
            if row.gain is not None:
                gain = f"{row.gain.mean:+.6f}, {_number(row.gain.standard_errors, '+.1f')}"
                mean = "accepted" if row.accepted else "not accepted"
            figures = [f"{row.rmse:.5f}", f"{row.ratio:.3f}", gain, _number(row.nll, ".4f"), _number(row.ence, ".3f")]
            figures += [_number(row.coverage, ".3f"), _number(row.auc, ".3f"), row.variance, mean]
            lines.append(f"| {row.name} | {' | '.join(figures)} |")
        r_text = f"r = V1/V2 = {self.r:.3f}, correlation of the errors rho = {self.rho:.3f}"
        if self.hopeless:
            r_text += f"; no constant weight can help in {len(self.hopeless)} bands ({', '.join(self.hopeless)})"
        kind = self.clustered_by if self.n_clusters == 1 else {"region": "regions"}.get(self.clustered_by, "patches")
        lines += ["", f"{self.n_images} images of {self.n_clusters} {kind} that nothing was fitted on; {r_text}."]
        if math.isfinite(self.lead):
            lines.append(f"{self.better} is ahead of the next expert by {self.lead:.1f} standard errors.")
        lines += [f"Note: {note}." for note in self.notes]
        return "\n".join([*lines, f"Decision: {self.sentence()}."])


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else ""


class CalibrationMeter(Protocol):
    """Accumulates the calibration of pixels; evaluation.calibration has one."""

    def update(self, error: Tensor, variance: Tensor, nll: Tensor, dof: Tensor, /) -> None:
        """Add elements of equal shape."""

    def compute(self) -> Any:
        """Sums, for the calibration figures."""


class FusionEvaluator:
    """Accumulates the metrics of every expert and rule on images that nothing was fitted on, then decides.

    Args:
        net: a fitted fusion; `decide` sets its decisions.
        names: of the experts.
        new_meter: makes an empty calibration meter.
        calibration_figures: NLL, ENCE and coverage 90 from what a meter computes.
        n_images: expected number of images.
    """

    def __init__(
        self,
        net: FusionNet,
        names: Sequence[str],
        new_meter: Callable[[], CalibrationMeter],
        calibration_figures: Callable[[Any], Mapping[str, float]],
        n_images: int = 64,
    ) -> None:
        self.net, self.names = net, tuple(names)
        self.new_meter, self.calibration_figures = new_meter, calibration_figures
        self.rules = [rule for rule in usable_rules(len(names)) if rule != "best"]
        self.rois: list[str] = []
        self.patches: list[str] = []
        self.rmse: dict[str, list[float]] = {}  # per image, of experts by `_expert` and of rules
        self.nll: dict[tuple[str, int], list[float]] = {}  # per image, by expert and source of the variance
        self.meters: dict[tuple[str, int], CalibrationMeter] = {}
        self.pixels: dict[str, list[PixelErrors]] = {}  # of rules, without factor, and of recalibrated experts
        self.auc = {rule: WeightAUC() for rule in self.rules}
        self.gram = ErrorGram(len(names), N_S2)
        self.pixels_per_image = max(MAX_PIXELS // max(n_images, 1), 1)
        self.rng = torch.Generator().manual_seed(n_images)

    @torch.no_grad()
    def update(self, predictions: StackedPredictions, batch: Batch, fitted: FusionNet | None = None) -> None:
        """Add a batch.

        Args:
            predictions: of the experts.
            batch: on the same device.
            fitted: the fusion whose numbers were not fitted on these images; default: that to decide about.
        """
        net, target = fitted or self.net, batch.target
        self.rois += [info.roi for info in batch.info]
        self.patches += [info.patch for info in batch.info]
        self.gram.update(predictions.mean, target)
        step = max(min(target.shape[-2:]) // COARSE_SIZE, 1)
        coarse, coarse_target = predictions.map(lambda field: field[..., ::step, ::step]), target[..., ::step, ::step]
        positions = torch.stack([self._draw(target.shape[-2] * target.shape[-1]) for _ in batch.info]).to(target.device)
        sample = predictions.map(lambda field: gather_pixels(field, positions))
        sample_target = gather_pixels(target, positions)
        for index in range(len(self.names)):
            name = _expert(index)
            self._update_rmse(name, predictions.mean[index], target)
            for source in (OWN, RECALIBRATED):
                self._update_likelihood((name, source), net.recalibrate_expert(coarse, index, source), coarse_target)
            self._update_pixels(name, net.recalibrate_expert(sample, index, RECALIBRATED), sample_target)
        for rule in self.rules:
            fused = net.apply_rule(rule, predictions)
            self._update_rmse(rule, fused.prediction.delta, target)
            factor = None if rule == "monig" else net.variance_factor[FUSION_RULES.index(rule)]
            pixels = fused.prediction.map(lambda field: gather_pixels(field, positions))
            self._update_pixels(rule, pixels, sample_target, factor)
            if len(self.names) == 2:
                self.auc[rule].update(fused.weights[0][..., ::step, ::step], coarse.mean - coarse_target)

    def _draw(self, n_pixels: int) -> Tensor:
        return torch.randperm(n_pixels, generator=self.rng)[: self.pixels_per_image]

    def _update_rmse(self, name: str, mean: Tensor, target: Tensor) -> None:
        errors = (mean - target).square().flatten(1).double().mean(1).sqrt()
        self.rmse.setdefault(name, []).extend(errors.tolist())

    def _update_likelihood(self, key: tuple[str, int], prediction: NIG, target: Tensor) -> None:
        nll = prediction.nll(target)
        self.nll.setdefault(key, []).extend(nll.flatten(1).double().mean(1).tolist())
        meter = self.meters.setdefault(key, self.new_meter())
        meter.update(target - prediction.delta, prediction.total, nll, 2 * prediction.alpha)

    def _update_pixels(self, name: str, prediction: NIG, target: Tensor, factor: Tensor | None = None) -> None:
        variance = prediction.total if factor is None else prediction.total / broadcast_bands(factor)
        fields = (target - prediction.delta, variance, 2 * prediction.alpha.expand_as(variance))
        rows = (field[:, 0, :, 0].movedim(1, 0).flatten(1).cpu() for field in fields)  # (C, B n)
        self.pixels.setdefault(name, []).append(PixelErrors(*rows))

    def fit_variances(self, net: FusionNet) -> None:
        """Fit the variance factor and tails of every rule to errors on images that its fit had not seen.

        On its own images a fit has smaller errors than elsewhere, so that the variance fitted there is too small.
        """
        for rule in self.rules:
            if rule != "monig":  # whose variance is that of the sum
                pixels = PixelErrors.cat(self.pixels[rule])
                net.fit_variance(rule, pixels.error, pixels.variance)

    def decide(self) -> AcceptanceResult:
        """Decide about every rule and set the decisions of the network; the result is about the network's rule."""
        net = self.net
        if not self.rois:
            return self._decide_without_images()
        clusters, kind, remark = choose_clusters(self.rois, self.patches)
        errors = [np.array(self.rmse[_expert(index)]) for index in range(len(self.names))]
        better = int(np.argmin([error.mean() for error in errors]))
        leads = [
            clustered_gain(error, errors[better], clusters).standard_errors
            for index, error in enumerate(errors)
            if index != better
        ]
        lead = min(leads, default=math.nan)
        fallback = min((RECALIBRATED, OWN), key=lambda source: np.mean(self.nll[_expert(better), source]))
        net.better_expert.fill_(better)
        net.variance_source.fill_(fallback)
        net.accepted.fill_(False)
        self.fit_variances(net)
        level = float(errors[better].mean())
        rows = [
            self._expert_row(index, level, fallback if index == better else OWN) for index in range(len(self.names))
        ]
        notes = [remark] if remark else []
        for rule in self.rules:
            gain = clustered_gain(errors[better], np.array(self.rmse[rule]), clusters)
            # clusters of patches underestimate every standard error: they need the full 2.5
            accepted = gain.outweighs(lead) if kind == "region" else gain.accepted
            if accepted and not gain.accepted and rule == net.rule:
                notes.append(
                    f"{rule} gains {gain.standard_errors:.1f} standard errors, fewer than {MIN_STANDARD_ERRORS}, but "
                    f"{self.names[better]} leads by {lead:.1f} only: falling back on it is the greater risk"
                )
            net.accepted[FUSION_RULES.index(rule)] = accepted
            rows.append(self._rule_row(rule, better, gain, accepted, level))
        number = FUSION_RULES.index(net.rule)
        r, rho, hopeless = self._compare_experts()
        return AcceptanceResult(
            rule=net.rule,
            better=self.names[better],
            lead=lead,
            accepted=bool(net.accepted[number]),
            variance=VARIANCE_SOURCES[int(net.variance_source[number])],
            experts=self.names,
            clustered_by=kind,
            n_clusters=len(set(clusters)),
            n_images=len(clusters),
            r=r,
            rho=rho,
            hopeless=hopeless,
            rows=tuple(rows),
            notes=tuple(notes),
        )

    def _decide_without_images(self) -> AcceptanceResult:
        """The expert that was better on the fit split, unchanged."""
        net = self.net
        net.better_expert.fill_(int(net.expert_mse.mean(1).argmin()))
        net.accepted.fill_(False)
        net.variance_source.fill_(OWN)
        note = "there are no images to test on besides those of the fit: no fusion can be accepted"
        return AcceptanceResult(
            rule=net.rule, better=self.names[int(net.better_expert)], experts=self.names, notes=(note,)
        )

    def _rule_row(self, rule: str, better: int, gain: Gain, accepted: bool, level: float) -> Row:
        """The row of a rule; of an accepted one the variance with the higher likelihood is chosen and set."""
        number = FUSION_RULES.index(rule)
        pixels = PixelErrors.cat(self.pixels[rule])
        if rule != "monig":
            factor = self.net.variance_factor[number].to(pixels.error)[:, None]
            dof = self.net.fused_dof[number].to(pixels.error)[:, None].expand_as(pixels.error)
            pixels = replace(pixels, variance=pixels.variance * factor, dof=dof)
        source = FUSED
        if accepted:
            of_expert = replace(PixelErrors.cat(self.pixels[_expert(better)]), error=pixels.error)
            if _nll(of_expert).mean() < _nll(pixels).mean():
                pixels, source = of_expert, RECALIBRATED
            self.net.variance_source[number] = source
        meter = self.new_meter()
        meter.update(pixels.error, pixels.variance, _nll(pixels), pixels.dof)
        auc = self.auc[rule].compute() if len(self.names) == 2 else math.nan
        row = self._row(rule, rule, level, meter, source)
        return replace(row, auc=auc, gain=gain, accepted=accepted)

    def _expert_row(self, index: int, level: float, source: int) -> Row:
        key = _expert(index)
        return self._row(key, self.names[index], level, self.meters[key, source], source)

    def _row(self, key: str, name: str, level: float, meter: CalibrationMeter, source: int) -> Row:
        rmse = float(np.mean(self.rmse[key]))
        figures = self.calibration_figures(meter.compute())
        return Row(
            name=name,
            rmse=rmse,
            ratio=rmse / level if level else math.nan,
            nll=figures["NLL"],
            ence=figures["ENCE"],
            coverage=figures["coverage 90"],
            variance=VARIANCE_SOURCES[source],
        )

    def _compare_experts(self) -> tuple[float, float, tuple[str, ...]]:
        """V1/V2 of the first two experts (at most 1), their correlation, bands in which no constant weight helps."""
        mse, correlation = self.gram.overall()
        band_mse, band_correlation = self.gram.mse[:2], self.gram.correlation[0, 1]
        hopeless = band_correlation >= np.sqrt(band_mse.min(0) / np.maximum(band_mse.max(0), 1e-30))
        r = float(mse[:2].min() / max(mse[:2].max(), 1e-30))
        bands = tuple(band for band, without_gain in zip(S2_BANDS, hopeless, strict=True) if without_gain)
        return r, float(correlation[0, 1]), bands

    def decided_rmse(self) -> Array:
        """RMSE of each image with the prediction that was decided on, (N,)."""
        accepted = not self.net.guarded or bool(self.net.accepted[FUSION_RULES.index(self.net.rule)])
        key = self.net.rule if accepted and self.net.rule != "best" else _expert(int(self.net.better_expert))
        return np.array(self.rmse[key])


def _expert(index: int) -> str:
    return f"expert {index}"


def _nll(pixels: PixelErrors) -> Tensor:
    """Negative log-likelihoods, (C, N)."""
    return student_t_nll(pixels.error, (pixels.dof - 2) * pixels.variance, pixels.dof / 2)
