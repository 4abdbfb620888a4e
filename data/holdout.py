"""Where a fusion is fitted and where it is judged: images that its experts did not train on, divided by region."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import DataError
from data.datasets.patch_reader import EmptySplitError
from data.loaders import Keep, PatchLoader, build_loader, rois_of
from data.splits import hold_out

if TYPE_CHECKING:
    from parse_args import Config

LEAST_ROIS = 4  # from so many training regions on, one can be spared
SHARE = 10  # one in so many training regions is held out, rounded up


@dataclass(frozen=True)
class FitSplit:
    """The loaders of a fusion.

    Attributes:
        fit: where its numbers are fitted; dates are chosen as in tests, not as in training, whose inputs are others:
            variances fitted on those do not hold in tests.
        guard: where it is judged; None if no image is left for that.
        notes: what the user should know about them.
    """

    fit: PatchLoader
    guard: PatchLoader | None
    notes: tuple[str, ...]


def held_out_rois(config: "Config") -> tuple[str, ...]:
    """The training regions that the flags hold out for the fit of a fusion, drawn by the seed.

    Raises:
        UsageError, DataError: if the training data cannot be found.
    """
    if config.fit_rois == 0 or (config.fit_rois < 0 and config.model != "fusion_net"):
        return ()
    rois = sorted(set(rois_of(config, "train")))
    count = config.fit_rois
    if count < 0:
        count = -(-len(rois) // SHARE) if len(rois) >= LEAST_ROIS else 0
    if count >= len(rois):
        raise DataError(f"--fit_rois {count} leaves none of the {len(rois)} training regions to train on; lower it")
    return hold_out(rois, count, config.rdm_seed)


def build_fit_split(config: "Config", held_out: Sequence[str]) -> FitSplit:
    """The images to fit and to judge a fusion on.

    Args:
        config: the flags.
        held_out: training regions that no expert trained on. If there are none, the validation regions are divided:
            half fits, half judges; patches are divided where there is one region only.

    Raises:
        DataError: if there is no image to fit on.
    """
    if held_out:
        fit = _part(config, "train", _among(held_out, True))
        note = f"the fusion is fitted on {len(held_out)} held-out training regions and judged on validation"
        try:
            return FitSplit(fit, _part(config, "val", _every), (note,))
        except EmptySplitError:
            return FitSplit(fit, None, (note, "there is no validation split to judge the fusion on"))
    rois = rois_of(config, "val", "all")
    names = hold_out(rois, len(rois), config.rdm_seed)  # all, in the order of the draw
    why = "no training region was held out by every expert (--fit_rois)"
    if len(names) > 1:
        half = names[: len(names) // 2]
        text = f"{why}: {len(half)} of {len(names)} validation regions fit the fusion, the others judge it"
        fit, guard = (_part(config, "val", _among(half, inside)) for inside in (True, False))
        return FitSplit(fit, guard, (text,))
    if len(rois) < 2:
        text = f"{why}, and validation has one patch only: it fits the fusion, and none is left to judge it"
        return FitSplit(_part(config, "val", _every), None, (text,))
    text = f"{why}, and validation has one region only: every other patch of it fits the fusion, the others judge it"
    fit, guard = (_part(config, "val", _alternate(rest)) for rest in (0, 1))
    return FitSplit(fit, guard, (text,))


def _part(config: "Config", split: str, keep: Keep) -> PatchLoader:
    """A part of a split; validation lies all over the world, as `data.loaders.build_loaders` has it."""
    return build_loader(config, split, keep, "all" if split == "val" else None)


def _every(index: int, roi: str) -> bool:
    return True


def _among(names: Sequence[str], inside: bool) -> Keep:
    return lambda index, roi: (roi in names) is inside


def _alternate(rest: int) -> Keep:
    return lambda index, roi: index % 2 == rest
