"""One pass over the test split with a fitted fusion: every expert, every rule and the guarded answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from common.progress import progress_bar
from common.run_folder import RunFolder
from config.resolve import resolve_test
from data.constants import N_S2
from data.loaders import build_test_loader
from evaluation.accumulator import EvaluatedBatch
from evaluation.split_metrics import SplitMetrics
from model.fusion.network import OWN, RECALIBRATED, FusionNet
from model.fusion.rules import usable_rules
from model.fusion.stacked import StackedPredictions
from model.fusion.statistics import ErrorGram, WeightAUC
from model.predictions import NIG
from model.restore import restore_model
from model.runtime import autocast, choose_device, choose_precision, seed_everything
from parse_args import parse

GUARDED = "guarded"  # the row of the fusion's output
PER_IMAGE = ("RMSE", "SSIM")  # kept for each image, together with NLL


def recalibrated(expert: str) -> str:
    """The row of an expert with its recalibrated variance."""
    return f"{expert}, recalibrated"


class Scores:
    """Accumulates the scores of experts, rules and the guarded answer, all from the same expert predictions.

    Args:
        net: a fitted fusion.
        names: of the experts.
    """

    def __init__(self, net: FusionNet, names: Sequence[str]) -> None:
        self.net, self.names = net, tuple(names)
        self.rules = usable_rules(len(names))
        self.metrics: dict[str, SplitMetrics] = {}
        self.nll: dict[str, list[float]] = {}
        self.rois: list[str] = []
        self.gram = ErrorGram(len(names), N_S2)
        self.auc = {rule: WeightAUC() for rule in self.rules if rule != "best"}

    @torch.no_grad()
    def update(self, experts: StackedPredictions, target: Tensor, masks: Tensor | None, rois: Sequence[str]) -> None:
        """Take a batch into account.

        Args:
            experts: fields (K, B, 1, C, H, W), reflectance.
            target: (B, 1, C, H, W), reflectance.
            masks: (B, T, H, W), of the inputs.
            rois: the region of each image.
        """
        self.gram.update(experts.mean, target)
        for name, prediction, weights in self.answers(experts):
            batch = EvaluatedBatch(target, prediction, masks, first=len(self.rois))
            self.metrics.setdefault(name, SplitMetrics()).update(batch)
            nll = prediction.nll(target).flatten(1).double().mean(1)
            self.nll.setdefault(name, []).extend(nll.tolist())
            if weights is not None and len(self.names) == 2 and name in self.auc:
                self.auc[name].update(weights[0], experts.mean - target)
        self.rois += rois

    def answers(self, experts: StackedPredictions) -> Iterator[tuple[str, NIG, Tensor | None]]:
        """Name, prediction and (of rules) weights of each row: experts, recalibrated experts, rules, guarded answer."""
        for index, name in enumerate(self.names):
            yield name, self.net.recalibrate_expert(experts, index, OWN), None
        for index, name in enumerate(self.names):
            yield recalibrated(name), self.net.recalibrate_expert(experts, index, RECALIBRATED), None
        for rule in self.rules:
            fused = self.net.apply_rule(rule, experts)
            yield rule, fused.prediction, fused.weights
        yield GUARDED, self.net.fuse(experts), None

    def compute(self) -> dict[str, Any]:
        """All scores, ready for JSON.

        Returns:
            `experts`, `rules` (names), `rois` (of each image), `rows` (name -> `SplitMetrics.compute`), `per image`
            (name -> figure -> values), `r` (the smaller mean squared error of the first two experts over the larger),
            `rho` (correlation of their errors), `AUC` (rule -> how well its weight predicts which expert is nearer).
        """
        mse, correlation = self.gram.overall()
        return {
            "experts": list(self.names),
            "rules": list(self.rules),
            "rois": self.rois,
            "rows": {name: metrics.compute() for name, metrics in self.metrics.items()},
            "per image": {
                name: {key: [image[key] for image in metrics.per_image] for key in PER_IMAGE} | {"NLL": self.nll[name]}
                for name, metrics in self.metrics.items()
            },
            "r": float(mse[:2].min() / max(mse[:2].max(), 1e-30)),
            "rho": float(correlation[0, 1]),
            "AUC": {rule: auc.compute() for rule, auc in self.auc.items()},
        }


def score_run(words: Sequence[str]) -> dict[str, Any]:
    """Score a fusion on its test split.

    Args:
        words: arguments of its test script.

    Returns:
        The result of `Scores.compute`.

    Raises:
        DataError: if the run or the data cannot be read.
    """
    config, weights, _ = resolve_test(*parse("test", words))
    device = choose_device(config.device)
    dtype, _ = choose_precision(config.precision, device)
    seed_everything(config.rdm_seed)
    model, _ = restore_model(config, RunFolder(weights.parent, weights.name).best, device)
    net = model.eval().get_submodule("netG")
    assert isinstance(net, FusionNet)
    scores = Scores(net, [entry["name"] for entry in config.expert_configs])
    loader = build_test_loader(config)
    for cpu_batch in progress_bar(loader, len(loader), weights.name):
        if not cpu_batch.n:
            continue
        batch = cpu_batch.to(device, non_blocking=True)
        with torch.no_grad(), autocast(device, dtype):
            experts = net.predict_experts(batch.x, batch.dates)
        scores.update(experts, batch.target, batch.masks, [info.roi for info in batch.info])
    return scores.compute()
