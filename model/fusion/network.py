"""The fused network: frozen experts, the numbers fitted to them, and the rule that fuses their predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.constants import N_S2
from model.fusion.gate import Gate
from model.fusion.recalibration import MAX_DOF, Recalibration, fit_recalibration
from model.fusion.rules import (
    check_rule,
    correlated_weights,
    equal_weights,
    evidence_weights,
    inverse_variance_weights,
    monig_sum,
    one_hot_weights,
)
from model.fusion.stacked import (
    StackedPredictions,
    broadcast_bands,
    epistemic_share,
    fused_mean,
    fused_variance,
    stack_predictions,
)
from model.nig import NIG, nig_from_moments, scale
from model.reconstructor import Reconstructor
from model.registry import FUSION_RULES

OWN, RECALIBRATED, FUSED = range(3)  # sources of a variance, see `FusionNet.variance_source`
VARIANCE_SOURCES = ("own", "recalibrated", "fused")


@dataclass(frozen=True, eq=False)
class FusedPrediction:
    """The output of a rule, reflectance.

    Attributes:
        weights: (K, B, 1, C, H, W).
        prediction: fields (B, 1, C, H, W), with the rule's own variance.
    """

    weights: Tensor
    prediction: NIG


class FusionNet(nn.Module):
    """Experts that predict independently, and the fusion of their predictions.

    All fitted numbers are buffers, so that a checkpoint is complete. Each rule has an acceptance decision: if its mean
    was not accepted, the prediction is that of the better expert.

    Args:
        experts: networks with a variance, in the order of the weights; frozen, and always in eval mode.
        rule: one of `FUSION_RULES`.
        guarded: whether to follow the acceptance decisions; else the rule's own mean and variance are returned.

    Raises:
        UsageError: if the rule is unknown or cannot fuse that number of experts.
    """

    recalibration_intercept: Tensor
    recalibration_slope: Tensor
    recalibration_dof: Tensor
    recalibration_low: Tensor
    recalibration_high: Tensor
    error_correlation: Tensor
    expert_mse: Tensor
    convex_weights: Tensor
    variance_factor: Tensor
    fused_dof: Tensor
    better_expert: Tensor
    accepted: Tensor
    variance_source: Tensor
    fitted: Tensor

    def __init__(self, experts: Sequence[Reconstructor], rule: str, guarded: bool = True) -> None:
        super().__init__()
        check_rule(rule, len(experts))
        self.rule, self.guarded = rule, guarded
        self.joint = False  # whether the experts are trained too
        self.expert_predictions: list[Any] = []  # if so, of the last batch, each in its scaled units
        self.experts = nn.ModuleList(experts).requires_grad_(False).eval()
        k, n_rules = len(experts), len(FUSION_RULES)
        self.gate = Gate(k, N_S2)
        buffers = {
            "recalibration_intercept": torch.zeros(k, N_S2),
            "recalibration_slope": torch.ones(k, N_S2),
            "recalibration_dof": torch.full((k, N_S2), MAX_DOF),
            "recalibration_low": torch.full((k, N_S2), -torch.inf),
            "recalibration_high": torch.full((k, N_S2), torch.inf),
            "error_correlation": torch.eye(k)[:, :, None].repeat(1, 1, N_S2),
            "expert_mse": torch.ones(k, N_S2),  # on the fit split, reflectance squared
            "convex_weights": torch.full((k, N_S2), 1 / k),
            "variance_factor": torch.ones(n_rules, N_S2),  # of each rule, tau in docs/fusion.md
            "fused_dof": torch.full((n_rules, N_S2), MAX_DOF),
            "better_expert": torch.tensor(0),  # the prediction if a rule is not accepted
            "accepted": torch.zeros(n_rules, dtype=torch.bool),
            "variance_source": torch.full((n_rules,), OWN),
            "fitted": torch.tensor(False),
        }
        for name, start in buffers.items():
            self.register_buffer(name, start)

    def train(self, mode: bool = True) -> "FusionNet":
        """Set the mode of the gate; the experts stay in eval mode except in joint training."""
        super().train(mode)
        if not self.joint:
            self.experts.eval()
        return self

    def forward(self, x: Tensor, dates: Tensor | None = None) -> NIG:
        """Predict the clear image.

        Args:
            x: (B, T, C, H, W) in [0, 1].
            dates: (B, T), days; None for networks of single images.

        Returns:
            Fields (B, 1, 13, H, W), reflectance and reflectance squared.

        Raises:
            ValueError: if nothing has been fitted yet.
        """
        if not self.fitted:
            raise ValueError("this fusion has not been fitted; train it with --model fusion_net")
        return self.fuse(self.predict_experts(x, dates))

    def predict_experts(self, x: Tensor, dates: Tensor | None = None) -> StackedPredictions:
        """The prediction of each expert, bit by bit that of the expert alone."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.joint):
            predictions: list[Any] = [expert(x, dates) for expert in self.experts]
            self.expert_predictions = predictions if self.joint else []
            unscaled = [
                prediction.unscaled(expert.scale_by)
                for prediction, expert in zip(predictions, self.experts, strict=True)
            ]
        with torch.autocast(x.device.type, enabled=False):
            return stack_predictions(unscaled, self.recalibration_dof)

    @property
    def recalibration(self) -> Recalibration:
        """Recalibration of the experts, each (K, C)."""
        return Recalibration(
            self.recalibration_intercept,
            self.recalibration_slope,
            self.recalibration_dof,
            self.recalibration_low,
            self.recalibration_high,
        )

    def fuse(self, predictions: StackedPredictions) -> NIG:
        """One prediction from several, by the rule and its acceptance decision."""
        with torch.autocast(predictions.mean.device.type, enabled=False):
            number = FUSION_RULES.index(self.rule)
            if not self.guarded or self.joint:
                return self.apply_rule(self.rule, predictions).prediction
            source, better = int(self.variance_source[number]), int(self.better_expert)
            if not self.accepted[number]:
                return self.recalibrate_expert(predictions, better, source)
            fused = self.apply_rule(self.rule, predictions).prediction
            if source == FUSED:
                return fused
            expert = self.recalibrate_expert(predictions, better, source)
            return nig_from_moments(fused.delta, expert.total, 1 / (1 + fused.gamma), expert.alpha)

    def recalibrate_expert(self, predictions: StackedPredictions, index: int, source: int) -> NIG:
        """The prediction of one expert, with its own variance and tails (`OWN`) or recalibrated ones."""
        if source == OWN:
            return predictions.expert(index)
        variance = self.recalibration.apply(predictions.variance)[index]
        share = 1 / (1 + predictions.gamma[index])
        half_dof = broadcast_bands(self.recalibration_dof[index] / 2)
        return nig_from_moments(predictions.mean[index], variance, share, half_dof)

    def apply_rule(self, rule: str, predictions: StackedPredictions) -> FusedPrediction:
        """The output of a rule, whether it was accepted or not.

        Args:
            rule: one of `FUSION_RULES`.
            predictions: of the experts, unchanged.

        Returns:
            The weights, and a prediction with the rule's first two moments: mean sum w_k d_k, and tau exp(offset) times
            the variance of a weighted mean with correlated errors; tau and tails as fitted. `monig` has its own
            variance.
        """
        if rule == "monig":
            return FusedPrediction(evidence_weights(predictions), monig_sum(predictions))
        if rule == "best":
            index = int(self.better_expert)
            expert = self.recalibrate_expert(predictions, index, RECALIBRATED)
            return FusedPrediction(one_hot_weights(index, predictions.mean), expert)
        weights, mean, variance = self.fused_moments(rule, predictions.mean, predictions.variance)
        share = epistemic_share(weights, predictions.mean, self.recalibration.apply(predictions.variance))
        half_dof = broadcast_bands(self.fused_dof[FUSION_RULES.index(rule)] / 2)
        return FusedPrediction(weights, nig_from_moments(mean, variance, share, half_dof))

    def fused_moments(self, rule: str, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, mean and variance of a rule that weights recalibrated predictions.

        Args:
            rule: gated, convex, ivw, ivw_rho or average.
            means: (K, B, 1, C, H, W), reflectance.
            variances: as the experts predict them, same shape.

        Returns:
            Weights of that shape; mean and variance without the first dimension.
        """
        variances = self.recalibration.apply(variances)
        weights, offset = self.compute_weights(rule, means, variances)
        factor = broadcast_bands(self.variance_factor[FUSION_RULES.index(rule)])
        variance = factor * fused_variance(weights, variances, self.error_correlation)
        return weights, fused_mean(weights, means), variance if offset is None else variance * offset.exp()

    def compute_weights(self, rule: str, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of a rule that weights recalibrated predictions, and the gate's offset of the log-variance.

        Args:
            rule: gated, convex, ivw, ivw_rho or average.
            means: (K, B, 1, C, H, W), reflectance.
            variances: recalibrated, same shape.
        """
        if rule == "gated":
            return self.gate(means, variances, self.convex_weights)
        if rule == "average":
            return equal_weights(means), None
        if rule == "convex":
            return broadcast_bands(self.convex_weights, means).expand_as(means), None
        if rule == "ivw":
            return inverse_variance_weights(variances), None
        return correlated_weights(variances, self.error_correlation[0, 1]), None

    def fit_variance(self, rule: str, errors: Tensor, variances: Tensor) -> None:
        """Fit the factor on the variance of a rule and its tails.

        Args:
            rule: one of `FUSION_RULES`.
            errors: of its mean, (C, N).
            variances: of the rule without the factor, (C, N).
        """
        fit = fit_recalibration(variances, errors, fit_slope=False)
        number = FUSION_RULES.index(rule)
        self.variance_factor[number] = fit.intercept.exp().to(self.variance_factor)
        self.fused_dof[number] = fit.dof.to(self.fused_dof)


class FusionReconstructor(Reconstructor):
    """A fusion in place of a backbone. Its experts have scales of their own, so that only its output is scaled."""

    @property
    def fusion(self) -> FusionNet:
        """The fusion, `netG`."""
        assert isinstance(self.netG, FusionNet)
        return self.netG

    def predict(self, x: Tensor, dates: Tensor | None = None) -> NIG:
        """Predict the clear image; shapes and units as of `Reconstructor.forward`."""
        prediction: NIG = self.netG(x, dates)
        return scale(prediction, self.scale_by)

    def find_padding(self, x: Tensor) -> Tensor:
        """Mask (B, T) of the padded dates of x (B, T, C, H, W) in [0, 1]."""
        expert = self.fusion.experts[0]
        assert isinstance(expert, Reconstructor)
        return expert.find_padding(x)
