"""How a fusion of trained experts is settled: fitted, judged by the guard, and fitted again on all that it may see."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from data.batch import Batch
from data.holdout import FitSplit
from data.loaders import Loaders, PatchLoader
from model.fusion.acceptance import Verdict
from model.fusion.beliefs import Experts
from model.fusion.fit import Gathering, fit
from model.fusion.gate_training import FitSettings, GateRow, best_epoch
from model.fusion.judging import Judge
from model.fusion.network import FusionNet
from model.reconstructor import Reconstructor
from model.runtime import Compute, autocast
from parse_args import Config

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

ENOUGH_ROIS = 10  # to judge by; with fewer, regions of the fit judge too


def fit_and_judge(
    model: Reconstructor,
    split: FitSplit,
    loaders: Loaders,
    config: Config,
    compute: Compute,
    log: "SummaryWriter | None",
) -> tuple[Reconstructor, Verdict, list[GateRow]]:
    """Fit the fusion of frozen experts and hear the guard; with `--loss fusion` train all together and hear it again.

    Returns:
        The network that the guard prefers, its verdict, and the epochs of its gate.
    """
    judge, verdict, rows = settle(model, split, config, compute)
    if log is not None:
        for row in rows:
            log.add_scalar("fusion/gate, training", row.train_loss, row.epoch)
            log.add_scalar("fusion/gate, held back", row.held_back_loss, row.epoch)
    if config.loss != "fusion":
        return model, verdict, rows
    from model.fusion.joint import prefer_joint, train_jointly

    together = train_jointly(model, loaders, config, compute, log)
    other, second, again = settle(together, split, config, compute)
    accepted, note = prefer_joint(judge, other)
    if accepted:
        return together, replace(second, notes=(*second.notes, note)), again
    return model, replace(verdict, notes=(*verdict.notes, note)), rows


def settle(
    model: Reconstructor, split: FitSplit, config: Config, compute: Compute
) -> tuple[Judge, Verdict, list[GateRow]]:
    """Fit a fusion, let the guard decide about it, and fit it once more on all images that no expert trained on.

    Five regions differ so much that a gain of 15 % of the error can hide behind them. With few regions to judge by,
    fitting and judging are exchanged: those of the fit are judged too, by a second fit on the guard's images, so that
    no image is judged by numbers that were fitted on its region. The verdict is about fits on a part of the images; the
    fit that stays has them all, and the variances of ten regions hold elsewhere better than those of five. The factor
    on the fused variance and its tails come from the guard, whose errors are those on images that a fit had not seen.

    Returns:
        The guard with all that it has seen, its verdict, and the epochs of the gate that stays.
    """
    net = fusion_of(model)
    names = tuple(entry["name"] for entry in config.expert_configs)
    settings = FitSettings(config.fusion_epochs, config.fusion_lr, config.rdm_seed)
    judge = Judge(net, names, sum(len(loader.patches) for loader in (split.fit, split.guard) if loader))
    gathered = gather(net, split.fit, "fit", config, compute)
    rows = fit(net, gathered, settings, compute.device)
    guard = None if split.guard is None else gather(net, split.guard, "guard", config, compute, judge)
    notes: tuple[str, ...] = ()
    if guard is not None and guard.rois and len(set(guard.rois)) < ENOUGH_ROIS:
        other = copy.deepcopy(net)
        fit(other, guard, settings, compute.device)
        show(judge, other, split.fit, "guard, crosswise", compute)
        notes += ("fitting and judging changed places: each half of these images is judged by a fit on the other",)
    verdict = judge.verdict()
    if guard is not None and guard.rois:
        gathered = gathered.with_those_of(guard)
        rows = fit(net, gathered, settings, compute.device)
        judge.set_spreads(net)
        notes += (f"after the verdict all numbers were fitted again, on {len(gathered.rois)} images, these among them",)
    if config.fusion == "gated":
        print(f"gate: {best_epoch(rows)} of {config.fusion_epochs} epochs help held-back regions")
    net.eval()
    return judge, replace(verdict, notes=(*verdict.notes, *notes)), rows


def fusion_of(model: Reconstructor) -> FusionNet:
    """The fusion inside, ready to be asked."""
    net = model.eval().get_submodule("netG")
    assert isinstance(net, FusionNet)
    return net


def gather(
    net: FusionNet, loader: PatchLoader, title: str, config: Config, compute: Compute, judge: Judge | None = None
) -> Gathering:
    """Ask the experts about a loader's images, and keep what a fit needs; a judge that is given sees them too."""
    gathered = Gathering(len(net.experts), len(loader.patches), config.rdm_seed)
    for batch, experts in _asking(net, loader, title, compute):
        gathered.add(experts, batch)
        if judge is not None:
            _show(judge, net, experts, batch)
    return gathered


def show(judge: Judge, fitted: FusionNet, loader: PatchLoader, title: str, compute: Compute) -> None:
    """Show the guard a loader's images, fused with the numbers of `fitted`."""
    for batch, experts in _asking(fitted, loader, title, compute):
        _show(judge, fitted, experts, batch)


def _show(judge: Judge, fitted: FusionNet, experts: Experts, batch: Batch) -> None:
    rois, patches = [info.roi for info in batch.info], [info.patch for info in batch.info]
    judge.add(experts, batch.target, rois, patches, fitted)


@torch.no_grad()
def _asking(net: FusionNet, loader: PatchLoader, title: str, compute: Compute) -> Iterator[tuple[Batch, Experts]]:
    with tqdm(loader, total=len(loader), desc=title, unit="batch", dynamic_ncols=True) as bar:
        for cpu_batch in bar:
            if cpu_batch.n:
                batch = cpu_batch.to(compute.device, non_blocking=True)
                with autocast(compute.device, compute.dtype):
                    experts = net.consult(batch.x, batch.dates)
                yield batch, experts
