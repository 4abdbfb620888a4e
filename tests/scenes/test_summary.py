"""Inputs as JSON: schema, and means of whole images, parts and dates of several images against plain reads."""

import json

import fastjsonschema
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from data.constants import S2_BANDS
from scenes import summary
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from scenes.summary import describe_series
from tests.support.scene_files import HEIGHT, PLACE, WIDTH, ground, speckle, write_tif, zone_31

DAY = "2018-06-21"
BAND = {
    "type": "object",
    "required": ["source", "position", "scale", "offset", "nodata", "mean", "valid"],
    "additionalProperties": False,
    "properties": {
        "source": {"type": "string"},
        "position": {"type": "integer", "minimum": 1},
        "scale": {"type": "number"},
        "offset": {"type": "number"},
        "nodata": {"type": ["number", "string", "null"]},
        "mean": {"type": ["number", "null"]},
        "valid": {"type": "number", "minimum": 0, "maximum": 1},
        "sources": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    },
}
BANDS = {name: BAND | ({"type": ["object", "null"]} if name == "B10" else {}) for name in S2_BANDS}
RADAR = {"type": ["object", "null"], "required": ["VV", "VH"], "properties": {"VV": BAND, "VH": BAND}}
SCHEMA = {
    "type": "object",
    "required": ["grid", "dates", "notes"],
    "additionalProperties": False,
    "properties": {
        "grid": {
            "type": "object",
            "required": ["height", "width", "crs", "transform"],
            "properties": {
                "height": {"type": "integer"},
                "width": {"type": "integer"},
                "crs": {"type": ["string", "null"]},
                "transform": {"type": "array", "items": {"type": "number"}, "minItems": 6, "maxItems": 6},
            },
        },
        "dates": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["day", "bands", "radar"],
                "additionalProperties": False,
                "properties": {
                    "day": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
                    "bands": {"type": "object", "required": list(S2_BANDS), "properties": BANDS},
                    "radar": RADAR,
                },
            },
        },
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}


def describe(inputs: SceneInputs) -> dict:
    with open_series(inputs) as series:
        text = json.dumps(describe_series(series), allow_nan=False)
    content = json.loads(text)
    fastjsonschema.validate(SCHEMA, content)
    return content


def image(path, pixels, **options) -> str:
    return write_tif(path, pixels, **{"names": S2_BANDS, **options})


def test_bands_have_their_source_scaling_mean_and_share(tmp_path):
    pixels = ground(offset=1000)
    pixels[:, :7] = 0
    path = image(tmp_path / f"s2_{DAY}.tif", pixels[::-1], names=S2_BANDS[::-1], nodata=0)
    radar = write_tif(tmp_path / "s1_2018-06-20.tif", speckle(), names=("VV", "VH"), nodata=np.nan)
    content = describe(SceneInputs([path], radar=[radar], offset=-1000))
    assert content["grid"] == {
        "height": HEIGHT,
        "width": WIDTH,
        "crs": "EPSG:32632",
        "transform": [10, 0, 400_000, 0, -10, 5_000_000],
    }
    (date,) = content["dates"]
    assert date["day"] == DAY
    for index, name in enumerate(S2_BANDS):
        band = date["bands"][name]
        assert band["mean"] == pytest.approx(pixels[index, 7:].mean() / 10000 - 0.1, abs=1e-9)
        assert band["valid"] == pytest.approx(63 / 70)
        assert (band["scale"], band["offset"]) == pytest.approx((0.0001, -0.1))
        assert (band["source"], band["position"], band["nodata"]) == (path, 13 - index, 0)
    for index, name in enumerate(("VV", "VH")):
        band = date["radar"][name]
        assert band["mean"] == pytest.approx(speckle()[index].mean(dtype=np.float64))
        assert (band["source"], band["position"], band["scale"], band["offset"]) == (radar, index + 1, 1, 0)
        assert (band["nodata"], band["valid"]) == ("nan", 1)


def test_a_missing_b10_is_null_as_are_radar_and_the_mean_of_no_pixels(tmp_path):
    full = image(tmp_path / "s2_2018-06-11.tif", ground(bands=12), names=[name for name in S2_BANDS if name != "B10"])
    empty = image(tmp_path / f"s2_{DAY}.tif", np.zeros_like(ground()), nodata=0, crs="EPSG:32632")
    first, second = describe(SceneInputs([full, empty]))["dates"]
    assert first["bands"]["B10"] is None
    assert first["radar"] is None
    assert (second["bands"]["B04"]["mean"], second["bands"]["B04"]["valid"]) == (None, 0)


