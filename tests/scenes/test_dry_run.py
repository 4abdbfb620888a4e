"""`--dry_run`: the plan of a whole tile, its disk and time; JSON and nothing else; no file written. Areas in maps."""

import json
import re

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from data.constants import S2_BANDS
from reconstruct_scene import main
from scenes.dry_run import disk_bytes
from scenes.inputs.open import open_series
from scenes.options import SceneInputs, SceneOptions
from scenes.prediction.detectors import choose_detectors
from scenes.reconstruct import plan_images, plan_job
from scenes.requirements import read_requirements
from tests.support.cli_cases import call, refused
from tests.support.scene_cases import CRS, DAYS, ORIGIN, maps_in, write_run, write_scene

SMALL = ["--device", "cpu", "--workers", "1", "--tile", "64", "--overlap", "16"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    files = write_scene(tmp_path_factory.mktemp("scene"), 150, 200)
    for path in files.optical:
        with rasterio.open(path, "r+") as target:
            target.descriptions = S2_BANDS
    return files


def listing(folder) -> list:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_plan_needs_neither_weights_nor_out_and_writes_nothing(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = listing(scene.optical[0].parent)
    assert call(main, *scene.words(radar=True), "--dry_run", *SMALL) == 0
    output = capsys.readouterr().out
    assert "grid: 150 x 200 pixels of 10 x 10, EPSG:32632, west 9.00000, south 48.7" in output
    assert f"dates: 3, {', '.join(DAYS)}" in output
    assert "tiles: 12 of 64 pixels, overlap 16; 1 process on cpu" in output
    assert re.search(r"disk: at most \d+ MB in --out/\.work while it runs and \d+ MB of maps", output)
    assert "time: --weights is needed to estimate it" in output
    assert "note: radar goes with optical dates thus" in output
    assert listing(scene.optical[0].parent) == before
    assert list(tmp_path.iterdir()) == []


def test_weights_give_the_time_and_the_requirements(scene, scene_run, tmp_path, capsys):
    assert call(main, *scene.words(), "--weights", scene_run, "--dry_run", *SMALL) == 0
    assert re.search(r"time: about \d+ s: [\d.]+ s for each tile and image, measured", capsys.readouterr().out)
    run = write_run(tmp_path / "radar", "conv3d_mamba", use_sar=True)
    text = refused(capsys, main, *scene.words(), "--weights", run, "--dry_run", *SMALL, code=2)
    assert "this run's network was trained with radar" in text
    text = refused(capsys, main, *scene.words(), "--weights", tmp_path / "none", "--dry_run", code=1)
    assert "--weights takes a run's folder" in text


def test_disk_is_bounded(scene, scene_run, tmp_path):
    inputs = SceneInputs([str(path) for path in scene.optical])
    options = SceneOptions(inputs, str(scene_run), str(tmp_path / "maps"), tile=64, overlap=16, device="cpu", workers=1)
    requirements = read_requirements(scene_run)[0]
    with open_series(inputs) as series:
        images, detectors = plan_images(options, requirements, series), choose_detectors(options.detector, series)
        job = plan_job(options, requirements, series, images, "cpu", detectors)
    work, maps = disk_bytes(job)
    assert call(main, *scene.words(), "--weights", scene_run, "--out", tmp_path / "maps", *SMALL) == 0
    used = sum(path.stat().st_size for path in (tmp_path / "maps").glob("*.tif"))
    assert maps / 10 < used < maps
    tile = 3 * 13 * 64 * 64 * 4 + 3 * 64 * 64
    assert work == 12 * tile + 150 * 200 * (2 * 4 * 13 + 2 * 3)


def test_flags_that_a_reconstruction_needs(scene, scene_run, tmp_path, capsys):
    text = refused(capsys, main, *scene.words(), code=2)
    assert "--weights and --out missing; only --dry_run does without" in text
    assert "--out missing" in refused(capsys, main, *scene.words(), "--weights", scene_run, code=2)
    words = [*scene.words(), "--weights", scene_run, "--out", tmp_path / "maps"]
    assert "--json goes with --dry_run" in refused(capsys, main, *words, "--json", code=2)


def test_json_is_one_object_and_nothing_else(scene, capsys):
    assert call(main, *scene.words(radar=True), "--dry_run", "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""

    def no_constant(name):
        raise AssertionError(f"{name} is no strict JSON")

    content = json.loads(printed.out, parse_constant=no_constant)
    assert [date["day"] for date in content["dates"]] == list(DAYS)
    assert any("radar goes with optical dates thus" in note for note in content["notes"])
    with rasterio.open(scene.optical[2]) as source:
        expected = source.read(4).mean() / 10000
    assert content["dates"][2]["bands"]["B04"]["mean"] == pytest.approx(expected)


def test_errors_of_a_dry_run_are_one_line(scene, tmp_path, capsys):
    code = call(main, "--optical", tmp_path / "none.tif", "--dry_run", "--json")
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert re.fullmatch(r"error: no such image: .*none\.tif.*\n", printed.err)


def test_a_whole_tile_of_three_dates_is_planned(tmp_path, scene_run, capsys):
    block = np.full((13, 512, 512), 1200, np.uint16) + np.arange(13, dtype=np.uint16)[:, None, None] * 9
    block[10] = 12
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 13, "height": 10980, "width": 10980, "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    paths = []
    for day in DAYS:
        paths.append(tmp_path / f"s2_{day}.tif")
        place = from_origin(600_000, 5_000_040, 10, 10)
        with rasterio.open(paths[-1], "w", crs=CRS, transform=place, **profile) as target:
            target.descriptions = S2_BANDS
            for column, row in ((21, 21), (10, 10)):  # what is sampled first
                size = min(512, 10980 - 512 * row)
                target.write(block[:, :size, :size], window=Window(512 * column, 512 * row, size, size))
    words = ["--optical", *paths, "--offset", "none", "--weights", scene_run, "--dry_run", "--workers", "4"]
    assert call(main, *words, "--detector", "none") == 0
    output = capsys.readouterr().out
    assert "grid: 10980 x 10980 pixels of 10 x 10, EPSG:32632" in output
    assert "tiles: 3249 of 256 pixels, overlap 64; 4 processes on cpu" in output
    assert re.search(r"disk: at most 1\d\.\d GB in --out/\.work while it runs and 16\.7 GB of maps", output)
    assert re.search(r"time: about .* (min|s): [\d.e-]+ s for each tile and image, measured, 4 at a time", output)


@pytest.fixture(scope="module")
def area(tmp_path_factory, scene):
    """A GeoJSON triangle within the scene, and the edges of a box of the same pixels."""
    left, top = ORIGIN[0] + 300, ORIGIN[1] - 200
    ring = [[left, top], [left + 1000, top - 1000], [left, top - 1000], [left, top]]
    path = tmp_path_factory.mktemp("area") / "area.geojson"
    crs = {"type": "name", "properties": {"name": CRS}}
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring], "crs": crs}))
    return path


