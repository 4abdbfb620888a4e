"""Experts whose predictions are written in their input, images of two such experts, and what is fitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batch import Batch, SampleInfo
from data.constants import N_S2
from evaluation.calibration import CalibrationMeter, calibration_figures
from model.fusion.acceptance import FusionEvaluator
from model.fusion.fit import FitStatistics
from model.fusion.network import FusionNet
from model.fusion.stacked import StackedPredictions
from model.nig import nig_from_moments
from model.predictions import NIG, Gaussian

CPU = torch.device("cpu")
EXPERT_NAMES = ("first", "second")


class WrittenExpert(nn.Module):
    """An expert that reads mean and deviation from its dates: `x[:, 2k]` and `x[:, 2k + 1]`."""

    def __init__(self, index: int, scale_by: float = 10.0, gaussian: bool = False, gamma: float = 1.0) -> None:
        super().__init__()
        self.index, self.scale_by, self.gaussian, self.gamma = index, scale_by, gaussian, gamma
        self.layer = nn.Linear(2, 2)  # weights, to test whether they change

    def forward(self, x: Tensor, dates: Tensor | None = None) -> NIG | Gaussian:
        mean, deviation = (x[:, at : at + 1] * self.scale_by for at in (2 * self.index, 2 * self.index + 1))
        if self.gaussian:
            return Gaussian(mean, deviation.square())
        return nig_from_moments(mean, deviation.square(), 1 / (1 + self.gamma), 3.0)


@dataclass
class Pictures:
    """Images: `x` (B, 2K, 13, H, W) for `WrittenExpert`, `target` (B, 1, 13, H, W)."""

    x: Tensor
    target: Tensor


def pictures(n: int = 8, size: int = 32, seed: int = 0, bad: float = 0.05, good: float = 0.02) -> Pictures:
    """Two experts with deviations that are exchanged between the left and right half, and correlated errors.

    Every expert predicts its deviation correctly on average, with a random factor at each pixel.
    """
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    target = 0.3 + 0.05 * noise(n, 1, N_S2, size, size)
    left = (torch.arange(size) < size // 2).float()
    shared = noise(n, 1, N_S2, size, size)
    deviations = [bad * left + good * (1 - left), good * left + bad * (1 - left)]
    layers = []
    for deviation in deviations:
        error = deviation * (0.6 * shared + 0.8 * noise(n, 1, N_S2, size, size))
        predicted = deviation * torch.exp(0.2 * noise(n, 1, N_S2, size, size))
        layers += [target + error, predicted]
    return Pictures(torch.cat(layers, dim=1), target)


def fusion(rule: str = "gated", k: int = 2, guarded: bool = True, **options) -> FusionNet:
    torch.manual_seed(0)
    return FusionNet([WrittenExpert(index, **options) for index in range(k)], rule, guarded)


def batch_of(images: Pictures, rois: Sequence[str] | None = None) -> Batch:
    """Pictures as a batch; by default each image has its own region."""
    n = images.x.shape[0]
    names = rois or [f"ROIs1868/{at}" for at in range(n)]
    info = tuple(SampleInfo(at, roi, str(at), (), None, (), (), "") for at, roi in enumerate(names))
    unused = torch.zeros(n, 1)
    return Batch(images.x, images.target, None, unused, unused, info)


def statistics_of(net: FusionNet, images: Pictures, rois: Sequence[str] | None = None, seed: int = 1) -> FitStatistics:
    statistics = FitStatistics(len(net.experts), images.x.shape[0], seed)
    statistics.update(net.predict_experts(images.x), batch_of(images, rois))
    return statistics


def evaluator_of(net: FusionNet) -> FusionEvaluator:
    return FusionEvaluator(net, EXPERT_NAMES, CalibrationMeter, calibration_figures)


def stacked_rows(mean, variance, gamma=1.0, alpha=3.0, dtype=torch.float64) -> StackedPredictions:
    """Predictions of a row of pixels: mean and variance (K, W) to fields (K, 1, 1, 1, 1, W)."""
    mean, variance = (torch.as_tensor(v, dtype=dtype) for v in (mean, variance))
    fields = torch.broadcast_tensors(mean, variance, torch.as_tensor(gamma, dtype=dtype), torch.tensor(alpha).to(dtype))
    return StackedPredictions(*(f.clone().reshape(f.shape[0], 1, 1, 1, 1, -1) for f in fields))


def pixel_row(values: Sequence[float]) -> Tensor:
    """(K,) numbers as fields (K, 1, 1, 1, 1, 1) of one pixel."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1, 1, 1)
