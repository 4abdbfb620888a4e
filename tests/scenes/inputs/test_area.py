"""Where a scene lies: unions, other grids, --bbox and --aoi, compared with reads by plain rasterio."""

import json
import pickle

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform, transform_geom
from rasterio.windows import Window as RasterioWindow

from common.errors import DataError, UsageError
from data.constants import S2_BANDS
from scenes.inputs.open import open_series
from scenes.options import SceneInputs
from tests.support.commands import ROOT
from tests.support.scene_files import CRS, HEIGHT, PLACE, WIDTH, ZONE_31, ground, notes_of, read_all, write_tif

DAYS = ("2018-06-21", "2018-06-26")
LEFT, TOP = PLACE.c, PLACE.f
CORNERS = [(10, 20), (10, 60), (50, 60), (50, 20)]  # (row, column)


def image(path, pixels, row=0, column=0, **options) -> str:
    """An image whose upper left pixel is at a row and column of the grid of `scene_files`."""
    options = {"transform": from_origin(LEFT + 10 * column, TOP - 10 * row, 10, 10), **options}
    return write_tif(path, pixels, names=S2_BANDS, **options)


def pair(folder, **options) -> list[str]:
    return [image(folder / f"s2_{day}.tif", ground(seed), **options) for seed, day in enumerate(DAYS)]


def lonlat(corners=CORNERS):
    """Longitude and latitude of the upper left corners of pixels, as a closed ring."""
    points = [(LEFT + 10 * column, TOP - 10 * row) for row, column in corners]
    return [
        list(point) for point in zip(*transform(CRS, "EPSG:4326", *zip(*points, points[0], strict=True)), strict=True)
    ]


def polygon(ring, *holes):
    return {"type": "Polygon", "coordinates": [ring, *holes]}


def write_geojson(path, content, **more) -> str:
    path.write_text(json.dumps({**content, **more}))
    return str(path)


def test_parts_of_one_grid_become_their_union_without_resampling(tmp_path):
    whole = ground(7, size=(90, 120))
    first = image(tmp_path / "a_2018-06-21.tif", whole[:, 20:, :80], row=20)
    second = image(tmp_path / "b_2018-06-26.tif", whole[:, :60, 40:], column=40)
    series = open_series(SceneInputs([first, second]))
    assert series.grid.shape == (90, 120)
    assert series.grid.transform == PLACE
    assert "the scene is the rectangle that contains all" in notes_of(series)
    assert series.nodata == 0
    pixels = read_all(series)
    for date, part in enumerate((np.s_[20:, :80], np.s_[:60, 40:])):
        assert pixels.valid[date].sum() == pixels.valid[date][part].sum() == whole[0][part].size
        np.testing.assert_array_equal(pixels.raw[date][(..., *part)], whole[(..., *part)])


def test_images_far_apart_are_no_scene_unless_a_part_is_chosen(tmp_path):
    near = image(tmp_path / "a_2018-06-21.tif", ground())
    far = image(tmp_path / "b_2018-06-26.tif", ground(1), row=400, column=900)
    with pytest.raises(DataError, match=r"lie far apart: .* span 470 x 990 pixels and cover 2\.7 % of them"):
        open_series(SceneInputs([near, far]))
    west, south, east, north = (*np.min(lonlat(), axis=0), *np.max(lonlat(), axis=0))
    series = open_series(SceneInputs([near, far], bbox=(west, south, east, north)))
    assert series.days == (1540,)
    assert "outside of the area, not used: b_2018-06-26.tif" in notes_of(series)


def test_bbox_chooses_whole_pixels_which_are_read_as_stored(tmp_path):
    paths = pair(tmp_path)
    ring = np.array(lonlat())
    series = open_series(SceneInputs(paths, bbox=(*ring.min(axis=0), *ring.max(axis=0))))
    # the meridians are turned against the grid by a degree: the box of longitude and latitude holds the pixels
    columns, rows = ~series.grid.transform @ (LEFT + 10 * 20, TOP - 10 * 10)
    assert (columns, rows) == (round(columns), round(rows))
    top, left = round((TOP - series.grid.transform.f) / 10), round((series.grid.transform.c - LEFT) / 10)
    height, width = series.grid.shape
    assert top <= 10
    assert left <= 20
    assert top + height >= 50
    assert left + width >= 60
    assert height < 50
    assert width < 50
    pixels = read_all(series)
    for date, path in enumerate(paths):
        with rasterio.open(path) as source:
            stored = source.read(window=RasterioWindow(left, top, width, height))
        np.testing.assert_array_equal(pixels.raw[date], stored)


