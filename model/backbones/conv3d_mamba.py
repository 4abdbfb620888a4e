"""Conv3dMamba: convolutions over space and adjacent dates, Mamba along the dates, prediction relative to a composite.

The encoder has three resolutions; at the lowest, Mamba exchanges information between dates. Each date gets clearness
scores per pixel, which weight the dates twice: their features at every resolution, and the images themselves in a clear
composite. The decoder, at full resolution, predicts a correction of the composite and its uncertainty.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import ModelConfig
from config.validation import DATE_GROUPS, check_widths
from data.constants import N_S1, N_S2
from model.backbones.base import Backbone, ImageSizeError
from model.layers.composite import ClearComposite
from model.layers.conv import ConvBlock, Pointwise, build_block, build_norm, conv3x3, resize
from model.layers.dates import DateOrder, order_dates
from model.layers.mamba import DatedMamba
from model.layers.space_time import SpaceTimeBlock
from model.layers.temporal import sum_over_dates

N_MAMBA = 2
FULL_RESOLUTION_BLOCKS = 3  # of the decoder; one at the other levels
RADAR_WIDTH = 16
INPUT_GAIN = 10.0  # before the first convolution: most reflectances are below 0.3
START_SHARE = 0.1  # of the usual initial weights of the last convolution
EDGE = 1e-3  # reflectances this near to 0 and 1 are clamped: their logit is not finite


class Conv3dMamba(Backbone):
    """The network, up to raw channels.

    Args:
        config: flags of the network. `encoder_widths` and `decoder_widths` go from full resolution to the lowest, each
            level half the size of the previous one. Padding has no influence in eval mode (in training, batch norms
            include it).
        out_widths: channels of the last layers; the last number is that of the head.

    Raises:
        UsageError: if the widths do not fit together.
    """

    min_size = 16

    def __init__(self, config: ModelConfig, out_widths: Sequence[int]) -> None:
        super().__init__(config)
        check_widths(config)
        widths, decoder_widths = config.encoder_widths, config.decoder_widths
        norm, padding = config.encoder_norm, config.padding_mode
        self.bounded, self.use_dates = config.mean_nonLinearity, config.positional_encoding
        self.n_levels = len(widths)
        factor = 2 ** (self.n_levels - 1)
        # `_pad` reflects fewer pixels than there are; reflecting convolutions and instance norms need two at each level
        two = padding == "reflect" or "instance" in (norm, config.decoder_norm)
        self.min_size = max(self.min_size, factor + 1 if two else factor // 2 + 1)
        self.single_min_size = factor + 1 if config.decoder_norm == "batch" else 1  # of a batch of one, in training

        def block(width: int, norm: str) -> nn.Module:
            return build_block(config.block_type, width, width, norm, padding)

        self.stem = conv3x3(self.in_channels + N_S2, widths[0], padding)
        self.stem_norm = build_norm(norm, widths[0])
        self.downsample = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in zip(widths, widths[1:], strict=False))
        self.encoder = block(widths[0], norm)
        self.encoder3d = nn.ModuleList(SpaceTimeBlock(width, norm, padding) for width in widths[1:])
        self.temporal = nn.ModuleList(DatedMamba(widths[-1], backend=config.ssm_backend) for _ in range(N_MAMBA))
        self.refine = nn.ModuleList(block(widths[-1], norm) for _ in range(N_MAMBA))
        self.clearness = nn.ModuleList(
            nn.Sequential(build_norm(norm, width), Pointwise(width, 1 + DATE_GROUPS)) for width in widths
        )
        self.composite = ClearComposite()
        extra_width = N_S2 + 1  # the composite and its support
        if config.use_sar:
            extra_width += RADAR_WIDTH
            self.radar = nn.Sequential(
                conv3x3(N_S1, RADAR_WIDTH, padding),
                build_norm(norm, RADAR_WIDTH),
                nn.GELU(),
                block(RADAR_WIDTH, norm),
            )
        skip_widths = [widths[0] + extra_width, *widths[1:]]
        self.skip = nn.ModuleList(Pointwise(a, b) for a, b in zip(skip_widths, decoder_widths, strict=True))
        self.upsample = nn.ModuleList(Pointwise(b, a) for a, b in zip(decoder_widths, decoder_widths[1:], strict=False))
        self.decoder = nn.ModuleList(
            nn.Sequential(*(block(width, config.decoder_norm) for _ in range(1 if level else FULL_RESOLUTION_BLOCKS)))
            for level, width in enumerate(decoder_widths)
        )
        self.out_conv = ConvBlock([decoder_widths[0], *out_widths], "none", last_relu=False)
        with torch.no_grad():  # predictions start near the composite
            self.out_conv.last.weight *= START_SHARE

    @property
    def last_conv(self) -> nn.Conv2d:
        """Convolution that gives the channels of the uncertainty."""
        return self.out_conv.last

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels (B, 1, K, H, W); see `Backbone.forward`."""
        date_order, images, levels, scores = self._encode(x, dates)
        height, width = x.shape[-2:]
        with torch.autocast(x.device.type, enabled=False):
            composite, support = self.composite(images[:, :, -N_S2:], scores[:, :, :1], date_order.valid)
            weights = self._date_weights(scores[:, :, 1:], date_order)
        extra = [composite, (support + EDGE).log()]
        if self.in_channels > N_S2:
            extra.append(self.radar(_mean(images[:, :, :N_S1].flatten(0, 1), date_order) * 4 - 2))
        raw = self.out_conv(self._decode(levels, weights, extra))
        with torch.autocast(x.device.type, enabled=False):
            start = composite.clamp(EDGE, 1 - EDGE).logit() if self.bounded else composite * self.scale_by
            mean, uncertainty = raw.to(start.dtype).split([N_S2, raw.shape[1] - N_S2], dim=1)
            raw = torch.cat([start + mean, uncertainty], dim=1)
        return raw[..., :height, :width].unsqueeze(1)

    @torch.no_grad()
    def date_weights(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Share of each date in the composite, in [0, 1]; the remainder to 1 was filled from the surroundings.

        Args:
            x: (B, T, C, H, W), scaled, as in `forward`.
            dates: (B, T), days.

        Returns:
            (B, T, 1, H, W), in input order.
        """
        date_order, _, _, scores = self._encode(x, dates)
        weights = self.composite.date_weights(scores[:, :, :1], date_order.valid)
        return date_order.unsort(weights)[..., : x.shape[-2], : x.shape[-1]]

    def _encode(self, x: Tensor, dates: Tensor | None) -> tuple[DateOrder, Tensor, list[Tensor], Tensor]:
        """Date order; images (B, T, C, H', W') in [0, 1]; features of all levels; clearness (B, T, 1 + G, H', W')."""
        self.check_series(x)
        date_order = order_dates(x, dates, self.find_padding(x), self.use_dates)
        images = date_order.sort(self._pad(x)) / self.scale_by
        levels = self._features(images, date_order)
        scores = self._clearness_scores(levels, date_order)
        with torch.autocast(x.device.type, enabled=False):
            rule = self.composite.rule_scores(images[:, :, -N_S2:], date_order.valid)
            scores = scores.to(images.dtype) + rule
        return date_order, images, levels, scores

    def check_series(self, x: Tensor) -> None:
        """See `Backbone.check_series`."""
        super().check_series(x)
        if self.training and len(x) == 1 and max(x.shape[-2:]) < self.single_min_size:
            raise ImageSizeError(
                f"{self.flags} reduces images of {x.shape[-2]} x {x.shape[-1]} to one pixel, of which --decoder_norm "
                "batch has no statistics in a batch of one; use fewer widths, or --decoder_norm group"
            )

    def _pad(self, x: Tensor) -> Tensor:
        """Reflect the lower and right border, up to a size that can be halved at every level."""
        factor = 2 ** (self.n_levels - 1)
        right, below = -x.shape[-1] % factor, -x.shape[-2] % factor
        return F.pad(x.flatten(0, 1), (0, right, 0, below), mode="reflect").unflatten(0, x.shape[:2])

    def _features(self, images: Tensor, date_order: DateOrder) -> list[Tensor]:
        """Features (B * T, C, H, W) of every level, full resolution first."""
        optical = images[:, :, -N_S2:]
        absent = (date_order.valid == 0)[:, :, None, None, None]
        darkest = optical.masked_fill(absent, math.inf).amin(dim=1, keepdim=True)
        inputs = torch.cat([images, optical - darkest], dim=2).flatten(0, 1) * INPUT_GAIN
        maps = F.gelu(self.stem_norm(self.stem(inputs.contiguous(memory_format=torch.channels_last))))
        levels = [self.encoder(maps)]
        for downsample, encoder3d in zip(self.downsample, self.encoder3d, strict=True):
            levels.append(encoder3d(downsample(levels[-1]), date_order.valid))
        for temporal, refine in zip(self.temporal, self.refine, strict=True):
            levels[-1] = refine(temporal(levels[-1], date_order))
        return levels

    def _clearness_scores(self, levels: Sequence[Tensor], date_order: DateOrder) -> Tensor:
        """Scores (B, T, 1 + G, H, W) from features: for the composite, and for each group of feature channels."""
        size = levels[0].shape[-2:]
        scores = self.clearness[0](levels[0])
        for clearness, maps in zip(self.clearness[1:], levels[1:], strict=True):
            scores = scores + resize(clearness(maps), size)
        return scores.unflatten(0, date_order.valid.shape)

    def _date_weights(self, scores: Tensor, date_order: DateOrder) -> list[Tensor]:
        """Scores (B, T, G, H, W) to weights of the dates at every level; small where no date is clear.

        Weights do not add up to 1: clouds have a texture too, which would reach the decoder.
        """
        pooled = [scores.flatten(0, 1)]
        while len(pooled) < self.n_levels:
            pooled.append(F.avg_pool2d(pooled[-1], 2))
        shape = scores.shape[:2]
        return [self.composite.date_weights(maps.unflatten(0, shape), date_order.valid) for maps in pooled]

    def _decode(self, levels: Sequence[Tensor], weights: Sequence[Tensor], extra: Sequence[Tensor]) -> Tensor:
        """Features (B, C, H, W) at full resolution, where the maps `extra` join them."""
        out = None
        for level in reversed(range(self.n_levels)):
            merged = _merge(levels[level], weights[level])
            if level == 0:
                merged = torch.cat([merged, *(maps.to(merged.dtype) for maps in extra)], dim=1)
            skipped = self.skip[level](merged.contiguous(memory_format=torch.channels_last))
            if out is not None:
                skipped = skipped + resize(self.upsample[level](out), skipped.shape[-2:])
            out = self.decoder[level](skipped)
        assert out is not None
        return out


def _mean(maps: Tensor, date_order: DateOrder) -> Tensor:
    """Mean over valid dates, (B * T, C, H, W) to (B, C, H, W)."""
    share = date_order.valid / date_order.valid.sum(dim=1, keepdim=True)
    return _merge(maps, share[:, :, None, None, None])


def _merge(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over dates, (B * T, C, H, W) weighted by (B, T, G, H, W) per group of channels, to (B, C, H, W)."""
    return sum_over_dates(maps.unflatten(0, weights.shape[:2]).unbind(1), weights)
