"""Trained networks from the folder of a run."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import DataError
from config.schema import ModelConfig
from config.stored import as_published, read_model_config
from model.build import build_model
from model.evidence.belief import Evidence
from model.predictions import Prediction
from model.reconstructor import Reconstructor
from model.weights import is_published, load_checkpoint, load_strictly

WEIGHTS = "model.pth.tar"
CONF = "conf.json"
EVIDENCE = "evidence"  # key of a checkpoint; absent where none was fitted


class Reconstruction(nn.Module):
    """A trained network that predicts reflectance, always in eval mode and without gradients.

    Args:
        model: the trained network.
        epoch: of its checkpoint.
        path: from which `load_model` loaded it.
    """

    def __init__(self, model: Reconstructor, epoch: int, path: str | Path = "") -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.epoch = epoch
        self.path = str(path)
        super().train(False)

    def train(self, mode: bool = True) -> "Reconstruction":
        """Stay in eval mode: predictions must not depend on the batch or on dropout."""
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, dates: Tensor | None = None) -> Prediction:
        """Predict the clear image.

        Args:
            x: (B, T, C, H, W) in [0, 1]: radar (VV, VH) first if used, then the 13 bands.
            dates: (B, T), days since 2014-04-03; None for a network of single images.

        Returns:
            Fields (B, 1, 13, H, W), reflectance (variances: reflectance squared), on the network's device.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        parameter = next(self.model.parameters())
        dates = None if dates is None else dates.to(parameter.device)
        return self.model(x.to(parameter), dates).unscaled(self.model.scale_by)


def restore_model(
    config: ModelConfig, checkpoint: str | Path, device: str | torch.device = "cpu"
) -> tuple[Reconstructor, int]:
    """Build a network from flags and load the weights of a checkpoint, ours or a published one, and its evidence.

    Args:
        config: flags of the network.
        checkpoint: the file.
        device: of the network.

    Returns:
        The network, and the epoch of the checkpoint (0 if unknown).

    Raises:
        DataError: if the checkpoint cannot be read or is of another architecture.
        UsageError: if the flags describe no network.
    """
    content = load_checkpoint(checkpoint)
    flags = ModelConfig.of(config)
    model = build_model(as_published(flags) if is_published(content) else flags)
    load_strictly(model, content["state_dict_G"], checkpoint)
    if content.get(EVIDENCE) is not None:
        model.evidence = Evidence.from_state(content[EVIDENCE])
    return model.to(device), int(content.get("epoch") or 0)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Reconstruction:
    """Load a trained network as a function of images and dates.

    Args:
        path: a run's folder (conf.json and model.pth.tar, ours or published), or a .pth.tar file next to its conf.json.
        device: of the network and its predictions.

    Returns:
        A callable, (x, dates) to a prediction in reflectance; see `Reconstruction.forward`.

    Raises:
        DataError: if a file is missing or unreadable, or weights and configuration do not match.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    checkpoint = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise DataError(f"there is no {path}; give a run's folder or a .pth.tar file")
    if not (folder / CONF).is_file():
        raise DataError(f"there is no {CONF} in {folder}; a network is rebuilt from the {CONF} next to its weights")
    flags = replace(read_model_config(folder / CONF), ssm_backend="auto")  # the run chose one for its own device
    return Reconstruction(*restore_model(flags, checkpoint, device), path)
