"""Published UnCRtainTS runs: what their conf.json and checkpoints mean to us."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from config.schema import ModelConfig
from data.constants import N_S2
from parse_args import read_conf as read_flags

_OLD_BLOCK = re.compile(r"^((?:netG\.)?(?:in|out)_block)([1-9]\d*)\.")


def read_conf(path: str | Path) -> ModelConfig:
    """The flags of a network from a conf.json, ours or a published one.

    Raises:
        DataError: if the file cannot be read, is not JSON, or holds no configuration.
    """
    return from_conf(read_flags(path), str(path))


def from_conf(conf: Mapping[str, Any], source: str = "conf.json") -> ModelConfig:
    """Our flags from those of a run.

    A published configuration has no `head`: it is Gaussian for GNLL and MGNLL, else the mean. Its `out_conv` counts the
    variances, as does ours; either way the head decides.

    Raises:
        DataError: if a value is of another kind.
    """
    if conf.get("head"):
        return ModelConfig.from_conf(conf, source)
    gaussian = conf.get("loss", "MGNLL") in ("GNLL", "MGNLL")
    config = ModelConfig.from_conf({**conf, "head": "gaussian" if gaussian else "mean"}, source)
    return as_published(replace(config, covmode="uni" if config.loss == "GNLL" else config.covmode))


def as_published(config: ModelConfig) -> ModelConfig:
    """What the published network did, whatever its flags said: `uncrtaints` never read two of them (known issue 17)."""
    padding = "reflect" if config.model == "uncrtaints" else config.padding_mode
    return replace(config, low_res_size=32, padding_mode=padding, out_conv=(*config.out_conv[:-1], N_S2))


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under today's names: the oldest checkpoints say `in_block1.` where later ones say `in_block.0.`."""
    return {
        _OLD_BLOCK.sub(lambda found: f"{found[1]}.{int(found[2]) - 1}.", key): value for key, value in state.items()
    }
