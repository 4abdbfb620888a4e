"""fusion_net: trained experts and a fusion of their beliefs; see `model.fusion`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from common.errors import UsageError
from model.fusion.network import FusionNet
from model.registry import register

if TYPE_CHECKING:
    from config.schema import ModelConfig


@register("fusion_net")
def build_fusion_net(config: "ModelConfig", out_widths: Sequence[int]) -> FusionNet:
    """The fusion that a run's flags describe, its experts freshly initialised: a checkpoint brings all weights.

    Args:
        config: `expert_configs` holds the flags of each expert.
        out_widths: not read; experts have last layers of their own.

    Raises:
        UsageError: if there are no experts.
    """
    from config.schema import ModelConfig
    from model.build import build_model  # here, because build finds this builder

    if not config.expert_configs:
        raise UsageError("--model fusion_net without experts: name trained runs with --experts, or train it first")
    experts = []
    for entry in config.expert_configs:
        flags = ModelConfig.from_conf(entry["flags"], f"expert {entry['name']} of conf.json")
        experts.append(build_model(replace(flags, ssm_backend=config.ssm_backend, compile=config.compile)))
    return FusionNet(experts, config.fusion, guarded=not config.unguarded)
