"""A network as a whole: scaling, backbone and head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from config.schema import ModelConfig
from model.evidence.belief import Evidence
from model.layers.heads import Head
from model.predictions import Mean, Prediction


class Reconstructor(nn.Module):
    """A backbone and a head: cloudy series in, prediction out. The only place that applies `scale_by`.

    The head has no parameters, so the keys of the state dict are those of published checkpoints, `netG.` before each.

    Args:
        net: the backbone, (x, dates) to raw channels (B, 1, K, H, W).
        head: maps raw channels to a prediction.
        config: the flags both were built from.

    Attributes:
        evidence: what was fitted to the trained network, or None; predictions in eval mode follow it.
    """

    def __init__(self, net: nn.Module, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.netG = net
        self.head = head
        self.config = config
        self.scale_by = float(config.scale_by)
        self.evidence: Evidence | None = None

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
        prediction = self.predict(x, dates)
        if self.evidence is None or self.training or isinstance(prediction, Mean):
            return prediction
        with torch.autocast(x.device.type, enabled=False):
            novelty = self.evidence.novelty(x, self.find_padding(x))
            return self.evidence.believe(prediction, novelty, self.scale_by)

    def predict(self, x: Tensor, dates: Tensor | None = None) -> Prediction:
        """As `forward`, whether or not there is evidence."""
        raw = self.netG(x * self.scale_by, dates)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(raw)

    def find_padding(self, x: Tensor) -> Tensor:
        """Mask (B, T) of the padded dates of x (B, T, C, H, W) in [0, 1]."""
        find: Callable[[Tensor], Tensor] = self.netG.find_padding  # type: ignore[assignment]  # of a Backbone
        return find(x * self.scale_by)
