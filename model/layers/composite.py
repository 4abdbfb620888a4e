"""The clear mosaic of a series: what was seen clearly at any date, and its surroundings where nothing was."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.constants import band_index

VISIBLE = [band_index(name) for name in ("B02", "B03", "B04")]
BRIGHT, BRIGHTER = 0.17, 0.02  # reflectance in the visible: of a cloud, and above the darkest date
DARK, CIRRUS = 0.10, 0.01  # reflectance in B8, in B10
START_SCORE = 4.0  # of a pixel with nothing against it: clear to 98 %
START_RULE = (80.0, 160.0, 20.0, 40.0)  # score lost per reflectance beyond each of the four
START_PULL = 0.0  # ln of the clear pixels that the surroundings count for
# Reflectance where no date saw anything: medians of two clear patches of SEN12MS-CR, in autumn and winter.
START_LAND = (0.151, 0.124, 0.108, 0.101, 0.130, 0.180, 0.204, 0.203, 0.228, 0.088, 0.002, 0.182, 0.115)
LEVELS = 6  # surroundings reach to 2 ** 5 pixels


class Mosaic(nn.Module):
    """Weighted mean of the dates, its holes filled from coarser means of itself.

    How clear a date is at a pixel is the sum of a rule of thumb and of what the network found. The rule: clouds are
    bright in the visible bands and brighter than the darkest date, shadows dark in the near infrared, and cirrus shows
    in B10. It is where training starts from; its numbers are trained with everything else.

    Source:
        Knutsson & Westin 1993 (normalised convolution), over a pyramid as Gortler et al. 1996 (push-pull).
        The bands: Hollstein et al. 2016. The numbers were set by hand on made-up landscapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule = nn.Parameter(torch.tensor(START_RULE))
        self.pull = nn.Parameter(torch.tensor(START_PULL))
        self.land = nn.Parameter(torch.tensor(START_LAND).logit())

    def judge(self, optical: Tensor, present: Tensor) -> Tensor:
        """What the rule holds against each pixel.

        Args:
            optical: (B, T, 13, H, W), reflectance.
            present: (B, T), 1 for a date and 0 for padding.

        Returns:
            (B, T, 1, H, W), to be added to scores.
        """
        visible = optical[:, :, VISIBLE].mean(dim=2)  # (B, T, H, W)
        darkest = visible.masked_fill(present[:, :, None, None] == 0, math.inf).amin(dim=1, keepdim=True)
        beyond = (
            visible - BRIGHT,
            visible - darkest - BRIGHTER,
            DARK - optical[:, :, band_index("B08")],
            optical[:, :, band_index("B10")] - CIRRUS,
        )
        against = [weight * amount.relu() for weight, amount in zip(self.rule.unbind(), beyond, strict=True)]
        return -torch.stack(against).sum(dim=0).unsqueeze(2)

    def forward(self, optical: Tensor, scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Mosaic of a series.

        Args:
            optical: (B, T, 13, H, W), reflectance.
            scores: (B, T, 1, H, W), larger where a date is clearer.
            present: (B, T), 1 for a date and 0 for padding.

        Returns:
            The mosaic (B, 13, H, W), reflectance, and how many clear dates it rests on, (B, 1, H, W).
        """
        clear = how_clear(scores, present)
        total, support = (clear * optical).sum(dim=1), clear.sum(dim=1)
        pyramid = [(total, support)]
        while len(pyramid) < LEVELS:
            pyramid.append((_gather(pyramid[-1][0]), _gather(pyramid[-1][1])))
        pull = self.pull.exp()
        filled = self.land.sigmoid()[None, :, None, None].expand(len(total), -1, 1, 1)
        for of_level, weight in reversed(pyramid):
            around = F.interpolate(filled, size=weight.shape[-2:], mode="bilinear", align_corners=False)
            filled = (of_level + pull * around) / (weight + pull)
        return filled, support

    def weights(self, scores: Tensor, present: Tensor) -> Tensor:
        """The share of each date, of the shape of the scores; the rest to 1 is for the surroundings."""
        clear = how_clear(scores, present)
        return clear / (clear.sum(dim=1, keepdim=True) + self.pull.exp())


def how_clear(scores: Tensor, present: Tensor) -> Tensor:
    """Scores (B, T, N, H, W) to clearness in [0, 1], 0 for padding; present is (B, T)."""
    return (scores + START_SCORE).sigmoid() * present[:, :, None, None, None]


def _gather(maps: Tensor) -> Tensor:
    """Sums over 2 x 2 pixels: the wider the surroundings, the more they know."""
    return F.avg_pool2d(maps, 2, ceil_mode=True, divisor_override=1)
