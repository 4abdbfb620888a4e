"""Statistics of a split, accumulated while the experts predict it: sums and bounded samples, never whole images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.containers import TensorFields
from model.fusion.stacked import StackedPredictions

Array = npt.NDArray[np.float64]

AUC_BINS = 1000  # of the weight in [0, 1]
MAX_PIXELS = 8192  # of each band, to fit variances and tails on
_TINY = 1e-30


class ErrorGram:
    """Gram matrices of the experts' errors: sums over pixels of their products, per band.

    Args:
        n_experts: K.
        n_bands: C.
    """

    def __init__(self, n_experts: int, n_bands: int) -> None:
        self.sums: Array = np.zeros((n_bands, n_experts, n_experts))
        self.count = 0  # pixels of a band

    @torch.no_grad()
    def update(self, means: Tensor, target: Tensor) -> None:
        """Add a batch: means (K, B, 1, C, H, W), target (B, 1, C, H, W)."""
        error = (means - target).double().movedim(-3, 0).flatten(2)  # (C, K, pixels)
        self.sums += (error @ error.transpose(1, 2)).cpu().numpy()
        self.count += error.shape[2]

    def merge(self, other: "ErrorGram") -> None:
        """Add the sums over other pixels."""
        self.sums = self.sums + other.sums
        self.count += other.count

    @property
    def mse(self) -> Array:
        """Mean squared error of each expert and band, (K, C)."""
        return np.diagonal(self.sums, axis1=1, axis2=2).T / self.count

    @property
    def correlation(self) -> Array:
        """Correlation of the errors, (K, K, C): products over roots of squares, about zero; 1 on the diagonal."""
        return _correlation(self.sums).transpose(1, 2, 0)

    def overall(self) -> tuple[Array, Array]:
        """Mean squared error (K,) and correlation (K, K) over all bands together."""
        total = self.sums.sum(0)
        return np.diagonal(total) / (self.count * len(self.sums)), _correlation(total)


def _correlation(gram: Array) -> Array:
    """Correlations from sums of products, (..., K, K); 0 with an expert that makes no error."""
    size = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    rho = gram / np.maximum(size[..., :, None] * size[..., None, :], _TINY)
    return np.where(np.eye(gram.shape[-1], dtype=bool), 1.0, np.clip(rho, -1.0, 1.0))


class WeightAUC:
    """Area under the ROC curve of a weight as a classifier of which of two experts has the smaller error."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros((2, AUC_BINS))

    @torch.no_grad()
    def update(self, weight: Tensor, errors: Tensor) -> None:
        """Add the first expert's weight (...) and the errors of both (2, ...); ties of the errors do not count."""
        first, second = errors.abs()
        cell = (weight * AUC_BINS).long().clamp(0, AUC_BINS - 1)
        for row, chosen in enumerate((first < second, first > second)):
            self.counts[row] += torch.bincount(cell[chosen].flatten(), minlength=AUC_BINS).cpu().numpy()

    def compute(self) -> float:
        """1 for a weight that is always right, 0.5 for chance; NaN if one expert never has the smaller error."""
        right, wrong = self.counts
        if not right.sum() or not wrong.sum():
            return float("nan")
        below = np.cumsum(wrong) - wrong
        return float((right * (below + wrong / 2)).sum() / (right.sum() * wrong.sum()))


