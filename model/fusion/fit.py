"""Fit of a fusion: statistics of the experts, the numbers fitted to them, cross-fitting for the acceptance test."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from common.errors import DataError
from common.progress import progress_bar
from data.batch import Batch
from data.constants import N_S2
from data.holdout import FitSplit
from data.loaders import PatchLoader
from model.fusion.acceptance import AcceptanceResult, FusionEvaluator
from model.fusion.gate import GATE_BATCH, FitSettings, GateEpoch, GateTrainer, best_epoch, fit_log_linear, gate_loss
from model.fusion.network import FusionNet
from model.fusion.recalibration import fit_recalibration
from model.fusion.rules import convex_weights, usable_rules
from model.fusion.stacked import StackedPredictions
from model.fusion.statistics import MAX_PIXELS, ErrorGram, Samples, WindowSampler
from model.registry import FUSION_RULES
from model.runtime import Compute, autocast

N_WINDOWS, WINDOW_SIZE = 384, 64  # windows that train the gate, and pixels across
ENOUGH_ROIS = 10  # for the acceptance test; with fewer, the regions of the fit are tested too


class FitStatistics:
    """Statistics of the fit split, accumulated from the experts' predictions.

    Args:
        n_experts: K.
        n_images: expected number of images.
        seed: of the samples.
    """

    def __init__(self, n_experts: int, n_images: int, seed: int) -> None:
        self.gram = ErrorGram(n_experts, N_S2)
        self.pixels = WindowSampler(n_images, MAX_PIXELS, 1, seed)
        self.windows = WindowSampler(n_images, N_WINDOWS, WINDOW_SIZE, seed)
        self.rois: list[str] = []

    @torch.no_grad()
    def update(self, predictions: StackedPredictions, batch: Batch) -> None:
        """Add a batch and the experts' predictions of it."""
        self.gram.update(predictions.mean, batch.target)
        self.pixels.update(predictions, batch.target)
        self.windows.update(predictions, batch.target)
        self.rois += [info.roi for info in batch.info]

    def merge(self, other: "FitStatistics") -> None:
        """Add the statistics of another split."""
        self.gram.merge(other.gram)
        self.pixels.merge(other.pixels)
        self.windows.merge(other.windows)
        self.rois = self.rois + other.rois


def fit(net: FusionNet, statistics: FitStatistics, settings: FitSettings, device: torch.device) -> list[GateEpoch]:
    """Fit all numbers of a fusion except the acceptance decisions, and train its gate.

    Args:
        net: changed in place.
        statistics: of the fit split.
        settings: of the gate.
        device: where the gate trains.

    Returns:
        The epochs of the gate; none if the rule is not `gated`.

    Raises:
        DataError: if there was no image.
    """
    if not statistics.rois:
        raise DataError("no image of the fit split could be read; a fusion needs images that its experts did not see")
    pixels, gram = statistics.pixels.samples(), statistics.gram
    errors = pixels.target[:, None] - pixels.mean  # (N, K, C, 1, 1)
    recalibration = fit_recalibration(*(field.movedim(0, -1).flatten(2) for field in (pixels.variance, errors)))
    for name, value in vars(recalibration).items():
        getattr(net, f"recalibration_{name}").copy_(value)
    net.expert_mse.copy_(torch.from_numpy(gram.mse.copy()))
    net.error_correlation.copy_(torch.from_numpy(gram.correlation.copy()))
    net.convex_weights.copy_(torch.from_numpy(convex_weights(gram.sums)))
    for rule in usable_rules(len(net.experts)):
        if rule not in ("gated", "monig", "best"):
            _fit_variance(net, rule, pixels, device)
    rows: list[GateEpoch] = []
    if net.rule == "gated":
        windows = statistics.windows.samples()
        rows = _fit_gate(net, pixels, windows, statistics.rois, settings, device)
        _fit_variance(net, "gated", windows, device)
    net.fitted.fill_(True)
    return rows


