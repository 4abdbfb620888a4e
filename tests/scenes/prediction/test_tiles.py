"""Plans of tiles: cells, rows of blocks, sizes."""

import numpy as np
import pytest

from common.errors import UsageError
from scenes.prediction.tiles import TilePlan
from tests.support.scene_cases import TILINGS


@pytest.mark.parametrize(("size", "tile", "overlap"), TILINGS)
def test_shares_of_tiles_are_disjoint_and_cover_the_scene(size, tile, overlap):
    plan = TilePlan(size, 300, tile, overlap)
    seen = np.zeros((size, 300), np.int64)
    for number in range(len(plan)):
        window, cell = plan[number].window, plan[number].cell
        seen[cell.slices] += 1
        assert window.top <= cell.top
        assert cell.bottom <= window.bottom
        assert cell.top == 0 or cell.top - window.top >= overlap // 2
    assert (seen == 1).all()


def test_rows_of_blocks_name_the_tiles_they_need():
    plan = TilePlan(1200, 900, 256, 64)  # rows of tiles begin at 0, 192, 384, 576, 768, 944
    rows = plan.block_rows(512)
    assert [(row.tile_rows.start, row.tile_rows.stop) for row in rows] == [(0, 3), (2, 6), (5, 6)]
    assert [window.width for window in rows[0].windows] == [512, 388]
    for row in rows:
        for window in row.windows:
            assert all(tile.row in row.tile_rows for tile in plan.covering(window))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="--overlap 40: expected 0 to half of --tile, which is 32"):
        TilePlan(100, 100, 64, 40)
    with pytest.raises(UsageError, match="--tile 8 is too small"):
        TilePlan(100, 100, 8, 0)