@dataclass(frozen=True)
class Samples:
    """Windows or single pixels of what the experts predicted on the fit split, on the CPU.

    Attributes:
        mean: (N, K, C, h, w), reflectance; single pixels are 1 x 1.
        variance: same shape, as the experts predict it.
        target: (N, C, h, w).
        image: (N,), index of the image of each sample.
    """

    mean: Tensor
    variance: Tensor
    target: Tensor
    image: Tensor

    def __len__(self) -> int:
        return self.mean.shape[0]

    def take(self, indices: Tensor, device: torch.device, orientation: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Some samples on a device, rotated by `orientation` quarter turns, and from 4 on mirrored first.

        Returns:
            Means and variances (K, n, C, h, w), targets (n, C, h, w).
        """

        def transform(field: Tensor) -> Tensor:
            moved = field.to(device)
            return torch.rot90(moved.flip(-1) if orientation >= 4 else moved, orientation % 4, (-2, -1))

        mean, variance = (transform(field[indices].transpose(0, 1)) for field in (self.mean, self.variance))
        return mean, variance, transform(self.target[indices])


@dataclass(frozen=True)
class PixelErrors(TensorFields):
    """Errors of a prediction at single pixels, each (C, N), on the CPU.

    Attributes:
        error: target minus mean.
        variance: total.
        dof: degrees of freedom.
    """

    error: Tensor
    variance: Tensor
    dof: Tensor

    @classmethod
    def cat(cls, parts: Sequence["PixelErrors"]) -> "PixelErrors":
        """All pixels of several parts, in order."""
        fields = zip(*(part.fields().values() for part in parts), strict=True)
        return cls(*(torch.cat(field, dim=1) for field in fields))


def gather_pixels(field: Tensor, positions: Tensor) -> Tensor:
    """Some pixels of each image in a row: (..., B, 1, C, H, W) and (B, n) to (..., B, 1, C, 1, n)."""
    flat = field.flatten(-2)
    return flat.gather(-1, positions[:, None, None].expand(*flat.shape[:-1], -1))[..., None, :]


class WindowSampler:
    """Draws a bounded number of square windows from the images of a split.

    Args:
        n_images: expected number of images.
        n_windows: largest number of windows, spread evenly over the images.
        size: pixels across; smaller images are taken whole.
        seed: of the draw.
    """

    def __init__(self, n_images: int, n_windows: int, size: int, seed: int) -> None:
        self.size, self.rng = size, np.random.default_rng((seed, size))
        quota, remainder = divmod(n_windows, max(n_images, 1))
        self.quotas = np.full(n_images, quota)
        self.quotas[self.rng.permutation(n_images)[:remainder]] += 1
        self.n_seen = 0  # images
        self.windows: list[tuple[Tensor, Tensor, Tensor, int]] = []  # mean, variance, target, image

    @torch.no_grad()
    def update(self, predictions: StackedPredictions, target: Tensor) -> None:
        """Draw from a batch: fields (K, B, 1, C, H, W), target (B, 1, C, H, W)."""
        h, w = target.shape[-2:]
        for item in range(target.shape[0]):
            quota = int(self.quotas[self.n_seen]) if self.n_seen < len(self.quotas) else 0
            images = predictions.mean[:, item, 0], predictions.variance[:, item, 0], target[item, 0]
            for top, left in self._corners(h, w, quota):
                window = (..., slice(top, top + self.size), slice(left, left + self.size))
                mean, variance, truth = (image[window].cpu().clone() for image in images)
                self.windows.append((mean, variance, truth, self.n_seen))
            self.n_seen += 1

    def merge(self, other: "WindowSampler") -> None:
        """Add the windows of other images, which are numbered after the own ones."""
        self.windows += [
            (mean, variance, target, self.n_seen + image) for mean, variance, target, image in other.windows
        ]
        self.n_seen += other.n_seen

    def _corners(self, height: int, width: int, quota: int) -> Sequence[tuple[int, int]]:
        """Corners of windows that do not overlap, on a grid with a random offset; all of them if the quota allows."""
        rows, columns = (max(length // self.size, 1) for length in (height, width))
        slack = [max(length - count * self.size, 0) for length, count in ((height, rows), (width, columns))]
        top, left = (int(self.rng.integers(0, pixels + 1)) for pixels in slack)
        cells = self.rng.permutation(rows * columns)[:quota]
        return [(top + int(cell) // columns * self.size, left + int(cell) % columns * self.size) for cell in cells]

    def samples(self) -> Samples:
        """The windows drawn; only those of the most common shape."""
        shapes = [target.shape for _, _, target, _ in self.windows]
        common = max(set(shapes), key=shapes.count)
        mean, variance, target, image = zip(*(row for row in self.windows if row[2].shape == common), strict=True)
        return Samples(torch.stack(mean), torch.stack(variance), torch.stack(target), torch.tensor(image))
