"""The names that flags choose from, and where each backbone is built. Imports neither torch nor a backbone."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from common.errors import UsageError

BACKBONES = {  # name -> module:function, called with (config, widths of the last layers)
    "uncrtaints": "model.backbones.uncrtaints:Uncrtaints",
    "conv3d_mamba": "model.backbones.conv3d_mamba:Conv3dMamba",
    "utae": "model.backbones.utae:build_utae",
    "unet": "model.backbones.unet:UNet",
}
FUSION = "fusion_net"  # no backbone: a fusion of trained networks, see model.fusion
MODELS = (*BACKBONES, FUSION)
EXPERTS = ("uncrtaints", "conv3d_mamba")  # of a fusion that trains its own
WITH_SCAN = ("conv3d_mamba", FUSION)  # models that --ssm_backend applies to

HEADS = ("nig", "gaussian", "mean")
LOSS_HEADS = {  # loss -> the heads that it trains
    "l1": ("mean",),
    "l2": ("mean",),
    "GNLL": ("gaussian", "nig"),
    "MGNLL": ("gaussian", "nig"),
    "NIG": ("nig",),
    "fusion": ("nig",),
}
LOSSES = tuple(LOSS_HEADS)
EVIDENCE_REGULARISERS = ("prior", "amini", "meinert", "none")
FUSION_RULES = ("gated", "convex", "ivw", "ivw_rho", "average", "monig", "best")  # order of buffers in checkpoints

NORMS = ("group", "batch", "instance", "none")
BLOCKS = ("mbconv", "residual")
PADDING_MODES = ("reflect", "zeros", "replicate", "circular")
AGGREGATIONS = ("att_group", "att_mean", "mean")
COVARIANCES = ("diag", "iso", "uni")
VARIANCE_ACTIVATIONS = ("softplus", "relu", "elu")
SCAN_BACKENDS = ("torch", "triton", "mamba_ssm")


def get_builder(name: str) -> Callable[..., Any]:
    """The function that builds the backbone `name` from (config, widths of the last layers).

    Raises:
        UsageError: if there is none; the message lists the names.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; choose --model {', '.join(MODELS)}")
    module, function = BACKBONES[name].split(":")
    builder: Callable[..., Any] = getattr(import_module(module), function)
    return builder
