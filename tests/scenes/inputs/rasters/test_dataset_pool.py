"""Open files: they are shared, closed, and damaged ones are named."""

import pytest
import rasterio
import rasterio.shutil

from common.errors import DataError
from scenes.inputs.open import open_series
from scenes.inputs.rasters.dataset_pool import DatasetPool, dataset_pool
from scenes.inputs.rasters.grid import Window
from scenes.options import SceneInputs
from tests.support.scene_files import ZONE_31, ground, read_all, speckle, write_tif, zone_31


def test_truncated_and_other_files_are_found_at_opening(tmp_path):
    plain, path = tmp_path / "2018-06-20.tif", tmp_path / "2018-06-21.tif"
    rasterio.shutil.copy(
        write_tif(plain, ground(), compress="deflate"), path, driver="COG"
    )  # its directory comes first
    for place in (plain, path):
        content = place.read_bytes()
        place.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*2018-06-20\.tif .*; fetch it again"):
        open_series(SceneInputs([str(plain)]))
    with pytest.raises(DataError, match=r"truncated or damaged image: .*2018-06-21\.tif .*; fetch it again"):
        open_series(SceneInputs([str(path)]))
    path.write_text("no image")
    with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*2018-06-21\.tif"):
        open_series(SceneInputs([str(path)]))
    with pytest.raises(DataError, match=r"no such image: .*2018-06-22\.tif"):
        open_series(SceneInputs([str(tmp_path / "2018-06-22.tif")]))


def test_damage_that_opening_does_not_see_is_told_when_reading(tmp_path):
    path = tmp_path / "2018-06-21.tif"
    write_tif(path, ground(), compress="deflate")
    content = bytearray(path.read_bytes())
    series = open_series(SceneInputs([str(path)]))
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"truncated or damaged image: .*2018-06-21\.tif"):
        read_all(series)


def test_opening_leaves_nothing_open_when_it_fails(write_optical):
    before = len(dataset_pool())
    with pytest.raises(DataError, match="which gives no|expected reflectance"):
        open_series(SceneInputs([write_optical()], offset=-20000))
    assert len(dataset_pool()) == before


def test_radar_files_are_closed(optical, tmp_path):

    place, size = zone_31(margin=8)
    path = write_tif(tmp_path / "s1_2018-06-18.tif", speckle(size=size), crs=ZONE_31, transform=place)
    before = len(dataset_pool())
    with open_series(SceneInputs([optical], [path])) as series:
        series.read(Window(0, 0, 4, 4))
        assert len(dataset_pool()) == before + 3  # the radar file and its warped view
        opened = list(dataset_pool()._open.values())[-2:]
    assert len(dataset_pool()) == before
    assert all(source.closed for source in opened)
    with rasterio.open(path, "r+") as again:  # it is not open elsewhere
        again.update_tags(a="b")


def test_warped_views_do_not_count_as_files_and_are_closed_before_them():
    closed = []

    class Opened:
        def __init__(self, key):
            self.key = key

        def close(self):
            closed.append(self.key)

    pool = DatasetPool(limit=2)
    keys = [(path, 0, 0, *view) for path in "ab" for view in ((), ("view",), ("other view",))]
    for key in keys:
        pool.get(key, lambda key=key: Opened(key))
    assert closed == []
    pool.get(("c", 0, 0), lambda: Opened("c"))
    assert closed == [("a", 0, 0, "view"), ("a", 0, 0, "other view"), ("a", 0, 0)]
    assert len(pool) == 4
