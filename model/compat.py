"""Parameter names of earlier checkpoints."""

import re
from collections.abc import Mapping

from torch import Tensor

_BACKBONE = r"^((?:netG\.)?(?:experts\.\d+\.netG\.)*)"  # prefix of a backbone, which may be an expert of fusion_net
_NUMBERED_BLOCK = re.compile(_BACKBONE + r"(in|out)_block([1-9]\d*)\.")  # the oldest published ones
_CONV3D_MAMBA = {  # attributes of the first edition
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
_FUSION_NET = {  # buffers of the first edition
    "a": "recalibration_intercept",
    "c": "recalibration_slope",
    "dof": "recalibration_dof",
    "low": "recalibration_low",
    "high": "recalibration_high",
    "correlation": "error_correlation",
    "mse": "expert_mse",
    "convex": "convex_weights",
    "tau": "variance_factor",
    "better": "better_expert",
    "choice": "variance_source",
    "gate.centre": "gate.feature_mean",
    "gate.spread": "gate.feature_std",
}
_BUFFER = re.compile(_BACKBONE + rf"({'|'.join(map(re.escape, _FUSION_NET))})$")


# prefixes of DataParallel and DistributedDataParallel, of the backbone, and of torch.compile
_WRAPPERS = re.compile(r"^(?:(?:module|netG|_orig_mod)\.)+|(?<![^.])_orig_mod\.")


def strip_wrappers(key: str) -> str:
    """Name of a weight within the backbone, without the prefixes of wrappers: `netG.module.a` becomes `a`."""
    return _WRAPPERS.sub("", key)


def rename_key(key: str) -> str:
    """Current name of a parameter or buffer, given its name in any checkpoint; `in_block1.` becomes `in_block.0.`."""
    key = _NUMBERED_BLOCK.sub(lambda match: f"{match[1]}{match[2]}_block.{int(match[3]) - 1}.", key)
    key = _ATTRIBUTE.sub(lambda match: f"{match[1]}{_CONV3D_MAMBA[match[2]]}.", key)
    return _BUFFER.sub(lambda match: match[1] + _FUSION_NET[match[2]], key)


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by their current names."""
    return {rename_key(key): value for key, value in state.items()}
