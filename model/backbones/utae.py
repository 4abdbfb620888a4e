"""U-TAE: a U-Net on every date; attention over dates at the lowest resolution weights the dates at all levels."""

from collections.abc import Sequence

from torch import Tensor

from config.schema import ModelConfig
from model.backbones.unet import UNet
from model.layers.ltae import TemporalEncoder
from model.layers.temporal import ATTENTION_DROPOUT, TemporalAggregator


class Utae(UNet):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        config: flags of the network.
        out_widths: channels of the last layers; the last number is that of the head.

    Source:
        Garnot & Landrieu 2021, for images as Ebel et al. 2023 use it. Changes: those of `UNet`; no passes of zeros
        through the encoder, which would enter the statistics of a batch norm there.
    """

    is_mono = False

    def build_merge(self, config: ModelConfig) -> None:
        """Add the attention over dates."""
        width = config.encoder_widths[-1]
        self.temporal_encoder = TemporalEncoder(
            width,
            config.n_head,
            config.d_model,
            config.d_k,
            use_dates=config.positional_encoding,
            value_widths=(config.d_model, width),
            attention_dropout=ATTENTION_DROPOUT,
        )
        self.temporal_aggregator = TemporalAggregator(config.agg_mode)
        self.temporal_aggregator.attn_dropout.p = 0.0  # the encoder has applied dropout to the attention

    def merge(self, x: Tensor, levels: Sequence[Tensor], dates: Tensor | None) -> list[Tensor]:
        """Maps (B, T, C, H, W) of each level merged over dates, (B, C, H, W)."""
        padded = self.find_padding(x)
        *skips, lowest = levels
        # as published: the group norm over dates includes padded ones, as maps of this value
        lowest = lowest.masked_fill(padded[:, :, None, None, None], self.pad_value)
        attention, values = self.temporal_encoder(lowest, dates, padded)
        assert values is not None, "the encoder was built with values"
        merged = [self.temporal_aggregator(skip.unbind(1), attention, padded) for skip in skips]
        return [*merged, values]


def build_utae(config: ModelConfig, out_widths: Sequence[int]) -> UNet:
    """U-TAE, or with `--pretrain` the U-Net from whose weights it can start."""
    return (UNet if config.pretrain else Utae)(config, out_widths)
