"""Products of a scene: blocks in, Cloud-Optimised GeoTIFFs with complete metadata out."""

import json
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from matplotlib.image import imread
from rasterio.crs import CRS

from common.errors import DataError
from data.constants import S2_BANDS
from data.raster.rgb import to_rgb
from scenes.inputs.rasters.grid import Grid, Window
from scenes.inputs.series import SceneSeries
from scenes.outputs.fields import FIELDS, STD_SCALE
from scenes.outputs.products import SceneProducts
from scenes.outputs.stac import SOFTWARE, VERSION

GRID = Grid(530, 1030, Affine(10, 0, 400_000, 0, -10, 5_000_000), CRS.from_epsg(32632))  # overviews, odd blocks
LABELS, DAYS = ("2018-06-21", "2018-06-26", "2018-06-26 (2)"), (1540, 1545, 1545)
FILES = ("reflectance.tif", "aleatoric_std.tif", "epistemic_std.tif", "total_std.tif", "clouds.tif")


def scene_fields(grid: Grid = GRID) -> dict[str, np.ndarray]:
    """All fields of a scene: smooth, a corner of it without data."""
    rows, columns = np.arange(grid.height)[:, None], np.arange(grid.width)
    ramp = (0.15 + 0.1 * np.sin(rows / 90) * np.cos(columns / 130)) * np.linspace(0.5, 2, 13)[:, None, None]
    valid = np.ones((grid.height, grid.width), bool)
    valid[:30, :50] = False
    clouds = ((rows + columns) // 100 + np.arange(3)[:, None, None]) % 3 == 0
    fields = {"reflectance": ramp, "aleatoric": ramp / 20, "epistemic": ramp / 50, "total": ramp / 18}
    fields = {name: values.astype(np.float32) for name, values in fields.items()}
    return fields | {"clouds": clouds.astype(np.uint8), "valid": valid}


def products(folder: Path, grid: Grid = GRID, nodata: float | None = 0, **more) -> SceneProducts:
    return SceneProducts(folder, SceneSeries(grid, DAYS, (), (), (), nodata, ()), **more)


def cut(fields: dict, window: Window) -> dict:
    return {name: values[(..., *window.slices)] for name, values in fields.items()}


def windows(grid: Grid = GRID, step: int = 512) -> list[Window]:
    tops, lefts = range(0, grid.height, step), range(0, grid.width, step)
    return [Window(t, c, min(step, grid.height - t), min(step, grid.width - c)) for t in tops for c in lefts]


def make(folder: Path, values: dict | None = None, grid: Grid = GRID, **more) -> dict[str, Path]:
    made = products(folder, grid, **more)
    values = scene_fields(grid) if values is None else values
    for window in windows(grid):
        made.write(window, cut(values, window))
    return made.finish(network="uncrtaints", notes=("B10 is missing",), tags={"WHERE_CLEAR": "predict"})


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("products") / "scene"
    make(folder)
    return folder


def test_values_come_back(scene):
    fields = scene_fields()
    with rasterio.open(scene / "reflectance.tif") as source:
        stored = source.read()
    expected = np.where(fields["valid"], np.rint(fields["reflectance"] * np.float32(1e4)), 0)
    assert np.array_equal(stored, expected)
    for name in ("aleatoric", "epistemic", "total"):
        with rasterio.open(scene / FIELDS[name].file) as source:
            values = source.read() * np.float64(source.scales[0])
        # half a step of 1e-5, and as much again for float32
        np.testing.assert_allclose(values, fields[name] * fields["valid"], atol=0.51 * STD_SCALE)
    with rasterio.open(scene / "clouds.tif") as source:
        assert np.array_equal(source.read(), np.where(fields["valid"], fields["clouds"], 255))


@pytest.mark.parametrize("file", FILES)
def test_files_lie_where_the_input_lies_and_say_what_they_hold(file, scene):
    with rasterio.open(scene / file) as source:
        assert source.crs == GRID.crs
        assert source.transform == GRID.transform
        assert (source.height, source.width) == (GRID.height, GRID.width)
        tags = source.tags()
        assert tags["TIFFTAG_SOFTWARE"] == f"{SOFTWARE} {VERSION}"
        assert tags["NETWORK"] == "uncrtaints"
        assert tags["DATES"] == "2018-06-21,2018-06-26,2018-06-26 (2)"
        assert tags["PROCESSING_NOTES"] == "B10 is missing"
        assert tags["WHERE_CLEAR"] == "predict"
        if file == "clouds.tif":
            assert set(source.dtypes) == {"uint8"}
            assert source.descriptions == LABELS
            assert set(source.nodatavals) == {255}
        else:
            scale = 1e-4 if file == "reflectance.tif" else 1e-5
            assert set(source.dtypes) == {"uint16"}
            assert source.descriptions == S2_BANDS
            assert set(source.nodatavals) == {0}
            assert set(source.scales) == {scale}
            assert set(source.offsets) == {0}
            assert set(source.units) == {"reflectance"}
            assert tags["UNITS"] == f"reflectance = stored value x {scale:g}"


def test_the_version_is_the_projects():
    project = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text()  # Python 3.10 cannot parse it
    assert f'name = "{SOFTWARE}"\nversion = "{VERSION}"' in project


@pytest.mark.parametrize("file", FILES)
def test_files_are_cloud_optimised(file, scene):
    rio_cogeo = pytest.importorskip("rio_cogeo", reason="rio-cogeo, of requirements-dev.txt, validates COGs")
    valid, errors, warnings = rio_cogeo.cog_validate(scene / file, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(scene / file) as source:
        assert source.overviews(1) == [2, 4]  # 1030 pixels to 258, less than a block
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not on this machine")
def test_gdalinfo_reads_the_same(scene):
    completed = subprocess.run(["gdalinfo", "-json", str(scene / "reflectance.tif")], capture_output=True, check=True)
    info = json.loads(completed.stdout)
    assert info["size"] == [GRID.width, GRID.height]
    assert info["geoTransform"] == [400_000, 10, 0, 5_000_000, 0, -10]
    assert 'ID["EPSG",32632]]' in info["coordinateSystem"]["wkt"]
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert [band["description"] for band in info["bands"]] == list(S2_BANDS)
    assert {(band["noDataValue"], band["scale"], band["offset"]) for band in info["bands"]} == {(0, 1e-4, 0)}
    assert [band["colorInterpretation"] for band in info["bands"][1:4]] == ["Blue", "Green", "Red"]


def test_only_products_remain(scene):
    assert sorted(path.name for path in scene.iterdir()) == sorted([*FILES, "quicklook.png", "item.json"])


def test_the_quicklook_shows_the_scene(scene):
    picture = imread(scene / "quicklook.png")
    assert picture.shape == (round(530 * 1024 / 1030), 1024, 4)
    assert not picture[:29, :49, 3].any()  # 30 x 50 pixels without data, shrunk
    assert picture[35:, 60:, 3].all()
    shrink = 1030 / 1024
    rows, columns = ((np.arange(size) + 0.5) * shrink for size in picture.shape[:2])
    expected = to_rgb(scene_fields()["reflectance"][:, rows.astype(int)][:, :, columns.astype(int)])
    # smooth ground: a pixel of shift is worth less than 2 of 255 steps, but near black, and rounding one
    apart = np.abs(picture[40:, 70:, :3] - expected[40:, 70:])
    assert apart[expected[40:, 70:] > 0.1].max() <= 3 / 255


@pytest.mark.parametrize(("declared", "stored"), [(None, None), (0, 0), (65535, 65535), (-9999, 0), (float("nan"), 0)])
def test_nodata_is_that_of_the_input_where_uint16_holds_it(declared, stored, tmp_path):
    grid = Grid(40, 60, GRID.transform, GRID.crs)
    fields = scene_fields(grid)
    fields["reflectance"][:, 35, 55] = 0.0  # dark, not missing
    fields["reflectance"][:, 36, 55] = 7.0  # more than uint16 holds
    fields["total"][:, 37, 55] = np.inf
    made = make(tmp_path / "scene", fields, grid, nodata=declared)
    with rasterio.open(made["reflectance"]) as source:
        assert source.nodata == stored
        values = source.read()
        assert (values[:, :30, :50] == (stored or 0)).all()
        if stored is not None:
            assert np.array_equal(source.dataset_mask() > 0, fields["valid"])
        assert set(values[:, 35, 55]) == {1 if stored == 0 else 0}
        assert set(values[:, 36, 55]) == {65534 if stored == 65535 else 65535}
    with rasterio.open(made["total"]) as source:
        assert source.nodata == stored
        assert set(source.read()[:, 37, 55]) == {65534 if stored == 65535 else 65535}


def test_a_pixel_that_is_nan_in_a_band_is_missing_everywhere(tmp_path):
    grid = Grid(40, 60, GRID.transform, GRID.crs)
    fields = scene_fields(grid)
    fields["epistemic"][4, 35, 55] = np.nan
    made = make(tmp_path / "scene", fields, grid)
    for field in ("reflectance", "aleatoric", "epistemic", "total", "clouds"):
        with rasterio.open(made[field]) as source:
            missing = source.dataset_mask() == 0
            assert missing[35, 55]
            assert missing.sum() == 30 * 50 + 1


def test_fields_that_a_network_lacks_are_left_out(tmp_path):
    grid = Grid(40, 60, GRID.transform, GRID.crs)
    fields = scene_fields(grid) | {"observed": scene_fields(grid)["clouds"][0] > 0}
    made = make(tmp_path / "scene", fields, grid, fields=("observed", "reflectance"))
    assert list(made) == ["reflectance", "observed", "quicklook", "item"]
    with rasterio.open(made["observed"]) as source:
        assert source.descriptions == ("observed",)
        assert np.array_equal(source.read(1), np.where(fields["valid"], fields["observed"], 255))
    with pytest.raises(ValueError, match="fields must be reflectance and any of"):
        products(tmp_path / "b", grid, fields=("total",))


def test_a_killed_run_is_gone_on_from(scene, tmp_path):
    fields, folder = scene_fields(), tmp_path / "scene"
    first = products(folder)
    for window in windows()[:2]:
        first.write(window, cut(fields, window))
    (folder / ".work" / "windows" / ".r000000_c001024_512x6.abc.tmp.tif").write_bytes(b"half")  # as a kill leaves it
    with pytest.raises(ValueError, match="windows cover 524288 of 545900 pixels"):
        first.finish(network="uncrtaints")
    again = products(folder)
    assert again.written() == frozenset(windows()[:2])
    for window in reversed(windows()):  # in any order, and what is there once more
        again.write(window, cut(fields, window))
    again.finish(network="uncrtaints", notes=("B10 is missing",), tags={"WHERE_CLEAR": "predict"})
    for name in (*FILES, "quicklook.png", "item.json"):
        assert (folder / name).read_bytes() == (scene / name).read_bytes(), name


def test_finishing_is_repeated_after_a_kill(tmp_path, monkeypatch):
    import scenes.outputs.products

    grid, folder = Grid(40, 60, GRID.transform, GRID.crs), tmp_path / "scene"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes.outputs.products, "write_quicklook", killed)
        with pytest.raises(KeyboardInterrupt):
            make(folder, grid=grid)
    again = products(folder, grid)
    assert again.written() == frozenset(windows(grid))
    made = again.finish(network="uncrtaints")
    assert made["quicklook"].is_file()
    assert not (folder / ".work").exists()


def test_windows_that_do_not_fit_are_refused(tmp_path):
    grid = Grid(40, 60, GRID.transform, GRID.crs)
    made, fields = products(tmp_path, grid), scene_fields(grid)
    with pytest.raises(ValueError, match="does not lie within 40 x 60 pixels"):
        made.write(Window(30, 0, 11, 60), fields)
    with pytest.raises(ValueError, match=r"reflectance must be \(13, 20, 60\), not \(13, 40, 60\)"):
        made.write(Window(0, 0, 20, 60), fields)
    del fields["clouds"]
    with pytest.raises(ValueError, match=r"clouds must be \(3, 40, 60\), not \(0,\)"):
        made.write(grid.window, fields)
    assert not made.written()


def test_a_scene_without_crs_makes_products_too(tmp_path):
    grid = Grid(40, 60, GRID.transform, None)
    made = make(tmp_path / "scene", grid=grid)
    with rasterio.open(made["reflectance"]) as source:
        assert source.crs is None
        assert source.transform == grid.transform
    assert json.loads(made["item"].read_text())["geometry"] is None


def test_a_full_disk_is_told_and_leaves_no_half_product(tmp_path):
    grid = Grid(64, 64, GRID.transform, GRID.crs)
    folder, fields = tmp_path / "scene", scene_fields(grid)
    noise = np.random.default_rng(0).normal(0, 0.01, fields["reflectance"].shape)
    fields["reflectance"] += noise.astype(np.float32)  # does not compress
    made = products(folder, grid)
    made.write(grid.window, fields)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*reflectance\.tif: .*; check the disk's free space"):
            made.finish(network="uncrtaints")
        with pytest.raises(DataError, match=r"cannot write .*|disk full while saving"):
            made.write(grid.window, fields)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in folder.iterdir()] == [".work"]
    assert made.written() == {grid.window}  # what was there is untouched
    assert made.finish(network="uncrtaints")["reflectance"].is_file()
