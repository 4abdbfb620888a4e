"""Inputs of tiles: cloud masks and filled gaps."""

import numpy as np
import pytest

from data.clouds.detectors import detect_clouds
from scenes.prediction.predict import Job, fill_missing, read_tile
from scenes.prediction.tiles import TilePlan
from tests.support.scene_cases import memory_series


@pytest.mark.parametrize("detector", ["s2cloudless_mask", "s2cloudless_map"])
def test_cloud_masks_of_tiles_equal_those_of_the_whole_scene(detector):
    series = memory_series(150, 170)
    # without overlap the margin must be read beside the tile
    job = Job(series, TilePlan(150, 170, 64, 0), "no weights", "no folder", detectors=(detector,) * 3)
    masks = np.stack([detect_clouds(image, detector) >= 0.5 for image in series.raw])
    assert 0.1 < masks.mean() < 0.9
    for number in range(len(job.plan)):
        tile = job.plan[number]
        np.testing.assert_array_equal(read_tile(job, tile).states, masks[(slice(None), *tile.cell.slices)])


def test_missing_values_are_filled_from_the_date_nearest_in_time():
    optical = np.arange(1, 4, dtype=np.float32)[:, None, None, None] * np.ones((3, 13, 4, 5), np.float32)
    valid = np.ones((3, 4, 5), np.bool_)
    valid[1, 0, :2] = valid[0, 0, 0] = False
    filled = fill_missing(optical, valid, (0, 10, 30))
    assert filled[1, 0, 0, 0] == 3  # the nearest date lacks it too
    assert filled[1, 0, 0, 1] == 1  # 10 days before rather than 20 after
    assert filled[0, 0, 0, 0] == 3
    assert (filled[:, :, 1:] == optical[:, :, 1:]).all()
    assert fill_missing(optical, np.ones_like(valid), (0, 10, 30)) is optical
    valid[:, 3] = False  # no date has the last row: it is filled from the row above
    optical[:, :, 2, 4] = 7
    assert (fill_missing(optical, valid, (0, 10, 30))[:, :, 3, 4] == 7).all()
