"""The plan of a reconstruction."""

import pytest

from scenes.options import SceneInputs, SceneOptions
from scenes.reconstruct import count_workers


@pytest.mark.parametrize(("workers", "count"), [(999, 3), (2, 2), (1, 1), (0, 1)])
def test_no_more_workers_start_than_there_are_tiles(workers, count):
    options = SceneOptions(SceneInputs(optical=["a.tif"]), "run", "maps", workers=workers)
    assert count_workers(options, "cpu", 3) == count
