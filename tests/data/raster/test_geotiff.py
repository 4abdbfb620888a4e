import os
import re
import socket
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from common.errors import DataError
from data.raster.geotiff import (
    acquisition_date,
    days_since_origin,
    read_bands,
    read_georef,
    read_size,
    read_with_georef,
    write_geotiff,
)
from data.raster.image_store import open_images
from tests.support.commands import ROOT

TRANSFORM = from_origin(500000, 5000000, 10, 10)  # 10 m pixels


def optical(bands=13, height=20, width=24, dtype="uint16"):
    return np.random.default_rng(1).integers(0, 200, (bands, height, width)).astype(dtype)


def written(path, array, **options):
    write_geotiff(path, array, "EPSG:32631", TRANSFORM, **options)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8"])
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_what_is_written_is_read_back(tmp_path, dtype, compress):
    array = optical(dtype=dtype)
    path = written(tmp_path / "deep" / "a.tif", array, compress=compress)
    np.testing.assert_array_equal(read_bands(path), array)
    assert read_bands(path).dtype == dtype
    assert os.listdir(tmp_path / "deep") == ["a.tif"]


def test_georeference_is_kept(tmp_path):
    path = written(tmp_path / "a.tif", optical())
    pixels, georef = read_with_georef(path, 13, (20, 24))
    assert georef.bounds == (500000.0, 4999800.0, 500240.0, 5000000.0)
    assert (georef.crs.to_epsg(), georef.transform) == (32631, TRANSFORM)
    assert read_georef(path) == georef
    assert read_size(path) == (20, 24) == pixels.shape[1:]


def test_only_three_dimensions_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected an array \(C, H, W\), got \(20, 24\)"):
        written(tmp_path / "a.tif", optical()[0])
    assert not list(tmp_path.iterdir())


def test_files_are_closed(tmp_path):
    """known issue 14: the published loader leaves every raster open."""
    path = written(tmp_path / "a.tif", optical())
    for _ in range(3):
        read_bands(path)
        read_georef(path)
    links = [f"/proc/self/fd/{handle}" for handle in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.islink(link) and os.readlink(link) == str(path)]


@pytest.mark.parametrize("compress", [None, "deflate"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path, compress, share):
    noise = np.random.default_rng(0).integers(0, 9999, (13, 64, 64)).astype("uint16")
    path = written(tmp_path / "short.tif", noise, compress=compress)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="short.tif"):
        read_bands(path)


def test_radar_in_double_precision_is_read_as_single(tmp_path):
    decibel = np.random.default_rng(3).uniform(-30, 5, (2, 8, 8))
    path = written(tmp_path / "s1.tif", decibel)
    read = read_bands(path, expected_bands=2)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, decibel.astype(np.float32))
    assert read_bands(path).dtype == np.float64  # as stored, where nothing is expected


@pytest.mark.parametrize(
    ("array", "expected", "message"),
    [
        (optical(12), {"expected_bands": 13}, "bad.tif: expected 13 bands, found 12"),
        (optical(), {"expected_size": 256}, "bad.tif: expected 256 x 256 pixels, found 20 x 24"),
        (optical(), {"expected_size": (24, 20)}, "bad.tif: expected 24 x 20 pixels, found 20 x 24"),
        (optical(dtype="float32"), {"expected_bands": 13}, "bad.tif: expected uint16 values, found float32"),
        (
            optical(2, dtype="uint16"),
            {"expected_bands": 2},
            "expected float32 or float64 values, found uint16",
        ),
    ],
)
def test_other_contents_are_refused(tmp_path, array, expected, message):
    with pytest.raises(DataError, match=message):
        read_bands(written(tmp_path / "bad.tif", array), **expected)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such image: .*nowhere.tif"):
        read_bands(tmp_path / "nowhere.tif")
    (tmp_path / "text.tif").write_text("not a picture")
    with pytest.raises(DataError, match="not a readable GeoTIFF: .*text.tif"):
        read_bands(tmp_path / "text.tif")


VRT = """<VRTDataset rasterXSize="8" rasterYSize="8">
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativeToVRT="0">{}</SourceFilename><ImageOffset>0</ImageOffset>
<PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand></VRTDataset>"""
WMS = "<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/${{z}}</ServerUrl></Service></GDAL_WMS>{}"


