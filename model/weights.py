"""Checkpoint files: atomic writes, reading without running code, strict loading with errors that name the flags."""

import io
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import DataError
from common.files import atomic_file
from model.compat import rename_key, rename_keys

_UNREADABLE = (  # what torch.load raises for a truncated or damaged file
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error),
)
PREFIX = "netG."  # of the backbone's parameters in a Reconstructor
FLAGS_OF = {  # flags that determine a parameter's shape, by the start of its name
    "in_conv": ("use_sar", "encoder_widths", "encoder_norm"),
    "in_block": ("encoder_widths", "encoder_norm", "block_type"),
    "temporal_encoder": ("pretrain", "n_head", "d_model", "d_k", "use_v", "encoder_widths"),
    "include_v": ("use_v",),
    "down_blocks": ("encoder_widths", "encoder_norm"),
    "up_blocks": ("decoder_widths", "decoder_norm"),
    "out_block": ("decoder_widths", "decoder_norm", "block_type"),
    "out_conv_": ("separate_out", "head", "covmode"),
    "out_conv.": ("head", "covmode", "out_conv", "separate_out"),
    **dict.fromkeys(("encoder", "refine"), ("encoder_widths", "encoder_norm", "block_type")),
    **dict.fromkeys(("stem", "radar"), ("use_sar", "encoder_widths", "encoder_norm")),
    **dict.fromkeys(("downsample", "temporal.", "clearness"), ("encoder_widths", "encoder_norm")),
    **dict.fromkeys(("skip.", "upsample"), ("encoder_widths", "decoder_widths", "use_sar")),
    "decoder": ("decoder_widths", "decoder_norm", "block_type"),
}


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; an existing one stays until the new one is complete.
        content: tensors and plain values only, so that reading it runs no code.

    Raises:
        DataError: if the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()  # torch's own writer hides the error of the disk
    torch.save(dict(content), buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, with current parameter names.

    Args:
        path: the file; only tensors and plain values are accepted from it.
        map_location: device of the tensors.

    Returns:
        The dict, with `state_dict_G` and `state_dict` in any case.

    Raises:
        DataError: if the file is missing, truncated, holds code, or is not a checkpoint.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"there is no checkpoint {path}; give the run's folder or one of its .pth.tar files") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is refused: it holds more than tensors and plain values and could run code, or it is not a "
            "checkpoint; copy it again from where it was trained"
        ) from error
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a checkpoint; is it complete? ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is not a checkpoint: expected a dict with 'state_dict', got a {type(content).__name__}"
        )
    state = content.get("state_dict_G") or _without_prefix(content.get("state_dict"))
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{path} is not a checkpoint: expected weights under 'state_dict', got {sorted(map(str, content))}"
        )
    if not isinstance(content.get("epoch", 0), int | None):
        raise DataError(f"{path} is not a checkpoint: expected a number under 'epoch', got {content['epoch']!r}")
    state = rename_keys(state)
    content |= {"state_dict_G": state, "state_dict": {PREFIX + key: value for key, value in state.items()}}
    if "frozen" in content:
        content["frozen"] = [rename_key(name) for name in content["frozen"]]
    return content


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by UnCRtainTS rather than by us."""
    return "version" not in content


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all weights of a network.

    Args:
        model: has the backbone as `netG`.
        state: weights by name, without `netG.`.
        source: their file, for the error.

    Raises:
        DataError: if a weight is missing, unexpected or of another shape; lists all, with the flags to check.
    """
    backbone = get_backbone(model)
    expected: dict[str, Tensor] = backbone.state_dict()
    missing = [f"{key} {_size(value)}" for key, value in expected.items() if key not in state]
    extra = [f"{key} {_size(value)}" for key, value in state.items() if key not in expected]
    misshapen = [
        f"{key} {_size(state[key])} instead of {_size(value)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or extra or misshapen:
        lists = {"missing": missing, "unexpected": extra, "of another shape": misshapen}
        mismatches = "; ".join(f"{title}: {', '.join(keys)}" for title, keys in lists.items() if keys)
        flags = ", ".join(f"--{flag}" for flag in _flags_of([*missing, *extra, *misshapen]))
        raise DataError(f"{source} is of another architecture than the flags describe; {mismatches}; check {flags}")
    backbone.load_state_dict(state)


def get_backbone(model: nn.Module) -> nn.Module:
    """The backbone of a `Reconstructor`."""
    return model.get_submodule("netG")


def _without_prefix(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return {str(key).removeprefix(PREFIX): value for key, value in state.items()}


def _flags_of(keys: list[str]) -> list[str]:
    flags = [flag for key in keys for start, flags in FLAGS_OF.items() if key.startswith(start) for flag in flags]
    return list(dict.fromkeys(["model", *flags]))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def first_line(error: BaseException) -> str:
    """First line of an error's message, 200 characters at most."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
