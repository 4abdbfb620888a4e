"""Parameter names of earlier checkpoints."""

import re
from collections.abc import Mapping

from torch import Tensor

_BACKBONE = r"^((?:netG\.)?(?:experts\.\d+\.netG\.)?)"  # prefix of a backbone, which may be an expert of fusion_net
_NUMBERED_BLOCK = re.compile(_BACKBONE + r"(in|out)_block([1-9]\d*)\.")  # the oldest published ones
_CONV3D_MAMBA = {
    "look": "encoder",
    "look_around": "encoder3d",
    "remember": "temporal",
    "compare": "refine",
    "mend": "decoder",
    "grow": "upsample",
    "shrink": "downsample",
    "mosaic": "composite",
}
_ATTRIBUTE = re.compile(_BACKBONE + rf"({'|'.join(_CONV3D_MAMBA)})\.")


def rename_key(key: str) -> str:
    """Current name of a parameter or buffer, given its name in any checkpoint; `in_block1.` becomes `in_block.0.`."""
    key = _NUMBERED_BLOCK.sub(lambda match: f"{match[1]}{match[2]}_block.{int(match[3]) - 1}.", key)
    return _ATTRIBUTE.sub(lambda match: f"{match[1]}{_CONV3D_MAMBA[match[2]]}.", key)


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by their current names."""
    return {rename_key(key): value for key, value in state.items()}
