"""Everything about a fusion that is fitted, in order: recalibration, constant weights, the gate, variance and tails."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batch import Batch
from data.constants import N_S2
from model.defaults import RULES
from model.fusion.beliefs import fused_mean, fused_variance
from model.fusion.gate import gate_loss
from model.fusion.network import FusionNet
from model.fusion.recalibration import fit_recalibration
from model.fusion.rules import convex_weights, usable_rules
from model.fusion.statistics import ErrorGram, Sampler, Samples
from util.errors import DataError

PIXELS = 8192  # of each band, from which recalibrations are fitted
WINDOWS, WINDOW = 512, 64  # how many windows train the gate, and pixels across
HELD_BACK = 5  # one in so many regions (or images) chooses the gate's epoch
GATE_BATCH = 8


@dataclass(frozen=True)
class FitSettings:
    """How the gate trains: epochs over its windows, the rate at the start, the seed of all that is drawn."""

    epochs: int = 30
    lr: float = 3e-3
    seed: int = 1


@dataclass(frozen=True)
class GateRow:
    """One epoch of the gate: its loss in training, and on what was held back (the same where nothing was)."""

    epoch: int
    train_loss: float
    held_back_loss: float


class Gathering:
    """What is kept of the fit split while the experts predict it.

    Args:
        net: the fusion; only its experts are asked.
        n_images: that will come.
        seed: of the samples.
    """

    def __init__(self, net: FusionNet, n_images: int, seed: int) -> None:
        self.gram = ErrorGram(len(net.experts), N_S2)
        self.pixels = Sampler(n_images, PIXELS, 1, seed)
        self.windows = Sampler(n_images, WINDOWS, WINDOW, seed)
        self.rois: list[str] = []
        self.net = net

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Ask the experts about a batch, on its device."""
        experts = self.net.consult(batch.x, batch.dates)
        self.gram.add(experts.mean, batch.target)
        self.pixels.add(experts, batch.target)
        self.windows.add(experts, batch.target)
        self.rois += [info.roi for info in batch.info]


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
        ("mse", torch.from_numpy(gathered.gram.mse.copy())),
        ("correlation", torch.from_numpy(gathered.gram.correlation.copy())),
        ("convex", torch.from_numpy(convex_weights(gathered.gram.sums))),
    ):
        getattr(net, name).copy_(found)
    net.better.fill_(int(net.mse.mean(1).argmin()))
    for rule in usable_rules(len(net.experts)):
        if rule not in ("gated", "monig", "best"):
            _fit_spread(net, rule, pixels, device)
    rows: list[GateRow] = []
    if net.rule == "gated":
        windows = gathered.windows.samples()
        rows = train_gate(net, windows, gathered.rois, settings, device)
        _fit_spread(net, "gated", windows, device)
    net.fitted.fill_(True)
    return rows