@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon", "Feature", "FeatureCollection", "in its own CRS"])
def test_pixels_outside_of_an_area_are_marked_and_read_all_the_same(tmp_path, kind):
    paths = pair(tmp_path)
    triangle = polygon(lonlat([(10, 20), (50, 20), (50, 60)]))
    content = {
        "Polygon": triangle,
        "MultiPolygon": {"type": "MultiPolygon", "coordinates": [triangle["coordinates"]]},
        "Feature": {"type": "Feature", "properties": {}, "geometry": triangle},
        "FeatureCollection": {
            "type": "FeatureCollection",
            "features": [
                {"type": "Feature", "properties": None, "geometry": None},
                {"type": "Feature", "properties": {}, "geometry": triangle},
            ],
        },
        "in its own CRS": {
            **transform_geom("EPSG:4326", "EPSG:3035", triangle),
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3035"}},
        },
    }[kind]
    series = open_series(SceneInputs(paths, aoi=write_geojson(tmp_path / "area.geojson", content)))
    assert series.grid.shape == (40, 40)
    assert (series.grid.transform.c, series.grid.transform.f) == (LEFT + 200, TOP - 100)
    inside = series.area.inside(series.grid.window)
    rows, columns = np.mgrid[:40, :40]
    expected = columns < rows
    assert (inside != expected)[np.abs(rows - columns) > 1].sum() == 0  # the diagonal passes through centres
    part = type(series.grid.window)(7, 3, 20, 30)
    np.testing.assert_array_equal(series.area.inside(part), inside[7:27, 3:33])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(series)).area.inside(series.grid.window), inside)
    pixels = read_all(series)
    assert pixels.valid.all(), "the network sees the surroundings"
    np.testing.assert_array_equal(pixels.raw[0], ground(0)[:, 10:50, 20:60])


def test_long_edges_follow_longitude_and_latitude(tmp_path):
    """A parallel of 1 degree at 45 degrees north bends by 120 m in UTM."""
    size = (1200, 100)  # pixels of 100 m: 10 km x 120 km
    transform_ = from_origin(380_000, 5_080_000, 1000, 100)
    path = write_tif(tmp_path / "s2_2018-06-21.tif", ground(size=size), names=S2_BANDS, transform=transform_)
    ring = [[8.0, 45.0], [9.0, 45.0], [9.0, 45.5], [8.0, 45.5], [8.0, 45.0]]
    series = open_series(SceneInputs([path], aoi=write_geojson(tmp_path / "area.json", polygon(ring))))
    inside = series.area.inside(series.grid.window)
    rows, columns = np.nonzero(np.ones_like(inside))
    xs, ys = series.grid.transform @ (columns + 0.5, rows + 0.5)
    longitude, latitude = transform(CRS, "EPSG:4326", xs, ys)
    expected = (
        (np.array(longitude) > 8) & (np.array(longitude) < 9) & (np.array(latitude) > 45) & (np.array(latitude) < 45.5)
    )
    np.testing.assert_array_equal(inside.ravel(), expected)


BAD_AREAS = {
    "a point": ({"type": "Point", "coordinates": [9, 45]}, "found Point; expected GeoJSON with polygons"),
    "no feature": ({"type": "FeatureCollection", "features": []}, "it holds no polygon"),
    "an empty polygon": ({"type": "Polygon", "coordinates": []}, "it holds no polygon"),
    "a bow tie": (polygon([[7.7, 45.1], [7.8, 45.2], [7.8, 45.1], [7.7, 45.2], [7.7, 45.1]]), "Self-intersection"),
    "elsewhere": (
        polygon([[20, 45], [21, 45], [21, 46], [20, 45]]),
        r"does not overlap the images, which lie at .* 7\.7",
    ),
    "metres": (polygon([[4e5, 5e6], [4.1e5, 5e6], [4.1e5, 5.1e6], [4e5, 5e6]]), "are no longitude and latitude"),
    "the antimeridian": (polygon([[179, 45], [-179, 45], [-179, 46], [179, 45]]), "cross the 180th meridian"),
    "two points": (polygon([[7.7, 45.1], [7.8, 45.2]]), "a geometry is malformed"),
    "no numbers": (polygon([["a", 1], [2, 3], [4, 5], ["a", 1]]), "a geometry is malformed"),
    "an unknown CRS": (polygon([[0, 0], [1, 0], [1, 1], [0, 0]]) | {"crs": {"type": "link"}}, "its crs member"),
    "no GeoJSON": ({"a": 1}, r"must contain \['type'\]"),
    "too small": (polygon(lonlat([(10.1, 20.1), (10.1, 20.2), (10.2, 20.2)])), "no pixel has its centre within"),
}


