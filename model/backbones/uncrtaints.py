"""UnCRtainTS: convolutions per date, attention over dates at low resolution, convolutions of the weighted sum."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import ModelConfig
from data.constants import N_S2
from model.backbones.base import Backbone
from model.layers.conv import ConvBlock, Pointwise, build_block, resize
from model.layers.ltae import TemporalEncoder
from model.layers.temporal import TemporalAggregator, channels_last


class Uncrtaints(Backbone):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        config: flags of the network.
        out_widths: channels of the last layers; the last number is that of the head.

    Source:
        Ebel et al. 2023. Changes: `low_res_size` and `padding_mode` have an effect; encoder and decoder widths may
        differ (joined by a 1 x 1 projection); any H and W; weights in `mean` need no attention.
    """

    min_size = 2

    def __init__(self, config: ModelConfig, out_widths: Sequence[int]) -> None:
        super().__init__(config)
        encoder_widths, decoder_widths = list(config.encoder_widths), list(config.decoder_widths)
        self.is_mono, self.low_res_size, self.use_v = config.pretrain, config.low_res_size, config.use_v
        self.norms_couple_dates = config.encoder_norm == "batch"  # its statistics are over all dates
        block, padding = config.block_type, config.padding_mode

        self.in_conv = ConvBlock([self.in_channels, encoder_widths[0]], config.encoder_norm)
        widths = zip([encoder_widths[0], *encoder_widths[:-1]], encoder_widths, strict=True)
        self.in_block = nn.ModuleList(build_block(block, a, b, config.encoder_norm, padding) for a, b in widths)
        width = encoder_widths[-1]
        if not self.is_mono:
            self.temporal_encoder = TemporalEncoder(
                width,
                config.n_head,
                config.d_model,
                config.d_k,
                use_dates=config.positional_encoding,
                value_widths=(config.d_model, width) if self.use_v else None,
            )
            if self.use_v:
                self.include_v = Pointwise(2 * width, width)
            self.temporal_aggregator = TemporalAggregator(config.agg_mode)
        widths = zip([width, *decoder_widths[:-1]], decoder_widths, strict=True)
        self.out_block = nn.ModuleList(build_block(block, a, b, config.decoder_norm, padding) for a, b in widths)
        width = decoder_widths[-1]
        self.separate_out = config.separate_out
        if self.separate_out:
            self.out_conv_mean_1 = ConvBlock([width, N_S2], "none", last_relu=False)
            if out_widths[-1] > N_S2:
                self.out_conv_var_1 = ConvBlock([width, out_widths[-1] - N_S2], "none", last_relu=False)
        else:
            self.out_conv = ConvBlock([width, *out_widths], "none", last_relu=False)

    @property
    def last_conv(self) -> nn.Conv2d | None:
        """Convolution that gives all channels, or with `separate_out` those of the uncertainty, if there are any."""
        if not self.separate_out:
            return self.out_conv.last
        return self.out_conv_var_1.last if hasattr(self, "out_conv_var_1") else None

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels (B, 1, K, H, W); see `Backbone.forward`."""
        self.check_series(x)
        maps = self._encode(x)
        out = maps[0] if self.is_mono else self._aggregate(maps, dates, self.find_padding(x))
        for block in self.out_block:
            out = block(out)
        if not self.separate_out:
            out = self.out_conv(out)
        elif hasattr(self, "out_conv_var_1"):
            out = torch.cat([self.out_conv_mean_1(out), self.out_conv_var_1(out)], dim=1)
        else:
            out = self.out_conv_mean_1(out)
        return out.unsqueeze(1)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """(B, T, C, H, W) to maps (B, C', H, W) of each date."""
        if x.device.type == "cpu" and not self.norms_couple_dates:
            # date by date: buffers of the decoder's size, which the allocator reuses there
            return [self._encode_date(image) for image in x.unbind(1)]
        return list(self._encode_date(x.flatten(0, 1)).unflatten(0, x.shape[:2]).unbind(1))

    def _encode_date(self, image: Tensor) -> Tensor:
        maps = self.in_conv(channels_last(image))
        for block in self.in_block:
            maps = block(maps)
        return maps

    def _aggregate(self, maps: Sequence[Tensor], dates: Tensor | None, padded: Tensor) -> Tensor:
        """Maps (B, C, H, W) of each date to one (B, C, H, W)."""
        pooled = torch.stack([F.adaptive_max_pool2d(date_maps, self.low_res_size) for date_maps in maps], dim=1)
        attention, values = self.temporal_encoder(pooled, dates, padded)
        out = channels_last(self.temporal_aggregator(maps, attention, padded))
        if values is None:
            return out
        return self.include_v(torch.cat([out, resize(values, out.shape[-2:]).to(out.dtype)], dim=1))
