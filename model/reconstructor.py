"""A network as a whole: scaling, backbone and head."""

import torch
from torch import Tensor, nn

from config.schema import ModelConfig
from model.layers.heads import Head
from model.predictions import Prediction


class Reconstructor(nn.Module):
    """A backbone and a head: cloudy series in, prediction out. The only place that applies `scale_by`.

    The head has no parameters, so the keys of the state dict are those of published checkpoints, `netG.` before each.

    Args:
        net: the backbone, (x, dates) to raw channels (B, 1, K, H, W).
        head: maps raw channels to a prediction.
        config: the flags both were built from.
    """

    def __init__(self, net: nn.Module, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.netG = net
        self.head = head
        self.config = config
        self.scale_by = float(config.scale_by)

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Prediction:
        """Predict the clear image.

        Args:
            x: (B, T, C, H, W) in [0, 1]; radar (VV, VH) first if the network takes it, then the 13 bands.
            dates: (B, T), days; None for a network of single images.

        Returns:
            Fields (B, 1, 13, H, W) in scaled units, that is multiplied by `scale_by`; float32 under any autocast.

        Raises:
            ValueError: if a shape is not what the network was built for.
        """
        raw = self.netG(x * self.scale_by, dates)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(raw)
