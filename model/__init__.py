"""Networks that reconstruct clouded images, with their uncertainty."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is heavy, and not every user of this package needs it
    import torch

    from model.restore import Reconstruction

__all__ = ["load_model"]


def load_model(path: "str | Path", device: "str | torch.device" = "cpu") -> "Reconstruction":
    """A trained network as a function of images and dates: see `model.restore.load_model`."""
    from model.restore import load_model as load  # torch is heavy, and not every user of this package needs it

    return load(path, device)