@pytest.mark.parametrize("text", [VRT, WMS], ids=["VRT", "WMS"])
def test_a_text_that_refers_to_other_files_is_no_image(tmp_path, text):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(64)))
    path = tmp_path / "patch.tif"
    path.write_text(text.format(secret))
    for read in (read_bands, read_georef, read_size, lambda path: open_images(tmp_path).open(path).__enter__()):
        with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*patch\.tif"):
            read(path)


def test_a_path_named_in_a_list_is_never_fetched(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        path = f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/a.tif"
        with rasterio.Env(GDAL_HTTP_TIMEOUT="1"), pytest.raises(DataError, match=f"no such image: {path}"):
            read_georef(path)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


def test_an_image_that_names_a_file_as_its_overviews_is_refused(tmp_path):
    path = written(tmp_path / "a.tif", optical())
    with rasterio.open(path, "r+") as image:
        image.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/etc/passwd")
    with pytest.raises(DataError, match=r"a\.tif: its metadata names another file as its overviews"):
        read_bands(path)


def test_the_declared_size_is_checked_before_anything_is_read(tmp_path):
    path, shape = tmp_path / "sparse.tif", {"count": 13, "height": 100_000, "width": 100_000}
    layout = {"tiled": True, "blockxsize": 2048, "blockysize": 2048, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint16", **shape, **layout):
        pass
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"sparse\.tif: it declares 13 x 100000 x 100000 values, expected at most"):
        read_bands(path)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    for read in (read_bands, read_georef):
        with pytest.raises(DataError, match=r"not a readable GeoTIFF: .*pipe\.tif \(it is no file\)"):
            read(tmp_path / "pipe.tif")


def test_paths_that_gdal_cannot_open_are_named(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.tif")
    with pytest.raises(DataError, match=r"a.*udcff\.tif': GDAL opens only paths in UTF-8"):
        written(path, optical())
    written(tmp_path / "a.tif", optical()).rename(path)
    assert read_bands(path).shape == (13, 20, 24)
    with pytest.raises(DataError, match=r"a.*udcff\.tif': GDAL opens only paths in UTF-8"):
        read_size(path)


def test_images_are_opened_in_one_place():
    rooms = [ROOT / name for name in ("common", "config", "data", "evaluation", "model", "scenes", "training", "util")]
    opening = re.compile(r"rasterio\.open\((?![^\n]*\"w\")|memory\.open\(\)|DatasetReader\(")
    places = [path.name for room in rooms for path in room.rglob("*.py") if opening.search(path.read_text("utf-8"))]
    assert places == ["geotiff.py"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        written(tmp_path / "file" / "a.tif", optical())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("folder", ["ROIs1868/73/S2/14", "/my_data_2020_x_y_z_2001-01-01/a_b", "."])
def test_date_comes_from_the_name_whatever_the_root(folder):
    """known issue 14: the published loader takes the sixth word between underscores."""
    name = "s2_ROIs1868_73_ImgNo_14_2018-06-21_patch_171.tif"
    assert acquisition_date(Path(folder) / name) == date(2018, 6, 21)
    assert acquisition_date(f"my_own_{name}") == date(2018, 6, 21)


def test_dates_that_are_none():
    with pytest.raises(DataError, match="no date in the file name of .*p30.tif"):
        acquisition_date("ROIs1868_summer_s2_cloudy_19_p30.tif")
    with pytest.raises(DataError, match="impossible date 2018-02-30"):
        acquisition_date("s2_2018-02-30_patch_1.tif")


def test_days_are_counted_from_the_launch_of_sentinel_1a():
    assert days_since_origin(date(2014, 4, 3)) == 0
    assert days_since_origin(date(2018, 6, 21)) == 1540  # 4 years with one leap day, and 79 days
    assert days_since_origin(date(2018, 6, 21), date(2018, 6, 22)) == -1


def test_real_patches_are_read(shared):
    folder = shared / "data" / "SEN12MSCR"
    s2, georef = read_with_georef(folder / "ROIs1970_fall_s2/s2_139/ROIs1970_fall_s2_139_p839.tif", 13, 256)
    s1 = read_bands(folder / "ROIs1970_fall_s1/s1_139/ROIs1970_fall_s1_139_p839.tif", 2, 256)
    assert (s2.dtype, s2.min(), s2.max(), georef.crs.to_epsg()) == (np.uint16, 17, 3708, 32650)
    assert (s1.dtype, round(float(s1.min()), 3), float(s1.max())) == (np.float32, -34.642, 0.0)
