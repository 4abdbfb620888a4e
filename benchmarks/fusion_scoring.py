"""One pass over the test split with a fitted fusion: every expert, every rule and the guarded answer, side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.run_folder import RunFolder
from config.resolve import restore_config
from config.stored import read_conf
from data.constants import N_S2
from data.loaders import build_test_loader
from evaluation.metrics import EvaluationMeter
from model.fusion.beliefs import Experts
from model.fusion.network import OWN, RECALIBRATED, FusionNet
from model.fusion.rules import usable_rules
from model.fusion.statistics import ErrorGram, WeightSkill
from model.predictions import NIG
from model.restore import restore_model
from model.runtime import autocast, choose_device, choose_precision, seed_everything
from parse_args import parse

GUARDED = "guarded"  # the row of what the fusion answers
PER_IMAGE = ("RMSE", "SSIM")  # kept image by image, beside NLL


def recalibrated(expert: str) -> str:
    """The row of an expert with the variance that was fitted to it."""
    return f"{expert}, recalibrated"


class Scores:
    """Takes in what the experts say batch by batch, and applies everything to the same beliefs.

    Args:
        net: a fitted fusion.
        names: of the experts.
    """

    def __init__(self, net: FusionNet, names: Sequence[str]) -> None:
        self.net, self.names = net, tuple(names)
        self.rules = usable_rules(len(names))
        self.meters: dict[str, EvaluationMeter] = {}
        self.nll: dict[str, list[float]] = {}
        self.rois: list[str] = []
        self.gram = ErrorGram(len(names), N_S2)
        self.skill = {rule: WeightSkill() for rule in self.rules if rule != "best"}

    @torch.no_grad()
    def add(self, experts: Experts, target: Tensor, masks: Tensor | None, rois: Sequence[str]) -> None:
        """Take in a batch.

        Args:
            experts: fields (K, B, 1, C, H, W), reflectance.
            target: (B, 1, C, H, W), reflectance.
            masks: (B, T, H, W), of the inputs.
            rois: the region of each image.
        """
        self.rois += rois
        self.gram.add(experts.mean, target)
        for name, belief, weights in self.answers(experts):
            self.meters.setdefault(name, EvaluationMeter(has_variance=True)).add(target, belief, masks)
            likelihood = belief.nll(target).flatten(1).double().mean(1)
            self.nll.setdefault(name, []).extend(likelihood.tolist())
            if weights is not None and len(self.names) == 2 and name in self.skill:
                self.skill[name].add(weights[0], experts.mean - target)

    def answers(self, experts: Experts) -> Iterator[tuple[str, NIG, Tensor | None]]:
        """Each row's name, belief and, of rules, weights: experts, recalibrated experts, rules, the guarded answer."""
        for index, name in enumerate(self.names):
            yield name, self.net.of_expert(experts, index, OWN), None
        for index, name in enumerate(self.names):
            yield recalibrated(name), self.net.of_expert(experts, index, RECALIBRATED), None
        for rule in self.rules:
            fused = self.net.apply_rule(rule, experts)
            yield rule, fused.belief, fused.weights
        yield GUARDED, self.net.fuse(experts), None

    def report(self) -> dict[str, Any]:
        """Everything, ready for JSON.

        Returns:
            `experts`, `rules` (names), `rois` (of each image), `rows` (name -> what `EvaluationMeter.summary` gives),
            `per image` (name -> figure -> values), `r` (the smaller mean squared error of the first two experts over
            the larger), `rho` (correlation of their errors), `AUC` (rule -> how well its weight tells which expert is
            nearer).
        """
        mse, correlation = self.gram.overall()
        return {
            "experts": list(self.names),
            "rules": list(self.rules),
            "rois": self.rois,
            "rows": {name: meter.summary() for name, meter in self.meters.items()},
            "per image": {
                name: {key: [image[key] for image in meter.per_image] for key in PER_IMAGE} | {"NLL": self.nll[name]}
                for name, meter in self.meters.items()
            },
            "r": float(mse[:2].min() / max(mse[:2].max(), 1e-30)),
            "rho": float(correlation[0, 1]),
            "AUC": {rule: skill.auc for rule, skill in self.skill.items()},
        }


def score_run(words: Sequence[str]) -> dict[str, Any]:
    """Score a fusion on its test split.

    Args:
        words: what its test by the command line is told.

    Returns:
        What `Scores.report` gives.

    Raises:
        DataError: if the run or the data cannot be read.
    """
    values, typed = parse("test", words)
    folder = RunFolder(Path(values["weight_folder"]), values["experiment_name"])
    config, _ = restore_config(read_conf(folder.conf), values, typed, "test")
    device = choose_device(config.device)
    dtype, _ = choose_precision(config.precision, device)
    seed_everything(config.rdm_seed)
    model, _ = restore_model(config, folder.best, device)
    net = model.eval().get_submodule("netG")
    assert isinstance(net, FusionNet)
    scores = Scores(net, [entry["name"] for entry in config.expert_configs])
    loader = build_test_loader(config)
    for cpu_batch in tqdm(loader, total=len(loader), desc=folder.name, unit="batch", dynamic_ncols=True):
        if not cpu_batch.n:
            continue
        batch = cpu_batch.to(device, non_blocking=True)
        with torch.no_grad(), autocast(device, dtype):
            experts = net.consult(batch.x, batch.dates)
        scores.add(experts, batch.target, batch.masks, [info.roi for info in batch.info])
    return scores.report()
