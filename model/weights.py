"""Checkpoint files: atomic writes, reading without running code, strict loading with errors that name the flags."""

import io
import pickle
import re
import reprlib
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import DataError, list_some
from common.files import atomic_file
from model.compat import rename_key, rename_keys, strip_wrappers

_UNREADABLE = (  # what torch.load raises for a truncated or damaged file
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error),
    *(AssertionError, OverflowError, MemoryError),
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
    _check_declared_size(path)
    torch.serialization.add_safe_globals(_numpy_numbers())
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"there is no checkpoint {path}; give the run's folder or one of its .pth.tar files") from error
    except pickle.UnpicklingError as error:
        offender = re.search(r"GLOBAL (\S{1,100})|got <class '(\S{1,100})'>", str(error))
        problem = (
            "more than tensors and plain values and could run code, or it is not a checkpoint; copy it again from "
            "where it was trained"
        )
        if offender:
            name = offender[1] or offender[2]
            problem = f"{name}, neither tensor nor plain value, which could run code; save it without that"
        raise DataError(f"{path} is refused: it holds {problem}") from error
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a checkpoint; is it complete? ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is not a checkpoint: expected a dict with 'state_dict', got a {type(content).__name__}"
        )
    stored = next((content[key] for key in ("state_dict_G", "state_dict") if _is_weights(content.get(key))), None)
    if stored is None:
        keys = list_some(sorted(repr(key) for key in content), limit=8)
        raise DataError(f"{path} is not a checkpoint: expected weights under 'state_dict', got [{keys}]")
    epoch = content.get("epoch")
    if epoch is not None and (not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 1e9):
        raise DataError(
            f"{path} is not a checkpoint: expected a number of epochs under 'epoch', got {reprlib.repr(epoch)}"
        )
    state = rename_keys({strip_wrappers(key): value for key, value in stored.items()})
    if len(state) < len(stored):
        raise DataError(f"{path} holds {len(stored) - len(state)} weights twice, with and without prefixes; remove one")
    content |= {"state_dict_G": state, "state_dict": {PREFIX + key: value for key, value in state.items()}}
    frozen = content.get("frozen")
    if isinstance(frozen, list) and all(isinstance(name, str) for name in frozen):
        content["frozen"] = [PREFIX + rename_key(strip_wrappers(name)) for name in frozen]
    return content


def _check_declared_size(path: Path) -> None:
    """Raise a `DataError` if the content takes more than the file: torch stores it uncompressed.

    A file of 3 MB can hold 3 GB of compressed zeros, which torch would read into memory at once.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is a pipe or a device; expected a checkpoint")
    try:
        with ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (*_UNREADABLE, BadZipFile):  # missing, damaged, or of the old format, which is no zip file
        return
    size = path.stat().st_size
    if declared > size:
        raise DataError(
            f"{path} is refused: it has {size} bytes and declares a content of {declared}, which is compressed, as no "
            "checkpoint is; save it again with torch.save"
        )


@cache
def _numpy_numbers() -> list[Any]:
    """What torch.load may call to read the numbers of numpy 1 and 2; it reads them as plain numbers."""

    def scalar(dtype: np.dtype[Any], content: bytes) -> bool | int | float:
        if dtype.kind not in "biuf":
            raise ValueError(f"a numpy scalar of type {dtype}")
        return np.ndarray((), dtype, content).item()

    def named(module: str) -> Callable[..., Any]:
        def reader(*arguments: Any) -> bool | int | float:
            return scalar(*arguments)

        reader.__module__, reader.__name__, reader.__qualname__ = module, "scalar", "scalar"
        return reader

    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [named("numpy.core.multiarray"), named("numpy._core.multiarray"), np.dtype, *dtypes]


def _is_weights(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
        and not any(value.is_nested for value in state.values())
    )


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
        DataError: if a weight is missing, unexpected or of another shape or kind; counts all and names some, with the
            flags to check.
    """
    backbone = get_backbone(model)
    expected: dict[str, Tensor] = backbone.state_dict()
    missing = [f"{key} {_size(value)}" for key, value in expected.items() if key not in state]
    extra = [f"{key} {_size(value)}" for key, value in state.items() if key not in expected]
    pairs = {key: (state[key], value) for key, value in expected.items() if key in state}
    misshapen = [
        f"{key} {_size(stored)} instead of {_size(value)}"
        for key, (stored, value) in pairs.items()
        if stored.shape != value.shape
    ]
    if missing or extra or misshapen:
        lists = {"missing": missing, "unexpected": extra, "of another shape": misshapen}
        mismatches = "; ".join(f"{len(keys)} {title}: {list_some(keys)}" for title, keys in lists.items() if keys)
        flags = ", ".join(f"--{flag}" for flag in _flags_of([*missing, *extra, *misshapen]))
        raise DataError(f"{source} is of another architecture than the flags describe; {mismatches}; check {flags}")
    other_kinds = [
        f"{key} {kind_of(stored)} instead of {kind_of(value)}"
        for key, (stored, value) in pairs.items()
        if kind_of(stored) != kind_of(value)
    ]
    if other_kinds:
        raise DataError(
            f"{source} holds {len(other_kinds)} weights of another kind: {list_some(other_kinds)}; "
            "take it from where it was trained"
        )
    backbone.load_state_dict(state)


def kind_of(weight: Tensor) -> str:
    """The kind of a weight's values; a cast between kinds would lose values, one between precisions does not."""
    if weight.is_meta or weight.layout != torch.strided:
        return "meta" if weight.is_meta else str(weight.layout).removeprefix("torch.")
    if weight.is_floating_point():
        return "floating-point"
    plain = weight.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return "integer" if plain else str(weight.dtype).removeprefix("torch.")


def get_backbone(model: nn.Module) -> nn.Module:
    """The backbone of a `Reconstructor`."""
    return model.get_submodule("netG")


def _flags_of(keys: list[str]) -> list[str]:
    flags = [flag for key in keys for start, flags in FLAGS_OF.items() if key.startswith(start) for flag in flags]
    return list(dict.fromkeys(["model", *flags]))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def first_line(error: BaseException) -> str:
    """First line of an error's message, 200 characters at most."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
