"""The fused network: frozen experts, what was fitted about them, and the rule that makes one belief of theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.constants import N_S2
from model.fusion.beliefs import Experts, by_band, epistemic_share, fused_mean, fused_variance, stack
from model.fusion.gate import Gate
from model.fusion.recalibration import LARGEST_DOF, Recalibration
from model.fusion.rules import (
    check_rule,
    correlated_weights,
    equal_weights,
    evidence_weights,
    inverse_variance_weights,
    one_expert,
    summed_belief,
)
from model.nig import nig_from_moments, scale
from model.predictions import NIG
from model.reconstructor import Reconstructor
from model.registry import FUSION_RULES

OWN, RECALIBRATED, FUSED = range(3)  # whose variance a fusion answers with: see `FusionNet.choice`


@dataclass(frozen=True, eq=False)
class Fused:
    """What a rule makes of the experts, before the guard: fields (B, 1, C, H, W), reflectance.

    Attributes:
        weights: (K, B, 1, C, H, W).
        belief: with the rule's own variance.
    """

    weights: Tensor
    belief: NIG


class FusionNet(nn.Module):
    """Experts that predict each for itself, and one belief made of theirs.

    Every number that was fitted is a buffer, so that a checkpoint is complete. Each rule has its own verdict of the
    guard: where its mean was not accepted, the better expert answers.

    Args:
        experts: networks with a variance, in the order of the weights; frozen, and in eval mode for good.
        rule: one of `FUSION_RULES`.
        guarded: whether the verdicts count; else the rule's own mean and variance are given.

    Raises:
        UsageError: if the rule is unknown or cannot fuse so many experts.
    """

    a: Tensor
    c: Tensor
    dof: Tensor
    low: Tensor
    high: Tensor
    correlation: Tensor
    mse: Tensor
    convex: Tensor
    tau: Tensor
    fused_dof: Tensor
    better: Tensor
    accepted: Tensor
    choice: Tensor
    fitted: Tensor

    def __init__(self, experts: Sequence[Reconstructor], rule: str, guarded: bool = True) -> None:
        super().__init__()
        check_rule(rule, len(experts))
        self.rule, self.guarded = rule, guarded
        self.joint = False  # whether the experts train too
        self.answers: list[Any] = []  # while they do: what they just said, in their own scaled units
        self.experts = nn.ModuleList(experts).requires_grad_(False).eval()
        k = len(experts)
        self.gate = Gate(k, N_S2)
        numbers = {
            "a": torch.zeros(k, N_S2),  # recalibration of each expert: ln V' = a + c ln V
            "c": torch.ones(k, N_S2),
            "dof": torch.full((k, N_S2), LARGEST_DOF),
            "low": torch.full((k, N_S2), -torch.inf),  # the range of ln V in which the line holds
            "high": torch.full((k, N_S2), torch.inf),
            "correlation": torch.eye(k)[:, :, None].repeat(1, 1, N_S2),  # of the experts' errors
            "mse": torch.ones(k, N_S2),  # of each expert on the fit split, reflectance squared
            "convex": torch.full((k, N_S2), 1 / k),
            "tau": torch.ones(len(FUSION_RULES), N_S2),  # factor on the variance of each rule, and its tails
            "fused_dof": torch.full((len(FUSION_RULES), N_S2), LARGEST_DOF),
            "better": torch.tensor(0),  # the expert that answers where a rule was not accepted
            "accepted": torch.zeros(len(FUSION_RULES), dtype=torch.bool),
            "choice": torch.full((len(FUSION_RULES),), OWN),  # whose variance: OWN, RECALIBRATED or FUSED
            "fitted": torch.tensor(False),
        }
        for name, start in numbers.items():
            self.register_buffer(name, start)

    def train(self, mode: bool = True) -> "FusionNet":
        """Train the gate; the experts stay in eval mode unless all train together."""
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
        return self.fuse(self.consult(x, dates))

    def consult(self, x: Tensor, dates: Tensor | None = None) -> Experts:
        """What each expert says by itself, bit by bit as it would alone."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.joint):
            answers: list[Any] = [expert(x, dates) for expert in self.experts]
            self.answers = answers if self.joint else []
            own = [answer.unscaled(expert.scale_by) for answer, expert in zip(answers, self.experts, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            return stack(own, self.dof)

    @property
    def recalibration(self) -> Recalibration:
        """The lines and tails fitted to the experts."""
        return Recalibration(self.a, self.c, self.dof, self.low, self.high)

    def fuse(self, experts: Experts) -> NIG:
        """One belief of several, as the rule and the verdict of the guard say."""
        with torch.autocast(experts.mean.device.type, enabled=False):
            number = FUSION_RULES.index(self.rule)
            if not self.guarded or self.joint:
                return self.apply_rule(self.rule, experts).belief
            choice, better = int(self.choice[number]), int(self.better)
            if not self.accepted[number]:
                return self.of_expert(experts, better, choice)
            fused = self.apply_rule(self.rule, experts)
            return fused.belief if choice == FUSED else self.with_variance_of(fused, experts, better, choice)

    def of_expert(self, experts: Experts, index: int, choice: int) -> NIG:
        """The belief of one expert: its mean and epistemic share, variance and tails as they came or recalibrated."""
        if choice == OWN:
            return experts.belief(index)
        variance = self.recalibration.apply(experts.variance)[index]
        share = 1 / (1 + experts.gamma[index])
        return nig_from_moments(experts.mean[index], variance, share, by_band(self.dof[index] / 2))

    def with_variance_of(self, fused: Fused, experts: Experts, index: int, choice: int) -> NIG:
        """The fused mean with the variance and tails of one expert, as they came or recalibrated."""
        belief = self.of_expert(experts, index, choice)
        return nig_from_moments(fused.belief.delta, belief.total, 1 / (1 + fused.belief.gamma), belief.alpha)

    def apply_rule(self, rule: str, experts: Experts) -> Fused:
        """What a rule makes of the experts, whatever the guard thought of it.

        Args:
            rule: one of `FUSION_RULES`.
            experts: their own beliefs.

        Returns:
            The weights, and a belief with the rule's first two moments: mean sum w_k d_k, and tau exp(offset) times the
            variance of a weighted mean of correlated errors; tau and tails as fitted. `monig` has its own variance.
        """
        number = FUSION_RULES.index(rule)
        if rule == "monig":
            return Fused(evidence_weights(experts), summed_belief(experts))
        if rule == "best":
            index = int(self.better)
            return Fused(one_expert(index, experts.mean), self.of_expert(experts, index, RECALIBRATED))
        weights, mean, variance = self.moments(rule, experts.mean, experts.variance)
        share = epistemic_share(weights, experts.mean, self.recalibration.apply(experts.variance))
        return Fused(weights, nig_from_moments(mean, variance, share, by_band(self.fused_dof[number] / 2)))

    def moments(self, rule: str, means: Tensor, stated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, mean and variance of a rule that weighs recalibrated beliefs.

        Args:
            rule: gated, convex, ivw, ivw_rho or average.
            means: (K, B, 1, C, H, W), reflectance.
            stated: variances as the experts state them, same shape.

        Returns:
            Weights of that shape; mean and variance without the first dimension.
        """
        variances = self.recalibration.apply(stated)
        weights, offset = self.weigh(rule, means, variances)
        variance = by_band(self.tau[FUSION_RULES.index(rule)]) * fused_variance(weights, variances, self.correlation)
        return weights, fused_mean(weights, means), variance if offset is None else variance * offset.exp()

    def tau_of(self, rule: str) -> Tensor | None:
        """The factor on the variance of a rule, (C,); None for `monig`, which has its own variance."""
        return None if rule == "monig" else self.tau[FUSION_RULES.index(rule)]

    def weigh(self, rule: str, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights of a rule that weighs recalibrated beliefs, and the gate's offset of the variance.

        Args:
            rule: gated, convex, ivw, ivw_rho or average.
            means: (K, B, 1, C, H, W), reflectance.
            variances: recalibrated, same shape.
        """
        if rule == "gated":
            return self.gate(means, variances, self.convex)
        weights = {
            "average": lambda: equal_weights(means),
            "convex": lambda: by_band(self.convex, means).expand_as(means),
            "ivw": lambda: inverse_variance_weights(variances),
            "ivw_rho": lambda: correlated_weights(variances, self.correlation[0, 1]),
        }
        return weights[rule](), None


class FusionReconstructor(Reconstructor):
    """A fusion in the place of a backbone. Its experts have scales of their own, so only the fused belief is scaled."""

    def forward(self, x: Tensor, dates: Tensor | None = None) -> NIG:
        """Predict the clear image; shapes and units as of `Reconstructor.forward`."""
        belief: NIG = self.netG(x, dates)
        return scale(belief, self.scale_by)
