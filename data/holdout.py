"""Held-out regions: images that no expert trained on, to fit a fusion and to test its acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import DataError
from config.schema import Config
from data.datasets.base import EmptySplitError
from data.loaders import Keep, PatchLoader, build_loader, rois_of
from data.splits import hold_out

MIN_ROIS = 4  # with fewer training regions none is held out
ONE_IN = 10  # one in so many training regions is held out, rounded up


@dataclass(frozen=True)
class FitSplit:
    """The loaders of a fusion.

    Attributes:
        fit: images to fit on; dates are chosen as in tests, because variances fitted on the varied dates of training
            do not hold in tests.
        guard: images of the acceptance test; None if none are left.
        notes: for the user.
    """

    fit: PatchLoader
    guard: PatchLoader | None
    notes: tuple[str, ...]


def held_out_rois(config: Config) -> tuple[str, ...]:
    """The training regions to hold out for fitting a fusion, drawn by the seed.

    Raises:
        UsageError, DataError: if the training data cannot be found.
    """
    if config.fit_rois == 0 or (config.fit_rois < 0 and config.model != "fusion_net"):
        return ()
    rois = sorted(set(rois_of(config, "train")))
    count = config.fit_rois
    if count < 0:
        count = -(-len(rois) // ONE_IN) if len(rois) >= MIN_ROIS else 0
    if count >= len(rois):
        raise DataError(f"--fit_rois {count} leaves none of the {len(rois)} training regions to train on; lower it")
    return hold_out(rois, count, config.rdm_seed)


def build_fit_split(config: Config, held_out: Sequence[str]) -> FitSplit:
    """The images to fit a fusion on, and those of its acceptance test.

    Args:
        config: the flags.
        held_out: training regions that no expert trained on. Without any, the validation regions are divided into
            halves to fit and to test on; the patches are divided if there is one region only.

    Raises:
        DataError: if there is no image to fit on.
    """
    if held_out:
        fit = _part(config, "train", _among(held_out, True))
        note = f"the fusion is fitted on {len(held_out)} held-out training regions and tested on validation"
        try:
            return FitSplit(fit, _part(config, "val", _every), (note,))
        except EmptySplitError:
            return FitSplit(fit, None, (note, "there is no validation split to test the fusion on"))
    rois = rois_of(config, "val", "all")
    names = hold_out(rois, len(rois), config.rdm_seed)  # all, in random order
    why = "no training region was held out by every expert (--fit_rois)"
    if len(names) > 1:
        half = names[: len(names) // 2]
        text = f"{why}: {len(half)} of {len(names)} validation regions fit the fusion, the others test it"
        fit, guard = (_part(config, "val", _among(half, inside)) for inside in (True, False))
        return FitSplit(fit, guard, (text,))
    if len(rois) < 2:
        text = f"{why}, and validation has one patch only: it fits the fusion, and none is left to test it"
        return FitSplit(_part(config, "val", _every), None, (text,))
    text = f"{why}, and validation has one region only: every other patch of it fits the fusion, the others test it"
    fit, guard = (_part(config, "val", _alternate(rest)) for rest in (0, 1))
    return FitSplit(fit, guard, (text,))


def build_evidence_split(config: Config) -> tuple[PatchLoader, list[PatchLoader]]:
    """The images to fit the evidence of a trained network on.

    Args:
        config: the flags of its training.

    Returns:
        The images that it was trained on, and loaders of those that no weight saw: held-out regions and validation.

    Raises:
        DataError: if there is no image of either kind.
    """
    held_out = held_out_rois(config)
    parts = [_part(config, "train", _among(held_out, True))] if held_out else []
    try:
        parts.append(_part(config, "val", _every))
    except EmptySplitError:
        if not parts:
            raise
    return _part(config, "train", _among(held_out, False)), parts


def _part(config: Config, split: str, keep: Keep) -> PatchLoader:
    """A part of a split; validation takes all regions, as in `data.loaders.build_loaders`."""
    return build_loader(config, split, keep, "all" if split == "val" else None)


def _every(index: int, roi: str) -> bool:
    return True


def _among(names: Sequence[str], inside: bool) -> Keep:
    return lambda index, roi: (roi in names) is inside


def _alternate(rest: int) -> Keep:
    return lambda index, roi: index % 2 == rest
