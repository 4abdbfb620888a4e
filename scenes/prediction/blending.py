"""Overlapping tiles blended into one image: smooth weights that sum to one, and the moments of the mixture."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.constants import N_S2
from scenes.inputs.rasters.grid import Window
from scenes.prediction.tiles import Axis, Tile, TilePlan

UNUSED = 8  # an eighth of the overlap at each border of a tile has weight 0: the network lacks its surroundings there


def tile_weights(axis: Axis, number: int) -> np.ndarray:
    """Weights of one tile along one side, before those of all tiles are normalised.

    From the border inwards: 0 over an eighth of the overlap, a raised cosine over three quarters of it, then 1. The
    weights of two neighbours sum to one already; the last two tiles may overlap by more. At the scene's own border
    weights are 1.

    Args:
        axis: the tiles.
        number: index of the tile.

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
    """Weights of one tile along one side, (length,) float64; those of all tiles sum to one at every pixel."""
    start = axis.starts[number]
    total = np.zeros(axis.length)
    for neighbour in axis.covering(start, start + axis.length):
        shift = axis.starts[neighbour] - start
        shared, in_neighbour = (slice(max(0, by), axis.length + min(0, by)) for by in (shift, -shift))
        total[shared] += tile_weights(axis, neighbour)[in_neighbour]
    return tile_weights(axis, number) / total


def blend(
    plan: TilePlan, window: Window, names: Sequence[str], load: Callable[[Tile], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The prediction for a window, blended from the tiles.

    Every pixel is a mixture of the tiles that cover it, with weights that sum to one: its mean is the mean of their
    means; its aleatoric variance the mean of theirs; its epistemic variance the mean of theirs plus the variance of
    their means, since the network is uncertain where tiles disagree. Tiles are summed in the order of the plan, so that
    the result is the same to the bit whichever process predicted them.

    Args:
        plan: the tiles.
        window: the pixels to blend.
        names: of the network's outputs: `mean`, and of `aleatoric` and `epistemic` those that it has.
        load: returns these of a tile, (13, h, w) float32, reflectance and reflectance squared; or an empty mapping for
            a tile without valid pixels, whose output is not used.

    Returns:
        float32 (13, H, W): `mean`; `total`, the sum of all variances, if the network has one; `aleatoric` and
        `epistemic` as available. With `aleatoric` alone the disagreement of tiles is in `total` only.

    Source:
        The mean and variance of a weighted mixture by West (1979), in one pass and without cancellation.
    """
    shape = (N_S2, window.height, window.width)
    fields: dict[str, np.ndarray] = {name: np.zeros(shape, np.float32) for name in names}
    spread, total_weight = np.zeros(shape, np.float32), np.zeros(shape[1:], np.float32)
    for tile in plan.covering(window):
        shared = tile.window.intersection(window)
        in_window, in_tile = shared.relative_to(window).slices, shared.relative_to(tile.window).slices
        down, across = normalised_weights(plan.down, tile.row), normalised_weights(plan.across, tile.column)
        weights = np.outer(down[in_tile[0]], across[in_tile[1]]).astype(np.float32)
        outputs = load(tile) if weights.any() else {}
        if not outputs:
            continue
        sums = total_weight[in_window]
        sums += weights
        share = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
        tile_mean, mean = outputs["mean"][(..., *in_tile)], fields["mean"][(..., *in_window)]
        deviation = tile_mean - mean
        mean += share * deviation
        spread[(..., *in_window)] += weights * deviation * (tile_mean - mean)
        for name in names:
            if name != "mean":
                fields[name][(..., *in_window)] += weights * outputs[name][(..., *in_tile)]
    if "epistemic" in fields:
        fields["epistemic"] += spread
        fields["total"] = fields["epistemic"] + fields["aleatoric"] if "aleatoric" in fields else fields["epistemic"]
    elif "aleatoric" in fields:
        fields["total"] = fields["aleatoric"] + spread
    return fields