def test_maps_are_nodata_outside_of_an_area_and_the_same_inside(scene, scene_run, area, tmp_path, capsys):
    words = [*scene.words(), "--weights", scene_run, *SMALL]
    assert call(main, *words, "--aoi", area, "--out", tmp_path / "area") == 0
    maps = maps_in(tmp_path / "area")
    rows, columns = np.mgrid[:100, :100]
    with rasterio.open(tmp_path / "area" / "reflectance.tif") as source:
        assert source.shape == (100, 100)
        assert source.nodata == 0
        assert (source.transform.c, source.transform.f) == (ORIGIN[0] + 300, ORIGIN[1] - 200)
    for name, values in maps.items():
        outside = 255 if name == "clouds" else 0
        assert (values[:, columns > rows] == outside).all(), name
        assert (values[:, columns < rows] != outside).all(), name
    cut = []
    for path in scene.optical:
        cut.append(tmp_path / path.name)
        with rasterio.open(path) as source:
            window = Window(30, 20, 100, 100)
            profile = source.profile | {"height": 100, "width": 100, "transform": source.window_transform(window)}
            with rasterio.open(cut[-1], "w", **profile) as target:
                target.write(source.read(window=window))
                target.descriptions = S2_BANDS
    words = ["--optical", *cut, "--weights", scene_run, *SMALL]
    assert call(main, *words, "--out", tmp_path / "cut") == 0
    full = maps_in(tmp_path / "cut")
    for name, values in maps.items():
        np.testing.assert_array_equal(values[:, columns < rows], full[name][:, columns < rows], err_msg=name)


def test_the_area_is_part_of_the_record_and_old_records_stay_valid(scene, scene_run, area, tmp_path, capsys):
    words = [*scene.words(), "--weights", scene_run, "--out", tmp_path / "maps", *SMALL, "--detector", "none"]
    assert call(main, *words) == 0
    record = tmp_path / "maps" / "reconstruction.json"
    content = json.loads(record.read_text())
    name = "--aoi, --bbox, --crs, --resolution or --resampling"
    assert content["settings"].pop(name) is None
    record.write_text(json.dumps(content))  # as an earlier version wrote it
    capsys.readouterr()
    assert call(main, *words) == 0
    assert "is complete already" in capsys.readouterr().out
    for flags in (["--aoi", area], ["--resolution", "20"], ["--resampling", "nearest"], ["--crs", CRS]):
        assert f"a reconstruction with other {name}" in refused(capsys, main, *words, *flags, code=2)
    bounds = transform_bounds(CRS, "EPSG:4326", ORIGIN[0] - 99, ORIGIN[1] - 3000, ORIGIN[0] + 3000, ORIGIN[1] + 99)
    assert name in refused(capsys, main, *words, "--bbox", *bounds, code=2)


def test_clear_pixels_of_halves_are_kept(scene, scene_run, tmp_path, capsys):
    halves = list(scene.optical[:2])
    with rasterio.open(scene.optical[2]) as source:
        pixels, profile = source.read(), source.profile | {"nodata": 0}
    for name, columns in (("w", np.s_[:110]), ("e", np.s_[100:])):
        halves.append(tmp_path / f"{name}_{DAYS[2]}.tif")
        part = np.zeros_like(pixels)
        part[..., columns] = pixels[..., columns]
        with rasterio.open(halves[-1], "w", **profile) as target:
            target.write(part)
            target.descriptions = S2_BANDS
    full = tmp_path / f"full_{DAYS[2]}.tif"
    with rasterio.open(full, "w", **profile) as target:
        target.write(pixels)
        target.descriptions = S2_BANDS
    words = ["--weights", scene_run, *SMALL, "--where_clear", "keep"]
    assert call(main, "--optical", *scene.optical[:2], full, *words, "--out", tmp_path / "one") == 0
    for name, order in (("two", halves), ("swapped", halves[::-1])):
        assert call(main, "--optical", *order, *words, "--out", tmp_path / name) == 0
        assert f"3 dates {', '.join(DAYS)}" in capsys.readouterr().out
        for file, values in maps_in(tmp_path / "one").items():
            np.testing.assert_array_equal(values, maps_in(tmp_path / name)[file], err_msg=file)
