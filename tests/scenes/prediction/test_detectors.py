"""Clouds of the classifications that come with images, and the choice of the detector."""

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from common.errors import DataError
from data.clouds.detectors import detect_clouds
from data.constants import S2_BANDS
from data.raster.geotiff import days_since_origin
from reconstruct_scene import main
from scenes.inputs.open import open_series
from scenes.inputs.products import Band, ClassBand
from scenes.inputs.rasters.grid import Window
from scenes.inputs.rasters.raster import image_file
from scenes.inputs.series import SceneSeries
from scenes.inputs.values.optical import OpticalDate
from scenes.options import SceneInputs
from scenes.prediction.detectors import choose_detectors, date_clouds
from scenes.prediction.predict import CLEAR, CLOUDED, Job, read_tile
from scenes.prediction.tiles import TilePlan
from tests.support.cli_cases import call, refused
from tests.support.scene_files import CRS, HEIGHT, WIDTH, ground, write_tif

L2A = [name for name in S2_BANDS if name != "B10"]
CLOUD_CLASSES = (0, 1, 3, 8, 9, 10)


def classes(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 12, size).astype(np.uint16)


def write_l2a(path, seed: int = 0, layer: np.ndarray | None = None, name: str = "SCL") -> str:
    """Twelve bands with a classification as the last one."""
    layer = classes(seed) if layer is None else layer
    pixels = np.concatenate([ground(seed, 12), layer[None].astype(layer.dtype)])
    return write_tif(path, pixels, names=[*L2A, name])


def states_of(series: SceneSeries, detectors: tuple[str, ...], tile: int = 64) -> np.ndarray:
    """The states of all pixels, from tiles."""
    job = Job(series, TilePlan(HEIGHT, WIDTH, tile, 16), "no weights", "no folder", detectors=detectors)
    states = np.empty((len(series.days), HEIGHT, WIDTH), np.uint8)
    for number in range(len(job.plan)):
        states[(slice(None), *job.plan[number].cell.slices)] = read_tile(job, job.plan[number]).states
    return states


def open_files(*paths: str, **flags) -> SceneSeries:
    return open_series(SceneInputs(optical=paths, **flags))


def test_l2a_takes_its_scene_classification_by_default(tmp_path):
    path = write_l2a(tmp_path / "s2_2018-06-21.tif")
    with open_files(path) as series:
        chosen = choose_detectors("auto", series)
        assert chosen.of_dates == ("scl",)
        assert chosen.name == "scl"
        assert chosen.notes == ("clouds are those of the scene classification of the product, SCL (2018-06-21)",)
        states = states_of(series, chosen.of_dates)
    with rasterio.open(path) as source:
        expected = np.where(np.isin(source.read(13), CLOUD_CLASSES), CLOUDED, CLEAR)
    np.testing.assert_array_equal(states[0], expected)


def test_images_with_b10_take_s2cloudless_by_default(tmp_path):
    pixels = np.concatenate([ground(), classes()[None]])
    path = write_tif(tmp_path / "s2_2018-06-21.tif", pixels, names=[*S2_BANDS, "SCL"])
    with open_files(path) as series:
        chosen = choose_detectors("auto", series)
        assert (chosen.of_dates, chosen.name, chosen.notes) == (("s2cloudless_mask",), "s2cloudless_mask", ())
        assert choose_detectors("scl", series).of_dates == ("scl",)
        pixels = series.read(series.grid.window)
        clouds = date_clouds(series, 0, series.grid.window, pixels.raw[0], "s2cloudless_mask")
    np.testing.assert_array_equal(clouds, detect_clouds(pixels.raw[0], "s2cloudless_mask") >= 0.5)


