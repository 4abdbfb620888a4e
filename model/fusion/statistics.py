"""What is counted over a split while the experts predict it: sums and bounded samples, never whole images."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.fusion.beliefs import Experts

Array = npt.NDArray[np.float64]

AUC_BINS = 1000  # of the weight in [0, 1]
_TINY = 1e-30


class ErrorGram:
    """Sums over pixels of the products of the experts' errors, for each band.

    Args:
        n_experts: K.
        n_bands: C.
    """

    def __init__(self, n_experts: int, n_bands: int) -> None:
        self.sums: Array = np.zeros((n_bands, n_experts, n_experts))
        self.count = 0  # pixels of a band

    @torch.no_grad()
    def add(self, means: Tensor, target: Tensor) -> None:
        """Take in a batch: means (K, B, 1, C, H, W), target (B, 1, C, H, W)."""
        error = (means - target).double().movedim(-3, 0).flatten(2)  # (C, K, pixels)
        self.sums += (error @ error.transpose(1, 2)).cpu().numpy()
        self.count += error.shape[2]

    def __add__(self, other: "ErrorGram") -> "ErrorGram":
        """The sums over the pixels of both."""
        both = copy.copy(self)
        both.sums, both.count = self.sums + other.sums, self.count + other.count
        return both

    @property
    def mse(self) -> Array:
        """Mean squared error of each expert and band, (K, C)."""
        return np.diagonal(self.sums, axis1=1, axis2=2).T / self.count

    @property
    def correlation(self) -> Array:
        """Correlation of the errors, (K, K, C): products over roots of squares, about zero; 1 on the diagonal."""
        return correlation_of(self.sums).transpose(1, 2, 0)

    def overall(self) -> tuple[Array, Array]:
        """Mean squared error (K,) and correlation (K, K) over all bands together."""
        total = self.sums.sum(0)
        return np.diagonal(total) / (self.count * len(self.sums)), correlation_of(total)


def correlation_of(gram: Array) -> Array:
    """Correlations from sums of products, (..., K, K); 0 with an expert that makes no error."""
    size = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    rho = gram / np.maximum(size[..., :, None] * size[..., None, :], _TINY)
    return np.where(np.eye(gram.shape[-1], dtype=bool), 1.0, np.clip(rho, -1.0, 1.0))


class WeightSkill:
    """How well a weight tells which of two experts is nearer to the truth: the area under its ROC curve."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros((2, AUC_BINS))

    @torch.no_grad()
    def add(self, weight: Tensor, errors: Tensor) -> None:
        """Take in the first expert's weight (...) and the errors of both (2, ...); ties of the errors do not count."""
        first, second = errors.abs()
        cell = (weight * AUC_BINS).long().clamp(0, AUC_BINS - 1)
        for row, chosen in enumerate((first < second, first > second)):
            self.counts[row] += torch.bincount(cell[chosen].flatten(), minlength=AUC_BINS).cpu().numpy()

    @property
    def auc(self) -> float:
        """1 for a weight that is always right, 0.5 for a coin; NaN where one expert is never the nearer one."""
        right, wrong = self.counts
        if not right.sum() or not wrong.sum():
            return float("nan")
        below = np.cumsum(wrong) - wrong
        return float((right * (below + wrong / 2)).sum() / (right.sum() * wrong.sum()))


