"""U-Net for single images, the published baseline without time; what it shares with U-TAE."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from config.defaults import check_network
from data.constants import N_S1, N_S2
from model.layers.conv import ConvBlock
from model.layers.temporal import check_series
from model.layers.unet_blocks import DownBlock, UpBlock, fit, pairs
from model.registry import register

if TYPE_CHECKING:
    from config.schema import ModelConfig


class UNet(nn.Module):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        in_channels: 13, or 15 with radar.
        out_widths: channels of the last layers; the last number is what the head needs.
        config: the flags of the network. Its widths go from the full resolution to the lowest.

    Source:
        Ronneberger et al. 2015, as Garnot & Landrieu 2021 build it and Ebel et al. 2023 pre-train it. Changes: any H
        and W, by mirroring the border; at sizes divisible by 2 at every level nothing is different.
    """

    def __init__(self, in_channels: int, out_widths: Sequence[int], config: "ModelConfig") -> None:
        super().__init__()
        check_network(config)
        encoder, decoder = config.encoder_widths, config.decoder_widths
        self.in_channels = in_channels
        self.in_conv = ConvBlock([in_channels, encoder[0]], config.encoder_norm)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, config.encoder_norm, config.padding_mode) for before, width in pairs(encoder)
        )
        ups = zip(pairs(decoder[::-1]), encoder[-2::-1], strict=True)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, skipped, config.decoder_norm, config.padding_mode)
            for (before, width), skipped in ups
        )
        self.build_merge(config)
        self.out_conv = ConvBlock([decoder[0], *out_widths], "none", last_relu=False)

    def build_merge(self, config: "ModelConfig") -> None:
        """Add the layers that merge dates, here none; they stand before the last layer in checkpoints."""

    @property
    def last_conv(self) -> nn.Conv2d:
        """The convolution that gives all channels."""
        return self.out_conv.last

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels for the head.

        Args:
            x: (B, T, C, H, W), scaled; radar (VV, VH) first if there is any, then the 13 bands.
            dates: (B, T), days; None where the network does not look at dates.

        Returns:
            (B, 1, K, H, W).

        Raises:
            ValueError: if a shape is not what the network was built for.
        """
        self.check(x)
        height, width = x.shape[-2:]
        x = fit(x, 2 ** len(self.down_blocks))
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
        """Maps (B, T, C, H, W) of each resolution without their dates, (B, C, H, W)."""
        return [level[:, 0] for level in levels]

    def check(self, x: Tensor) -> None:
        """Raise a ValueError if x is not (B, 1, C, H, W)."""
        check_series(x, self.in_channels)
        if x.shape[1] != 1:
            raise ValueError(f"expected one date, as a U-Net sees single images; got {x.shape[1]}; U-TAE takes more")


@register("unet")
def build_unet(config: "ModelConfig", out_widths: Sequence[int]) -> UNet:
    """The backbone that the flags describe."""
    return UNet(N_S2 + N_S1 * config.use_sar, out_widths, config)
