"""Fit of the evidence of a trained network: moments on the training split, numbers on images that no weight saw."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from common import process_group
from common.errors import DataError
from common.progress import progress_bar
from data.batch import Batch
from data.constants import N_S2
from data.loaders import PatchLoader
from model.evidence.belief import Evidence, epistemic_variance, pixel_novelty
from model.evidence.leverage import FeatureMoments, Leverage
from model.evidence.pseudo_shifts import shift_inputs, shift_kinds
from model.evidence.views import describe_pixels
from model.predictions import Mean
from model.reconstructor import Reconstructor
from model.runtime import Compute, autocast
from model.student_t import student_t_nll

PIXELS = 256  # of each image, of which the fit takes at most MAX_PIXELS of either kind, at random
MAX_PIXELS = 8192
SHIFTED_SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # weights of pseudo-shifts in the likelihood
POWERS = (1.0, 2.0, 3.0)  # growth of doubt with novelty
MIN_COST, MAX_COST = 0.01, 0.05  # of the mean negative log-likelihood of images as they are
MIN_ALPHA = 1.05  # the variance exists
_START_N, _START_ALPHA = 20.0, 3.0
_MAX_STEPS = 60
_MAX_LOG_TAIL = math.log(100.0)  # beyond, a Student-t is a normal
_MIN_VARIANCE = 1e-12


class TrainingMoments:
    """Moments of the views of the training pixels, and of the targets; streamed, over several processes."""

    def __init__(self) -> None:
        self.views: dict[str, FeatureMoments] = {}
        self.count = 0
        self.sums = torch.zeros(2, N_S2, dtype=torch.float64)  # of targets and of their squares

    @torch.no_grad()
    def update(self, batch: Batch, padded: Tensor | None = None) -> None:
        """Add a batch; `padded` (B, T) are its dates that are padding."""
        for name, features in describe_pixels(batch.x.double(), padded).items():
            self.views.setdefault(name, FeatureMoments(features.shape[1])).update(features)
        rows = batch.target.double().movedim(2, -1)  # (B, 1, H, W, 13)
        rows = rows.flatten(0, -2) if batch.valid is None else rows[batch.valid]
        self.count += len(rows)
        self.sums += torch.stack([rows.sum(0), rows.square().sum(0)]).cpu()

    def merge(self, states: Iterable["TrainingMoments"]) -> None:
        """Replace the own state by the sum of those of all processes, the own among them; some may be empty."""
        states = list(states)
        self.count = sum(state.count for state in states)
        self.sums = torch.stack([state.sums for state in states]).sum(dim=0)
        merged = {}
        for name in {name for state in states for name in state.views}:
            parts = [state.views[name] for state in states if name in state.views]
            merged[name] = FeatureMoments(len(parts[0].products))
            merged[name].merge(parts)
        self.views = merged

    def leverages(self) -> dict[str, Leverage]:
        """The leverage of each view.

        Raises:
            DataError: if there was no image.
        """
        if not self.count:
            raise DataError("no image of the training split could be read: evidence is relative to training pixels")
        return {name: self.views[name].leverage() for name in sorted(self.views)}

    @property
    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets, (13,) each."""
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp(min=_MIN_VARIANCE)


class Errors(NamedTuple):
    """Predictions and truth of N pixels, reflectance, float64."""

    mean: Tensor  # (N, 13)
    variance: Tensor  # (N, 13), predicted, total
    target: Tensor  # (N, 13)
    stated: Tensor  # (N, 13), negative log-likelihood under the network's own prediction
    novelty: Tensor  # (N, 1)


def fit_evidence(
    model: Reconstructor, train: PatchLoader, held_out: Sequence[PatchLoader], compute: Compute, seed: int
) -> Evidence:
    """Fit the evidence of a network. The network stays as it is, in eval mode afterwards.

    Args:
        model: trained; its head predicts a variance.
        train: images that the network was trained on.
        held_out: images that no weight saw, in one or more loaders.
        compute: device and precision.
        seed: of the pixels and the pseudo-shifts.

    Raises:
        DataError: if there are no images.
    """
    model.eval()
    moments = TrainingMoments()
    with progress_bar(train, len(train), "evidence of the training split") as bar:
        for loaded in bar:
            if loaded.n:
                batch = loaded.to(compute.device, non_blocking=True)
                moments.update(batch, model.find_padding(batch.x))
    moments.merge(process_group.all_gather_object(moments))
    leverages = moments.leverages()
    unshifted, shifted = collect_errors(model, leverages, held_out, compute, seed)
    return fit_numbers(leverages, moments.prior, unshifted, shifted)


