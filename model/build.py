"""From flags to a network, its loss and its optimiser; `Reconstructor` is the one place that applies scale_by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from config.defaults import WITH_SCAN
from config.schema import ModelConfig
from model import registry
from model.layers.heads import Head, build_head
from model.losses import check_loss, get_loss
from model.nig import scale
from model.ops import choose_backend
from model.predictions import NIG, Prediction


class Reconstructor(nn.Module):
    """A backbone and a head: clouded series in, prediction out.

    The head has no parameters, so the keys of the state are those of published checkpoints, `netG.` before each.

    Args:
        net: the backbone, (x, dates) to raw channels (B, 1, K, H, W).
        head: reads the channels.
        config: the flags both were built from.
    """

    def __init__(self, net: nn.Module, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.netG = net
        self.head = head
        self.config = config
        self.scale_by = float(config.scale_by)

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Prediction:
        """Predict the clear image.

        Args:
            x: (B, T, C, H, W) in [0, 1]; radar (VV, VH) first if the network takes it, then the 13 bands.
            dates: (B, T), days; None for a network of single images.

        Returns:
            Fields (B, 1, 13, H, W) in scaled units, that is multiplied by `scale_by`; float32 under any autocast.

        Raises:
            ValueError: if a shape is not what the network was built for.
        """
        if getattr(self.netG, "gives_reflectance", False):  # a fusion: each expert has a scale of its own
            belief: NIG = self.netG(x, dates)
            return scale(belief, self.scale_by)
        raw = self.netG(x * self.scale_by, dates)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(raw)


def build_model(config: Any) -> Reconstructor:
    """The network that the flags describe, freshly initialised from torch's global generator.

    Args:
        config: has the attributes of `ModelConfig`.

    Raises:
        UsageError: if a flag's value is unknown, or widths and heads do not fit together.
    """
    config = ModelConfig.of(config)
    check_loss(config.loss, config.head)
    head = build_head(config.head, config.covmode, config.scale_by, config.mean_nonLinearity, config.var_nonLinearity)
    net = registry.get(config.model)(config, (*config.out_conv[:-1], head.channels))
    if config.legacy and config.model != "fusion_net":
        net.apply(initialise_as_published)
    last_conv = getattr(net, "last_conv", None)
    if last_conv is not None:  # last of all: nothing may overwrite the start of the uncertainties
        head.initialise(last_conv)
    if config.compile:
        net.compile()
    return Reconstructor(net, head, config)


def initialise_as_published(layer: nn.Module) -> None:
    """Draw the weights of one layer as UnCRtainTS does, for `--legacy` (known issue 18).

    Convolutions (transposed ones too) and linear layers: Xavier normal weights (1-D convolutions: standard normal),
    standard normal biases. Batch norms: standard normal weights, zero biases. Group norms and the attention's queries
    keep their start.
    """
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        if isinstance(layer, nn.Conv1d):
            nn.init.normal_(layer.weight)
        else:
            nn.init.xavier_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.normal_(layer.bias)


def choose_scan(config: Any, device: torch.device) -> str:
    """What will compute the selective scan and why, in words for the log; empty for networks without one.

    Raises:
        UsageError: if the backend asked for by `config.ssm_backend` cannot run on the device.
    """
    if config.model not in WITH_SCAN:
        return ""
    name, reason = choose_backend(config.ssm_backend, device)
    return f", selective scan {name} ({reason})"


def build_loss(config: Any) -> Callable[[Prediction, Tensor], Tensor]:
    """The loss that the flags name: (prediction, target), both in scaled units, to a scalar.

    Raises:
        UsageError: if the name is unknown, or the head lacks what it needs.
    """
    config = ModelConfig.of(config)
    check_loss(config.loss, config.head)
    return get_loss(config.loss, weight_reg=config.weight_reg, evidence_reg=config.evidence_reg, legacy=config.legacy)


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Adam:
    """Adam over all parameters in one group, in the order of published checkpoints; `config.lr` is the rate."""
    return torch.optim.Adam(model.parameters(), lr=config.lr)


def build_scheduler(optimizer: torch.optim.Optimizer, config: Any) -> torch.optim.lr_scheduler.ExponentialLR:
    """Multiplies the rate by `config.gamma` after each epoch."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=config.gamma)
