"""From flags to a network, its loss and its optimiser."""

from dataclasses import replace

import torch
from torch import nn

from common.errors import UsageError
from config.schema import ModelConfig
from config.stored import model_config
from config.validation import check_loss
from model.fusion.network import FusionNet, FusionReconstructor
from model.layers.heads import build_head
from model.losses import LossFunction, get_loss
from model.ops import choose_backend
from model.reconstructor import Reconstructor
from model.registry import FUSION, WITH_SCAN, get_builder


def build_model(config: ModelConfig) -> Reconstructor:
    """The network that the flags describe, freshly initialised from torch's global generator.

    Raises:
        UsageError: if a flag's value is unknown, or widths and heads do not fit together.
    """
    config = ModelConfig.of(config)
    check_loss(config.loss, config.head)
    head = build_head(config.head, config.covmode, config.scale_by, config.mean_nonLinearity, config.var_nonLinearity)
    if config.model == FUSION:
        return FusionReconstructor(build_fusion(config), head, config)
    net = get_builder(config.model)(config, (*config.out_conv[:-1], head.channels))
    if config.legacy:
        net.apply(initialise_as_published)
    if net.last_conv is not None:  # last of all, so that nothing overwrites the initial uncertainties
        head.initialise(net.last_conv)
    if config.compile:
        net.compile()
    return Reconstructor(net, head, config)


def build_fusion(config: ModelConfig) -> FusionNet:
    """The fusion of freshly initialised experts that the flags describe; a checkpoint brings all weights.

    Raises:
        UsageError: if there are no experts.
    """
    if not config.expert_configs:
        raise UsageError("--model fusion_net without experts: name trained runs with --experts, or train it first")
    experts = []
    for entry in config.expert_configs:
        flags = model_config(entry["flags"], f"expert {entry['name']} of conf.json")
        experts.append(build_model(replace(flags, ssm_backend=config.ssm_backend, compile=config.compile)))
    return FusionNet(experts, config.fusion, guarded=not config.unguarded)


def initialise_as_published(layer: nn.Module) -> None:
    """Initialise the weights of one layer as UnCRtainTS does, for `--legacy` (known issue 18).

    Convolutions (transposed ones too) and linear layers: Xavier normal weights (1-D convolutions: standard normal),
    standard normal biases. Batch norms: standard normal weights, zero biases. Group norms and the attention's queries
    keep torch's initialisation.
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


def describe_scan(config: ModelConfig, device: torch.device) -> str:
    """The backend of the selective scan and the reason, for the log; empty for networks without one.

    Raises:
        UsageError: if the backend `config.ssm_backend` cannot run on the device.
    """
    if config.model not in WITH_SCAN:
        return ""
    name, reason = choose_backend(config.ssm_backend, device)
    return f", selective scan {name} ({reason})"


def build_loss(config: ModelConfig) -> LossFunction:
    """The loss that the flags name: (prediction, target), both in scaled units, to a scalar.

    Raises:
        UsageError: if the name is unknown, or the head lacks what it needs.
    """
    check_loss(config.loss, config.head)
    return get_loss(config.loss, weight_reg=config.weight_reg, evidence_reg=config.evidence_reg, legacy=config.legacy)


def build_optimizer(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam over all parameters in one group, in the order of published checkpoints."""
    return torch.optim.Adam(model.parameters(), lr=lr)


def build_scheduler(optimizer: torch.optim.Optimizer, gamma: float) -> torch.optim.lr_scheduler.ExponentialLR:
    """Multiplies the learning rate by `gamma` after each epoch."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=gamma)
