"""U-TAE: a U-Net on every date; attention over dates at the lowest resolution weights the dates at all others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from data.constants import N_S1, N_S2
from model.backbones.uncrtaints import ATTENTION_DROPOUT, TemporalAggregator
from model.backbones.unet import UNet
from model.layers.ltae import TemporalEncoder
from model.layers.temporal import check_series, find_padding
from model.registry import register

if TYPE_CHECKING:
    from config.schema import ModelConfig


class Utae(UNet):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        in_channels: 13, or 15 with radar.
        out_widths: channels of the last layers; the last number is what the head needs.
        config: the flags of the network. A date all of whose (scaled) values equal `pad_value` is padding.

    Source:
        Garnot & Landrieu 2021, for images as Ebel et al. 2023 use it. Changes: those of `UNet`; no passes of zeros
        through the encoder, which a batch norm there would have noticed.
    """

    def build_merge(self, config: "ModelConfig") -> None:
        """Add the attention over dates."""
        lowest = config.encoder_widths[-1]
        self.pad_value, self.scale_by = config.pad_value, config.scale_by
        self.temporal_encoder = TemporalEncoder(
            lowest,
            config.n_head,
            config.d_model,
            config.d_k,
            dated=config.positional_encoding,
            value_widths=(config.d_model, lowest),
            attention_dropout=ATTENTION_DROPOUT,
        )
        self.temporal_aggregator = TemporalAggregator(config.agg_mode)
        self.temporal_aggregator.attn_dropout.p = 0.0  # the attention that comes has been dropped out already

    def merge(self, x: Tensor, levels: Sequence[Tensor], dates: Tensor | None) -> list[Tensor]:
        """Maps (B, T, C, H, W) of each resolution merged over dates, (B, C, H, W)."""
        padded = find_padding(x, self.pad_value, self.scale_by)
        *skips, lowest = levels
        # as published: the group norm over dates sees padded ones, as maps of this value
        lowest = lowest.masked_fill(padded[:, :, None, None, None], self.pad_value)
        attention, values = self.temporal_encoder(lowest, dates, padded)
        assert values is not None, "the encoder was built with values"
        merged = [self.temporal_aggregator(skip.unbind(1), attention, padded) for skip in skips]
        return [*merged, values]

    def check(self, x: Tensor) -> None:
        """Raise a ValueError if x is not (B, T, C, H, W)."""
        check_series(x, self.in_channels)


@register("utae")
def build_utae(config: "ModelConfig", out_widths: Sequence[int]) -> UNet:
    """The backbone that the flags describe; with `--pretrain` a U-Net, whose weights U-TAE can start from."""
    return (UNet if config.pretrain else Utae)(N_S2 + N_S1 * config.use_sar, out_widths, config)
