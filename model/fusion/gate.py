"""The gate: a small network that moves the weights of a fusion from pixel to pixel, and its loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.student_t import student_t_nll

WIDTH = 36
BOX = 5  # pixels across, over which the experts' disagreement is averaged
LEAST_WEIGHT = 0.01  # of an expert where the gate starts: from 0 no step of the gate could lead away
OFFSET_SPAN = 3.0  # the logarithm of the variance moves by less than this
NLL_WEIGHT = 0.25
_TINY = 1e-12  # reflectance squared, far below the noise of the sensor


class Gate(nn.Module):
    """Offsets of the weights and of the variance, from what the experts say.

    Two things move the weights: a straight line, `shift` - `slope` ln V for every expert and band (`incline` lays it
    where the weights are inverse to the variance), and a convolutional network. Line and last layer start at zero: an
    untrained gate leaves weights and variances as they are.

    Args:
        n_experts: K.
        n_bands: C.
        extra: channels that come beside the experts' beliefs, such as cloud masks of the inputs; 0 for none.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, n_experts: int, n_bands: int, extra: int = 0) -> None:
        super().__init__()
        self.n_experts, self.n_bands, self.extra = n_experts, n_bands, extra
        pairs = n_experts * (n_experts - 1) // 2
        channels = (2 * n_experts + 4 * pairs) * n_bands + extra
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.slope = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(n_experts, n_bands))
        self.net = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 1),
            nn.GELU(),
            _local(1),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.GELU(),
            _local(2),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.GELU(),
            nn.Conv2d(WIDTH, n_experts * n_bands, 1),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def features(self, means: Tensor, variances: Tensor, extra: Tensor | None = None) -> Tensor:
        """What the gate looks at.

        Args:
            means: (K, B, C, H, W), reflectance.
            variances: recalibrated, same shape.
            extra: (B, extra, H, W), if the gate was built for it.

        Returns:
            (B, F C + extra, H, W). Of two experts F = 8 in each band: ln V1, d1, ln V2, d2, ln V1/V2,
            ln(1 + D/(V1 + V2)), ln box5(D) and d1 - d2, with D = (d1 - d2)^2.
        """
        logs = (variances + _TINY).log()
        found = [field for pair in zip(logs, means, strict=True) for field in pair]
        for i in range(self.n_experts):
            for j in range(i + 1, self.n_experts):
                apart = means[i] - means[j]
                squared = apart.square()
                box = F.avg_pool2d(squared, BOX, stride=1, padding=BOX // 2, count_include_pad=False)
                found += [logs[i] - logs[j], torch.log1p(squared / (variances[i] + variances[j] + _TINY))]
                found += [(box + _TINY).log(), apart]
        return torch.cat(found if extra is None else [*found, extra], dim=1)

    @torch.no_grad()
    def standardise(self, features: Sequence[Tensor]) -> None:
        """Let every feature have mean 0 and deviation 1 over these (B, F, H, W)."""
        total = torch.cat([one.movedim(1, 0).flatten(1) for one in features], dim=1)
        self.centre.copy_(total.mean(1))
        self.spread.copy_(total.std(1).clamp(min=1e-6))

    def line(self, variances: Tensor, start: Tensor) -> Tensor:
        """The logits of the weights without the convolutions.

        Args:
            variances: recalibrated, (K, B, C, H, W).
            start: weights of each expert and band, (K, C); those below 0.01 count as 0.01.

        Returns:
            (K, B, C, H, W): ln start + shift - slope ln V.
        """
        level = (_log_weights(start) + self.shift)[:, None, :, None, None]
        return level.to(variances) - self.slope * (variances + _TINY).log()

    @torch.no_grad()
    def incline(self, start: Tensor) -> None:
        """Lay the line where it gives the weights of `ivw`, wherever the gate moves from."""
        self.slope.fill_(1.0)
        self.shift.copy_(-_log_weights(start))

    def forward(
        self, means: Tensor, variances: Tensor, start: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights and the offset of the variance.

        Args:
            means: (K, B, 1, C, H, W) or (K, B, C, H, W), reflectance.
            variances: recalibrated, same shape.
            start: weights of each expert and band from which the gate moves, (K, C).
            extra: (B, extra, H, W), if the gate was built for it.

        Returns:
            Weights of the shape of the means, which add up to 1, and the offset of ln V without the first dimension.
        """
        shape = means.shape
        flat = (shape[0], -1, *shape[-3:])  # (K, B, C, H, W)
        flat_variances = variances.reshape(flat)
        seen = self.features(means.reshape(flat), flat_variances, extra)
        raw = self.net((seen - self.centre[:, None, None]) / self.spread[:, None, None])
        moved, offset = raw.split([(self.n_experts - 1) * self.n_bands, self.n_bands], dim=1)
        moved = moved.unflatten(1, (self.n_experts - 1, self.n_bands)).movedim(1, 0)  # (K - 1, B, C, H, W)
        logits = self.line(flat_variances, start) + torch.cat([moved, torch.zeros_like(moved[:1])])
        offset = OFFSET_SPAN * torch.tanh(offset / OFFSET_SPAN)
        return torch.softmax(logits, dim=0).reshape(shape), offset.reshape(shape[1:])


def _log_weights(start: Tensor) -> Tensor:
    floor = start.clamp(min=LEAST_WEIGHT)
    return (floor / floor.sum(0)).log()


def _local(dilation: int) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH)


def gate_loss(mean: Tensor, variance: Tensor, target: Tensor, mse: Tensor, dof: Tensor) -> Tensor:
    """Squared error in units of each band's own, and a little likelihood that moves the variance alone.

    Args:
        mean: fused, (..., C, H, W), reflectance.
        variance: fused, same shape.
        target: same shape.
        mse: what counts as 1 in each band, (C,).
        dof: degrees of freedom of each band, (C,).

    Returns:
        A scalar.
    """
    accuracy = ((mean - target).square() / mse[:, None, None]).mean()
    half = (dof / 2)[:, None, None].expand_as(mean)
    likelihood = student_t_nll(mean.detach() - target, 2 * (half - 1) * variance, half).mean()
    return accuracy + NLL_WEIGHT * likelihood