@torch.no_grad()
def collect_errors(
    model: Reconstructor, leverages: dict[str, Leverage], loaders: Sequence[PatchLoader], compute: Compute, seed: int
) -> tuple[Errors, Errors]:
    """Errors on the loaders' images as they are, and after every pseudo-shift; its processes get those of all.

    Raises:
        DataError: if no image could be read.
    """
    rng = torch.Generator().manual_seed(seed)
    parts: tuple[list[Errors], list[Errors]] = ([], [])
    with progress_bar(chain(*loaders), sum(map(len, loaders)), "errors on held-out images") as bar:
        for loaded in bar:
            batch = loaded.without_missing()
            if not batch.n:
                continue
            padded = model.find_padding(batch.x)
            pixels = torch.randperm(batch.target.shape[-2] * batch.target.shape[-1], generator=rng)[:PIXELS]
            for kind in ("", *shift_kinds(model.config.use_sar)):
                x = shift_inputs(kind, batch.x, rng) if kind else batch.x
                x = torch.where(padded[:, :, None, None, None], batch.x, x)
                on_device = x.to(compute.device, non_blocking=True)
                dates = None if batch.dates is None else batch.dates.to(compute.device)
                with autocast(compute.device, compute.dtype):
                    prediction = model.predict(on_device, dates).unscaled(model.scale_by)
                if isinstance(prediction, Mean):
                    raise DataError("evidence needs a head with a variance; train with --head nig or gaussian")
                novelty = pixel_novelty(leverages, on_device, padded.to(compute.device)).unsqueeze(2)
                target = batch.target.to(compute.device)
                fields = (prediction.mean, prediction.total, target, prediction.nll(target), novelty)
                parts[bool(kind)].append(Errors(*(_take(field, pixels) for field in fields)))
    gathered = [process_group.all_gather_object(part) for part in parts]
    rows = [[errors for part in group for errors in part] for group in gathered]
    if not rows[0]:
        raise DataError("no held-out image could be read; evidence is fitted on images that no weight saw")
    unshifted, shifted = (Errors(*map(torch.cat, zip(*group, strict=True))) for group in rows)
    return unshifted, shifted


def _take(field: Tensor, pixels: Tensor) -> Tensor:
    """Some pixels of (B, 1, C, H, W), as (B * pixels, C)."""
    return field.detach().cpu().double().flatten(3)[:, 0, :, pixels].movedim(1, 2).flatten(0, 1)


def fit_numbers(
    leverages: dict[str, Leverage], prior: tuple[Tensor, Tensor], unshifted: Errors, shifted: Errors
) -> Evidence:
    """Fit aleatoric factors, tails and the effective number of observations together, by the likelihood of a Student-t.

    Held-out images of the same data do not determine the effective number: they differ too little from those of the
    training. Pseudo-shifts do. Their weight in the likelihood is the largest of `SHIFTED_SHARES` that costs the images
    as they are no more than the recalibration of factors and tails alone gains them, or `MIN_COST` if that is more, and
    at most `MAX_COST`; of `POWERS` the one is chosen under which pseudo-shifts are most likely.

    Args:
        leverages: by view.
        prior: mean and variance of the training targets, (13,) each.
        unshifted: held-out images as they are.
        shifted: the same after pseudo-shifts.
    """
    unshifted, shifted = (_thinned(errors) for errors in (unshifted, shifted))
    noise = (unshifted.target - unshifted.mean).square().mean(dim=0).clamp(min=_MIN_VARIANCE)

    def nll(errors: Errors, power: float, log_factor: Tensor, log_tail: Tensor, log_n: Tensor | None = None) -> Tensor:
        total = log_factor.exp() * errors.variance
        if log_n is not None:
            variance = noise * (errors.novelty * (-log_n).exp()) ** power
            total = total + epistemic_variance(variance, errors.mean, *prior)
        alpha = (MIN_ALPHA + log_tail.clamp(max=_MAX_LOG_TAIL).exp()).expand_as(total)
        return student_t_nll(errors.target - errors.mean, 2 * total * (alpha - 1), alpha).mean()

    tail = torch.full((N_S2,), math.log(_START_ALPHA - MIN_ALPHA), dtype=torch.float64)
    recalibrated = _minimise(lambda *p: nll(unshifted, 1, *p), (torch.zeros_like(tail), tail))
    lowest = float(nll(unshifted, 1, *recalibrated))
    highest = lowest + min(max(float(unshifted.stated.mean()) - lowest, MIN_COST), MAX_COST)
    start = (*recalibrated, torch.tensor(math.log(_START_N), dtype=torch.float64))
    fits = []
    for power in POWERS:
        for share in SHIFTED_SHARES:
            mixed = _mixture(partial(nll, unshifted, power), partial(nll, shifted, power), share)
            fitted = start = _minimise(mixed, start)
            costs = [float(nll(errors, power, *fitted)) for errors in (unshifted, shifted)]
            fits.append((max(costs[0] - highest, 0.0), costs[1], power, fitted))
            if costs[0] <= highest:
                break
    _, _, power, (log_factor, log_tail, log_n) = min(fits, key=itemgetter(0, 1))
    alpha = MIN_ALPHA + log_tail.clamp(max=_MAX_LOG_TAIL).exp()
    return Evidence(leverages, float(log_n.exp()), power, noise, *prior, log_factor.exp(), alpha)


def _thinned(errors: Errors) -> Errors:
    """At most `MAX_PIXELS` pixels, drawn at random."""
    order = torch.randperm(len(errors.mean), generator=torch.Generator().manual_seed(0))[:MAX_PIXELS]
    return Errors(*(field[order] for field in errors))


def _mixture(first: Callable[..., Tensor], second: Callable[..., Tensor], share: float) -> Callable[..., Tensor]:
    """The weighted mean of two objectives; `share` is the weight of the second."""
    return lambda *parameters: torch.lerp(first(*parameters), second(*parameters), share)


def _minimise(objective: Callable[..., Tensor], start: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The parameters that minimise a smooth objective, from a start."""
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(parameters, max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(*parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    return tuple(value.detach() for value in parameters)
