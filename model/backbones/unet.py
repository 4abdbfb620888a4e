"""U-Net for single images, the published baseline without time, and base class of U-TAE."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from config.schema import ModelConfig
from config.validation import check_widths
from model.backbones.base import Backbone
from model.layers.conv import ConvBlock
from model.layers.unet_blocks import DownBlock, UpBlock, pad_to_multiple


class UNet(Backbone):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        config: flags of the network. Widths go from full resolution to the lowest.
        out_widths: channels of the last layers; the last number is that of the head.

    Source:
        Ronneberger et al. 2015, as Garnot & Landrieu 2021 build it and Ebel et al. 2023 pre-train it. Changes: any H
        and W, by reflecting the border; no difference at sizes divisible by 2 at every level.
    """

    is_mono = True

    def __init__(self, config: ModelConfig, out_widths: Sequence[int]) -> None:
        super().__init__(config)
        check_widths(config)
        encoder_widths, decoder_widths = config.encoder_widths, config.decoder_widths
        encoder_norm, decoder_norm, padding = config.encoder_norm, config.decoder_norm, config.padding_mode
        self.in_conv = ConvBlock([self.in_channels, encoder_widths[0]], encoder_norm)
        self.down_blocks = nn.ModuleList(DownBlock(a, b, encoder_norm, padding) for a, b in pairwise(encoder_widths))
        ups = zip(pairwise(decoder_widths[::-1]), encoder_widths[-2::-1], strict=True)
        self.up_blocks = nn.ModuleList(UpBlock(a, b, skipped, decoder_norm, padding) for (a, b), skipped in ups)
        self.build_merge(config)
        self.out_conv = ConvBlock([decoder_widths[0], *out_widths], "none", last_relu=False)

    def build_merge(self, config: ModelConfig) -> None:
        """Add the layers that merge dates, here none; in checkpoints they precede the last layer."""

    @property
    def last_conv(self) -> nn.Conv2d:
        """Convolution that gives all channels."""
        return self.out_conv.last

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels (B, 1, K, H, W); see `Backbone.forward`."""
        self.check_series(x)
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 2 ** len(self.down_blocks))
        maps = self.in_conv(x.flatten(0, 1))  # (B T, C, H', W')
        levels = [maps.unflatten(0, x.shape[:2])]
        for block in self.down_blocks:
            maps = block(maps)
            levels.append(maps.unflatten(0, x.shape[:2]))  # (B, T, C', H' / 2, W' / 2) and so on
        *skips, out = self.merge(x, levels, dates)
        for block, skip in zip(self.up_blocks, reversed(skips), strict=True):
            out = block(out, skip)
        return self.out_conv(out)[..., :height, :width].unsqueeze(1)

    def merge(self, x: Tensor, levels: Sequence[Tensor], dates: Tensor | None) -> list[Tensor]:
        """Maps (B, T, C, H, W) of each level merged over dates, (B, C, H, W)."""
        return [level[:, 0] for level in levels]
