"""The guard at work: scores of every expert and rule on images that nothing was fitted on, and the verdicts."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data.constants import N_S2, S2_BANDS
from evaluation.calibration import CalibrationMeter, calibration_figures
from model.fusion.acceptance import STANDARD_ERRORS, Array, Gain, Row, Verdict, choose_clusters, clustered_gain
from model.fusion.beliefs import Experts, by_band
from model.fusion.fit import PIXELS, set_spread
from model.fusion.network import FUSED, OWN, RECALIBRATED, FusionNet
from model.fusion.rules import usable_rules
from model.fusion.statistics import ErrorGram, Pixels, WeightSkill, pick
from model.predictions import NIG
from model.registry import FUSION_RULES
from model.student_t import student_t_nll

VARIANCES = ("own", "recalibrated", "fused")  # by OWN, RECALIBRATED, FUSED
FINEST = 64  # pixels across on which experts' likelihoods are taken; of larger images every second, fourth, ... pixel


class Judge:
    """Takes in images batch by batch, then decides.

    Args:
        net: a fusion whose numbers are fitted; its verdicts are set by `verdict`.
        names: of the experts.
        n_images: about how many images will come.
    """

    def __init__(self, net: FusionNet, names: tuple[str, ...], n_images: int = 64) -> None:
        self.net, self.names = net, names
        self.rules = [rule for rule in usable_rules(len(names)) if rule != "best"]
        self.rois: list[str] = []
        self.patches: list[str] = []
        self.rmse: dict[str, list[float]] = {}
        self.nll: dict[tuple[str, int], list[float]] = {}  # by expert and variance
        self.meters: dict[tuple[str, int], CalibrationMeter] = {}
        self.pixels: dict[str, list[Pixels]] = {}  # of rules, without tau, and of recalibrated experts
        self.skill = {rule: WeightSkill() for rule in self.rules}
        self.gram = ErrorGram(len(names), N_S2)
        self.each, self.rng = max(PIXELS // max(n_images, 1), 1), torch.Generator().manual_seed(n_images)

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
        coarse, coarse_target = experts.map(lambda field: field[..., ::step, ::step]), target[..., ::step, ::step]
        places = torch.stack([self._draw(target.shape[-2] * target.shape[-1]) for _ in rois]).to(target.device)
        few, few_target = experts.map(lambda field: pick(field, places)), pick(target, places)
        for index in range(len(self.names)):
            self._note_rmse(_expert(index), experts.mean[index], target)
            for choice in (OWN, RECALIBRATED):
                self._note_belief((_expert(index), choice), net.of_expert(coarse, index, choice), coarse_target)
            self._note_pixels(_expert(index), net.of_expert(few, index, RECALIBRATED), few_target)
        for rule in self.rules:
            fused = net.apply_rule(rule, experts)
            self._note_rmse(rule, fused.belief.delta, target)
            self._note_pixels(rule, fused.belief.map(lambda field: pick(field, places)), few_target, net.tau_of(rule))
            if len(self.names) == 2:
                self.skill[rule].add(fused.weights[0][..., ::step, ::step], coarse.mean - coarse_target)

    def _draw(self, n_pixels: int) -> Tensor:
        return torch.randperm(n_pixels, generator=self.rng)[: self.each]

    def _note_pixels(self, name: str, belief: NIG, target: Tensor, tau: Tensor | None = None) -> None:
        variance = belief.total if tau is None else belief.total / by_band(tau)
        fields = (target - belief.delta, variance, 2 * belief.alpha.expand_as(variance))
        rows = (field[:, 0, :, 0].movedim(1, 0).flatten(1).cpu() for field in fields)  # (C, B n)
        self.pixels.setdefault(name, []).append(Pixels(*rows))

    def _note_rmse(self, name: str, mean: Tensor, target: Tensor) -> None:
        errors = (mean - target).square().flatten(1).double().mean(1).sqrt()
        self.rmse.setdefault(name, []).extend(errors.tolist())

    def _note_belief(self, key: tuple[str, int], belief: NIG, target: Tensor) -> None:
        likelihood = belief.nll(target)
        self.nll.setdefault(key, []).extend(likelihood.flatten(1).double().mean(1).tolist())
        meter = self.meters.setdefault(key, CalibrationMeter())
        meter.add(target - belief.delta, belief.total, likelihood, 2 * belief.alpha)

    def set_spreads(self, net: FusionNet) -> None:
        """Fit tau and the tails of every rule, by errors on images whose fit had not seen them.

        On its own images a fit makes smaller errors than elsewhere, and the variance that suits them is too small.
        """
        for rule in self.rules:
            if rule != "monig":  # it has the variance that its sum gives
                found = Pixels.join(self.pixels[rule])
                set_spread(net, rule, found.error, found.variance)

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
        fallback = min((RECALIBRATED, OWN), key=lambda choice: np.mean(self.nll[_expert(better), choice]))
        net.better.fill_(better)
        net.choice.fill_(fallback)
        net.accepted.fill_(False)
        level = float(errors[better].mean())
        self.set_spreads(net)
        rows = [
            self._expert_row(index, name, level, fallback if index == better else OWN)
            for index, name in enumerate(self.names)
        ]
        notes = [remark] if remark else []
        for rule in self.rules:
            gain = clustered_gain(errors[better], _array(self.rmse[rule]), clusters)
            # patches taken for regions overstate every certainty: there the full 2.5 are asked for
            accepted = gain.outweighs(lead) if kind == "region" else gain.accepted
            if accepted:
                net.accepted[FUSION_RULES.index(rule)] = True
                if not gain.accepted and rule == net.rule:
                    notes.append(
                        f"{rule} gains {gain.units:.1f} standard errors, fewer than {STANDARD_ERRORS}, but "
                        f"{self.names[better]} leads by {lead:.1f} only: falling back on it is the greater risk"
                    )
            rows.append(self._rule_row(rule, better, gain, accepted, level))
        chosen = FUSION_RULES.index(net.rule)
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
        """The row of a rule; the likelier of two variances of an accepted one is chosen, and the network told."""
        found, other = Pixels.join(self.pixels[rule]), Pixels.join(self.pixels[_expert(better)])
        tau = self.net.tau_of(rule)
        if tau is not None:
            dof = self.net.fused_dof[FUSION_RULES.index(rule)].to(found.error)[:, None].expand_as(found.error)
            found = Pixels(found.error, found.variance * tau.to(found.error)[:, None], dof)
        variance = FUSED
        if accepted:
            if _likelihood(replace(other, error=found.error)).mean() < _likelihood(found).mean():
                found, variance = replace(other, error=found.error), RECALIBRATED
            self.net.choice[FUSION_RULES.index(rule)] = variance
        meter = CalibrationMeter()
        meter.add(found.error, found.variance, _likelihood(found), found.dof)
        auc = self.skill[rule].auc if len(self.names) == 2 else math.nan
        row = self._row(rule, rule, level, meter, VARIANCES[variance])
        return replace(row, auc=auc, gain=gain, accepted=accepted)

    def answer_rmse(self) -> Array:
        """RMSE of each image as the network answers after the verdict, (N,)."""
        accepted = not self.net.guarded or bool(self.net.accepted[FUSION_RULES.index(self.net.rule)])
        name = self.net.rule if accepted and self.net.rule != "best" else _expert(int(self.net.better))
        return _array(self.rmse[name])

    def _expert_row(self, index: int, name: str, level: float, choice: int) -> Row:
        return self._row(_expert(index), name, level, self.meters[_expert(index), choice], VARIANCES[choice])

    def _row(self, key: str, name: str, level: float, meter: CalibrationMeter, variance: str) -> Row:
        rmse = float(_array(self.rmse[key]).mean())
        figures = calibration_figures(meter.sums())
        ratio = rmse / level if level else math.nan
        return Row(name, rmse, ratio, figures["NLL"], figures["ENCE"], figures["coverage 90"], variance=variance)

    def _relation(self) -> tuple[float, float, tuple[str, ...]]:
        """V1/V2 of the first two experts (at most 1), their correlation, bands in which no constant weight helps."""
        mse, rho = self.gram.overall()
        of_bands, correlation = self.gram.mse, self.gram.correlation[0, 1]
        largest = np.maximum(of_bands[:2].max(0), 1e-30)
        hopeless = correlation >= np.sqrt(of_bands[:2].min(0) / largest)
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


def _likelihood(found: Pixels) -> Tensor:
    """Negative log-likelihoods, (C, N)."""
    return student_t_nll(found.error, (found.dof - 2) * found.variance, found.dof / 2)