def test_each_date_has_its_own_detector_by_default(tmp_path):
    paths = [
        write_l2a(tmp_path / "s2_2018-06-01.tif"),
        write_tif(tmp_path / "s2_2018-06-11.tif", ground(1), names=S2_BANDS),
        write_tif(tmp_path / "s2_2018-06-21.tif", ground(2, 12), names=L2A),
    ]
    with open_files(*paths) as series:
        chosen = choose_detectors("auto", series)
    assert chosen.of_dates == ("scl", "s2cloudless_mask", "s2cloudless_mask")
    assert chosen.name == "scl: 2018-06-01; s2cloudless_mask: 2018-06-11, 2018-06-21"
    assert chosen.notes == (
        "clouds are those of the scene classification of the product, SCL (2018-06-01)",
        "clouds are those of s2cloudless_mask, made for Level-1C, where B10 shows cirrus: the image lacks B10 and "
        "has no scene classification (SCL) (2018-06-21)",
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_qa60_of_the_same_file_is_the_classification_of_the_product(tmp_path, dtype):
    bits = np.random.default_rng(0).choice([0, 0, 1024, 2048], (HEIGHT, WIDTH)).astype(dtype)
    pixels = np.concatenate([ground().astype(dtype), bits[None]])
    path = write_tif(tmp_path / "s2_2018-06-21.tif", pixels, names=[*S2_BANDS, "QA60"])
    with open_files(path) as series:
        chosen = choose_detectors("product", series)
        assert (chosen.of_dates, chosen.name) == (("qa60",), "qa60")
        assert chosen.notes == ("clouds are those of QA60 (2018-06-21)",)
        np.testing.assert_array_equal(states_of(series, chosen.of_dates)[0] == CLOUDED, bits > 0)
        with pytest.raises(DataError, match="--detector scl: 2018-06-21 .* has no scene classification"):
            choose_detectors("scl", series)


def test_each_date_of_a_stack_has_its_own_classes(tmp_path):
    layers = [np.random.default_rng(seed).choice([0, 0, 1024], (HEIGHT, WIDTH)).astype(np.uint16) for seed in (1, 2)]
    names = [name.replace("B0", "B") for name in S2_BANDS] + ["QA60"]
    keys = ("20180601T100031_20180601T100027_T33TTG", "20180611T100031_20180611T100027_T33TTG")
    pixels = np.concatenate([part for seed in (0, 1) for part in (ground(seed), layers[seed][None])])
    path = write_tif(tmp_path / "stack.tif", pixels, names=[f"{key}_{name}" for key in keys for name in names])
    with open_files(path) as series:
        chosen = choose_detectors("product", series)
        assert chosen.notes == ("clouds are those of QA60 (all 2)",)
        np.testing.assert_array_equal(states_of(series, chosen.of_dates) == CLOUDED, np.stack(layers) > 0)


def test_classes_of_20_and_60_m_are_those_of_the_nearest_pixel(tmp_path):
    transform = {pixel: from_origin(400_000, 5_000_000, pixel, pixel) for pixel in (20, 60)}
    scl = classes(3, (HEIGHT // 2, WIDTH // 2)).astype(np.uint8)
    classi = np.random.default_rng(4).integers(0, 2, (3, 12, 15)).astype(np.uint8)
    scl_path = write_tif(tmp_path / "scl.tif", scl[None], transform=transform[20])
    classi_path = write_tif(tmp_path / "classi.tif", classi, transform=transform[60])
    expected = {
        "scl": np.isin(np.repeat(np.repeat(scl, 2, axis=0), 2, axis=1), CLOUD_CLASSES),
        "classi": np.repeat(np.repeat(classi[0] | classi[1], 6, axis=0), 6, axis=1)[:HEIGHT, :WIDTH] == 1,
    }
    with open_files(write_tif(tmp_path / "s2_2018-06-21.tif", ground(), names=S2_BANDS)) as series:
        for kind, path in {"scl": scl_path, "classi": classi_path}.items():
            with rasterio.open(path) as dataset:
                band = Band(image_file(path, dataset), 1)
            (image,) = series.optical[0].images
            own = replace(series.optical[0], images=(replace(image, classes=ClassBand(band, kind)),))
            classified = replace(series, optical=(own,))
            assert path in classified.paths
            chosen = choose_detectors("product", classified)
            assert chosen.of_dates == (kind,)
            for tile in (32, 64):
                states = states_of(classified, chosen.of_dates, tile)
                np.testing.assert_array_equal(states[0] == CLOUDED, expected[kind])


def test_merged_images_bring_their_own_classes(tmp_path):
    halves, layers = [ground(0, 12), ground(0, 12)], [classes(1), classes(2)]
    halves[0][:, :, 50:], halves[1][:, :, :40] = 0, 0
    paths = [
        write_tif(tmp_path / f"{half}_2018-06-21.tif", np.concatenate([pixels, layer[None]]), names=[*L2A, "SCL"])
        for half, pixels, layer in zip("ab", halves, layers, strict=True)
    ]
    with open_files(*paths) as series:
        assert len(series.days) == 1
        chosen = choose_detectors("auto", series)
        assert chosen.of_dates == ("scl",)
        states = states_of(series, chosen.of_dates)
    layers[0][:, 50:] = layers[1][:, 50:]  # the first image takes precedence where both have data
    np.testing.assert_array_equal(states[0] == CLOUDED, np.isin(layers[0], CLOUD_CLASSES))


def test_pixels_beyond_the_classification_are_clouded(tmp_path):
    path = write_tif(tmp_path / "scl.tif", np.full((1, 20, WIDTH), 4, np.uint8))
    with rasterio.open(path) as dataset:
        band = ClassBand(Band(image_file(path, dataset), 1), "scl")
    with open_files(write_tif(tmp_path / "s2_2018-06-21.tif", ground(), names=S2_BANDS)) as series:
        source = series.optical[0]
        own = OpticalDate((replace(source.images[0], classes=band),), source.grid)
        clouds = own.read_clouds(series.grid.window)
    assert not clouds[:20].any()
    assert clouds[20:].all()


def test_a_date_without_classes_is_named(tmp_path, scene_run, capsys):
    files = [
        write_l2a(tmp_path / "s2_2018-06-01.tif"),
        write_tif(tmp_path / "s2_2018-06-11.tif", ground(1, 12), names=L2A),
    ]
    for choice in ("scl", "product"):
        line = ["--weights", scene_run, "--optical", *files, "--out", tmp_path / "maps", "--detector", choice]
        error = refused(capsys, main, *line)
        assert f"--detector {choice}: 2018-06-11 ({files[1]}) has no " in error
        assert "--detector s2cloudless_mask needs none" in error


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (np.full((HEIGHT, WIDTH), 5.5, np.float32), "SCL has values such as 5.5: classes were interpolated"),
        (np.full((HEIGHT, WIDTH), 90, np.uint16), "SCL has values such as 90, which are no classes"),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "SCL is empty"),
    ],
)
def test_layers_that_are_no_classes_are_not_used(tmp_path, layer, reason):
    pixels = np.concatenate([ground(0, 12).astype(layer.dtype), layer[None]])
    path = write_tif(tmp_path / "s2_2018-06-21.tif", pixels, names=[*L2A, "SCL"])
    with open_files(path) as series:
        with pytest.raises(DataError, match=f"has no usable classification: {reason}"):
            choose_detectors("scl", series)
        chosen = choose_detectors("auto", series)
    assert chosen.of_dates == ("s2cloudless_mask",)
    assert reason in chosen.notes[0]


