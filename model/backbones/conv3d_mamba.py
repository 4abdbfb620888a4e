"""Conv3D for space and its neighbourhood in time, Mamba along the dates, and a clear mosaic to start from.

Every date goes through convolutions at three resolutions; at the lowest, Mamba carries information from date to date.
From what it then knows, each date gets a clearness at each pixel. Clearness weighs the dates: their features at every
resolution, and the images themselves, whose weighted mean (the mosaic) is where the prediction starts from. A decoder
says how far to follow the mosaic and what to put in its place.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.constants import N_S1, N_S2
from model.defaults import DATE_GROUPS, check_network
from model.layers.calendar import Calendar, read_calendar
from model.layers.conv import ConvBlock
from model.layers.mamba import DatedMamba
from model.layers.recompute import Pointwise
from model.layers.space_time import PixelNorm, SpaceTimeBlock
from model.registry import register

if TYPE_CHECKING:
    from model.config import ModelConfig

N_MAMBA = 2
SMALLEST = 16  # pixels along a side
DOUBT = -2.0  # logit of the share of a prediction that does not come from the mosaic, at the start
EDGE = 1e-3  # reflectances this near to 0 and 1 have no finite logit


class Conv3dMamba(nn.Module):
    """The network, up to raw channels.

    Args:
        in_channels: 13, or 15 with radar.
        out_widths: channels of the last layers; the last number is what the head needs.
        config: the flags of the network. `encoder_widths` and `decoder_widths` go from the full resolution to the
            lowest, each half of the one before. A date all of whose (scaled) values equal `pad_value` is padding and
            has no influence.
    """

    def __init__(self, in_channels: int, out_widths: Sequence[int], config: "ModelConfig") -> None:
        super().__init__()
        encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
        self.in_channels, self.scale_by, self.pad_value = in_channels, config.scale_by, config.pad_value
        self.bounded, self.told = config.mean_nonLinearity, config.positional_encoding
        self.padding_mode = config.padding_mode
        self.n_levels = len(encoder)

        def block(width: int, dates: int = 1) -> SpaceTimeBlock:
            return SpaceTimeBlock(width, dates, config.padding_mode)

        self.stem = nn.Conv2d(in_channels + N_S2, encoder[0], 3, padding=1)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in zip(encoder, encoder[1:], strict=False))
        self.look = nn.ModuleList(block(width, 3 if level else 1) for level, width in enumerate(encoder))
        self.remember = nn.ModuleList(DatedMamba(encoder[-1], backend=config.ssm_backend) for _ in range(N_MAMBA))
        self.compare = nn.ModuleList(block(encoder[-1]) for _ in range(N_MAMBA))
        self.clearness = nn.ModuleList(
            nn.Sequential(PixelNorm(width), Pointwise(width, 1 + DATE_GROUPS)) for width in encoder
        )
        extra = [N_S2 + 1] + [0] * (self.n_levels - 1)  # beside the features: the mosaic, and how clear it is
        self.skip = nn.ModuleList(Pointwise(a + more, b) for a, b, more in zip(encoder, decoder, extra, strict=True))
        self.grow = nn.ModuleList(Pointwise(b, a) for a, b in zip(decoder, decoder[1:], strict=False))
        self.mend = nn.ModuleList(nn.Sequential(block(width), block(width)) for width in decoder)
        self.last_norm = PixelNorm(decoder[0])
        self.out_conv = ConvBlock([decoder[0], *out_widths], "none", last_relu=False)
        self.doubt = Pointwise(decoder[0], N_S2)
        with torch.no_grad():
            self.out_conv.last.weight[:N_S2] *= 0.1
            self.doubt.weight *= 0.1
            assert self.doubt.bias is not None
            self.doubt.bias.fill_(DOUBT)

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
        self._check(x)
        pad_value = torch.tensor(self.pad_value, device=x.device) * self.scale_by  # rounds as x * scale_by did
        padded = (x == pad_value).flatten(2).all(dim=-1)
        calendar = read_calendar(x, dates, padded, self.told)
        height, width = x.shape[-2:]
        unit = calendar.arrange(self._fill(x)) / self.scale_by  # (B, T, C, H', W'), in [0, 1]
        levels = self._encode(unit, calendar)
        weights, clearness = self._weigh(levels, calendar)
        optical = unit[:, :, -N_S2:]
        mosaic = (weights[0][:, :, :1] * optical).sum(dim=1)  # (B, 13, H', W')
        out = self._decode(levels, weights, torch.cat([mosaic, clearness], dim=1))
        raw, doubt = self.out_conv(out), self.doubt(out)
        with torch.autocast(x.device.type, enabled=False):
            start = mosaic.clamp(EDGE, 1 - EDGE).logit() if self.bounded else mosaic * self.scale_by
            mean, rest = raw.to(start.dtype).split([N_S2, raw.shape[1] - N_S2], dim=1)
            raw = torch.cat([mean + (1 - doubt.to(start.dtype).sigmoid()) * start, rest], dim=1)
        return raw[..., :height, :width].unsqueeze(1)

    def _fill(self, x: Tensor) -> Tensor:
        """Mirror the image at its lower and right border, up to a size that can be halved at every level."""
        step = 2 ** (self.n_levels - 1)
        right, below = -x.shape[-1] % step, -x.shape[-2] % step
        return F.pad(x.flatten(0, 1), (0, right, 0, below), mode="reflect").unflatten(0, x.shape[:2])

    def _encode(self, unit: Tensor, calendar: Calendar) -> list[Tensor]:
        """Features (B * T, C, H, W) of every resolution, the full one first."""
        present = calendar.present[:, :, None, None, None]
        optical = unit[:, :, -N_S2:]
        darkest = optical.masked_fill(present == 0, math.inf).amin(dim=1, keepdim=True)
        seen = torch.cat([unit, optical - darkest], dim=2).flatten(0, 1)
        maps = self.stem(seen.contiguous(memory_format=torch.channels_last))
        levels = [self.look[0](maps)]
        for shrink, look in zip(self.shrink, self.look[1:], strict=True):
            levels.append(look(shrink(levels[-1]), calendar.present))
        for remember, compare in zip(self.remember, self.compare, strict=True):
            levels[-1] = compare(remember(levels[-1], calendar))
        return levels

    def _weigh(self, levels: Sequence[Tensor], calendar: Calendar) -> tuple[list[Tensor], Tensor]:
        """Weights of the dates at every resolution, (B, T, 1 + G, H, W), and the clearness (B, 1, H, W) of the best."""
        size = levels[0].shape[-2:]
        scores = self.clearness[0](levels[0]).float()
        for score, maps in zip(self.clearness[1:], levels[1:], strict=True):
            scores = scores + F.interpolate(score(maps).float(), size=size, mode="bilinear", align_corners=False)
        absent = (calendar.present == 0)[:, :, None, None, None]
        weights = []
        for level in range(len(levels)):
            pooled = F.avg_pool2d(scores, 2**level) if level else scores
            by_date = pooled.unflatten(0, calendar.present.shape).masked_fill(absent, -math.inf)
            weights.append(by_date.softmax(dim=1))
            if level == 0:
                best = by_date[:, :, :1].logsumexp(dim=1)
        return weights, best

    def _decode(self, levels: Sequence[Tensor], weights: Sequence[Tensor], extra: Tensor) -> Tensor:
        """Features (B, C, H, W) at full resolution, normed and active."""
        out = None
        for level in reversed(range(self.n_levels)):
            merged = _merge(levels[level], weights[level][:, :, 1:])
            if level == 0:
                merged = torch.cat([merged, extra.to(merged.dtype)], dim=1)
            skipped = self.skip[level](merged)
            if out is not None:
                larger = F.interpolate(self.grow[level](out), scale_factor=2, mode="bilinear", align_corners=False)
                skipped = skipped + larger
            out = self.mend[level](skipped)
        assert out is not None
        return F.gelu(self.last_norm(out))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 5 or x.shape[2] != self.in_channels:
            bands = "13 bands" if self.in_channels == N_S2 else "VV, VH, then 13 bands"
            raise ValueError(
                f"expected x of shape (B, T, {self.in_channels}, H, W) ({bands}), got {tuple(x.shape)}; "
                "--use_sar says whether radar goes in"
            )
        if min(x.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"expected images of {SMALLEST} x {SMALLEST} pixels or more, got {x.shape[-2]} x {x.shape[-1]}"
            )


def _merge(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over dates, (B * T, C, H, W) weighted by (B, T, G, H, W), each group of channels by its own: (B, C, H, W)."""
    b, t, groups = weights.shape[:3]
    by_group = maps.unflatten(1, (groups, -1)).unflatten(0, (b, t))  # (B, T, G, C / G, H, W)
    return (by_group * weights.unsqueeze(3).to(maps.dtype)).sum(dim=1).flatten(1, 2)


@register("conv3d_mamba")
def build_conv3d_mamba(config: "ModelConfig", out_widths: Sequence[int]) -> Conv3dMamba:
    """The backbone that the flags describe.

    Raises:
        UsageError: if the widths do not fit together.
    """
    check_network(config)
    return Conv3dMamba(N_S2 + N_S1 * config.use_sar, out_widths, config)
