"""The gate: a small network that adapts the weights of a fusion to each pixel, its loss and its training."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.fusion.stacked import broadcast_bands, fused_mean
from model.fusion.statistics import Samples
from model.student_t import student_t_nll

WIDTH = 36
BOX = 5  # pixels across, over which the experts' disagreement is averaged
MIN_WEIGHT = 0.01  # of an expert at the start: from 0 no step of the gate could lead away
OFFSET_SPAN = 3.0  # bound of the offset of the log-variance
NLL_WEIGHT = 0.25
FOLDS = 3  # of regions, to choose the number of epochs
GATE_BATCH = 8
STANDARDISATION_WINDOWS = 64
RIDGE = 1e-3  # of the log-linear term, where pixels do not determine it
_TINY = 1e-12  # reflectance squared, far below the noise of the sensor


class Gate(nn.Module):
    """Weights of the experts and an offset of the variance, from what the experts predict.

    The logits of the weights have a log-linear term, `shift` - `slope` ln V for each expert and band, and the output of
    a convolutional network. Term and last layer start at zero: an untrained gate leaves weights and variances as they
    are.

    Args:
        n_experts: K.
        n_bands: C.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, n_experts: int, n_bands: int) -> None:
        super().__init__()
        self.n_experts, self.n_bands = n_experts, n_bands
        pairs = n_experts * (n_experts - 1) // 2
        channels = (2 * n_experts + 4 * pairs) * n_bands
        self.register_buffer("feature_mean", torch.zeros(channels))
        self.register_buffer("feature_std", torch.ones(channels))
        self.slope = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(n_experts, n_bands))
        self.net = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 1),
            nn.GELU(),
            _depthwise(1),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.GELU(),
            _depthwise(2),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.GELU(),
            nn.Conv2d(WIDTH, n_experts * n_bands, 1),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def features(self, means: Tensor, variances: Tensor) -> Tensor:
        """Input of the convolutional network, before standardisation.

        Args:
            means: (K, B, C, H, W), reflectance.
            variances: recalibrated, same shape.

        Returns:
            (B, F C, H, W). Of two experts F = 8 in each band: ln V1, d1, ln V2, d2, ln V1/V2,
            ln(1 + D/(V1 + V2)), ln box5(D) and d1 - d2, with D = (d1 - d2)^2.
        """
        logs = (variances + _TINY).log()
        maps = [field for pair in zip(logs, means, strict=True) for field in pair]
        for i in range(self.n_experts):
            for j in range(i + 1, self.n_experts):
                difference = means[i] - means[j]
                squared = difference.square()
                box = F.avg_pool2d(squared, BOX, stride=1, padding=BOX // 2, count_include_pad=False)
                maps += [logs[i] - logs[j], torch.log1p(squared / (variances[i] + variances[j] + _TINY))]
                maps += [(box + _TINY).log(), difference]
        return torch.cat(maps, dim=1)

    @torch.no_grad()
    def standardise(self, features: Sequence[Tensor]) -> None:
        """Set the standardisation so that these features, each (B, F, H, W), have mean 0 and deviation 1."""
        pixels = torch.cat([part.movedim(1, 0).flatten(1) for part in features], dim=1)
        self.feature_mean.copy_(pixels.mean(1))
        self.feature_std.copy_(pixels.std(1).clamp(min=1e-6))

    def log_linear_logits(self, variances: Tensor, start: Tensor) -> Tensor:
        """Logits of the weights without the convolutions.

        Args:
            variances: recalibrated, (K, B, C, H, W).
            start: weights of each expert and band, (K, C); those below 0.01 count as 0.01.

        Returns:
            (K, B, C, H, W): ln start + shift - slope ln V.
        """
        level = (_log_weights(start) + self.shift)[:, None, :, None, None]
        return level.to(variances) - self.slope * (variances + _TINY).log()

    @torch.no_grad()
    def start_at_inverse_variance(self, start: Tensor) -> None:
        """Set the log-linear term so that the weights are those of `ivw`, for any start weights (K, C)."""
        self.slope.fill_(1.0)
        self.shift.copy_(-_log_weights(start))

    def forward(self, means: Tensor, variances: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and the offset of the log-variance.

        Args:
            means: (K, B, 1, C, H, W) or (K, B, C, H, W), reflectance.
            variances: recalibrated, same shape.
            start: weights of each expert and band for logits of zero, (K, C).

        Returns:
            Weights of the shape of the means, which sum to 1, and the offset of ln V without the first dimension.
        """
        shape = means.shape
        flat = (shape[0], -1, *shape[-3:])  # (K, B, C, H, W)
        flat_variances = variances.reshape(flat)
        features = self.features(means.reshape(flat), flat_variances)
        raw = self.net((features - self.feature_mean[:, None, None]) / self.feature_std[:, None, None])
        logits, offset = raw.split([(self.n_experts - 1) * self.n_bands, self.n_bands], dim=1)
        logits = logits.unflatten(1, (self.n_experts - 1, self.n_bands)).movedim(1, 0)  # (K - 1, B, C, H, W)
        logits = self.log_linear_logits(flat_variances, start) + torch.cat([logits, torch.zeros_like(logits[:1])])
        offset = OFFSET_SPAN * torch.tanh(offset / OFFSET_SPAN)
        return torch.softmax(logits, dim=0).reshape(shape), offset.reshape(shape[1:])


def _log_weights(start: Tensor) -> Tensor:
    floored = start.clamp(min=MIN_WEIGHT)
    return (floored / floored.sum(0)).log()


def _depthwise(dilation: int) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH)


def gate_loss(mean: Tensor, variance: Tensor, target: Tensor, mse: Tensor, dof: Tensor) -> Tensor:
    """Squared error relative to that of each band, and a small likelihood term for the variance alone.

    Args:
        mean: fused, (..., C, H, W), reflectance.
        variance: fused, same shape.
        target: same shape.
        mse: the unit of squared errors in each band, (C,).
        dof: degrees of freedom of each band, (C,).

    Returns:
        A scalar.
    """
    accuracy = ((mean - target).square() / mse[:, None, None]).mean()
    half_dof = (dof / 2)[:, None, None].expand_as(mean)
    likelihood = student_t_nll(mean.detach() - target, 2 * (half_dof - 1) * variance, half_dof).mean()
    return accuracy + NLL_WEIGHT * likelihood


def fit_log_linear(gate: Gate, start: Tensor, mean: Tensor, variance: Tensor, target: Tensor, mse: Tensor) -> None:
    """Fit the log-linear term by least squares.

    Few numbers, because regions are few: one slope, and one shift for each expert, with a ridge towards those of `ivw`.
    A slope and shifts for each band fitted the regions of the fit, and no others.

    Args:
        gate: changed in place.
        start: weights of each expert and band, (K, C).
        mean: of the experts at single pixels, (K, N, C, 1, 1).
        variance: recalibrated, same shape.
        target: (N, C, 1, 1).
        mse: the unit of squared errors in each band, (C,).
    """
    gate.start_at_inverse_variance(start)
    ivw_shift = gate.shift.detach().clone()
    shift = torch.zeros(gate.n_experts, device=mean.device)
    parameters = [gate.slope.requires_grad_(True), shift.requires_grad_(True)]
    gate.shift.requires_grad_(False)
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = gate.log_linear_logits(variance, start) + broadcast_bands(shift[:, None], mean)
        squared = (fused_mean(torch.softmax(logits, dim=0), mean) - target).square()[..., 0, 0] / mse
        loss = squared.mean() + RIDGE * ((gate.slope - 1).square() + shift.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    gate.slope.requires_grad_(False)
    gate.shift.copy_(ivw_shift + shift.detach()[:, None])


@dataclass(frozen=True)
class FitSettings:
    """Settings of the gate's training: epochs over its windows, initial learning rate, seed."""

    epochs: int = 30
    lr: float = 3e-3
    seed: int = 1


@dataclass(frozen=True)
class GateEpoch:
    """Losses of the gate after an epoch, on training and on held-out regions."""

    epoch: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True)
class GateTrainer:
    """Trains the convolutions of a gate on windows of the fit split.

    Attributes:
        gate: changed in place, starting from its log-linear term.
        windows: predictions of the experts.
        recalibrate: maps predicted variances to recalibrated ones, both (K, n, C, h, w).
        loss: of means and predicted variances (K, n, C, h, w) and targets (n, C, h, w), a scalar.
        settings: epochs, rate and seed.
        device: where to compute.
    """

    gate: Gate
    windows: Samples
    recalibrate: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    settings: FitSettings
    device: torch.device

    def fit(self, rois: list[str]) -> list[GateEpoch]:
        """Train for the number of epochs that generalises best to other regions.

        In three-fold cross-validation by region, the best epoch of the mean validation loss, 0 included, is the number
        of epochs of the final training on all regions.

        Args:
            rois: the region of each image.

        Returns:
            Mean losses over the folds for each epoch; epoch 0 is before training. Empty if there is one image.
        """
        self.gate.net.requires_grad_(True)
        self._standardise()
        start = copy.deepcopy(self.gate.state_dict())
        everything = torch.arange(len(self.windows))
        folds = region_folds(self.windows.image, rois)
        n_epochs = self.settings.epochs
        with tqdm(total=n_epochs * (len(folds) + 1), desc="gate", unit="epoch", dynamic_ncols=True) as bar:
            curves = []
            for held_out in folds:
                self.gate.load_state_dict(start)
                curves.append(self._train(everything[~held_out], everything[held_out], n_epochs, bar))
            rows = [_mean_epoch(epochs) for epochs in zip(*curves, strict=True)]
            self.gate.load_state_dict(start)
            best = best_epoch(rows)
            if best:
                self._train(everything, everything[:0], best, bar)
            bar.total = bar.n
        self.gate.requires_grad_(False).eval()
        return rows

    def _standardise(self) -> None:
        rng = torch.Generator().manual_seed(self.settings.seed)
        subset = torch.randperm(len(self.windows), generator=rng)[:STANDARDISATION_WINDOWS]
        features = []
        for indices in subset.split(GATE_BATCH):
            mean, variance, _ = self.windows.take(indices, self.device)
            features.append(self.gate.features(mean, self.recalibrate(variance)))
        self.gate.standardise(features)

    def _train(self, train: Tensor, held_out: Tensor, n_epochs: int, bar: "tqdm[Any]") -> list[GateEpoch]:
        """Train on some windows for the first epochs of the schedule; losses before and after each, if any held out."""
        rng = torch.Generator().manual_seed(self.settings.seed)
        size = min(max(len(train) // GATE_BATCH, 1), GATE_BATCH)  # few windows: small batches, or too few steps
        parameters = self.gate.net.parameters
        optimizer = torch.optim.AdamW(parameters(), lr=self.settings.lr)
        steps = self.settings.epochs * -(-len(train) // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows = [GateEpoch(0, self._evaluate(train), self._evaluate(held_out))] if len(held_out) else []
        for epoch in range(1, n_epochs + 1):
            total = 0.0
            for indices in train[torch.randperm(len(train), generator=rng)].split(size):
                orientation = int(torch.randint(8, (), generator=rng))
                loss = self.loss(*self.windows.take(indices, self.device, orientation))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(indices)
            bar.update()
            if len(held_out):
                rows.append(GateEpoch(epoch, total / len(train), self._evaluate(held_out)))
        return rows

    @torch.no_grad()
    def _evaluate(self, indices: Tensor) -> float:
        parts = indices.split(GATE_BATCH)
        total = sum(float(self.loss(*self.windows.take(part, self.device))) * len(part) for part in parts)
        return total / len(indices)


def best_epoch(rows: list[GateEpoch]) -> int:
    """The number of epochs with the lowest validation loss; 0 without rows."""
    return min(rows, key=lambda row: row.val_loss).epoch if rows else 0


def region_folds(image: Tensor, rois: list[str]) -> list[Tensor]:
    """Masks that hold out some regions in turn, three (or two of two); images if there is one region only.

    Args:
        image: (N,), the image of each window or pixel.
        rois: the region of each image.

    Returns:
        (N,) bool each, True if held out; none if there is one image.
    """
    names = sorted(set(rois))
    groups = [names.index(roi) for roi in rois] if len(names) > 1 else list(range(len(rois)))
    present = sorted({groups[index] for index in image.tolist()})
    n_folds = min(FOLDS, len(present))
    if n_folds < 2:
        return []
    fold = torch.tensor([present.index(group) % n_folds if group in present else 0 for group in groups])[image]
    return [fold == number for number in range(n_folds)]


def _mean_epoch(rows: tuple[GateEpoch, ...]) -> GateEpoch:
    """The mean over folds of one epoch."""
    train, val = (
        sum(values) / len(rows) for values in zip(*((row.train_loss, row.val_loss) for row in rows), strict=True)
    )
    return GateEpoch(rows[0].epoch, train, val)