@pytest.mark.parametrize("case", BAD_AREAS)
def test_areas_that_cannot_be_used(tmp_path, case):
    content, message = BAD_AREAS[case]
    with pytest.raises(DataError, match=message):
        open_series(SceneInputs(pair(tmp_path), aoi=write_geojson(tmp_path / "area.geojson", content)))


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((8, 45, 7, 46), "is empty or crosses the 180th meridian: west 8, east 7"),
        ((7, 46, 8, 45), "is empty: south 46, north 45"),
        ((400_000, 45, 8, 46), "takes longitude and latitude in degrees"),
        ((float("nan"), 45, 8, 46), "takes longitude and latitude in degrees"),
    ],
)
def test_boxes_that_cannot_be_used(tmp_path, bbox, message):
    with pytest.raises(UsageError, match=message):
        open_series(SceneInputs(pair(tmp_path), bbox=bbox))


def test_a_box_elsewhere_and_images_without_crs(tmp_path):
    with pytest.raises(DataError, match="--bbox does not overlap the images, which lie at"):
        open_series(SceneInputs(pair(tmp_path), bbox=(20, 45, 21, 46)))
    with pytest.raises(DataError, match="have no coordinate system; assign one"):
        open_series(SceneInputs(pair(tmp_path / "none", crs=None), bbox=(7, 45, 8, 46)))


def test_a_box_that_reaches_beyond_the_images_is_noted(tmp_path):
    middle = lonlat()[1][0]
    series = open_series(SceneInputs(pair(tmp_path), bbox=(7, 45, middle, 46)))
    assert "images hold only a part of --bbox; the scene is that part" in notes_of(series)
    assert series.grid.height == HEIGHT
    assert series.grid.width < WIDTH


def neighbour(path, pixels, margin=0, **options) -> str:
    """An image in zone 31, with the value of each pixel of `pixels` at its place in zone 32, the nearest one."""
    corners = [(LEFT + 10 * x, TOP - 10 * y) for x, y in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))]
    xs, ys = transform(CRS, ZONE_31, *zip(*corners, strict=True))
    place = from_origin(10 * np.floor(min(xs) / 10), 10 * np.ceil(max(ys) / 10), 10, 10)
    height, width = int((place.f - min(ys)) / 10) + 1, int((max(xs) - place.c) / 10) + 1
    rows, columns = np.mgrid[:height, :width]
    own_xs, own_ys = place @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
    there = transform(ZONE_31, CRS, own_xs, own_ys)
    own_columns, own_rows = (np.floor(values).astype(int) for values in ~PLACE @ np.array(there))
    inside = (own_rows >= 0) & (own_rows < HEIGHT) & (own_columns >= 0) & (own_columns < WIDTH)
    values = np.zeros((len(pixels), rows.size), np.uint16)
    values[:, inside] = pixels[:, own_rows[inside], own_columns[inside]]
    return write_tif(path, values.reshape(-1, height, width), names=S2_BANDS, crs=ZONE_31, transform=place, nodata=0)


def test_several_zones_become_one_grid_on_which_its_own_images_are_read_as_stored(tmp_path):
    smooth = (1000 + np.add.outer(np.arange(HEIGHT) * 5, np.arange(WIDTH) * 8))[None].repeat(13, 0).astype(np.uint16)
    smooth += np.arange(13, dtype=np.uint16)[:, None, None] * 10
    own = image(tmp_path / "a_2018-06-21.tif", smooth)
    other = neighbour(tmp_path / "b_2018-06-26.tif", smooth)
    with pytest.raises(DataError, match=r"coordinate systems EPSG:32632 and EPSG:32631.*--crs EPSG:32632 brings them"):
        open_series(SceneInputs([own, other], offset="none"))
    series = open_series(SceneInputs([own, other], offset="none", crs="EPSG:32632"))
    assert "images are brought onto one grid of EPSG:32632 with pixels of 10 x 10 metre, bilinear" in notes_of(series)
    assert series.grid.crs.to_epsg() == 32632
    columns, rows = (round(value) for value in ~series.grid.transform @ (LEFT, TOP))
    pixels = read_all(series)
    part = np.s_[..., rows : rows + HEIGHT, columns : columns + WIDTH]
    np.testing.assert_array_equal(pixels.raw[0][part], smooth)
    inner = np.s_[..., rows + 3 : rows + HEIGHT - 3, columns + 3 : columns + WIDTH - 3]
    assert pixels.valid[1][inner[1:]].all()
    error = pixels.raw[1][inner].astype(float) - smooth[..., 3:-3, 3:-3]
    assert np.abs(error).max() <= 14  # half a pixel in both directions: what the nearest pixel of the source is off
    assert np.abs(error.mean()) < 0.5
    nearest = open_series(SceneInputs([own, other], offset="none", crs="EPSG:32632", resampling="nearest"))
    assert nearest.optical[0].resampling == "nearest"
    values = read_all(nearest).raw[1]
    with rasterio.open(other) as source:
        assert set(np.unique(values[3])) <= set(np.unique(source.read(4)))


