"""Weights that blend tiles, and the moments of the mixture."""

import numpy as np
import pytest

from scenes.inputs.rasters.grid import Window
from scenes.prediction.blending import blend, normalised_weights
from scenes.prediction.tiles import Axis, TilePlan
from tests.support.scene_cases import TILINGS


@pytest.mark.parametrize(("size", "tile", "overlap"), TILINGS)
def test_weights_of_all_tiles_add_up_to_one_and_are_smooth(size, tile, overlap):
    axis, total = Axis(size, tile, overlap), np.zeros(size)
    for number, start in enumerate(axis.starts):
        weights = normalised_weights(axis, number)
        total[start : start + axis.length] += weights
        if overlap:  # a raised cosine over 3/4 of the overlap climbs pi / 2 / steps a pixel at most; two may meet
            assert np.abs(np.diff(weights)).max() <= np.pi / (overlap * 3 / 4)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.length == size


def test_blending_gives_the_moments_of_the_mixture():
    plan = TilePlan(48, 70, 32, 8)
    rng = np.random.default_rng(0)
    parts = {number: {} for number in range(len(plan))}
    for part in parts.values():
        part |= {name: rng.random((13, 32, 32), np.float32) for name in ("mean", "aleatoric", "epistemic")}
    window = Window(3, 5, 40, 60)
    columns = len(plan.across.starts)
    result = blend(plan, window, ("mean", "aleatoric", "epistemic"), lambda t: parts[t.row * columns + t.column])
    # the same in float64 over the whole scene, by the law of total variance
    sums = {name: np.zeros((13, 48, 70)) for name in ("mean", "square", "aleatoric", "epistemic")}
    for number, part in parts.items():
        tile = plan[number]
        weights = np.outer(normalised_weights(plan.down, tile.row), normalised_weights(plan.across, tile.column))
        for name, values in (part | {"square": part["mean"].astype(np.float64) ** 2}).items():
            sums[name][(slice(None), *tile.window.slices)] += weights * values
    spread = sums["square"] - sums["mean"] ** 2
    expected = {"mean": sums["mean"], "aleatoric": sums["aleatoric"], "epistemic": sums["epistemic"] + spread}
    expected["total"] = expected["aleatoric"] + expected["epistemic"]
    for name, values in expected.items():  # float32 sums of at most four terms of size 1
        np.testing.assert_allclose(result[name], values[(slice(None), *window.slices)], rtol=0, atol=1e-6)
    assert spread.max() > 0.01
