"""UnCRtainTS: convolutions on every date, attention over dates at low resolution, convolutions on their sum."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from data.constants import N_S1, N_S2
from model.layers.conv import ConvBlock, build_block
from model.layers.ltae import TemporalEncoder
from model.layers.recompute import Pointwise
from model.layers.temporal import check_series, find_padding, sum_over_dates
from model.registry import register

if TYPE_CHECKING:
    from config.schema import ModelConfig

AGGREGATIONS = ("att_group", "att_mean", "mean")
ATTENTION_DROPOUT = 0.1
LARGE_IMAGE = 64 * 64  # pixels


class TemporalAggregator(nn.Module):
    """Sum over dates, weighted by attention.

    Args:
        mode: `att_group` (each head weights its share of the channels), `att_mean` (all channels by the mean of the
            heads) or `mean` (all dates alike but padded ones, attention unused).
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        if mode not in AGGREGATIONS:
            raise UsageError(f"unknown --agg_mode {mode!r}; choose {', '.join(AGGREGATIONS)}")
        self.mode = mode
        self.attn_dropout = nn.Dropout(ATTENTION_DROPOUT)

    def forward(self, maps: Sequence[Tensor], attention: Tensor, padded: Tensor) -> Tensor:
        """Weighted sum.

        Args:
            maps: (B, C, H, W) of each date.
            attention: (N, B, T, h, w), of lower resolution (or higher, where H or W is small).
            padded: (B, T) bool.

        Returns:
            (B, C, H, W).
        """
        b, _, h, w = maps[0].shape
        present = (~padded).to(attention.dtype)[:, :, None, None, None]  # (B, T, 1, 1, 1)
        if self.mode == "mean":
            return sum_over_dates(maps, present / present.sum(dim=1, keepdim=True).clamp(min=1))
        heads = attention if self.mode == "att_group" else attention.mean(dim=0, keepdim=True)
        by_date = heads.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (B * T, N, h, w)
        if not maps[0].is_contiguous():
            by_date = by_date.contiguous(memory_format=torch.channels_last)
        resized = resize(by_date, h, w).unflatten(0, (b, -1))  # (B, T, N, H, W)
        return sum_over_dates(maps, self.attn_dropout(resized) * present)


def channels_last(maps: Tensor) -> Tensor:
    """(B, C, H, W) laid out as processors like it: norms and 1 x 1 convolutions are faster with channels innermost.

    Small images stay as they are: little is gained, and sums in the published order settle near-ties of the max-pool
    as in published float32 gradients. Else always a copy: of a single image, views pass for channels-last that later
    layers do not take for such.
    """
    large = maps.shape[-2] * maps.shape[-1] >= LARGE_IMAGE
    return maps.clone(memory_format=torch.channels_last) if large and maps.device.type == "cpu" else maps


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear to (height, width), which may also be smaller: then the maps repeat pixels, and one of each is taken."""
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


class Uncrtaints(nn.Module):
    """The network, up to raw channels; parameter names are those of published checkpoints.

    Args:
        in_channels: 13, or 15 with radar.
        out_widths: channels of the last layers; the last number is what the head needs.
        config: the flags of the network.
        pad_value: a date all of whose (scaled) values equal this is padding.

    Source:
        Ebel et al. 2023. Changes: `low_res_size` and `padding_mode` are read; encoder and decoder widths may differ
        (a 1 x 1 projection joins them); any H and W; weights in `mean` need no attention.
    """

    def __init__(self, in_channels: int, out_widths: Sequence[int], config: "ModelConfig") -> None:
        super().__init__()
        encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
        self.in_channels, self.is_mono = in_channels, config.pretrain
        self.pad_value, self.scale_by = config.pad_value, config.scale_by
        self.low_res_size, self.use_v = config.low_res_size, config.use_v
        self.dates_coupled = config.encoder_norm == "batch"  # its statistics are those of all dates together

        self.in_conv = ConvBlock([in_channels, encoder[0]], config.encoder_norm)
        block, padding = config.block_type, config.padding_mode
        joined = zip([encoder[0], *encoder[:-1]], encoder, strict=True)
        self.in_block = nn.ModuleList(build_block(block, a, b, config.encoder_norm, padding) for a, b in joined)
        if not self.is_mono:
            self.temporal_encoder = TemporalEncoder(
                encoder[-1],
                config.n_head,
                config.d_model,
                config.d_k,
                dated=config.positional_encoding,
                value_widths=(config.d_model, encoder[-1]) if self.use_v else None,
            )
            if self.use_v:
                self.include_v = Pointwise(2 * encoder[-1], encoder[-1])
            self.temporal_aggregator = TemporalAggregator(config.agg_mode)
        joined = zip([encoder[-1], *decoder[:-1]], decoder, strict=True)
        self.out_block = nn.ModuleList(build_block(block, a, b, config.decoder_norm, padding) for a, b in joined)
        self.separate_out = config.separate_out
        if self.separate_out:
            self.out_conv_mean_1 = ConvBlock([decoder[-1], N_S2], "none", last_relu=False)
            if out_widths[-1] > N_S2:
                self.out_conv_var_1 = ConvBlock([decoder[-1], out_widths[-1] - N_S2], "none", last_relu=False)
        else:
            self.out_conv = ConvBlock([decoder[-1], *out_widths], "none", last_relu=False)

    @property
    def last_conv(self) -> nn.Conv2d | None:
        """The convolution that gives the channels of the uncertainty; None if there are none of their own."""
        if not self.separate_out:
            return self.out_conv.last
        return self.out_conv_var_1.last if hasattr(self, "out_conv_var_1") else None

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
        check_series(x, self.in_channels, smallest=2)
        if self.is_mono and x.shape[1] != 1:
            raise ValueError(f"expected one date, as the network was pre-trained on single images; got {x.shape[1]}")
        b, t = x.shape[:2]
        padded = find_padding(x, self.pad_value, self.scale_by)
        maps = self._encode(x)
        out = maps[0] if self.is_mono else self._merge(maps, dates, padded)
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
        if x.device.type == "cpu" and not self.dates_coupled:
            # one by one: buffers of the size that the decoder needs too, which the allocator finds again
            return [self._encode_date(channels_last(one)) for one in x.unbind(1)]
        return list(self._encode_date(channels_last(x.flatten(0, 1))).unflatten(0, x.shape[:2]).unbind(1))

    def _encode_date(self, maps: Tensor) -> Tensor:
        maps = self.in_conv(maps)
        for block in self.in_block:
            maps = block(maps)
        return maps

    def _merge(self, maps: Sequence[Tensor], dates: Tensor | None, padded: Tensor) -> Tensor:
        """Maps (B, C, H, W) of each date to one (B, C, H, W)."""
        small = torch.stack([F.adaptive_max_pool2d(one, self.low_res_size) for one in maps], dim=1)
        attention, values = self.temporal_encoder(small, dates, padded)
        out = channels_last(self.temporal_aggregator(maps, attention, padded))
        if values is None:
            return out
        return self.include_v(torch.cat([out, resize(values, *out.shape[-2:]).to(out.dtype)], dim=1))


@register("uncrtaints")
def build_uncrtaints(config: "ModelConfig", out_widths: Sequence[int]) -> Uncrtaints:
    """The backbone that the flags describe."""
    return Uncrtaints(N_S2 + N_S1 * config.use_sar, out_widths, config)
