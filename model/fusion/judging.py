"""The guard at work: scores of every expert and rule on images that nothing was fitted on, and the verdicts."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data.constants import N_S2, S2_BANDS
from model.defaults import RULES
from model.fusion.beliefs import Experts
from model.fusion.guard import STANDARD_ERRORS, Array, Gain, Row, Verdict, choose_clusters, clustered_gain
from model.fusion.network import FUSED, OWN, RECALIBRATED, Fused, FusionNet
from model.fusion.rules import usable_rules
from model.fusion.statistics import ErrorGram, WeightSkill
from model.predictions import NIG
from util.calibration import CalibrationMeter, calibration_figures

VARIANCES = ("own", "recalibrated", "fused")  # by OWN, RECALIBRATED, FUSED
FINEST = 64  # pixels across on which likelihoods are taken; of larger images every second, fourth, ... pixel


class Judge:
    """Takes in images batch by batch, then decides.

    Args:
        net: a fusion whose numbers are fitted; its verdicts are set by `verdict`.
        names: of the experts.
    """

    def __init__(self, net: FusionNet, names: tuple[str, ...]) -> None:
        self.net, self.names = net, names
        self.rules = [rule for rule in usable_rules(len(names)) if rule != "best"]
        self.rois: list[str] = []
        self.patches: list[str] = []
        self.rmse: dict[str, list[float]] = {}
        self.nll: dict[tuple[str, str], list[float]] = {}  # by expert or rule, and variance
        self.meters: dict[tuple[str, str], CalibrationMeter] = {}
        self.skill = {rule: WeightSkill() for rule in self.rules}
        self.gram = ErrorGram(len(names), N_S2)

    @torch.no_grad()
    def add(
        self, experts: Experts, target: Tensor, rois: list[str], patches: list[str], fitted: FusionNet | None = None
    ) -> None:
        """Take in a batch.

        Args:
            experts: fields (K, B, 1, C, H, W), reflectance.
            target: (B, 1, C, H, W), reflectance.
            rois: the region of each image.
            patches: its patch.
            fitted: the fusion whose numbers were not fitted on these images; the judged one itself if not given.
        """
        net = fitted or self.net
        self.rois += rois
        self.patches += patches
        self.gram.add(experts.mean, target)
        step = max(min(target.shape[-2:]) // FINEST, 1)
        few = _thin(experts, step)
        few_target = target[..., ::step, ::step]
        for index in range(len(self.names)):
            self._note_rmse(_expert(index), experts.mean[index], target)
            for choice in (OWN, RECALIBRATED):
                belief = net.of_expert(few, index, choice)
                self._note_belief((_expert(index), VARIANCES[choice]), belief, few_target)
        for rule in self.rules:
            fused = net.apply_rule(rule, experts)
            self._note_rmse(rule, fused.belief.delta, target)
            thin = Fused(fused.weights[..., ::step, ::step], fused.belief.map(lambda t: t[..., ::step, ::step]))
            self._note_belief((rule, VARIANCES[FUSED]), thin.belief, few_target)
            for index in range(len(self.names)):  # which of them is the better one is known at the end
                belief = net.with_variance_of(thin, few, index, RECALIBRATED)
                self._note_belief((rule, _expert(index)), belief, few_target)
            if len(self.names) == 2:
                self.skill[rule].add(thin.weights[0], few.mean - few_target)

    def _note_rmse(self, name: str, mean: Tensor, target: Tensor) -> None:
        errors = (mean - target).square().flatten(1).double().mean(1).sqrt()
        self.rmse.setdefault(name, []).extend(errors.tolist())

    def _note_belief(self, key: tuple[str, str], belief: NIG, target: Tensor) -> None:
        likelihood = belief.nll(target)
        self.nll.setdefault(key, []).extend(likelihood.flatten(1).double().mean(1).tolist())
        meter = self.meters.setdefault(key, CalibrationMeter())
        meter.add(target - belief.delta, belief.total, likelihood, 2 * belief.alpha)

    def verdict(self) -> Verdict:
        """Decide about every rule and tell the network; what comes back is about the rule that it follows."""
        if not self.rois:
            return self._without_images()
        net = self.net
        clusters, kind, remark = choose_clusters(self.rois, self.patches)
        errors = [_array(self.rmse[_expert(index)]) for index in range(len(self.names))]
        better = int(np.argmin([error.mean() for error in errors]))
        others = [error for index, error in enumerate(errors) if index != better]
        lead = min((clustered_gain(error, errors[better], clusters).units for error in others), default=math.nan)
        fallback = min((RECALIBRATED, OWN), key=lambda choice: np.mean(self.nll[_expert(better), VARIANCES[choice]]))
        net.better.fill_(better)
        net.choice.fill_(fallback)
        net.accepted.fill_(False)
        level = float(errors[better].mean())
        rows = [
            self._row(_expert(index), name, level, (_expert(index), VARIANCES[fallback if index == better else OWN]))
            for index, name in enumerate(self.names)
        ]
        notes = [remark] if remark else []
        for rule in self.rules:
            gain = clustered_gain(errors[better], _array(self.rmse[rule]), clusters)
            # patches taken for regions overstate every certainty: there the full 2.5 are asked for
            accepted = gain.outweighs(lead) if kind == "region" else gain.accepted
            if accepted:
                net.accepted[RULES.index(rule)] = True
                if not gain.accepted and rule == net.rule:
                    notes.append(
                        f"{rule} gains {gain.units:.1f} standard errors, fewer than {STANDARD_ERRORS}, but "
                        f"{self.names[better]} leads by {lead:.1f} only: falling back on it is the greater risk"
                    )
            rows.append(self._rule_row(rule, better, gain, accepted, level))
        chosen = RULES.index(net.rule)
        r, rho, hopeless = self._relation()
        return Verdict(
            rule=net.rule,
            better=self.names[better],
            lead=lead,
            accepted=bool(net.accepted[chosen]),
            variance=VARIANCES[int(net.choice[chosen])],
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

    def _rule_row(self, rule: str, better: int, gain: Gain, accepted: bool, level: float) -> Row:
        """The row of a rule; the variance of an accepted one is chosen, and the network told."""
        key, variance = (rule, VARIANCES[FUSED]), FUSED
        if accepted:
            # tau and tails were fitted to the fused mean, so its own variance need not be better for certain
            if np.mean(self.nll[rule, _expert(better)]) < np.mean(self.nll[key]):
                key, variance = (rule, _expert(better)), RECALIBRATED
            self.net.choice[RULES.index(rule)] = variance
        auc = self.skill[rule].auc if len(self.names) == 2 else math.nan
        row = self._row(rule, rule, level, key)
        return replace(row, auc=auc, gain=gain, variance=VARIANCES[variance], accepted=accepted)

    def answer_rmse(self) -> Array:
        """RMSE of each image as the network answers after the verdict, (N,)."""
        accepted = not self.net.guarded or bool(self.net.accepted[RULES.index(self.net.rule)])
        name = self.net.rule if accepted and self.net.rule != "best" else _expert(int(self.net.better))
        return _array(self.rmse[name])

    def _row(self, key: str, name: str, level: float, belief: tuple[str, str]) -> Row:
        rmse = float(_array(self.rmse[key]).mean())
        figures = calibration_figures(self.meters[belief].sums())
        likelihood = float(_array(self.nll[belief]).mean())
        variance = belief[1] if belief[1] in VARIANCES else VARIANCES[RECALIBRATED]
        ratio = rmse / level if level else math.nan
        return Row(name, rmse, ratio, likelihood, figures["ENCE"], figures["coverage 90"], variance=variance)

    def _relation(self) -> tuple[float, float, tuple[str, ...]]:
        """V1/V2 of the first two experts (at most 1), their correlation, bands in which no constant weight helps."""
        mse, rho = self.gram.overall()
        by_band, correlation = self.gram.mse, self.gram.correlation[0, 1]
        largest = np.maximum(by_band[:2].max(0), 1e-30)
        hopeless = correlation >= np.sqrt(by_band[:2].min(0) / largest)
        r = float(mse[:2].min() / max(mse[:2].max(), 1e-30))
        return r, float(rho[0, 1]), tuple(band for band, lost in zip(S2_BANDS, hopeless, strict=True) if lost)

    def _without_images(self) -> Verdict:
        """Nothing to judge by: the expert that was better on the fit split answers as it is."""
        net = self.net
        net.better.fill_(int(net.mse.mean(1).argmin()))
        net.accepted.fill_(False)
        net.choice.fill_(OWN)
        note = "there are no images to judge by beside those of the fit: no fusion can be accepted"
        name = self.names[int(net.better)]
        unknown = (math.nan, math.nan, ())
        return Verdict(
            net.rule, name, math.nan, False, VARIANCES[OWN], self.names, "patch", 0, 0, *unknown, (), (note,)
        )


def _expert(index: int) -> str:
    return f"expert {index}"


def _array(values: list[float]) -> Array:
    return np.asarray(values, np.float64)


def _thin(experts: Experts, step: int) -> Experts:
    fields = (experts.mean, experts.variance, experts.gamma, experts.alpha)
    return Experts(*(field[..., ::step, ::step] for field in fields))
