"""Everything about a fusion that is fitted, in order: recalibration, constant weights, the gate, variance and tails."""

import copy

import torch
from torch import Tensor

from common.errors import DataError
from data.batch import Batch
from data.constants import N_S2
from model.fusion.beliefs import Experts
from model.fusion.gate_training import GATE_BATCH, FitSettings, GateRow, fit_line, train_gate
from model.fusion.network import FusionNet
from model.fusion.recalibration import fit_recalibration
from model.fusion.rules import convex_weights, usable_rules
from model.fusion.statistics import ErrorGram, Sampler, Samples
from model.registry import FUSION_RULES

PIXELS = 8192  # of each band, from which recalibrations are fitted
WINDOWS, WINDOW = 384, 64  # how many windows train the gate, and pixels across


class Gathering:
    """What is kept of the fit split while the experts predict it.

    Args:
        n_experts: K.
        n_images: that will come.
        seed: of the samples.
    """

    def __init__(self, n_experts: int, n_images: int, seed: int) -> None:
        self.gram = ErrorGram(n_experts, N_S2)
        self.pixels = Sampler(n_images, PIXELS, 1, seed)
        self.windows = Sampler(n_images, WINDOWS, WINDOW, seed)
        self.rois: list[str] = []

    @torch.no_grad()
    def add(self, experts: Experts, batch: Batch) -> None:
        """Take in a batch and what the experts say about it."""
        self.gram.add(experts.mean, batch.target)
        self.pixels.add(experts, batch.target)
        self.windows.add(experts, batch.target)
        self.rois += [info.roi for info in batch.info]

    def with_those_of(self, other: "Gathering") -> "Gathering":
        """What two splits gave, together; both are left as they are."""
        both = copy.copy(self)
        both.gram = self.gram + other.gram
        both.pixels, both.windows = self.pixels + other.pixels, self.windows + other.windows
        both.rois = self.rois + other.rois
        return both


def fit(net: FusionNet, gathered: Gathering, settings: FitSettings, device: torch.device) -> list[GateRow]:
    """Fit all numbers of a fusion but the verdicts of the guard, and train its gate.

    Args:
        net: changed in place.
        gathered: the fit split.
        settings: of the gate.
        device: where the gate trains.

    Returns:
        The epochs of the gate; none if the rule is not `gated`.

    Raises:
        DataError: if there was no image.
    """
    if not gathered.rois:
        raise DataError("no image of the fit split could be read; a fusion needs images that its experts did not see")
    pixels = gathered.pixels.samples()
    line = fit_recalibration(*_errors(pixels))
    for name, found in (
        ("a", line.a),
        ("c", line.c),
        ("dof", line.dof),
        ("low", line.low),
        ("high", line.high),
        ("mse", torch.from_numpy(gathered.gram.mse.copy())),
        ("correlation", torch.from_numpy(gathered.gram.correlation.copy())),
        ("convex", torch.from_numpy(convex_weights(gathered.gram.sums))),
    ):
        getattr(net, name).copy_(found)
    for rule in usable_rules(len(net.experts)):
        if rule not in ("gated", "monig", "best"):
            _fit_spread(net, rule, pixels, device)
    rows: list[GateRow] = []
    if net.rule == "gated":
        windows = gathered.windows.samples()
        fit_line(net, pixels, device)
        rows = train_gate(net, windows, gathered.rois, settings, device)
        _fit_spread(net, "gated", windows, device)
    net.fitted.fill_(True)
    return rows


@torch.no_grad()
def _fit_spread(net: FusionNet, rule: str, samples: Samples, device: torch.device) -> None:
    """Fit tau and the tails of a rule in each band, on at most `PIXELS` pixels of the samples."""
    number = FUSION_RULES.index(rule)
    net.tau[number] = 1.0
    errors: list[Tensor] = []
    variances: list[Tensor] = []
    each = max(PIXELS // len(samples), 1)
    rng = torch.Generator().manual_seed(number)
    for part in torch.arange(len(samples)).split(GATE_BATCH if rule == "gated" else PIXELS):
        mean, variance, target = samples.take(part, device)
        _, delta, spread = net.moments(rule, mean, variance)
        n_pixels = target.shape[-1] * target.shape[-2]
        picked = torch.randperm(n_pixels, generator=rng)[:each].to(device)
        for store, field in ((errors, target - delta), (variances, spread)):
            store.append(field.flatten(2)[..., picked].movedim(1, 0).flatten(1).cpu())  # (C, pixels)
    set_spread(net, rule, torch.cat(errors, 1), torch.cat(variances, 1))


def set_spread(net: FusionNet, rule: str, errors: Tensor, variances: Tensor) -> None:
    """Fit tau and the tails of a rule to errors (C, N) of its mean and to the variances that it states without tau."""
    found = fit_recalibration(variances, errors, slope=False)
    number = FUSION_RULES.index(rule)
    net.tau[number], net.fused_dof[number] = found.a.exp().to(net.tau), found.dof.to(net.tau)


def _errors(pixels: Samples) -> tuple[Tensor, Tensor]:
    """Variances and errors (K, C, N) of single pixels."""
    error = pixels.target[:, None] - pixels.mean  # (N, K, C, 1, 1)
    variance, error = (field.movedim(0, -1).flatten(2) for field in (pixels.variance, error))
    return variance, error
