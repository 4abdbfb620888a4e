"""Joint training, `--loss fusion`: experts and gate together, from the fusion of frozen experts on."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.fusion.acceptance import choose_clusters, clustered_gain
from model.fusion.judging import Judge
from model.fusion.network import FusionNet
from model.losses.fusion import fusion_loss
from model.predictions import NIG, Prediction
from model.runtime import Compute
from training.engine import TrainState, train_one_epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from data.loaders import Loaders
    from model.reconstructor import Reconstructor
    from parse_args import Config

SLOWER = 10  # the experts are trained: their rate is a tenth of the flag's


def train_jointly(
    model: "Reconstructor", loaders: "Loaders", config: "Config", compute: Compute, log: "SummaryWriter | None"
) -> "Reconstructor":
    """A copy of a fitted fusion whose experts and gate have trained together; the experts are frozen again.

    Args:
        model: the fusion of frozen experts, left as it is.
        loaders: `train` is used.
        config: `joint_epochs`, `lr`, `lambda1` (of conv3d_mamba), `lambda2` (of uncrtaints; other experts have 1).
        compute: device and precision.
        log: TensorBoard, or None.

    Raises:
        DataError: if the loss is not finite.
    """
    together = copy.deepcopy(model)
    net = together.get_submodule("netG")
    assert isinstance(net, FusionNet)
    models = [entry["flags"]["model"] for entry in config.expert_configs]
    weights = [{"conv3d_mamba": config.lambda1, "uncrtaints": config.lambda2}.get(name, 1.0) for name in models]
    scales = [float(entry["flags"]["scale_by"]) for entry in config.expert_configs]

    def criterion(prediction: Prediction, target: Tensor) -> Tensor:
        assert isinstance(prediction, NIG)
        terms = (scales, weights, target, together.scale_by, config.weight_reg, config.evidence_reg)
        return fusion_loss(prediction, net.answers, *terms)

    net.joint = True
    net.experts.requires_grad_(True)
    net.gate.requires_grad_(True)
    optimizer = torch.optim.Adam(together.parameters(), lr=config.lr / SLOWER)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=config.gamma)
    state = TrainState(together, optimizer, scheduler)
    for epoch in range(1, config.joint_epochs + 1):
        loaders.set_epoch(epoch)
        train_one_epoch(
            state,
            loaders.train,
            criterion,
            compute,
            steps=len(loaders.train),
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            display_step=config.display_step,
            log=log,
        )
        scheduler.step()
        state.epoch = epoch
    net.joint, net.answers = False, []
    together.requires_grad_(False)
    return together.eval()


def prefer_joint(frozen: Judge, joint: Judge) -> tuple[bool, str]:
    """Whether joint training made the answer better, by the guard's own measure.

    Args:
        frozen: of the fusion of frozen experts, its verdict given.
        joint: of the jointly trained one, on the same images.

    Returns:
        The decision, and a sentence with the gain.
    """
    if not frozen.rois:
        return False, "joint training is not kept: there are no images to judge it by"
    clusters, _, _ = choose_clusters(frozen.rois, frozen.patches)
    gain = clustered_gain(frozen.answer_rmse(), joint.answer_rmse(), clusters)
    kept = "kept" if gain.accepted else "not kept"
    measured = f"the RMSE of its answer is lower by {gain.mean:.6f}, standard error {gain.error:.6f}"
    return gain.accepted, f"joint training is {kept}: {measured}"
