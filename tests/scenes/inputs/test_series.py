"""A series read by windows: the same as the full scene, pickled without open files."""

import pickle

import numpy as np
import pytest

from data.raster.rescaling import optical_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.rasters.dataset_pool import dataset_pool
from scenes.inputs.rasters.grid import Window
from scenes.options import SceneInputs
from tests.support.scene_files import ground, write_tif


def test_windows_equal_the_whole(tmp_path):
    paths = [write_tif(tmp_path / f"2018-06-2{day}.tif", ground(day), compress="deflate") for day in (1, 6)]
    with open_series(SceneInputs(paths)) as series:
        full = series.read(series.grid.window)
        assert np.array_equal(full.optical, optical_to_unit(full.raw))
        assert full.optical.dtype == np.float32
        assert full.radar is None
        assert not series.has_radar
        for window in (Window(0, 0, 1, 1), Window(30, 31, 33, 40), Window(69, 89, 1, 1), Window(0, 5, 70, 64)):
            part = series.read(window)
            for name in ("raw", "optical", "valid"):
                assert np.array_equal(getattr(part, name), getattr(full, name)[(..., *window.slices)])
        with pytest.raises(ValueError, match="does not lie within 70 x 90 pixels"):
            series.read(Window(60, 0, 11, 5))


def test_a_series_is_pickled_without_files_and_closes_them(tmp_path):
    paths = [write_tif(tmp_path / f"2018-06-2{day}.tif", ground(day)) for day in (1, 6)]
    before = len(dataset_pool())
    series = open_series(SceneInputs(paths))
    assert len(dataset_pool()) == before  # inspecting them leaves nothing open
    with series:
        expected = series.read(Window(3, 4, 5, 6))
        assert len(dataset_pool()) == before + 2
        again = pickle.loads(pickle.dumps(series))
        assert np.array_equal(again.read(Window(3, 4, 5, 6)).raw, expected.raw)
        assert len(dataset_pool()) == before + 2  # one set of files for a process
    assert len(dataset_pool()) == before
    assert again == series
    assert series.paths == tuple(paths)