@dataclass(frozen=True)
class Samples:
    """A bounded part of what the experts said on the fit split, on the CPU.

    Attributes:
        mean: (N, K, C, h, w), reflectance; single pixels are 1 x 1.
        variance: same shape, as the experts state it.
        target: (N, C, h, w).
        group: (N,), which image each comes from.
    """

    mean: Tensor
    variance: Tensor
    target: Tensor
    group: Tensor

    def __len__(self) -> int:
        return self.mean.shape[0]

    def take(self, which: Tensor, device: torch.device, turn: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Some of them on a device, turned by quarters and from `turn` 4 on mirrored, all fields alike.

        Returns:
            Means and variances (K, n, C, h, w), targets (n, C, h, w).
        """
        found = []
        for field in (self.mean[which].transpose(0, 1), self.variance[which].transpose(0, 1), self.target[which]):
            moved = field.to(device)
            found.append(torch.rot90(moved.flip(-1) if turn >= 4 else moved, turn % 4, (-2, -1)))
        return found[0], found[1], found[2]


@dataclass(frozen=True)
class Pixels:
    """What a belief says at single pixels and how far it is off, each (C, N), on the CPU.

    Attributes:
        error: target minus mean.
        variance: total.
        dof: degrees of freedom.
    """

    error: Tensor
    variance: Tensor
    dof: Tensor

    @classmethod
    def join(cls, parts: Sequence["Pixels"]) -> "Pixels":
        """All of them, in order."""
        fields = zip(*((part.error, part.variance, part.dof) for part in parts), strict=True)
        return cls(*(torch.cat(field, dim=1) for field in fields))


def pick(field: Tensor, places: Tensor) -> Tensor:
    """Some pixels of each image, side by side: (..., B, 1, C, H, W) and (B, n) to (..., B, 1, C, 1, n)."""
    flat = field.flatten(-2)
    index = places[:, None, None].expand(*flat.shape[:-1], places.shape[1])
    return flat.gather(-1, index)[..., None, :]


class Sampler:
    """Draws square windows from the images of a split as they come, at most so many of all of them together.

    Args:
        n_images: how many images will come.
        n_windows: how many windows are kept at most.
        size: pixels across; images that are smaller give what they have.
        seed: of the draw.
    """

    def __init__(self, n_images: int, n_windows: int, size: int, seed: int) -> None:
        self.size, self.rng = size, np.random.default_rng((seed, size))
        each, more = divmod(n_windows, max(n_images, 1))
        self.quota = np.full(n_images, each)
        self.quota[self.rng.permutation(n_images)[:more]] += 1
        self.seen = 0
        self.kept: list[tuple[Tensor, Tensor, Tensor, int]] = []

    @torch.no_grad()
    def add(self, experts: Experts, target: Tensor) -> None:
        """Draw from a batch: fields (K, B, 1, C, H, W), target (B, 1, C, H, W)."""
        h, w = target.shape[-2:]
        for item in range(target.shape[0]):
            quota = int(self.quota[self.seen]) if self.seen < len(self.quota) else 0
            for top, left in self._corners(h, w, quota):
                window = (..., slice(top, top + self.size), slice(left, left + self.size))
                mean, variance = experts.mean[:, item, 0][window], experts.variance[:, item, 0][window]
                seen = target[item, 0][window]
                self.kept.append((mean.cpu().clone(), variance.cpu().clone(), seen.cpu().clone(), self.seen))
            self.seen += 1

    def __add__(self, other: "Sampler") -> "Sampler":
        """What both kept; images of the other count on from those that this one has seen."""
        both = copy.copy(self)
        both.seen = self.seen + other.seen
        both.kept = self.kept + [(mean, variance, target, self.seen + at) for mean, variance, target, at in other.kept]
        return both

    def _corners(self, height: int, width: int, quota: int) -> Sequence[tuple[int, int]]:
        """Corners of windows that do not overlap, on a grid laid at random; all of them where the quota allows."""
        tall, wide = (max(length // self.size, 1) for length in (height, width))
        spare = [max(length - count * self.size, 0) for length, count in ((height, tall), (width, wide))]
        top, left = (int(self.rng.integers(0, slack + 1)) for slack in spare)
        places = self.rng.permutation(tall * wide)[:quota]
        return [(top + int(place) // wide * self.size, left + int(place) % wide * self.size) for place in places]

    def samples(self) -> Samples:
        """What was kept; windows of the commonest shape only."""
        shapes = [target.shape for _, _, target, _ in self.kept]
        common = max(set(shapes), key=shapes.count)
        kept = [entry for entry in self.kept if entry[2].shape == common]
        mean, variance, target, group = zip(*kept, strict=True)
        return Samples(torch.stack(mean), torch.stack(variance), torch.stack(target), torch.tensor(group))
