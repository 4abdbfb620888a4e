"""Checkpoints of a training, from which it resumes exactly.

A checkpoint is a dict with the published keys `epoch`, `state_dict` (prefix `netG.`), `state_dict_G`, `optimizer_G`,
`scheduler_G`, and ours: `scaler`, `best_loss`, `frozen`, `trainlog`, `rng`, `config`, `version`. It does not hold the
sample order, which follows from seed and epoch.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import nn

from common.errors import DataError
from config.schema import Config
from model.weights import (
    PREFIX,
    first_line,
    get_backbone,
    load_checkpoint,
    load_strictly,
    save_checkpoint,
)
from training.engine import TrainState

VERSION = 1  # of the layout above; published checkpoints have none


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
        DataError: if the checkpoint does not fit, or holds weights only.
    """
    content = load_checkpoint(path)
    load_strictly(state.model, content["state_dict_G"], path)
    missing = [key for key in ("epoch", "optimizer_G", "scheduler_G") if key not in content]
    if missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}: it can initialise a training (--trained_checkp), not resume one"
        )
    try:
        state.optimizer.load_state_dict(content["optimizer_G"])
        state.scheduler.load_state_dict(content["scheduler_G"])
        state.scaler.load_state_dict(content.get("scaler") or {})
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: its optimiser does not fit this training ({first_line(error)})") from error
    state.epoch = int(content["epoch"])
    state.best_loss = float(content.get("best_loss", state.best_loss))
    state.trainlog = dict(content.get("trainlog", {}))
    state.frozen = tuple(content.get("frozen", ()))
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(name not in state.frozen)
    if "rng" in content:
        restore_random_states(content["rng"])


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
    name, keys, *rest = states["numpy"]
    mtrand.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
