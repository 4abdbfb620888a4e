"""Checkpoints of a training, from which it resumes exactly.

A checkpoint is a dict with the published keys `epoch`, `state_dict` (prefix `netG.`), `state_dict_G`, `optimizer_G`,
`scheduler_G`, and ours: `scaler`, `best_loss`, `frozen`, `trainlog`, `rng`, `config`, `version`. It does not hold the
sample order, which follows from seed and epoch.
"""

import math
import random
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor, nn

from common.errors import DataError
from config.schema import Config
from model.weights import (
    PREFIX,
    first_line,
    get_backbone,
    kind_of,
    load_checkpoint,
    load_strictly,
    save_checkpoint,
)
from training.engine import TrainState

VERSION = 1  # of the layout above; published checkpoints have none
_FLOATS = "floating-point"


def load_weights(path: str | Path, model: nn.Module) -> int:
    """Load the weights of a checkpoint strictly.

    Returns:
        The epoch after which it was written; 0 if unknown.

    Raises:
        DataError: see `load_checkpoint` and `load_strictly`.
    """
    content = load_checkpoint(path)
    load_strictly(model, content["state_dict_G"], path)
    return int(content.get("epoch") or 0)


def checkpoint_epoch(path: str | Path) -> int:
    """The epoch after which a checkpoint was written; 0 if unknown."""
    return int(load_checkpoint(path).get("epoch") or 0)


def is_validated(path: str | Path, state: TrainState) -> bool:
    """Whether the weights of a checkpoint were the best on validation, not the last ones of a training without it."""
    return state.best_loss < math.inf or load_checkpoint(path).get("best_loss") != math.inf