def _fit_gate(
    net: FusionNet, pixels: Samples, windows: Samples, rois: list[str], settings: FitSettings, device: torch.device
) -> list[GateEpoch]:
    """Fit the log-linear term on pixels, then the convolutions on windows."""
    gated, convex = FUSION_RULES.index("gated"), FUSION_RULES.index("convex")
    mse = net.expert_mse.amin(0)
    mean, variance, target = pixels.take(torch.arange(len(pixels)), device)
    fit_log_linear(net.gate, net.convex_weights, mean, net.recalibration.apply(variance), target, mse)
    net.variance_factor[gated], net.fused_dof[gated] = net.variance_factor[convex], net.fused_dof[convex]

    def loss(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
        _, fused_mean, fused_variance = net.fused_moments("gated", mean, variance)
        return gate_loss(fused_mean, fused_variance, target, mse, net.fused_dof[gated])

    return GateTrainer(net.gate, windows, net.recalibration.apply, loss, settings, device).fit(rois)


@torch.no_grad()
def _fit_variance(net: FusionNet, rule: str, samples: Samples, device: torch.device) -> None:
    """Fit the variance factor and the tails of a rule, on at most `MAX_PIXELS` pixels of the samples."""
    number = FUSION_RULES.index(rule)
    net.variance_factor[number] = 1.0
    errors: list[Tensor] = []
    variances: list[Tensor] = []
    quota = max(MAX_PIXELS // len(samples), 1)
    rng = torch.Generator().manual_seed(number)
    for indices in torch.arange(len(samples)).split(GATE_BATCH if rule == "gated" else MAX_PIXELS):
        mean, variance, target = samples.take(indices, device)
        _, fused_mean, fused_variance = net.fused_moments(rule, mean, variance)
        n_pixels = target.shape[-1] * target.shape[-2]
        pixels = torch.randperm(n_pixels, generator=rng)[:quota].to(device)
        for rows, field in ((errors, target - fused_mean), (variances, fused_variance)):
            rows.append(field.flatten(2)[..., pixels].movedim(1, 0).flatten(1).cpu())  # (C, pixels)
    net.fit_variance(rule, torch.cat(errors, 1), torch.cat(variances, 1))


def fit_with_acceptance_test(
    net: FusionNet, split: FitSplit, evaluator: FusionEvaluator, settings: FitSettings, compute: Compute
) -> tuple[AcceptanceResult, list[GateEpoch]]:
    """Fit a fusion, test its acceptance, and fit it again on all images that no expert trained on.

    Five regions differ so much that a gain of 15 % of the error can hide behind them. With few regions to test on, the
    test uses two-fold cross-fitting by region: a second fit, on the guard's images, is tested on those of the first, so
    that no image is tested with numbers fitted on its region. The decision is about fits on a part of the images; the
    final fit uses all, and variances fitted on ten regions generalise better than those of five. The factor on the
    fused variance and its tails come from the errors of the test, on images that a fit had not seen.

    Args:
        net: changed in place; in eval mode afterwards.
        split: the images.
        evaluator: of `net`, without images.
        settings: of the gate.
        compute: device and precision.

    Returns:
        The acceptance decision, and the epochs of the final gate.
    """
    net.eval()
    statistics = collect_statistics(net, split.fit, "fit", settings.seed, compute)
    rows = fit(net, statistics, settings, compute.device)
    notes: tuple[str, ...] = ()
    guard = None
    if split.guard is not None:
        guard = collect_statistics(net, split.guard, "guard", settings.seed, compute, evaluator)
    if guard is not None and 0 < len(set(guard.rois)) < ENOUGH_ROIS:
        other = copy.deepcopy(net)
        fit(other, guard, settings, compute.device)
        for batch, predictions in predict_experts(other, split.fit, "guard, crosswise", compute):
            evaluator.update(predictions, batch, other)
        notes += ("two-fold cross-fitting: each half of these images is tested with a fit on the other",)
    result = evaluator.decide()
    if guard is not None and guard.rois:
        statistics.merge(guard)
        rows = fit(net, statistics, settings, compute.device)
        evaluator.fit_variances(net)
        notes += (
            f"after the decision all numbers were fitted again, on {len(statistics.rois)} images including these",
        )
    if net.rule == "gated":
        print(f"gate: {best_epoch(rows)} of {settings.epochs} epochs help held-out regions")
    net.eval()
    return replace(result, notes=(*result.notes, *notes)), rows


def collect_statistics(
    net: FusionNet,
    loader: PatchLoader,
    title: str,
    seed: int,
    compute: Compute,
    evaluator: FusionEvaluator | None = None,
) -> FitStatistics:
    """Statistics of the experts on a loader's images; an evaluator is updated with the same predictions."""
    statistics = FitStatistics(len(net.experts), len(loader.patches), seed)
    for batch, predictions in predict_experts(net, loader, title, compute):
        statistics.update(predictions, batch)
        if evaluator is not None:
            evaluator.update(predictions, batch)
    return statistics


@torch.no_grad()
def predict_experts(
    net: FusionNet, loader: PatchLoader, title: str, compute: Compute
) -> Iterator[tuple[Batch, StackedPredictions]]:
    """The batches of a loader on the device, each with the experts' predictions; `title` names the progress bar.

    Samples whose targets lack pixels are left out.
    """
    with progress_bar(loader, len(loader), title) as bar:
        for loaded in bar:
            cpu_batch = loaded.without_missing()
            if cpu_batch.n:
                batch = cpu_batch.to(compute.device, non_blocking=True)
                with autocast(compute.device, compute.dtype):
                    predictions = net.predict_experts(batch.x, batch.dates)
                yield batch, predictions