@pytest.mark.parametrize("driver", ["GTiff", "GTiff with overviews", "JP2OpenJPEG"])
def test_large_images_are_looked_at_coarsely(tmp_path, monkeypatch, driver):
    rows, columns = np.mgrid[:600, :1100]
    pixels = (ground(size=(600, 1100)) * (1 + np.sin(rows / 60) * np.cos(columns / 90) / 2)).astype(np.uint16)
    pixels[:, :, 700:] = 0
    path = image(tmp_path / f"s2_{DAY}.tif", pixels)
    if driver == "JP2OpenJPEG":
        source, path = path, str(tmp_path / f"s2_{DAY}.jp2")
        rasterio.shutil.copy(source, path, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    if driver == "GTiff with overviews":
        with rasterio.open(path, "r+") as target:
            target.build_overviews([2, 4, 8], Resampling.average)
    monkeypatch.setattr(summary, "FULL", 2**16)
    bands = describe(SceneInputs([path]))["dates"][0]["bands"]
    for index, name in enumerate(S2_BANDS):
        assert bands[name]["mean"] == pytest.approx(pixels[index, :, :700].mean() / 10000, rel=0.01)
        assert bands[name]["valid"] == pytest.approx(7 / 11, rel=0.01)


def test_means_are_those_of_the_area(tmp_path):
    path = image(tmp_path / f"s2_{DAY}.tif", ground())
    transform, size = zone_31(3)
    radar = write_tif(
        tmp_path / f"s1_{DAY}.tif", speckle(size=size), names=("VV", "VH"), crs="EPSG:32631", transform=transform
    )
    ring = [[400_200, 4_999_900], [400_600, 4_999_900], [400_600, 4_999_500], [400_200, 4_999_900]]
    area = {"type": "Polygon", "coordinates": [ring], "crs": {"type": "name", "properties": {"name": "EPSG:32632"}}}
    (tmp_path / "area.json").write_text(json.dumps(area))
    content = describe(SceneInputs([path], radar=[radar], aoi=str(tmp_path / "area.json")))
    assert (content["grid"]["height"], content["grid"]["width"]) == (40, 40)
    rows, columns = np.mgrid[:40, :40]
    inside = columns > rows
    (date,) = content["dates"]
    part = ground()[3, 10:50, 20:60]
    assert date["bands"]["B04"]["mean"] == pytest.approx(part[inside].mean() / 10000, rel=0.01)  # centres on its edge
    assert date["bands"]["B04"]["valid"] == 1
    assert date["radar"]["VV"]["valid"] == 1
    assert date["radar"]["VV"]["mean"] == pytest.approx(speckle(size=size)[0].mean(), abs=0.5)


def test_dates_of_several_images_count_as_one(tmp_path):
    whole = ground()
    west, east = np.zeros_like(whole), np.zeros_like(whole)
    west[..., :50], east[..., 40:] = whole[..., :50], whole[..., 40:]
    paths = [image(tmp_path / f"{name}_{DAY}.tif", pixels, nodata=0) for name, pixels in (("e", east), ("w", west))]
    band = describe(SceneInputs(paths))["dates"][0]["bands"]["B05"]
    assert band["sources"] == paths
    assert band["source"] == paths[0]
    assert band["mean"] == pytest.approx(whole[4].mean() / 10000, abs=1e-6)
    assert band["valid"] == 1
    corner = from_origin(PLACE.c + 600, PLACE.f, 10, 10)
    parts = [image(tmp_path / f"a_{DAY}.tif", whole[..., :45])]
    parts.append(image(tmp_path / f"b_{DAY}.tif", whole[..., 60:], transform=corner))
    band = describe(SceneInputs(parts))["dates"][0]["bands"]["B05"]
    assert band["mean"] == pytest.approx(np.delete(whole[4], np.s_[45:60], axis=1).mean() / 10000, abs=1e-6)
    assert band["valid"] == pytest.approx(1, abs=0.01), "of what the images cover together"


def test_the_radar_of_a_day_counts_as_one(tmp_path):
    path = image(tmp_path / f"s2_{DAY}.tif", ground())
    backscatter, radar = speckle(), []
    for name, columns in (("a", np.s_[:45]), ("b", np.s_[45:])):
        place = from_origin(PLACE.c + 10 * columns.indices(WIDTH)[0], PLACE.f, 10, 10)
        radar.append(
            write_tif(tmp_path / f"{name}_{DAY}.tif", backscatter[..., columns], names=("VV", "VH"), transform=place)
        )
    band = describe(SceneInputs([path], radar=radar))["dates"][0]["radar"]["VH"]
    assert band["sources"] == radar
    assert band["mean"] == pytest.approx(backscatter[1].mean(dtype=np.float64), abs=1e-4)
    assert band["valid"] == 1


def test_means_of_real_images_equal_those_of_plain_reads(products):
    path = str(products / "majortom" / "S2L1C" / "637U_59R_1_3.tif")
    bands = describe(SceneInputs([path], dates=["2020-01-01"]))["dates"][0]["bands"]
    with rasterio.open(path) as source:
        stored = source.read()
    for index, name in enumerate(S2_BANDS):
        assert bands[name]["mean"] == pytest.approx(stored[index].mean() / 10000, rel=1e-6)


def test_means_of_real_bands_of_three_resolutions_equal_those_of_plain_reads(products):
    folder = products / "l1c_bands_jp2"
    content = describe(SceneInputs([str(folder)]))
    (date,) = content["dates"]
    assert date["day"] == "2017-02-16"
    assert (content["grid"]["height"], content["grid"]["width"], content["grid"]["crs"]) == (768, 1536, "EPSG:32633")
    for name in S2_BANDS:
        (path,) = folder.glob(f"*_{name}.jp2")
        with rasterio.open(path) as source:
            stored = source.read(1)
        band = date["bands"][name]
        assert (band["source"], band["position"]) == (str(path), 1)
        assert band["mean"] == pytest.approx(stored[stored > 0].mean() * 0.0001, rel=1e-3)


def test_regions_of_the_data_set(tree):
    content = describe(SceneInputs(folder=str(tree / "ROIs1868" / "73"), numbers=[0, 1]))
    assert len(content["dates"]) == 2
    assert all(date["radar"]["VV"]["mean"] < 0 for date in content["dates"])
    assert all(0 < date["bands"]["B08"]["mean"] < 2 for date in content["dates"])
