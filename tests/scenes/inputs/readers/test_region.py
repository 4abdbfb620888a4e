"""A region of SEN12MS-CR-TS as a scene: the same as its patches joined, read by windows."""

import numpy as np
import pytest

from common.errors import DataError, UsageError
from data.datasets.file_index import index_series
from data.raster.image_store import open_images
from data.raster.patch_mosaic import plan_mosaic
from data.raster.rescaling import sar_to_unit
from scenes.inputs.open import open_series
from scenes.inputs.rasters.grid import Window
from scenes.options import SceneInputs
from tests.support.fake_trees import ROI, SIZE, days_since_launch, optical_date, radar_date, series_path, write_series

PATCHES = (0, 1, 2, 5)  # two rows of up to four; 4, 6 and what follows are gaps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region")
    for patch in PATCHES:
        write_series(folder, ROI, patch, stored=False)
    return folder


def joined(root, sensor, number) -> np.ndarray:
    images = open_images(root)
    patches, _ = index_series(root, [ROI])
    mosaic = plan_mosaic(images, [paths["S2"][0] for paths in patches])
    return mosaic.join([paths[sensor][number] for paths in patches], lambda path: images.read_native(path)[0])


def test_a_region_equals_its_joined_patches(root):
    numbers = [4, 0, 17]
    series = open_series(SceneInputs(folder=str(root / ROI), numbers=numbers))
    assert (series.grid.height, series.grid.width) == (2 * SIZE, 3 * SIZE)
    assert series.days == tuple(days_since_launch(optical_date(number)) for number in sorted(numbers))
    assert series.radar_days == tuple(days_since_launch(radar_date(number)) for number in sorted(numbers))
    with series:
        full = series.read(series.grid.window)
        for place, number in enumerate(sorted(numbers)):
            assert np.array_equal(full.raw[place], joined(root, "S2", number))
            assert np.array_equal(full.radar[place], sar_to_unit(joined(root, "S1", number)))
        covered = np.zeros((2 * SIZE, 3 * SIZE), bool)
        covered[:SIZE] = covered[:, SIZE : 2 * SIZE] = True
        assert np.array_equal(full.valid, [covered] * 3)
        for window in (Window(SIZE - 3, 5, 7, 60), Window(40, 0, 24, 20), Window(63, 95, 1, 1)):
            part = series.read(window)
            for name in ("raw", "optical", "radar", "valid"):
                assert np.array_equal(getattr(part, name), getattr(full, name)[(..., *window.slices)])
    assert series.nodata == 0
    assert "4 patches of ROIs1868/73 make a scene of 64 x 96 pixels" in series.notes
    assert "patches cover 66.7 % of the scene; gaps hold no data" in series.notes


def test_dates_of_a_region_are_chosen_by_day(root):
    days = [optical_date(number).isoformat() for number in (9, 2)]
    series = open_series(SceneInputs(folder=str(root / ROI), dates=days))
    assert series == open_series(SceneInputs(folder=str(root / ROI), numbers=[2, 9]))
    assert len(open_series(SceneInputs(folder=str(root / ROI) + "/")).days) == 30
    with pytest.raises(DataError, match="ROIs1868/73 has no image of 2018-01-06; it has 2018-01-05, 2018-01-15"):
        open_series(SceneInputs(folder=str(root / ROI), dates=["2018-01-06"]))
    with pytest.raises(UsageError, match="image numbers run from 0 to 29, not 30"):
        open_series(SceneInputs(folder=str(root / ROI), numbers=[30]))


def test_incomplete_patches_are_left_out_and_told(root, tmp_path):
    for patch in (0, 1):
        write_series(tmp_path, ROI, patch, stored=False)
    (tmp_path / series_path(ROI, "S1", 6, 1)).unlink()
    series = open_series(SceneInputs(folder=str(tmp_path / ROI), numbers=[0]))
    assert (series.grid.height, series.grid.width, series.nodata) == (SIZE, SIZE, None)
    assert any("left out and counted as missing: patch 1 of ROIs1868/73" in note for note in series.notes)
    (tmp_path / series_path(ROI, "S1", 6, 0)).unlink()
    with pytest.raises(DataError, match=r"no whole patch in .*ROIs1868/73 \(patch 0 of .*expected ROOT/ROIs1868/73/S2"):
        open_series(SceneInputs(folder=str(tmp_path / ROI)))
    with pytest.raises(DataError, match="no such region: .*nowhere; expected the folder above S1 and S2"):
        open_series(SceneInputs(folder=str(tmp_path / "nowhere")))


def test_damaged_patches_are_told_when_they_are_read(tmp_path):
    write_series(tmp_path, ROI, 0, stored=False)
    series = open_series(SceneInputs(folder=str(tmp_path / ROI), numbers=[3]))
    path = tmp_path / series_path(ROI, "S2", 3, 0)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"ImgNo_3_.*_patch_0\.tif"):
        series.read(series.grid.window)