def test_resolution_starts_at_multiples_and_averages(tmp_path):
    paths = pair(tmp_path, transform=from_origin(LEFT + 3, TOP - 4, 10, 10))
    series = open_series(SceneInputs(paths, resolution=20))
    assert tuple(series.grid.transform)[:6] == (20, 0, LEFT, 0, -20, TOP)
    assert series.grid.shape == (36, 46)
    values = read_all(series).raw[0]
    red = values[3, 5:-5, 5:-5].std() / ground()[3].std()
    assert red < 0.6, "bilinear weights over 4 x 4 pixels"
    assert values[:, 5:-5, 5:-5].mean() == pytest.approx(ground()[:, 5:-5, 5:-5].mean(), rel=0.01)
    same = open_series(SceneInputs(paths, resolution=10))
    np.testing.assert_array_equal(read_all(same).raw[0], ground())


def test_half_a_pixel_apart_needs_a_resolution(tmp_path):
    paths = [image(tmp_path / "a_2018-06-21.tif", ground()), image(tmp_path / "b_2018-06-26.tif", ground(1), row=0.5)]
    with pytest.raises(DataError, match=r"upper left corners .*--resolution 10 brings them there"):
        open_series(SceneInputs(paths))
    pixels = read_all(open_series(SceneInputs(paths, resolution=10)))
    np.testing.assert_array_equal(pixels.raw[0][:, :HEIGHT], ground())
    between = (ground(1)[:, :-1].astype(float) + ground(1)[:, 1:]) / 2
    np.testing.assert_allclose(pixels.raw[1][:, 1:HEIGHT], between, atol=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"crs": "EPSG:1"}, "--crs: expected a coordinate system like EPSG:32633"),
        ({"crs": "nonsense"}, "--crs: expected a coordinate system like EPSG:32633"),
        ({"crs": "EPSG:4326", "resolution": 10.0}, "--resolution is in metres, and the maps would be in degrees"),
        ({"aoi": "a.json", "bbox": (1, 2, 3, 4)}, "give one of --aoi and --bbox"),
        ({"resolution": 0.0}, "--resolution must be above 0"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        open_series(SceneInputs(pair(tmp_path), **flags))


def test_a_mask_within_a_file_holds_on_another_grid_too(tmp_path):
    paths = pair(tmp_path)
    for path in paths:
        with rasterio.open(path, "r+") as target:
            mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
            mask[:, :30] = 0
            target.write_mask(mask)
    series = open_series(SceneInputs(paths, resolution=20))
    valid = read_all(series).valid[0]
    assert not valid[:, :14].any()
    assert valid[:, 17:].all()


def test_real_patches_side_by_side_are_one_scene_and_their_days_one_date():
    folder = ROOT.parent / "shared" / "data" / "real_series" / "ROIs2017" / "146" / "S2"
    if not folder.is_dir():
        pytest.skip("the real series lies beside the project; this clone has none")
    paths = [sorted((folder / number).glob("*.tif")) for number in ("0", "1")]
    series = open_series(SceneInputs([str(path) for path in (*paths[1], *paths[0][::-1])]))
    assert series.labels == ("2018-01-06", "2018-01-21")
    assert series.grid.shape == (256, 128)
    pixels = read_all(series)
    for date, parts in enumerate(paths):
        for path in parts:
            with rasterio.open(path) as source:
                column, row = (
                    round(value) for value in ~series.grid.transform @ (source.transform.c, source.transform.f)
                )
                own = pixels.raw[date][:, row : row + 128, column : column + 128]
                np.testing.assert_array_equal(own, source.read())