def test_dates_without_data_need_no_classes(tmp_path):
    empty = np.zeros((13, HEIGHT, WIDTH), np.uint16)
    paths = [
        write_l2a(tmp_path / "s2_2018-06-11.tif"),
        write_tif(tmp_path / "s2_2018-06-21.tif", empty, names=[*L2A, "SCL"]),
    ]
    with open_files(*paths) as series:
        for choice in ("auto", "scl", "product"):
            assert choose_detectors(choice, series).of_dates == ("scl", "scl")


def test_qa60_that_earth_engine_does_not_have_is_refused(tmp_path):
    pixels = np.concatenate([ground(), np.zeros((1, HEIGHT, WIDTH), np.uint16)])
    for day, refuses in (("2021-06-21", False), ("2023-06-21", True), ("2024-06-21", False)):
        path = write_tif(tmp_path / f"s2_{day}.tif", pixels, names=[*S2_BANDS, "QA60"])
        with open_files(path, offset="none") as series:
            assert series.days == (days_since_origin(date.fromisoformat(day)),)
            if refuses:
                with pytest.raises(DataError, match="QA60 is 0 everywhere, as in exports of Earth Engine"):
                    choose_detectors("product", series)
            else:
                assert choose_detectors("product", series).of_dates == ("qa60",)


