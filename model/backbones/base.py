"""What all backbones have in common. A new one is a subclass and a line in `model.registry`."""

import torch
from torch import Tensor, nn

from common.errors import DataError
from config.schema import ModelConfig
from data.constants import N_S1, N_S2


class ImageSizeError(DataError, ValueError):
    """Images that are too small for a network."""


class Backbone(nn.Module):
    """A network from a series to raw channels for a head; built from (config, widths of the last layers).

    Args:
        config: flags of the network. A date all of whose (scaled) values equal `pad_value` is padding.

    Attributes:
        min_size: pixels along a side of an image.
        is_mono: whether it takes one date only.
    """

    min_size = 1
    is_mono = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.in_channels = N_S2 + N_S1 * config.use_sar
        self.scale_by, self.pad_value = config.scale_by, config.pad_value
        self.flags = f"--model {config.model} with {len(config.encoder_widths)} --encoder_widths"

    @property
    def last_conv(self) -> nn.Conv2d | None:
        """Convolution that gives all channels, or those of the uncertainty if separate; None if there are none."""
        raise NotImplementedError

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels.

        Args:
            x: (B, T, C, H, W), scaled; radar (VV, VH) first if used, then the 13 bands.
            dates: (B, T), days; None for single images, or if the network does not use dates.

        Returns:
            (B, 1, K, H, W), K as the head needs.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        raise NotImplementedError

    def check_series(self, x: Tensor) -> None:
        """Raise a ValueError unless x is (B, T, C, H, W) with the network's channels, and T = 1 if it is mono.

        If H or W is too small, it is an `ImageSizeError`.
        """
        if x.dim() != 5 or x.shape[2] != self.in_channels:
            bands = "13 bands" if self.in_channels == N_S2 else "VV, VH, then 13 bands"
            raise ValueError(
                f"expected x of shape (B, T, {self.in_channels}, H, W) ({bands}), got {tuple(x.shape)}; "
                "--use_sar says whether radar is an input"
            )
        _, t, _, height, width = x.shape
        if min(height, width) < self.min_size:
            raise ImageSizeError(
                f"expected images of {self.min_size} x {self.min_size} pixels or more for {self.flags}, got {height} x "
                f"{width}; use larger patches or tiles, fewer widths, or another network"
            )
        if self.is_mono and t != 1:
            raise ValueError(f"expected one date, as --model unet and --pretrain take single images; got {t}")

    def find_padding(self, x: Tensor) -> Tensor:
        """Mask (B, T) of the padded dates of x (B, T, C, H, W)."""
        pad_value = torch.tensor(self.pad_value, device=x.device) * self.scale_by  # rounds as x * scale_by did
        return (x == pad_value).flatten(2).all(dim=-1)