def train_gate(
    net: FusionNet, windows: Samples, rois: list[str], settings: FitSettings, device: torch.device
) -> list[GateRow]:
    """Train the gate on windows of the fit split and keep the epoch that is best on those held back.

    Args:
        net: its gate is changed in place, from wherever it stands.
        windows: what the experts said.
        rois: the region of each image.
        settings: epochs, rate and seed.
        device: where to compute.

    Returns:
        A row for each epoch; the first, 0, is before training.
    """
    rng = torch.Generator().manual_seed(settings.seed)
    number, convex = RULES.index("gated"), RULES.index("convex")
    net.tau[number], net.fused_dof[number] = net.tau[convex], net.fused_dof[convex]
    chooses = hold_back(windows.group, rois)
    train, held = (~chooses).nonzero().flatten(), chooses.nonzero().flatten()
    net.gate.requires_grad_(True).train()
    sample = train[torch.randperm(len(train), generator=rng)[:64]]
    net.gate.standardise([_features(net, windows, part, device) for part in sample.split(GATE_BATCH)])
    optimizer = torch.optim.AdamW(net.gate.parameters(), lr=settings.lr)
    steps = max(settings.epochs * -(-len(train) // GATE_BATCH), 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    @torch.no_grad()
    def measure(which: Tensor) -> float:
        parts = which.split(GATE_BATCH)
        return sum(float(_loss(net, windows, part, device)) * len(part) for part in parts) / len(which)

    judged = held if len(held) else train
    best, kept = measure(judged), copy.deepcopy(net.gate.state_dict())
    rows = [GateRow(0, measure(train), best)]
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        for part in train[torch.randperm(len(train), generator=rng)].split(GATE_BATCH):
            turn = int(torch.randint(8, (), generator=rng))
            loss = _loss(net, windows, part, device, turn)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.gate.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(part)
        rows.append(GateRow(epoch, total / len(train), measure(judged)))
        if rows[-1].held_back_loss < best:
            best, kept = rows[-1].held_back_loss, copy.deepcopy(net.gate.state_dict())
    net.gate.load_state_dict(kept)
    net.gate.requires_grad_(False).eval()
    return rows


def hold_back(group: Tensor, rois: list[str]) -> Tensor:
    """Which windows choose the epoch: those of every fifth region; of every fifth image where regions are few.

    Args:
        group: (N,), the image of each window.
        rois: the region of each image.

    Returns:
        (N,) bool; all False where there are fewer than three regions and fewer than five images.
    """
    names = sorted(set(rois))
    if len(names) >= 3:
        chosen = set(names[::HELD_BACK])
        images = torch.tensor([roi in chosen for roi in rois])
    else:
        images = torch.arange(len(rois)) % HELD_BACK == HELD_BACK - 1
    found = images[group]
    return found if 0 < int(found.sum()) < len(found) else torch.zeros_like(found)


def _take(windows: Samples, which: Tensor, device: torch.device, turn: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances (K, B, C, h, w) and targets (B, C, h, w) of some windows, turned and mirrored alike."""
    found = []
    for field in (windows.mean[which].transpose(0, 1), windows.variance[which].transpose(0, 1), windows.target[which]):
        moved = field.to(device)
        if turn >= 4:
            moved = moved.flip(-1)
        found.append(torch.rot90(moved, turn % 4, (-2, -1)))
    return found[0], found[1], found[2]


def _features(net: FusionNet, windows: Samples, which: Tensor, device: torch.device) -> Tensor:
    mean, variance, _ = _take(windows, which, device)
    return net.gate.features(mean, net.recalibration.apply(variance))


def _loss(net: FusionNet, windows: Samples, which: Tensor, device: torch.device, turn: int = 0) -> Tensor:
    mean, variance, target = _take(windows, which, device, turn)
    delta, spread = _moments(net, "gated", mean, variance)
    number = RULES.index("gated")
    return gate_loss(delta, spread, target, net.mse.amin(0), net.fused_dof[number])


def _moments(net: FusionNet, rule: str, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a rule, (B, C, h, w), from what the experts state, (K, B, C, h, w)."""
    recalibrated = net.recalibration.apply(variance)
    weights, offset = net.weigh(rule, mean, recalibrated)
    spread = net.tau[RULES.index(rule)][:, None, None] * fused_variance(weights, recalibrated, net.correlation)
    return fused_mean(weights, mean), spread if offset is None else spread * offset.exp()


@torch.no_grad()
def _fit_spread(net: FusionNet, rule: str, samples: Samples, device: torch.device) -> None:
    """Fit tau and the tails of a rule in each band, on at most `PIXELS` pixels of the samples."""
    number = RULES.index(rule)
    net.tau[number] = 1.0
    errors: list[Tensor] = []
    variances: list[Tensor] = []
    each = max(PIXELS // len(samples), 1)
    rng = torch.Generator().manual_seed(number)
    for part in torch.arange(len(samples)).split(GATE_BATCH if rule == "gated" else PIXELS):
        mean, variance, target = _take(samples, part, device)
        delta, spread = _moments(net, rule, mean, variance)
        n_pixels = target.shape[-1] * target.shape[-2]
        picked = torch.randperm(n_pixels, generator=rng)[:each].to(device)
        for store, field in ((errors, target - delta), (variances, spread)):
            store.append(field.flatten(2)[..., picked].movedim(1, 0).flatten(1).cpu())  # (C, pixels)
    found = fit_recalibration(torch.cat(variances, 1), torch.cat(errors, 1), slope=False)
    net.tau[number], net.fused_dof[number] = found.a.exp().to(device), found.dof.to(device)


def _errors(pixels: Samples) -> tuple[Tensor, Tensor]:
    """Variances and errors (K, C, N) of single pixels."""
    error = pixels.target[:, None] - pixels.mean  # (N, K, C, 1, 1)
    variance, error = (field.movedim(0, -1).flatten(2) for field in (pixels.variance, error))
    return variance, error
