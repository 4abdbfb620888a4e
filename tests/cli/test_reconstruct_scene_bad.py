"""Bad input of `reconstruct_scene.py`: one line and an exit code."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from common.locks import folder_lock
from data.raster.geotiff import read_bands, write_geotiff
from reconstruct_scene import main
from tests.support.cli_cases import call, refused
from tests.support.commands import ROOT
from tests.support.scene_cases import CRS, ORIGIN, write_run, write_scene


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene", 70, 80)


@pytest.fixture
def line(scene_run, scene, tmp_path):
    return ["--weights", scene_run, *scene.words(), "--out", tmp_path / "maps", "--device", "cpu", "--tile", "64"]


def rewrite(path: Path, *, crs=CRS, left=0.0, change=lambda pixels: pixels) -> None:
    pixels = change(read_bands(path))
    write_geotiff(path, pixels, crs, from_origin(ORIGIN[0] + left, ORIGIN[1], 10, 10))


CASES = {
    "another coordinate system": ({"crs": "EPSG:32633"}, "coordinate system|CRS|EPSG:32633"),
    "another grid": ({"left": 5.0}, "grid"),
    "a missing band": ({"change": lambda pixels: pixels[:11]}, "bands"),
    "reflectance in 0 to 1": (
        {"change": lambda pixels: (pixels / 10000).astype(np.float32)},
        "--scale|0.1|reflectance",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_images_that_do_not_fit(case, line, scene, tmp_path, capsys):
    change, words = CASES[case]
    rewrite(scene.optical[1], **change)
    text = refused(capsys, main, *line, code=1)
    assert scene.optical[1].name in text
    assert re.search(words, text), text
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file(share, line, scene, capsys):
    content = scene.optical[2].read_bytes()
    scene.optical[2].write_bytes(content[: int(share * len(content))])
    text = refused(capsys, main, *line, code=1)
    assert scene.optical[2].name in text
    assert any(word in text for word in ("truncated", "damaged", "not a readable GeoTIFF", "cannot be read")), text


def test_one_date_only(line, scene, capsys):
    words = [word for word in line if word not in scene.optical[1:]]
    text = refused(capsys, main, *words, code=2)
    assert "one date only: a single clouded image cannot show the ground below its clouds" in text


def test_networks_that_want_something_else(scene, line, tmp_path, capsys):
    radar = write_run(tmp_path / "radar", use_sar=True)
    text = refused(capsys, main, "--weights", radar, *line[2:], code=2)
    assert "was trained with radar (--use_sar): give --sar" in text
    single = write_run(tmp_path / "single", "unet")
    text = refused(capsys, main, "--weights", single, *line[2:], code=2)
    assert "of single images) takes one date, got 3" in text


def test_weights_that_are_not_there(line, tmp_path, capsys):
    assert "--weights takes a run's folder" in refused(capsys, main, "--weights", tmp_path / "none", *line[2:])
    (tmp_path / "empty").mkdir()
    assert "there is no conf.json in" in refused(capsys, main, "--weights", tmp_path / "empty", *line[2:])
    broken = write_run(tmp_path / "broken")
    (broken / "model.pth.tar").write_bytes(b"no checkpoint")
    assert "model.pth.tar" in refused(capsys, main, "--weights", broken, *line[2:])


FLAGS = {
    "--overlap 40": "--overlap 40: expected 0 to half of --tile, which is 32",
    "--tile 8 --overlap 0": "--tile must be at least 16, got 8",
    "--tile 999999999999": "--tile must be at most 8192, got 999999999999",
    "--overlap -1": "--overlap must be at least 0, got -1",
    "--batch_size 0": "--batch_size must be at least 1, got 0",
    "--scale nan": "--scale must be above 0, got nan",
    "--scale 0": "--scale must be above 0, got 0.0",
    "--scale -1": "--scale must be above 0, got -1.0",
    "--scale inf": "--scale must be at most 1e+30, got inf",
    "--offset nan": "--offset must be at least -65535, got nan",
    "--offset=-inf": "--offset must be at least -65535, got -inf",
    "--offset 1e9": "--offset must be at most 65535, got 1000000000.0",
    "--where_clear keep --detector none": "--where_clear keep needs to detect clear pixels",
    "--folder somewhere": "name the scene by one of --optical, --stac, --list and --folder; got --optical and --folder",
    "--offset much": "--offset takes auto, none or a number such as -1000, not 'much'",
    "--dates 2018-06-01": "3 images of --optical, but 1 dates",
    "--device tpu": "--device takes cuda, cuda:N or cpu, got 'tpu'",
    "--workers 2 --device cuda": "--workers shares the cores of a CPU",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_contradict_each_other(flags, line, capsys):
    assert FLAGS[flags] in refused(capsys, main, *line, *flags.split(), code=2)


def test_no_scene_at_all(scene_run, tmp_path, capsys):
    text = refused(capsys, main, "--weights", scene_run, "--out", tmp_path / "maps", code=2)
    assert "one of --optical, --stac, --list and --folder; got none of them" in text


def test_a_folder_that_cannot_be_written(line, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    text = refused(capsys, main, *line, "--out", tmp_path / "file")
    assert str(tmp_path / "file") in text


def test_a_record_that_cannot_be_read(line, tmp_path, capsys):
    (tmp_path / "maps" / ".work").mkdir(parents=True)
    (tmp_path / "maps" / ".work" / "job.json").write_text("[]", encoding="utf-8")
    assert "job.json: the content must be object, got []" in refused(capsys, main, *line)
    assert call(main, *line, "--overwrite", "--detector", "none") == 0
    record = json.loads((tmp_path / "maps" / "reconstruction.json").read_text(encoding="utf-8"))
    assert record["settings"]["--tile"] == 64


def test_two_commands_in_one_folder(line, tmp_path, capsys):
    with folder_lock(tmp_path / "maps", "--out"):
        assert f"{tmp_path / 'maps'} is in use by this process" in refused(capsys, main, *line)


def test_a_file_damaged_in_its_middle_is_told_and_nothing_is_finished(line, scene, tmp_path, capsys):
    place = scene.optical[0].stat().st_size // 2
    with scene.optical[0].open("r+b") as content:
        content.seek(place)
        content.write(b"\xff" * 8000)  # more than a strip, whose start is checked
    text = refused(capsys, main, *line)
    assert scene.optical[0].name in text
    assert not (tmp_path / "maps" / "reflectance.tif").exists()


def test_help_comes_at_once():
    started = time.perf_counter()
    line = [sys.executable, "-X", "importtime", str(ROOT / "reconstruct_scene.py"), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    for name in ("--optical", "--list", "--folder", "--where_clear", "--scheduler", "examples:"):
        assert name in done.stdout
    for heavy in ("torch", "rasterio", "numpy", "distributed"):
        assert f"| {heavy}\n" not in done.stderr, f"--help imports {heavy}"
    assert time.perf_counter() - started < 5  # 0.1 s where nothing else runs
