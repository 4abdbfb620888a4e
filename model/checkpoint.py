"""Checkpoints: written whole or not at all, read without running code, fitted strictly or refused by name and shape.

A checkpoint is a dict with the published keys `epoch`, `state_dict` (prefix `netG.`), `state_dict_G`, `optimizer_G`,
`scheduler_G`, and ours: `scaler`, `best_loss`, `frozen`, `trainlog`, `rng`, `config`, `version`. The order of the data
is not in it: it follows from the seed and the epoch.
"""

import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor, nn

from model.compat import rename_keys
from util.atomic import whole_file
from util.errors import DataError

if TYPE_CHECKING:
    from model.engine import TrainState

VERSION = 1  # of the layout above; published checkpoints have none
PREFIX = "netG."
FLAGS_OF = {  # where a mismatch comes from, by the start of a parameter's name
    "in_conv": ("use_sar", "encoder_widths", "encoder_norm"),
    "in_block": ("encoder_widths", "encoder_norm", "block_type"),
    "temporal_encoder": ("pretrain", "n_head", "d_model", "d_k", "use_v", "encoder_widths"),
    "include_v": ("use_v",),
    "down_blocks": ("encoder_widths", "encoder_norm"),
    "up_blocks": ("decoder_widths", "decoder_norm"),
    "out_block": ("decoder_widths", "decoder_norm", "block_type"),
    "out_conv_": ("separate_out", "head", "covmode"),
    "out_conv.": ("head", "covmode", "out_conv", "separate_out"),
}


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: the file; what stands there stays until the new one is complete.
        content: tensors and plain values only, so that it can be read back without running code.

    Raises:
        DataError: if the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()  # torch's own writer hides why the disk refused
    torch.save(dict(content), buffer)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, under today's parameter names.

    Args:
        path: the file; only tensors and plain values are accepted from it.
        map_location: where tensors go.

    Returns:
        The dict, with `state_dict_G` (and `state_dict`) present.

    Raises:
        DataError: if the file is missing, cut short, holds code, or is no checkpoint.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"there is no checkpoint {path}; give the run's folder or one of its .pth.tar files") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is refused: it holds more than tensors and plain values and could run code, or it is no "
            "checkpoint; take it from where it was trained"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a checkpoint; is it complete? ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no checkpoint: expected a dict with 'state_dict', got a {type(content).__name__}")
    state = content.get("state_dict_G") or _without_prefix(content.get("state_dict"))
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{path} is no checkpoint: expected weights under 'state_dict', found {sorted(map(str, content))}"
        )
    state = rename_keys(state)
    return {**content, "state_dict_G": state, "state_dict": {PREFIX + key: value for key, value in state.items()}}


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by UnCRtainTS rather than by us."""
    return "version" not in content


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Give a network all its weights.

    Args:
        model: has the backbone as `netG`.
        state: weights by name, without `netG.`.
        source: where they come from, for the error.

    Raises:
        DataError: if a weight is missing, superfluous or of another shape; all are listed, with the flags to look at.
    """
    expected: dict[str, Tensor] = _net(model).state_dict()
    missing = [f"{key} {_size(value)}" for key, value in expected.items() if key not in state]
    extra = [f"{key} {_size(value)}" for key, value in state.items() if key not in expected]
    shared = [key for key in expected if key in state]
    misshapen = [
        f"{key} {_size(state[key])} instead of {_size(expected[key])}"
        for key in shared
        if state[key].shape != expected[key].shape
    ]
    if missing or extra or misshapen:
        lists = {"missing": missing, "superfluous": extra, "of another shape": misshapen}
        what = "; ".join(f"{name}: {', '.join(found)}" for name, found in lists.items() if found)
        flags = ", ".join(f"--{flag}" for flag in _flags_of([*missing, *extra, *misshapen]))
        raise DataError(f"{source} is of another architecture than the flags describe; {what}; look at {flags}")
    _net(model).load_state_dict(state)


def load_weights(path: str | Path, model: nn.Module) -> int:
    """Give a network the weights of a checkpoint, strictly.

    Returns:
        The epoch after which it was written; 0 if it does not say.

    Raises:
        DataError: see `load_checkpoint` and `load_strictly`.
    """
    content = load_checkpoint(path)
    load_strictly(model, content["state_dict_G"], path)
    return int(content.get("epoch") or 0)


def save_state(path: str | Path, state: "TrainState", config: Any) -> None:
    """Write all that a training needs to go on as if nothing had happened.

    Args:
        path: the file.
        state: the training.
        config: its flags, with a method `to_json`.

    Raises:
        DataError: if the disk is full.
    """
    weights = _net(state.model).state_dict()
    content = {
        "epoch": state.epoch,
        "state_dict": {PREFIX + key: value for key, value in weights.items()},
        "state_dict_G": dict(weights),
        "optimizer_G": state.optimizer.state_dict(),
        "scheduler_G": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "best_loss": state.best_loss,
        "frozen": list(state.frozen),
        "trainlog": state.trainlog,
        "rng": random_states(),
        "config": config.to_json(),
        "version": VERSION,
    }
    save_checkpoint(path, content)


def resume(path: str | Path, state: "TrainState") -> None:
    """Put a training where a checkpoint stopped: weights, optimiser, rate, best loss, random states (TRAPS 10).

    Args:
        path: the checkpoint; a published one has no best loss and no random states, which then stay as they are.
        state: changed in place.

    Raises:
        DataError: if the checkpoint does not fit, or holds weights alone.
    """
    content = load_checkpoint(path)
    load_strictly(state.model, content["state_dict_G"], path)
    absent = [key for key in ("epoch", "optimizer_G", "scheduler_G") if key not in content]
    if absent:
        raise DataError(
            f"{path} has no {', '.join(absent)}: its weights can be started from (--trained_checkp), not resumed"
        )
    try:
        state.optimizer.load_state_dict(content["optimizer_G"])
        state.scheduler.load_state_dict(content["scheduler_G"])
        state.scaler.load_state_dict(content.get("scaler") or {})
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: its optimiser does not fit this training ({_first_line(error)})") from error
    state.epoch = int(content["epoch"])
    state.best_loss = float(content.get("best_loss", state.best_loss))
    state.trainlog = dict(content.get("trainlog", {}))
    state.frozen = tuple(content.get("frozen", ()))
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(name not in state.frozen)
    if "rng" in content:
        restore_random_states(content["rng"])


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, as plain values and tensors."""
    name, keys, *rest = mtrand.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Undo what was drawn since `random_states`; states of CUDA devices count only where as many are here."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    mtrand.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in states["cuda"]])


def _net(model: nn.Module) -> nn.Module:
    return model.get_submodule("netG")


def _without_prefix(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return {str(key).removeprefix(PREFIX): value for key, value in state.items()}


def _flags_of(keys: list[str]) -> list[str]:
    found = [flag for key in keys for start, flags in FLAGS_OF.items() if key.startswith(start) for flag in flags]
    return list(dict.fromkeys(["model", *found]))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
