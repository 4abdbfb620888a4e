"""From overlapping tiles to one image: smooth weights that add up to one, and the moments of the mixture."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.constants import N_S2
from scenes.inputs.grid import Window
from scenes.tiles import Axis, Tile, TilePlan

UNUSED = 8  # an eighth of the overlap at each border of a tile has no weight: the network lacks its surroundings there


def tile_weights(axis: Axis, number: int) -> np.ndarray:
    """How much one tile counts along one side, before the tiles' weights are made to add up to one.

    From the border inwards: nothing over an eighth of the overlap, a raised cosine over three quarters of it, one. Two
    neighbours' weights add up to one as they are; the last tile may overlap by more. At the scene's own border a tile
    counts fully.

    Args:
        axis: the tiles.
        number: which of them.

    Returns:
        (length,), float64, in [0, 1].
    """
    unused = axis.overlap // UNUSED
    steps = axis.overlap - 2 * unused
    ramp = np.sin(np.pi / 2 * (np.arange(steps) + 0.5) / max(steps, 1)) ** 2
    rise = np.concatenate([np.zeros(unused), ramp])
    weights = np.ones(axis.length)
    if number > 0:
        weights[: len(rise)] *= rise
    if number < len(axis.starts) - 1:
        weights[len(weights) - len(rise) :] *= rise[::-1]
    return weights


def normalised_weights(axis: Axis, number: int) -> np.ndarray:
    """Weights of one tile along one side, (length,) float64; those of all tiles add up to one at every pixel."""
    start = axis.starts[number]
    total = np.zeros(axis.length)
    for other in axis.covering(start, start + axis.length):
        shift = axis.starts[other] - start
        here = slice(max(0, shift), axis.length + min(0, shift))
        there = slice(max(0, -shift), axis.length + min(0, -shift))
        total[here] += tile_weights(axis, other)[there]
    return tile_weights(axis, number) / total


def overlap_of(tile: Window, window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What a tile and a window share, as indices into the tile and into the window."""
    top, bottom = max(tile.top, window.top), min(tile.bottom, window.bottom)
    left, right = max(tile.left, window.left), min(tile.right, window.right)
    return (
        (slice(top - tile.top, bottom - tile.top), slice(left - tile.left, right - tile.left)),
        (slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left)),
    )


def blend(
    plan: TilePlan, window: Window, names: Sequence[str], load: Callable[[Tile], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What the tiles say together about a window.

    Every pixel is a mixture of the tiles that cover it, by weights that add up to one: its mean is the mean of their
    means; its aleatoric variance the mean of theirs; its epistemic variance the mean of theirs and the variance of
    their means. Tiles that do not agree are something that the network does not know. The tiles are taken in the order
    of the plan, so that the sums are the same to the bit whoever predicted them.

    Args:
        plan: the tiles.
        window: which pixels.
        names: what the network gives: `mean`, and of its variances `aleatoric` and `epistemic`, one or none.
        load: gives these of a tile, (13, h, w) float32, reflectance and reflectance squared; or nothing where no date
            has a pixel of it, so that nobody looks at the outcome there.

    Returns:
        `mean` (13, H, W); where the network has a variance `total`, the sum of all; `aleatoric` and `epistemic` where
        it has them. A network with `aleatoric` alone has the tiles' disagreement in `total` only. float32.

    Source:
        The mean and variance of a weighted mixture by West (1979), which needs each tile once and does not cancel.
    """
    shape = (N_S2, window.height, window.width)
    fields = {name: np.zeros(shape, np.float32) for name in names}
    spread, total_weight = np.zeros(shape, np.float32), np.zeros(shape[1:], np.float32)
    for tile in plan.covering(window):
        inside, target = overlap_of(tile.window, window)
        across = normalised_weights(plan.across, tile.column)[inside[1]]
        weights = np.outer(normalised_weights(plan.down, tile.row)[inside[0]], across).astype(np.float32)
        part = load(tile) if weights.any() else {}
        if not part:
            continue
        here, there = (slice(None), *target), (slice(None), *inside)
        sums = total_weight[target]
        sums += weights
        share = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
        mean = fields["mean"][here]
        off = part["mean"][there] - mean
        mean += share * off
        spread[here] += weights * off * (part["mean"][there] - mean)
        for name in names:
            if name != "mean":
                fields[name][here] += weights * part[name][there]
    return _with_total(fields, spread)


def _with_total(fields: dict[str, np.ndarray], spread: np.ndarray) -> dict[str, np.ndarray]:
    if "epistemic" in fields:
        fields["epistemic"] += spread
        fields["total"] = fields["epistemic"] + fields["aleatoric"] if "aleatoric" in fields else fields["epistemic"]
    elif "aleatoric" in fields:
        fields["total"] = fields["aleatoric"] + spread
    return fields
