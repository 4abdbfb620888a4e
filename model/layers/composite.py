"""Clear composite of a series: mean of the clear observations, gaps filled from their surroundings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.constants import band_index
from model.layers.conv import resize

VISIBLE = [band_index(name) for name in ("B02", "B03", "B04")]
BRIGHT, BRIGHTER = 0.17, 0.02  # visible reflectance of a cloud, and above the darkest date
DARK, CIRRUS = 0.10, 0.01  # reflectance in B8, in B10
START_SCORE = 4.0  # of a pixel without penalty: 98 % clear
START_RULE = (80.0, 160.0, 20.0, 40.0)  # penalty per reflectance beyond each of the four
START_PULL = 0.0  # ln of the number of clear dates that the surroundings count as
# Reflectance where no date is clear: medians of two clear patches of SEN12MS-CR, in autumn and winter.
START_LAND = (0.151, 0.124, 0.108, 0.101, 0.130, 0.180, 0.204, 0.203, 0.228, 0.088, 0.002, 0.182, 0.115)
LEVELS = 6  # surroundings reach to 2 ** 5 pixels


class ClearComposite(nn.Module):
    """Mean over dates weighted by clearness, gaps filled from coarser levels of its own pyramid.

    The clearness score of a pixel is a threshold rule plus a term of the network. The rule: clouds are bright in the
    visible bands and brighter than the darkest date, shadows are dark in the near infrared, cirrus is bright in B10.
    Its weights are trained too.

    Source:
        Knutsson & Westin 1993 (normalised convolution), over a pyramid as Gortler et al. 1996 (push-pull).
        Bands: Hollstein et al. 2016. Thresholds were set by hand on synthetic landscapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule = nn.Parameter(torch.tensor(START_RULE))
        self.pull = nn.Parameter(torch.tensor(START_PULL))
        self.land = nn.Parameter(torch.tensor(START_LAND).logit())

    def rule_scores(self, optical: Tensor, valid: Tensor) -> Tensor:
        """Clearness scores of the threshold rule.

        Args:
            optical: (B, T, 13, H, W), reflectance.
            valid: (B, T), 1 for a date and 0 for padding.

        Returns:
            (B, T, 1, H, W), at most 0.
        """
        visible = optical[:, :, VISIBLE].mean(dim=2)  # (B, T, H, W)
        darkest = visible.masked_fill(valid[:, :, None, None] == 0, math.inf).amin(dim=1, keepdim=True)
        excesses = (
            visible - BRIGHT,
            visible - darkest - BRIGHTER,
            DARK - optical[:, :, band_index("B08")],
            optical[:, :, band_index("B10")] - CIRRUS,
        )
        penalties = [weight * excess.relu() for weight, excess in zip(self.rule.unbind(), excesses, strict=True)]
        return -torch.stack(penalties).sum(dim=0).unsqueeze(2)

    def forward(self, optical: Tensor, scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Composite a series.

        Args:
            optical: (B, T, 13, H, W), reflectance.
            scores: (B, T, 1, H, W), larger where a date is clearer.
            valid: (B, T), 1 for a date and 0 for padding.

        Returns:
            The composite (B, 13, H, W), reflectance, and its number of clear dates (B, 1, H, W).
        """
        clear = _clearness(scores, valid)
        total, support = (clear * optical).sum(dim=1), clear.sum(dim=1)
        pyramid = [(total, support)]
        while len(pyramid) < LEVELS:
            pyramid.append((_sum_pool(pyramid[-1][0]), _sum_pool(pyramid[-1][1])))
        pull = self.pull.exp()
        filled = self.land.sigmoid()[None, :, None, None].expand(len(total), -1, 1, 1)
        for level_total, level_support in reversed(pyramid):
            filled = (level_total + pull * resize(filled, level_support.shape[-2:])) / (level_support + pull)
        return filled, support

    def date_weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Share of each date, in the shape of the scores; the remainder to 1 is the share of the surroundings."""
        clear = _clearness(scores, valid)
        return clear / (clear.sum(dim=1, keepdim=True) + self.pull.exp())


def _clearness(scores: Tensor, valid: Tensor) -> Tensor:
    """Scores (B, T, N, H, W) to clearness in [0, 1], 0 for padding; valid is (B, T)."""
    return (scores + START_SCORE).sigmoid() * valid[:, :, None, None, None]


def _sum_pool(maps: Tensor) -> Tensor:
    """Sums over 2 x 2 pixels: support adds up towards coarser levels."""
    return F.avg_pool2d(maps, 2, ceil_mode=True, divisor_override=1)
