"""Calibration of the predicted uncertainty: the published figures, and streamed figures per pixel and band.

The meter keeps sums on fixed fine grids, a few hundred kilobytes for any number of images. Strata (such as pixels
clouded at all dates, at some, at none) are rows of these sums; their total stands for all pixels. docs/metrics.md
defines every figure.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.student_t import normal_scores, student_t_scores

GRID = 4096
LN_LOW, LN_HIGH = math.log(1e-14), math.log(1e4)  # of variance or squared error; a cell is 1 % of a variance wide
CENTRAL_CELLS = 100  # central probabilities in steps of 1 %
LEVELS = (50, 90, 95)  # per cent, of the central intervals that are reported
BINS = 20  # of equal mass, for UCE and ENCE
SPARSIFICATION_STEPS = 100
_CPU_CHUNK, _GPU_CHUNK = 1 << 16, 1 << 24  # elements at once, so that temporaries fit the cache or the memory

Values = Sequence[float] | npt.NDArray[np.floating] | Tensor
Array = npt.NDArray[np.float64]


def uce_auce(variances: Values, errors: Values, *, percent: int = 5, l2: bool = True) -> tuple[float, float]:
    """The published calibration errors of images: `UCE SE` and `AUCE SE` (with l2=False from absolute values).

    Misleading (known issue 5): the mean signed error of an image is compared with the root of its mean variance, so
    that a perfectly calibrated model scores about its own sigma. Kept for comparison with published tables.

    Args:
        variances: mean variance of each image.
        errors: mean signed error of each image; pairs with a value that is not finite are ignored.
        percent: width of a bin, per cent of the range of the variances.
        l2: compare root mean squares in each bin, or mean absolute values.

    Returns:
        UCE, weighted by the images in each bin, and AUCE, the mean over filled bins; NaN without images.

    Source:
        Ebel et al. 2023. Changes: none if the variances differ (equal ones share one bin of full weight).
    """
    variance, error = _finite_pairs(variances, errors)
    if variance.size == 0:
        return math.nan, math.nan
    n_bins = 100 // percent
    edges = np.linspace(float(variance.min()), float(variance.max()), n_bins)[1:]
    member = np.digitize(variance, edges)
    gaps, weights = [], []
    for index in np.unique(member):
        sigma, residual = np.sqrt(variance[member == index]), error[member == index]
        if l2:
            gap = math.sqrt(np.mean(residual**2)) - math.sqrt(np.mean(sigma**2))
        else:
            gap = float(np.mean(np.abs(residual)) - np.mean(sigma))
        gaps.append(abs(gap))
        weights.append(sigma.size / variance.size)
    return float(np.dot(weights, gaps)), float(np.mean(gaps))


def discard_curve(variances: Values, squared_errors: Values, *, percent: int = 5) -> list[float]:
    """Mean squared error of the 5, 10, ..., 100 % of the images with the smallest variance (published as "ECE").

    Args:
        variances: mean variance of each image.
        squared_errors: mean squared error of each image.
        percent: step of the share of images; a share of less than one image gives NaN.
    """
    variance, squared = _finite_pairs(variances, squared_errors)
    ordered = squared[np.argsort(variance, kind="stable")]
    counts = torch.linspace(0, ordered.size, 100 // percent + 1, dtype=torch.int64)[1:].tolist()
    return [float(ordered[:count].mean()) if count else math.nan for count in counts]


@dataclass(frozen=True)
class CalibrationSums:
    """Sums over pixels and bands of one stratum, float64."""

    left_out: Array  # () elements with an error, variance or NLL that is not finite, or a variance of 0 or less
    absolute: Array  # () sum of |e|
    nll: Array  # () sum of negative log-likelihoods
    crps: Array  # () sum of CRPS
    by_variance: Array  # (3, GRID) count, sum of V, sum of e^2, by ln V; zeros where there is no variance
    by_error: Array  # (2, GRID) count, sum of e^2, by ln e^2
    central: Array  # (CENTRAL_CELLS,) count by central probability of the target

    @property
    def count(self) -> float:
        """Number of elements, those left out excepted."""
        return float(self.by_error[0].sum())

    @property
    def rmse(self) -> float:
        """Root mean squared error of these elements; NaN if there are none."""
        return math.sqrt(_ratio(self.by_error[1].sum(), self.count))


class CalibrationMeter:
    """Accumulates errors and variances as sums on their device, without synchronisation before `compute`.

    Args:
        n_strata: number of strata of pixels.
    """

    def __init__(self, n_strata: int = 1) -> None:
        self.n_strata = n_strata
        shapes = ((4, n_strata), (3, n_strata * GRID), (2, n_strata * GRID), (n_strata * CENTRAL_CELLS,))
        self._load(torch.zeros(shape, dtype=torch.float64) for shape in shapes)

    def _load(self, sums: Iterable[Tensor]) -> None:
        self._scalars, self._by_variance, self._by_error, self._central = sums

    def _sums(self) -> tuple[Tensor, ...]:
        return self._scalars, self._by_variance, self._by_error, self._central

    @torch.no_grad()
    def update(
        self,
        error: Tensor,
        variance: Tensor | None = None,
        nll: Tensor | None = None,
        dof: Tensor | None = None,
        stratum: Tensor | None = None,
    ) -> None:
        """Take elements into account; all arguments have the same shape.

        Args:
            error: target minus mean.
            variance: predictive variance; without it only the errors are summed.
            nll: negative log-likelihood of each element; required with a variance.
            dof: degrees of freedom of a Student-t (above 2); without it the prediction is Normal.
            stratum: int64 in [0, n_strata), of the elements' shape, or of that without the first dimension if that
                runs over elements of one stratum, such as the bands of a pixel. Without it all are of stratum 0.

        Raises:
            ValueError: if variance or likelihoods are missing, or the shape of the strata does not fit.
        """
        if (variance is None) != (nll is None):
            raise ValueError("variance and nll go together")
        if self._scalars.device != error.device:
            self._load([sums.to(error.device) for sums in self._sums()])
        if stratum is None:
            stratum = torch.zeros(error.numel(), dtype=torch.int64, device=error.device)
        elif stratum.shape not in (error.shape, error.shape[1:]):
            raise ValueError(f"strata of shape {tuple(stratum.shape)} for elements of shape {tuple(error.shape)}")
        stratum = stratum.reshape(-1)  # (N,)
        error = error.reshape(-1, len(stratum))  # (R, N)
        others = [None if values is None else values.reshape(error.shape) for values in (variance, nll, dof)]
        chunk_size = _CPU_CHUNK if error.device.type == "cpu" else _GPU_CHUNK
        columns = max(1, chunk_size // max(1, len(error)))
        for start in range(0, len(stratum), columns):
            chunk = slice(start, start + columns)
            rest = [None if values is None else values[:, chunk] for values in others]
            self._update_chunk(stratum[chunk], error[:, chunk], *rest)

    def _update_chunk(
        self, stratum: Tensor, error: Tensor, variance: Tensor | None, nll: Tensor | None, dof: Tensor | None
    ) -> None:
        magnitude = error.abs()
        if variance is None or nll is None:
            usable = magnitude < math.inf
        else:
            usable = (magnitude + variance + nll.abs() < math.inf) & (variance > 0)  # a sum keeps NaN and infinity
        if dof is not None:
            usable &= dof > 2
        # Elements left out keep their place with weight 0: a selection would wait for the device.
        weight = usable.double()
        magnitude = torch.where(usable, magnitude, 0.0)
        squared = magnitude.double().square()
        first_cell = stratum * GRID
        cell = first_cell + _cells(magnitude, power=2)
        for row, value in zip(self._by_error, (weight, squared), strict=True):
            _scatter(row, cell, value)

        scalars = [1 - weight, magnitude]  # in the order of `_scalars`
        if variance is not None and nll is not None:
            variance, nll = torch.where(usable, variance, 1.0), torch.where(usable, nll, 0.0)
            if dof is None:
                central, crps = normal_scores(magnitude, variance)
            else:
                central, crps = student_t_scores(magnitude, variance, torch.where(usable, dof, 3.0))
            cell = first_cell + _cells(variance)
            for row, value in zip(self._by_variance, (weight, variance.double() * weight, squared), strict=True):
                _scatter(row, cell, value)
            cell = stratum * CENTRAL_CELLS + (central * CENTRAL_CELLS).clamp(0, CENTRAL_CELLS - 1).long()
            _scatter(self._central, cell, weight)
            scalars += [nll, crps * usable]
        for row, value in zip(self._scalars, scalars, strict=False):  # without a variance the last two stay 0
            _scatter(row, stratum, value.sum(dim=0, dtype=torch.float64))

    def state(self) -> tuple[Array, ...]:
        """All sums as arrays, for `merge`."""
        return tuple(sums.cpu().numpy() for sums in self._sums())

    def merge(self, states: Sequence[tuple[Array, ...]]) -> None:
        """Replace the own sums by those of all processes."""
        self._load(torch.from_numpy(sum(rows[1:], start=rows[0])) for rows in zip(*states, strict=True))

    def compute(self, stratum: int | None = None) -> CalibrationSums:
        """The sums of one stratum, or of all strata."""

        def pick(sums: Tensor, *shape: int) -> Array:
            by_stratum = sums.reshape(shape).cpu().numpy()
            return by_stratum.sum(-2) if stratum is None else by_stratum[..., stratum, :]

        left_out, absolute, nll, crps = pick(self._scalars, 4, self.n_strata, 1)[..., 0]
        return CalibrationSums(
            left_out,
            absolute,
            nll,
            crps,
            by_variance=pick(self._by_variance, 3, self.n_strata, GRID),
            by_error=pick(self._by_error, 2, self.n_strata, GRID),
            central=pick(self._central, self.n_strata, CENTRAL_CELLS),
        )


def error_figures(sums: CalibrationSums) -> dict[str, float]:
    """RMSE and MAE over pixels and bands, their number, and the number of those left out."""
    return {
        "elements": int(sums.count),
        "elements left out": int(sums.left_out),
        "RMSE": sums.rmse,
        "MAE": _ratio(sums.absolute, sums.count),
    }


def calibration_figures(sums: CalibrationSums) -> dict[str, float]:
    """NLL, CRPS, UCE (root form), ENCE, AUSE, sharpness and the coverage of the central intervals."""
    rmv, rmse = reliability(sums)
    gap = np.abs(rmse - rmv)
    _, inside = coverage_curve(sums)
    worse = np.subtract(*sparsification(sums))
    area = (worse[1:] + worse[:-1]).sum() / (2 * SPARSIFICATION_STEPS)
    return {
        "NLL": _ratio(sums.nll, sums.count),
        "CRPS": _ratio(sums.crps, sums.count),
        "UCE": float(gap.mean()),
        "ENCE": float((gap / rmv).mean()),
        "AUSE": float(area / sums.rmse) if sums.rmse != 0 else 0.0,
        "sharpness": math.sqrt(_ratio(sums.by_variance[1].sum(), sums.count)),
        **{f"coverage {level}": float(inside[level * CENTRAL_CELLS // 100 - 1]) for level in LEVELS},
    }


def reliability(sums: CalibrationSums, bins: int = BINS) -> tuple[Array, Array]:
    """Root mean variance and root mean squared error in bins of equal mass, in order of variance.

    A cell of the grid that crosses an edge is shared between the bins by mass.
    """
    count, variance, squared = sums.by_variance
    if count.sum() == 0:
        return np.full(bins, np.nan), np.full(bins, np.nan)
    edges, mass = np.linspace(0, 1, bins + 1), count.sum() / bins
    rmv, rmse = (np.sqrt(np.diff(_cumulative(count, values, edges)) / mass) for values in (variance, squared))
    return rmv, rmse


def sparsification(sums: CalibrationSums) -> tuple[Array, Array]:
    """RMSE of the rest after removing 0, 1, ..., 99 %, the largest variance first; and the largest |e| first."""
    kept = np.linspace(1, 0, SPARSIFICATION_STEPS, endpoint=False)
    total = sums.count
    if total == 0:
        return np.full(kept.shape, np.nan), np.full(kept.shape, np.nan)
    by_variance = _cumulative(sums.by_variance[0], sums.by_variance[2], kept)
    by_error = _cumulative(sums.by_error[0], sums.by_error[1], kept)
    return np.sqrt(by_variance / (kept * total)), np.sqrt(by_error / (kept * total))


def coverage_curve(sums: CalibrationSums) -> tuple[Array, Array]:
    """Nominal levels 0.01 to 0.99 of central intervals, and the share of targets inside each."""
    nominal = np.arange(1, CENTRAL_CELLS) / CENTRAL_CELLS
    inside = np.cumsum(sums.central)[:-1]
    return nominal, inside / sums.count if sums.count else np.full(nominal.shape, np.nan)


def _scatter(sums: Tensor, cells: Tensor, values: Tensor) -> None:
    """Add each value to the sum of its cell; cells and values have the same shape."""
    sums.scatter_add_(0, cells.reshape(-1), values.reshape(-1))


def _cells(values: Tensor, power: int = 1) -> Tensor:
    """Cells of the fine grid of ln values^power, int64; values beyond the grid, 0 too, are clamped to its ends."""
    per_unit = GRID / (LN_HIGH - LN_LOW)
    position = torch.log(values).mul_(power * per_unit).sub_(LN_LOW * per_unit)
    return position.clamp_(0, GRID - 1).long()


def _cumulative(count: Array, values: Array, shares: npt.NDArray[np.floating]) -> Array:
    """Sums of `values` over the first `shares` of the mass, linear within a cell."""
    filled = count > 0
    mass = np.concatenate([[0.0], np.cumsum(count[filled])])
    sums = np.concatenate([[0.0], np.cumsum(values[filled])])
    return np.interp(shares * mass[-1], mass, sums)


def _finite_pairs(a: Values, b: Values) -> tuple[Array, Array]:
    """Both rounded to float32 (the published precision), as float64, without the pairs that are not finite."""
    first, second = (np.asarray(v, dtype=np.float32).astype(np.float64).reshape(-1) for v in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"one value for each image: got {first.size} and {second.size}")
    usable = np.isfinite(first) & np.isfinite(second)
    return first[usable], second[usable]


def _ratio(total: Array, count: float) -> float:
    return float(total / count) if count else math.nan
