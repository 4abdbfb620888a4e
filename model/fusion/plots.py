"""Pictures of the gate at work on a few samples."""

from typing import TYPE_CHECKING

import torch

from common.run_folder import RunFolder
from data.datasets.patch_reader import EmptySplitError
from data.loaders import build_loader, rois_of
from evaluation.images import plot_gate
from model.fusion.network import FusionNet
from model.runtime import Compute, autocast

if TYPE_CHECKING:
    from model.reconstructor import Reconstructor
    from parse_args import Config

MOST = 3  # samples, each of another region


@torch.no_grad()
def show_gate(model: "Reconstructor", config: "Config", folder: RunFolder, compute: Compute) -> None:
    """Write `plot_gate_N.png`: weights of the rule beside the errors of two experts, for the first test regions.

    Args:
        model: a fusion; of more than two experts no picture is drawn.
        config: its flags.
        folder: where to.
        compute: device and precision.
    """
    net = model.get_submodule("netG")
    assert isinstance(net, FusionNet)
    names = [entry["name"] for entry in config.expert_configs]
    if len(names) != 2:
        return
    try:
        rois = rois_of(config, "test", "all")
    except EmptySplitError:
        return
    chosen = {rois.index(roi) for roi in list(dict.fromkeys(rois))[:MOST]}
    loader = build_loader(config, "test", lambda index, _: index in chosen, "all")
    number = 0
    for cpu_batch in loader:
        batch = cpu_batch.to(compute.device)
        with autocast(compute.device, compute.dtype):
            experts = net.consult(batch.x, batch.dates)
        fused = net.apply_rule(net.rule, experts)
        for item in range(batch.n):
            number += 1
            info = batch.info[item]
            means = {name: experts.mean[index, item] for index, name in enumerate(names)}
            title = f"{config.experiment_name}, rule {net.rule}: {info.roi}, patch {info.patch}"
            path = folder.path / f"plot_gate_{number}.png"
            plot_gate(path, batch.target[item], means, fused.belief.delta[item], fused.weights[0, item], title)
