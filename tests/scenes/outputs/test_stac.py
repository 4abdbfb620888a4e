"""The STAC item: read back by pystac, with place, time and contents of the files."""

import json

import numpy as np
import pystac
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds

from data.constants import S2_BANDS
from scenes.inputs.rasters.grid import Grid
from scenes.inputs.series import SceneSeries
from scenes.outputs.stac import EXTENSIONS, ItemDetails, write_item

GRID = Grid(700, 1100, Affine(10, 0, 400_000, 0, -10, 5_000_000), CRS.from_epsg(32632))
FILES = ("reflectance", "total", "clouds")


def write(folder, grid: Grid = GRID, nodata: int | None = 0) -> pystac.Item:
    files = {field: folder / f"{field}.tif" for field in FILES} | {"quicklook": folder / "quicklook.png"}
    series = SceneSeries(grid, (1540, 1545, 1550), (), (), (), nodata, ())
    details = ItemDetails(nodata, network="conv3d_mamba", notes=("B10 is missing",))
    write_item(folder / "item.json", series, files, details)
    return pystac.Item.from_file(str(folder / "item.json"))


def test_the_item_survives_a_round_trip(tmp_path):
    item = write(tmp_path)
    stored = json.loads((tmp_path / "item.json").read_text())
    again = item.to_dict(include_self_link=False, transform_hrefs=False)
    assert again == stored
    assert (stored["type"], stored["stac_version"], stored["id"]) == ("Feature", "1.1.0", tmp_path.name)
    assert stored["stac_extensions"] == list(EXTENSIONS)


def test_the_item_tells_when(tmp_path):
    properties = write(tmp_path).properties
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2018-06-21T00:00:00Z"
    assert properties["end_datetime"] == "2018-07-01T23:59:59Z"


def test_the_item_tells_where(tmp_path):
    item = write(tmp_path)
    west, south, east, north = item.bbox
    # straight edges bend by less than 1e-5 degrees over 11 km; 7 decimals are kept
    assert item.bbox == pytest.approx(transform_bounds(GRID.crs, "EPSG:4326", *GRID.bounds, densify_pts=101), abs=1e-5)
    ring = np.array(item.geometry["coordinates"][0])
    assert np.array_equal(ring[0], ring[-1])
    xs, ys = transform("EPSG:4326", GRID.crs, ring[:, 0], ring[:, 1])
    left, bottom, right, top = GRID.bounds
    on_edge = np.minimum.reduce([np.abs(np.subtract(xs, x)) for x in (left, right)])
    on_edge = np.minimum(on_edge, np.minimum.reduce([np.abs(np.subtract(ys, y)) for y in (bottom, top)]))
    assert on_edge.max() < 0.02  # metres: 7 decimals of a degree are 11 mm
    assert {left, right} == {round(min(xs)), round(max(xs))}
    area = 0.5 * np.sum(np.multiply(xs[:-1], ys[1:]) - np.multiply(xs[1:], ys[:-1]))
    assert area == pytest.approx(700 * 1100 * 100, rel=1e-5)  # positive: anticlockwise, as GeoJSON wants
    properties = item.properties
    assert properties["proj:code"] == "EPSG:32632"
    assert properties["proj:shape"] == [700, 1100]
    assert properties["proj:transform"] == [10, 0, 400_000, 0, -10, 5_000_000]
    assert properties["proj:bbox"] == [left, bottom, right, top]
    assert properties["gsd"] == 10
    assert west < east
    assert south < north


def test_the_item_tells_what(tmp_path):
    item = write(tmp_path)
    assert item.properties["processing:software"] == {"cloudless-uncertainty": "0.1.0"}
    lineage = item.properties["processing:lineage"]
    assert lineage == "reconstructed by conv3d_mamba from 2018-06-21, 2018-06-26, 2018-07-01; B10 is missing"
    hrefs = json.loads((tmp_path / "item.json").read_text())["assets"]
    assert {name: asset["href"] for name, asset in hrefs.items()} == {
        **{field: f"./{field}.tif" for field in FILES},
        "quicklook": "./quicklook.png",
    }
    reflectance, clouds = item.assets["reflectance"], item.assets["clouds"]
    assert reflectance.media_type == pystac.MediaType.COG
    assert reflectance.roles == ["data", "reflectance"]
    assert item.assets["total"].roles == ["data", "uncertainty"]
    assert item.assets["quicklook"].roles == ["thumbnail", "overview"]
    fields = reflectance.extra_fields
    assert (fields["raster:scale"], fields["raster:offset"], fields["nodata"], fields["data_type"]) == (
        1e-4,
        0,
        0,
        "uint16",
    )
    assert [band["name"] for band in fields["bands"]] == list(S2_BANDS)
    assert fields["bands"][3] == {"name": "B04", "eo:common_name": "red", "eo:center_wavelength": 0.6646}
    assert [band["name"] for band in clouds.extra_fields["bands"]] == ["2018-06-21", "2018-06-26", "2018-07-01"]
    assert clouds.extra_fields["nodata"] == 255
    assert "nodata" not in write(tmp_path, nodata=None).assets["reflectance"].extra_fields


def test_a_crs_without_code_is_spelled_out(tmp_path):
    crs = CRS.from_proj4("+proj=laea +lat_0=45 +lon_0=8 +datum=WGS84 +units=m")
    properties = write(tmp_path, Grid(700, 1100, Affine(10, 0, 0, 0, -10, 0), crs)).properties
    assert properties["proj:code"] is None
    assert properties["proj:wkt2"].startswith("PROJCRS[")


def test_scenes_in_degrees_have_no_distance_in_metres(tmp_path):
    grid = Grid(100, 200, Affine(1e-4, 0, 8, 0, -1e-4, 45), CRS.from_epsg(4326))
    item = write(tmp_path, grid)
    assert "gsd" not in item.properties
    assert item.bbox == pytest.approx([8, 44.99, 8.02, 45])


def test_without_crs_there_is_no_place(tmp_path):
    item = write(tmp_path, Grid(10, 10, Affine.identity(), None))
    assert (item.geometry, item.bbox) == (None, None)
    assert "proj:code" not in item.properties


def test_a_scene_across_the_180th_meridian_is_two_polygons():
    xs, ys = transform("EPSG:4326", "EPSG:32660", [180.0], [-17.0])
    grid = Grid(1000, 2000, Affine(10, 0, xs[0] - 10_000, 0, -10, ys[0] + 5000), CRS.from_epsg(32660))
    geometry, bbox = grid.footprint()
    assert geometry["type"] == "MultiPolygon"
    west, south, east, north = bbox
    assert 179.8 < west < 180
    assert -180 < east < -179.8  # west exceeds east, as GeoJSON has it
    assert -17.1 < south < north < -16.9