def save_state(path: str | Path, state: TrainState, config: Config, extra: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint from which a training resumes exactly.

    Args:
        path: the file.
        state: the training.
        config: its flags.
        extra: further plain values by name.

    Raises:
        DataError: if the disk is full.
    """
    weights = get_backbone(state.model).state_dict()
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
        **(extra or {}),
    }
    save_checkpoint(path, content)


def resume(path: str | Path, state: TrainState) -> None:
    """Restore a training: weights, optimiser, learning rate, best loss, random states (known issue 10).

    Args:
        path: the checkpoint; a published one has no best loss and no random states, which then stay unchanged.
        state: changed in place.

    Raises:
        DataError: if the checkpoint does not fit, holds weights only, or an entry is not what `save_state` writes.
    """
    content = load_checkpoint(path)
    load_strictly(state.model, content["state_dict_G"], path)
    missing = [key for key in ("epoch", "optimizer_G", "scheduler_G") if key not in content]
    if missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}: it can initialise a training (--trained_checkp), not resume one"
        )
    check_state(content, state, path)
    state.optimizer.load_state_dict(content["optimizer_G"])
    schedule = {
        key: content["scheduler_G"][key] for key in state.scheduler.state_dict() if key in content["scheduler_G"]
    }
    state.scheduler.load_state_dict(schedule)
    state.epoch = content["epoch"]
    state.best_loss = float(content.get("best_loss", state.best_loss))
    state.trainlog = dict(content.get("trainlog", {}))
    state.frozen = tuple(content.get("frozen", ()))
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(name not in state.frozen)
    if "rng" in content:
        try:
            restore_random_states(content["rng"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise _invalid(path, "rng", f"states of the random generators ({first_line(error)})", "others") from error


def set_rates(state: TrainState, lr: float, gamma: float) -> bool:
    """Let the flags act on a resumed training from its next epoch on.

    Args:
        state: the training; changed in place.
        lr: `--lr`. A rate other than that of the checkpoint's schedule is set; else the schedule goes on.
        gamma: `--gamma`.

    Returns:
        Whether the rate was set.
    """
    scheduler = state.scheduler
    scheduler.gamma = gamma
    if scheduler.base_lrs == [lr]:
        return False
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr
    scheduler.base_lrs, scheduler._last_lr = [lr], [lr]
    return True


def check_state(content: Mapping[str, Any], state: TrainState, path: str | Path) -> None:
    """Raise a `DataError` that names the first entry of a checkpoint from which a training cannot resume."""
    parameters = dict(state.model.named_parameters())
    epoch, best_loss = content["epoch"], content.get("best_loss", 0.0)
    if not isinstance(epoch, int):
        raise _invalid(path, "epoch", "the number of completed epochs", epoch)
    if content.get("version", VERSION) != VERSION:
        raise _invalid(path, "version", f"{VERSION}, the layout of this version", content["version"])
    if not _is_number(best_loss) or math.isnan(best_loss) or best_loss == -math.inf:
        raise _invalid(path, "best_loss", "the lowest validation loss so far", best_loss)
    frozen = content.get("frozen", [])
    if not isinstance(frozen, list | tuple) or not all(isinstance(name, str) and name in parameters for name in frozen):
        raise _invalid(path, "frozen", "names of weights of this network", frozen)
    trainlog = content.get("trainlog", {})
    if not isinstance(trainlog, dict) or not all(_is_log_row(*row, epoch) for row in trainlog.items()):
        raise _invalid(path, "trainlog", f"figures of epochs up to {epoch}", trainlog)
    _check_optimizer(
        content["optimizer_G"], state, list(parameters.values()), path, optional="version" not in content or not epoch
    )
    _check_scheduler(content["scheduler_G"], state, path)


def _check_optimizer(
    stored: Any, state: TrainState, parameters: Sequence[Tensor], path: str | Path, *, optional: bool
) -> None:
    """Check the state of Adam; `optional`: it may have no moments, as after no epoch and in some published ones."""
    entry = "optimizer_G"
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        raise _invalid(path, entry, "the state of Adam with one group of weights", stored)
    (own,), group = state.optimizer.state_dict()["param_groups"], groups[0]
    if group.get("params") != own["params"]:
        text = f"numbers of the {len(own['params'])} weights of this training"
        raise _invalid(path, f"{entry}, params", text, group.get("params"))
    for name, value in own.items():
        given = group.get(name, value)
        if name in ("lr", "initial_lr"):
            if not _is_number(given) or not 0 <= given < math.inf:
                raise _invalid(path, f"{entry}, {name}", "a learning rate", given)
        elif name != "params" and (not _is_plain(given) or given != value):
            raise _invalid(path, f"{entry}, {name}", f"{value} as in this training", given)
    moments = stored.get("state")
    if not isinstance(moments, dict) or not moments.keys() <= set(own["params"]) or not (moments or optional):
        raise _invalid(path, f"{entry}, state", "the moments of the weights by their number", moments)
    for number, values in moments.items():
        shape = parameters[number].shape
        valid = isinstance(values, dict) and all(
            isinstance(values.get(name), Tensor) and values[name].shape == shape and kind_of(values[name]) == _FLOATS
            for name in ("exp_avg", "exp_avg_sq")
        )
        step = values.get("step") if valid else None
        if isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex():
            step = step.item()
        if not _is_number(step) or not 0 <= step < math.inf:
            text = f"step, and exp_avg and exp_avg_sq of shape {tuple(shape)}"
            raise _invalid(path, f"{entry}, state, {number}", text, values)


def _check_scheduler(stored: Any, state: TrainState, path: str | Path) -> None:
    entry = "scheduler_G"
    if not isinstance(stored, dict) or not {"gamma", "base_lrs", "last_epoch"} <= stored.keys():
        raise _invalid(path, entry, "gamma, base_lrs and last_epoch of a schedule", stored)
    for name, own in state.scheduler.state_dict().items():
        given = stored.get(name, own)
        if isinstance(own, list):
            valid = isinstance(given, list) and len(given) == len(own) and all(map(_is_rate, given))
        elif isinstance(own, bool):
            valid = isinstance(given, bool)
        else:
            valid = _is_rate(given) and (name == "gamma" or isinstance(given, int))
        if not valid:
            raise _invalid(path, f"{entry}, {name}", f"a value as {own}", given)


def _is_log_row(epoch: Any, row: Any, latest: int) -> bool:
    numbered = isinstance(epoch, str) and re.fullmatch("[1-9][0-9]{0,8}", epoch) and int(epoch) <= latest
    return bool(numbered) and isinstance(row, dict) and all(map(_is_number, row.values()))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, tuple) and all(map(_is_number, value)))


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _invalid(path: str | Path, entry: str, expected: str, got: Any) -> DataError:
    return DataError(
        f"{path}, entry {entry}: expected {expected}, got {reprlib.repr(got)}; "
        "resume from another epoch with --resume_at"
    )


def random_states() -> dict[str, Any]:
    """The states of the global generators of Python, numpy and torch, as plain values and tensors."""
    name, keys, *rest = mtrand.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restore the states of `random_states`; those of CUDA devices only if there are as many devices."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, *rest = states["numpy"]
    if keys.dtype != torch.int64 or not 0 <= position <= len(keys):  # numpy does not check it
        raise ValueError(f"position {position} in {len(keys)} numbers")
    mtrand.set_state((name, keys.numpy().astype(np.uint32), position, *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
