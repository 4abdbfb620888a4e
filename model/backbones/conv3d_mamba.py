"""Conv3D for space and its neighbourhood in time, Mamba along the dates, and a clear mosaic to start from.

Every date goes through convolutions at three resolutions; at the lowest, Mamba carries information from date to date.
From what it then knows, each date gets a clearness at each pixel, which weighs the dates twice: their features at every
resolution, and the images themselves. The images' mosaic, its holes filled from around, is where the prediction starts;
a decoder at full resolution says what to change, and how sure the result is.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.defaults import DATE_GROUPS, check_network
from data.constants import N_S1, N_S2
from model.layers.composite import Mosaic
from model.layers.conv import ConvBlock, build_block, build_norm
from model.layers.dates import Calendar, read_calendar
from model.layers.mamba import DatedMamba
from model.layers.recompute import Pointwise
from model.layers.space_time import SpaceTimeBlock
from model.layers.temporal import check_series, find_padding, sum_over_dates
from model.registry import register

if TYPE_CHECKING:
    from config.schema import ModelConfig

N_MAMBA = 2
MENDS = 3  # blocks of the decoder at full resolution; one at the others
RADAR_WIDTH = 16
SMALLEST = 16  # pixels along a side
GAIN = 10.0  # of reflectance before the first convolution: most of it lies below 0.3
START_SHARE = 0.1  # of the usual size of the last weights
EDGE = 1e-3  # reflectances this near to 0 and 1 have no finite logit


class Conv3dMamba(nn.Module):
    """The network, up to raw channels.

    Args:
        in_channels: 13, or 15 with radar.
        out_widths: channels of the last layers; the last number is what the head needs.
        config: the flags of the network. `encoder_widths` and `decoder_widths` go from the full resolution to the
            lowest, each half of the one before. A date all of whose (scaled) values equal `pad_value` is padding and
            has no influence (on a trained network: in training, batch norms see all that comes).
    """

    def __init__(self, in_channels: int, out_widths: Sequence[int], config: "ModelConfig") -> None:
        super().__init__()
        encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
        self.in_channels, self.scale_by, self.pad_value = in_channels, config.scale_by, config.pad_value
        self.bounded, self.told = config.mean_nonLinearity, config.positional_encoding
        self.n_levels = len(encoder)
        padding = config.padding_mode

        def convolution(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1, padding_mode=cast(Literal["reflect"], padding))

        def block(width: int, norm: str) -> nn.Module:
            return build_block(config.block_type, width, width, norm, padding)

        self.stem = convolution(in_channels + N_S2, encoder[0])
        self.stem_norm = build_norm(config.encoder_norm, encoder[0])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in zip(encoder, encoder[1:], strict=False))
        self.look = block(encoder[0], config.encoder_norm)
        self.look_around = nn.ModuleList(SpaceTimeBlock(width, config.encoder_norm, padding) for width in encoder[1:])
        self.remember = nn.ModuleList(DatedMamba(encoder[-1], backend=config.ssm_backend) for _ in range(N_MAMBA))
        self.compare = nn.ModuleList(block(encoder[-1], config.encoder_norm) for _ in range(N_MAMBA))
        self.clearness = nn.ModuleList(
            nn.Sequential(build_norm(config.encoder_norm, width), Pointwise(width, 1 + DATE_GROUPS))
            for width in encoder
        )
        self.mosaic = Mosaic()
        beside = N_S2 + 1  # the mosaic, and what it rests on
        if in_channels > N_S2:
            beside += RADAR_WIDTH
            self.radar = nn.Sequential(
                convolution(N_S1, RADAR_WIDTH),
                build_norm(config.encoder_norm, RADAR_WIDTH),
                nn.GELU(),
                block(RADAR_WIDTH, config.encoder_norm),
            )
        more = [beside] + [0] * (self.n_levels - 1)
        self.skip = nn.ModuleList(Pointwise(a + c, b) for a, b, c in zip(encoder, decoder, more, strict=True))
        self.grow = nn.ModuleList(Pointwise(b, a) for a, b in zip(decoder, decoder[1:], strict=False))
        self.mend = nn.ModuleList(
            nn.Sequential(*(block(width, config.decoder_norm) for _ in range(1 if level else MENDS)))
            for level, width in enumerate(decoder)
        )
        self.out_conv = ConvBlock([decoder[0], *out_widths], "none", last_relu=False)
        with torch.no_grad():  # a prediction starts near the mosaic
            self.out_conv.last.weight *= START_SHARE

    @property
    def last_conv(self) -> nn.Conv2d:
        """The convolution that gives the channels of the uncertainty."""
        return self.out_conv.last

    def forward(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """Raw channels for the head.

        Args:
            x: (B, T, C, H, W), scaled; radar (VV, VH) first if there is any, then the 13 bands.
            dates: (B, T), days; None for single images.

        Returns:
            (B, 1, K, H, W).

        Raises:
            ValueError: if a shape is not what the network was built for.
        """
        calendar, unit, levels, scores = self._look(x, dates)
        height, width = x.shape[-2:]
        with torch.autocast(x.device.type, enabled=False):
            mosaic, support = self.mosaic(unit[:, :, -N_S2:], scores[:, :, :1], calendar.present)
            weights = self._weigh(scores[:, :, 1:], calendar)
        beside = [mosaic, (support + EDGE).log()]
        if self.in_channels > N_S2:
            beside.append(self.radar(_mean(unit[:, :, :N_S1].flatten(0, 1), calendar) * 4 - 2))
        raw = self.out_conv(self._decode(levels, weights, beside))
        with torch.autocast(x.device.type, enabled=False):
            start = mosaic.clamp(EDGE, 1 - EDGE).logit() if self.bounded else mosaic * self.scale_by
            mean, rest = raw.to(start.dtype).split([N_S2, raw.shape[1] - N_S2], dim=1)
            raw = torch.cat([start + mean, rest], dim=1)
        return raw[..., :height, :width].unsqueeze(1)

    @torch.no_grad()
    def date_weights(self, x: Tensor, dates: Tensor | None = None) -> Tensor:
        """How much of the mosaic each date gives, in [0, 1]; what is missing to 1 was filled in from around.

        Args:
            x: (B, T, C, H, W), scaled, as in `forward`.
            dates: (B, T), days.

        Returns:
            (B, T, 1, H, W), in the order of the images given.
        """
        calendar, _, _, scores = self._look(x, dates)
        weights = self.mosaic.weights(scores[:, :, :1], calendar.present)[..., : x.shape[-2], : x.shape[-1]]
        batch = torch.arange(len(x), device=x.device)[:, None]
        return torch.empty_like(weights).index_put((batch, calendar.order), weights)

    def _look(self, x: Tensor, dates: Tensor | None) -> tuple[Calendar, Tensor, list[Tensor], Tensor]:
        """Dates in order; images (B, T, C, H', W') in [0, 1]; features of all resolutions; scores of clearness."""
        check_series(x, self.in_channels, SMALLEST)
        padded = find_padding(x, self.pad_value, self.scale_by)
        calendar = read_calendar(x, dates, padded, self.told)
        unit = calendar.arrange(self._fill(x)) / self.scale_by
        levels = self._encode(unit, calendar)
        found = self._score(levels, calendar)
        with torch.autocast(x.device.type, enabled=False):
            scores = found.to(unit.dtype) + self.mosaic.judge(
                unit[:, :, -N_S2:], calendar.present
            )  # (B, T, 1 + G, H', W')
        return calendar, unit, levels, scores

    def _fill(self, x: Tensor) -> Tensor:
        """Mirror the image at its lower and right border, up to a size that can be halved at every level."""
        step = 2 ** (self.n_levels - 1)
        right, below = -x.shape[-1] % step, -x.shape[-2] % step
        return F.pad(x.flatten(0, 1), (0, right, 0, below), mode="reflect").unflatten(0, x.shape[:2])

    def _encode(self, unit: Tensor, calendar: Calendar) -> list[Tensor]:
        """Features (B * T, C, H, W) of every resolution, the full one first."""
        optical = unit[:, :, -N_S2:]
        absent = (calendar.present == 0)[:, :, None, None, None]
        darkest = optical.masked_fill(absent, math.inf).amin(dim=1, keepdim=True)
        seen = torch.cat([unit, optical - darkest], dim=2).flatten(0, 1) * GAIN
        maps = F.gelu(self.stem_norm(self.stem(seen.contiguous(memory_format=torch.channels_last))))
        levels = [self.look(maps)]
        for shrink, look_around in zip(self.shrink, self.look_around, strict=True):
            levels.append(look_around(shrink(levels[-1]), calendar.present))
        for remember, compare in zip(self.remember, self.compare, strict=True):
            levels[-1] = compare(remember(levels[-1], calendar))
        return levels

    def _score(self, levels: Sequence[Tensor], calendar: Calendar) -> Tensor:
        """What the features say of clearness, (B, T, 1 + G, H, W): for the mosaic, and for each group of channels."""
        size = levels[0].shape[-2:]
        scores = self.clearness[0](levels[0])
        for score, maps in zip(self.clearness[1:], levels[1:], strict=True):
            scores = scores + F.interpolate(score(maps), size=size, mode="bilinear", align_corners=False)
        return scores.unflatten(0, calendar.present.shape)

    def _weigh(self, scores: Tensor, calendar: Calendar) -> list[Tensor]:
        """Scores (B, T, G, H, W) to weights of the dates at every resolution; small where nothing was seen.

        What hides the ground has a texture too: were weights to add up to 1, it would get into the decoder.
        """
        pooled = [scores.flatten(0, 1)]
        while len(pooled) < self.n_levels:
            pooled.append(F.avg_pool2d(pooled[-1], 2))
        return [self.mosaic.weights(maps.unflatten(0, scores.shape[:2]), calendar.present) for maps in pooled]

    def _decode(self, levels: Sequence[Tensor], weights: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
        """Features (B, C, H, W) at full resolution."""
        out = None
        for level in reversed(range(self.n_levels)):
            merged = _merge(levels[level], weights[level])
            if level == 0:
                merged = torch.cat([merged, *(maps.to(merged.dtype) for maps in beside)], dim=1)
            skipped = self.skip[level](merged.contiguous(memory_format=torch.channels_last))
            if out is not None:
                grown = self.grow[level](out)
                skipped = skipped + F.interpolate(grown, scale_factor=2, mode="bilinear", align_corners=False)
            out = self.mend[level](skipped)
        assert out is not None
        return out


def _mean(maps: Tensor, calendar: Calendar) -> Tensor:
    """Mean over dates, (B * T, C, H, W) to (B, C, H, W); padding does not count."""
    present = calendar.present / calendar.present.sum(dim=1, keepdim=True)
    return _merge(maps, present[:, :, None, None, None])


def _merge(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over dates, (B * T, C, H, W) weighted by (B, T, G, H, W), each group of channels by its own: (B, C, H, W)."""
    return sum_over_dates(maps.unflatten(0, weights.shape[:2]).unbind(1), weights)


@register("conv3d_mamba")
def build_conv3d_mamba(config: "ModelConfig", out_widths: Sequence[int]) -> Conv3dMamba:
    """The backbone that the flags describe.

    Raises:
        UsageError: if the widths do not fit together.
    """
    check_network(config)
    return Conv3dMamba(N_S2 + N_S1 * config.use_sar, out_widths, config)
