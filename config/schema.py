"""What a network and its loss are built from: the flags that bear on them, with the defaults of the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from common.errors import DataError
from data.constants import N_S2


@dataclass(frozen=True)
class ModelConfig:
    """Flags by name; what each means is said by `train_reconstruct.py --help`."""

    model: str = "uncrtaints"
    head: str = "nig"
    encoder_widths: tuple[int, ...] = (128,)
    decoder_widths: tuple[int, ...] = (128, 128, 128, 128, 128)
    out_conv: tuple[int, ...] = (N_S2,)  # the last number becomes what the head needs
    mean_nonLinearity: bool = True
    var_nonLinearity: str = "softplus"
    agg_mode: str = "att_group"
    encoder_norm: str = "group"
    decoder_norm: str = "batch"
    block_type: str = "mbconv"
    padding_mode: str = "reflect"
    pad_value: float = 0.0
    n_head: int = 16
    d_model: int = 256
    d_k: int = 4
    positional_encoding: bool = True
    low_res_size: int = 32
    use_v: bool = False
    separate_out: bool = False
    covmode: str = "diag"
    scale_by: float = 1.0
    use_sar: bool = False
    pretrain: bool = False
    loss: str = "MGNLL"
    weight_reg: float = 0.05
    evidence_reg: str = "prior"
    legacy: bool = False
    compile: bool = False
    ssm_backend: str = "auto"
    fusion: str = "gated"
    unguarded: bool = False
    expert_configs: tuple[Any, ...] = ()  # of fusion_net: name, run and flags of each expert

    @classmethod
    def of(cls, config: Any) -> "ModelConfig":
        """Those of another object, such as the scripts' `Config`; it must have all of them."""
        return (
            config if isinstance(config, cls) else cls(**{f.name: _tuple(getattr(config, f.name)) for f in fields(cls)})
        )

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any], source: str = "conf.json") -> "ModelConfig":
        """Those that a conf.json holds, ours or a published one; flags that it lacks take their default.

        Args:
            conf: flags by name.
            source: where they come from, for the error.

        Raises:
            DataError: if a flag that bears on the network has a value of another kind.
        """
        found = {f.name: _tuple(conf[f.name]) for f in fields(cls) if f.name in conf}
        defaults = cls()
        for name, value in found.items():
            expected = type(getattr(defaults, name))
            fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
            if not fits or (expected is int and isinstance(value, bool)):
                raise DataError(f"{source}: expected {expected.__name__} for {name!r}, got {value!r}")
            if name == "expert_configs":
                if not all(isinstance(v, dict) and {"name", "flags"} <= v.keys() for v in value):
                    raise DataError(f"{source}: expected name and flags of each expert for {name!r}, got {value!r}")
            elif expected is tuple and not (value and all(isinstance(v, int) and v > 0 for v in value)):
                raise DataError(f"{source}: expected positive whole numbers for {name!r}, got {list(value)!r}")
        return cls(**found)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