def test_the_command_keeps_what_the_classification_calls_clear_and_records_it(tmp_path, scene_run, capsys):
    files = [write_l2a(tmp_path / f"s2_2018-06-{day}.tif", seed) for seed, day in enumerate(("01", "11", "21"))]
    small = ["--device", "cpu", "--workers", "1", "--tile", "64", "--overlap", "16"]
    line = ["--weights", scene_run, "--optical", *files, *small, "--where_clear", "keep", "--out", tmp_path / "maps"]
    assert call(main, *line) == 0
    assert "clouds are those of the scene classification of the product, SCL (all 3)" in capsys.readouterr().out
    expected = np.stack([np.isin(classes(seed), CLOUD_CLASSES) for seed in range(3)])
    with rasterio.open(tmp_path / "maps" / "clouds.tif") as source:
        np.testing.assert_array_equal(source.read() == 1, expected)
        assert source.crs.to_string() == CRS
        assert source.tags()["CLOUD_DETECTOR"] == "scl"
    with rasterio.open(tmp_path / "maps" / "observed.tif") as source:
        np.testing.assert_array_equal(source.read(1) == 1, ~expected[2])
    record = json.loads((tmp_path / "maps" / "reconstruction.json").read_text())
    assert record["settings"]["--detector"] == "scl"
    assert call(main, *line, "--detector", "scl") == 0  # the default has the name that it stands for
    assert "is complete already" in capsys.readouterr().out
    assert "other --detector" in refused(capsys, main, *line, "--detector", "s2cloudless_mask", code=2)


def test_records_of_the_earlier_default_stay_valid(tmp_path, scene_run, capsys):
    files = [write_tif(tmp_path / f"s2_2018-06-{day}.tif", ground(1), names=S2_BANDS) for day in ("01", "11", "21")]
    small = ["--device", "cpu", "--workers", "1", "--tile", "128"]
    line = ["--weights", scene_run, "--optical", *files, *small, "--out", tmp_path / "maps"]
    assert call(main, *line, "--detector", "s2cloudless_mask") == 0
    assert call(main, *line) == 0
    assert "is complete already" in capsys.readouterr().out


@pytest.mark.parametrize("as_item", [False, True])
def test_real_l2a_takes_its_scene_classification(products, as_item):
    (folder,) = (products / "l2a_cogs_stac").iterdir()
    with open_files(str(next(folder.glob("*.json")) if as_item else folder)) as series:
        chosen = choose_detectors("auto", series)
        assert chosen.of_dates == ("scl",)
        window = Window(101, 501, 400, 411)  # odd edges cut pixels of the classification
        raw, valid = series.optical[0].read(window)
        clouds = date_clouds(series, 0, window, raw, "scl")
        assert date_clouds(series, 0, series.grid.window, raw, "scl")[window.slices].tolist() == clouds.tolist()
    with rasterio.open(folder / "SCL.tif") as source:
        scl = np.repeat(np.repeat(source.read(1), 2, axis=0), 2, axis=1)[window.slices]
    assert 0 < clouds[valid].mean() < 1
    np.testing.assert_array_equal(clouds, np.isin(scl, CLOUD_CLASSES))
