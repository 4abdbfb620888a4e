"""Trained networks, ready to use: from a run's folder to a callable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import DataError
from config.schema import ModelConfig
from model.build import Reconstructor, build_model
from model.compat import as_published, read_conf
from model.predictions import Prediction
from model.weights import is_published, load_checkpoint, load_strictly

WEIGHTS = "model.pth.tar"
CONF = "conf.json"


class Reconstruction(nn.Module):
    """A trained network that predicts reflectance; always in eval mode, never with a gradient.

    Args:
        model: the trained network.
        epoch: after which it was saved.
    """

    def __init__(self, model: Reconstructor, epoch: int) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.epoch = epoch
        super().train(False)

    def train(self, mode: bool = True) -> "Reconstruction":
        """Stay in eval mode, whatever is asked: batch norms and dropout must not act on one's predictions."""
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, dates: Tensor | None = None) -> Prediction:
        """Predict the clear image.

        Args:
            x: (B, T, C, H, W) in [0, 1]: radar (VV, VH) if the network takes it, then the 13 bands.
            dates: (B, T), days since 2014-04-03; None for a network of single images.

        Returns:
            Fields (B, 1, 13, H, W), reflectance (variances: reflectance squared), on the network's device.

        Raises:
            ValueError: if a shape is not what the network was trained on.
        """
        like = next(self.model.parameters())
        dates = None if dates is None else dates.to(like.device)
        return self.model(x.to(like), dates).unscaled(self.model.scale_by)


def restore_model(config: Any, checkpoint: str | Path, device: str | torch.device = "cpu") -> tuple[Reconstructor, int]:
    """The network that flags describe with the weights of a checkpoint, ours or a published one.

    Args:
        config: has the attributes of `ModelConfig`.
        checkpoint: the file.
        device: where the network goes.

    Returns:
        The network, and the epoch after which it was saved (0 if unknown).

    Raises:
        DataError: if the checkpoint cannot be read or is of another architecture.
        UsageError: if the flags describe no network.
    """
    content = load_checkpoint(checkpoint)
    flags = ModelConfig.of(config)
    model = build_model(as_published(flags) if is_published(content) else flags)
    load_strictly(model, content["state_dict_G"], checkpoint)
    return model.to(device), int(content.get("epoch") or 0)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Reconstruction:
    """A trained network as a function of images and dates.

    Args:
        path: a run's folder (conf.json and model.pth.tar, ours or published), or a .pth.tar file beside its conf.json.
        device: where to compute.

    Returns:
        A callable, (x, dates) to a prediction in reflectance; see `Reconstruction.forward`.

    Raises:
        DataError: if a file is missing or unreadable, or weights and configuration do not fit together.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    checkpoint = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise DataError(f"there is no {path}; give a run's folder or a .pth.tar file")
    if not (folder / CONF).is_file():
        raise DataError(f"there is no {CONF} in {folder}; a network is rebuilt from the {CONF} beside its weights")
    flags = replace(read_conf(folder / CONF), ssm_backend="auto")  # the run's choice was for its own device
    return Reconstruction(*restore_model(flags, checkpoint, device))
