"""How the gate of a fusion learns: its line by least squares, its convolutions by descent, for as long as helps."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.fusion.beliefs import by_band, fused_mean
from model.fusion.gate import gate_loss
from model.fusion.network import FusionNet
from model.fusion.statistics import Samples
from model.registry import FUSION_RULES

FOLDS = 3  # in so many ways regions are held back to choose the gate's epoch
GATE_BATCH = 8
LINE_RIDGE = 1e-3  # keeps the line where pixels do not say where it should be


@dataclass(frozen=True)
class FitSettings:
    """How the gate trains: epochs over its windows, the rate at the start, the seed of all that is drawn."""

    epochs: int = 30
    lr: float = 3e-3
    seed: int = 1


@dataclass(frozen=True)
class GateRow:
    """One epoch of the gate: its loss in training, and on what was held back."""

    epoch: int
    train_loss: float
    held_back_loss: float


def fit_line(net: FusionNet, pixels: Samples, device: torch.device) -> None:
    """Fit the gate's straight line by least squares on single pixels.

    Few numbers, because regions are few: one slope, and one shift for each expert, drawn towards those of `ivw`. A
    slope and shifts for each band fitted the regions that they saw, and no others.

    Args:
        net: its gate is changed in place.
        pixels: what the experts said.
        device: where to compute.
    """
    gate = net.gate
    gate.incline(net.convex)
    level = gate.shift.detach().clone()
    mean, variance, target = pixels.take(torch.arange(len(pixels)), device)
    variance = net.recalibration.apply(variance)
    lift = torch.zeros(gate.n_experts, device=device)
    free = [gate.slope.requires_grad_(True), lift.requires_grad_(True)]
    gate.shift.requires_grad_(False)
    optimizer = torch.optim.LBFGS(free, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights = torch.softmax(gate.line(variance, net.convex) + by_band(lift[:, None], mean), dim=0)
        squared = (fused_mean(weights, mean) - target).square()[..., 0, 0] / net.mse.amin(0)
        loss = squared.mean() + LINE_RIDGE * ((gate.slope - 1).square() + lift.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    gate.slope.requires_grad_(False)
    gate.shift.copy_(level + lift.detach()[:, None])


def train_gate(
    net: FusionNet, windows: Samples, rois: list[str], settings: FitSettings, device: torch.device
) -> list[GateRow]:
    """Train the gate on windows of the fit split, for as many epochs as help regions that it was not trained on.

    A gate is trained on two thirds of the regions and judged on the others, three times over; the best epoch of their
    mean, 0 included, is how long the gate that is kept trains on all of them.

    Args:
        net: its gate is changed in place, from wherever its line stands.
        windows: what the experts said.
        rois: the region of each image.
        settings: epochs, rate and seed.
        device: where to compute.

    Returns:
        A row for each epoch, mean over the three; the first, 0, is before training. Empty where there is one image.
    """
    number, convex = FUSION_RULES.index("gated"), FUSION_RULES.index("convex")
    net.tau[number], net.fused_dof[number] = net.tau[convex], net.fused_dof[convex]
    every = torch.arange(len(windows))
    sample = torch.randperm(len(windows), generator=torch.Generator().manual_seed(settings.seed))[:64]
    net.gate.net.requires_grad_(True)
    net.gate.standardise([_features(net, windows, part, device) for part in sample.split(GATE_BATCH)])
    start = copy.deepcopy(net.gate.state_dict())
    parts = folds(windows.group, rois)
    curves: list[list[GateRow]] = []
    with tqdm(total=settings.epochs * (len(parts) + 1), desc="gate", unit="epoch", dynamic_ncols=True) as bar:
        for held in parts:
            net.gate.load_state_dict(start)
            curves.append(_run(net, windows, every[~held], every[held], settings, settings.epochs, device, bar))
        rows = [
            GateRow(at[0].epoch, _mean([row.train_loss for row in at]), _mean([row.held_back_loss for row in at]))
            for at in zip(*curves, strict=True)
        ]
        net.gate.load_state_dict(start)
        best = best_epoch(rows)
        if best:
            _run(net, windows, every, every[:0], settings, best, device, bar)
        bar.total = bar.n
    net.gate.requires_grad_(False).eval()
    return rows


def _run(
    net: FusionNet,
    windows: Samples,
    train: Tensor,
    held: Tensor,
    settings: FitSettings,
    epochs: int,
    device: torch.device,
    bar: "tqdm[Any]",
) -> list[GateRow]:
    """Train the gate on some windows for the first of the epochs; measure the others before and after each."""
    rng = torch.Generator().manual_seed(settings.seed)
    size = min(max(len(train) // GATE_BATCH, 1), GATE_BATCH)  # few windows: small batches, or too few steps
    optimizer = torch.optim.AdamW(net.gate.net.parameters(), lr=settings.lr)
    steps = settings.epochs * -(-len(train) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    @torch.no_grad()
    def measure(which: Tensor) -> float:
        parts = which.split(GATE_BATCH) if len(which) else ()
        return sum(float(_loss(net, windows, part, device)) * len(part) for part in parts) / max(len(which), 1)

    rows = [GateRow(0, measure(train), measure(held))] if len(held) else []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for part in train[torch.randperm(len(train), generator=rng)].split(size):
            loss = _loss(net, windows, part, device, turn=int(torch.randint(8, (), generator=rng)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.gate.net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(part)
        bar.update()
        if len(held):
            rows.append(GateRow(epoch, total / len(train), measure(held)))
    return rows


def best_epoch(rows: list[GateRow]) -> int:
    """How many epochs helped regions that were held back; 0 without rows."""
    return min(rows, key=lambda row: row.held_back_loss).epoch if rows else 0


def folds(group: Tensor, rois: list[str]) -> list[Tensor]:
    """Three ways to hold some regions back (two of two); images where there is one region only.

    Args:
        group: (N,), the image of each window or pixel.
        rois: the region of each image.

    Returns:
        (N,) bool each, True where held back; none where there is one image only.
    """
    names = sorted(set(rois))
    kinds = [names.index(roi) for roi in rois] if len(names) > 1 else list(range(len(rois)))
    present = sorted({kinds[image] for image in group.tolist()})
    n_folds = min(FOLDS, len(present))
    if n_folds < 2:
        return []
    fold = torch.tensor([present.index(kind) % n_folds if kind in present else 0 for kind in kinds])[group]
    return [fold == number for number in range(n_folds)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _features(net: FusionNet, windows: Samples, which: Tensor, device: torch.device) -> Tensor:
    mean, variance, _ = windows.take(which, device)
    return net.gate.features(mean, net.recalibration.apply(variance))


def _loss(net: FusionNet, windows: Samples, which: Tensor, device: torch.device, turn: int = 0) -> Tensor:
    mean, variance, target = windows.take(which, device, turn)
    _, delta, spread = net.moments("gated", mean, variance)
    number = FUSION_RULES.index("gated")
    return gate_loss(delta, spread, target, net.mse.amin(0), net.fused_dof[number])
