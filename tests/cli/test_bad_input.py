"""Bad data on the command line: one line that names the file or flag, its exit code, and nothing half-written."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import test_reconstruct
import train_reconstruct
from data.clouds.mask_store import default_store
from data.raster.geotiff import write_geotiff
from tests.support.cli_cases import (
    TEST_ROI,
    TINY,
    TRAIN_ROI,
    VAL_ROI,
    assert_whole,
    call,
    evaluating,
    files_in,
    image,
    only_error,
    refused,
    training,
)
from tests.support.commands import ROOT
from tests.support.fake_trees import SIZE, patch_transform, write_triplet, zero_rows
from util import make_sample_data, pre_compute_data_samples


def put(path: Path, bands: int, size: int, kind: str, value: float = 1) -> None:
    write_geotiff(path, np.full((bands, size, size), value, kind), "EPSG:32633", patch_transform(1))


# Roots and splits


@pytest.mark.parametrize("flag", ["--root1", "--root2"])
def test_a_missing_root_is_named_with_its_flag_and_layout(series, tmp_path, capsys, flag):
    message = refused(
        capsys, train_reconstruct.main, *training(series, tmp_path / "results", flag, tmp_path / "nowhere")
    )
    assert re.search(rf"no folder {tmp_path}/nowhere \({flag}\); expected a folder that holds ROIs1158", message)
    assert files_in(tmp_path) == {}


def test_a_root_that_is_not_given_is_a_usage_error(series, tmp_path, capsys):
    words = ["--root1", series, "--res_dir", tmp_path, *TINY]
    assert "--root2 is missing: the folder of SEN12MS-CR-TS" in refused(capsys, train_reconstruct.main, *words, code=2)
    message = refused(capsys, train_reconstruct.main, *words, "--pretrain", code=2)
    assert "--root3 is missing: the folder of SEN12MS-CR" in message


def test_an_empty_split_names_root_split_region_and_layout(series_copy, runs, tmp_path, capsys):
    shutil.rmtree(series_copy / TRAIN_ROI)
    message = refused(capsys, train_reconstruct.main, *training(series_copy, tmp_path / "results"))
    assert re.search(r"split 'train', region 'all' in .*/data \(--root1\); expected .*S2/14/s2_ROIs1868", message)
    message = refused(
        capsys,
        test_reconstruct.main,
        *evaluating(runs, series_copy, tmp_path / "inference", "--region", "africa"),
    )
    assert re.search(r"split 'test', region 'africa' in .*/data \(--root2\)", message)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "inf").exists()


def test_neither_validation_nor_test_split(series_copy, tmp_path, capsys):
    for roi in (VAL_ROI, TEST_ROI):
        shutil.rmtree(series_copy / roi)
    message = refused(capsys, train_reconstruct.main, *training(series_copy, tmp_path / "results"))
    assert "split 'val', region 'all'" in message
    assert "(--root2)" in message


def test_the_root_of_the_other_data_set(tmp_path, capsys):
    write_triplet(tmp_path / "mono", "ROIs1970_fall/139", 1)
    message = refused(capsys, train_reconstruct.main, *training(tmp_path / "mono", tmp_path))
    assert "no patch of SEN12MS-CR-TS, split 'train'" in message
    message = refused(
        capsys, train_reconstruct.main, *training(tmp_path, tmp_path / "results", "--pretrain", "--root3", tmp_path)
    )
    assert "no patch of SEN12MS-CR, split 'train'" in message
    assert "(--root3)" in message


# Images


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


DAMAGE = {
    "truncated": (truncate, "truncated or damaged image: {} .*; fetch it again"),
    "no image": (lambda path: path.write_bytes(b"<html>404</html>"), "not a readable GeoTIFF: {} .*; fetch it again"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable GeoTIFF: {}"),
    "size": (lambda path: put(path, 13, 16, "uint16"), "{}: expected 32 x 32 pixels, found 16 x 16; all patches must"),
    "bands": (lambda path: put(path, 12, SIZE, "uint16"), "{}: expected 13 bands, found 12"),
    "type": (lambda path: put(path, 13, SIZE, "float32", np.nan), "{}: expected uint16 values, found float32"),
    "blank": (lambda path: put(path, 13, SIZE, "uint16", 0), "{}: every value is 0, there is no image to be a target"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_an_unusable_image_stops_training_and_is_named(series_copy, tmp_path, capsys, how):
    damage, expected = DAMAGE[how]
    path = image(series_copy)
    damage(path)
    message = refused(capsys, train_reconstruct.main, *training(series_copy, tmp_path / "results", "--no-vary_samples"))
    assert re.search(expected.format(re.escape(str(path))), message)
    assert message.endswith("--skip_bad_samples continues without it")
    assert set(files_in(tmp_path / "results")) == {"my_first_experiment/conf.json"}


@pytest.mark.parametrize("how", ["truncated", "bands", "blank"])
def test_an_unusable_image_stops_a_test_and_is_named(series_copy, runs, tmp_path, capsys, how):
    damage, expected = DAMAGE[how]
    path = image(series_copy, TEST_ROI, patch=10)
    damage(path)
    message = refused(capsys, test_reconstruct.main, *evaluating(runs, series_copy, tmp_path / "inference"))
    assert re.search(expected.format(re.escape(str(path))), message)
    assert not list(tmp_path.rglob("test_metrics.json"))
    assert_whole(tmp_path)


@pytest.mark.parametrize("how", ["truncated", "type"])
def test_workers_name_the_unusable_image_in_one_line_too(series_copy, tmp_path, capsys, how):
    damage, expected = DAMAGE[how]
    path = image(series_copy, VAL_ROI, patch=5)
    damage(path)
    message = refused(capsys, train_reconstruct.main, *training(series_copy, tmp_path / "results", "--num_workers", 2))
    assert re.search(expected.format(re.escape(str(path))), message)


def test_a_radar_image_of_another_kind_is_named(series_copy, tmp_path, capsys):
    path = image(series_copy, sensor="S1", day=0)
    put(path, 2, SIZE, "int16")
    words = training(series_copy, tmp_path / "results", "--no-vary_samples", "--use_sar")
    assert f"{path}: expected float32 or float64 values, found int16" in refused(capsys, train_reconstruct.main, *words)


def test_nan_in_radar_is_said_and_training_goes_on(series_copy, tmp_path, recwarn):
    put(image(series_copy, sensor="S1", day=0), 2, SIZE, "float32", np.nan)
    words = training(series_copy, tmp_path / "results", "--no-vary_samples", "--use_sar", "--max_samples_count", 1)
    assert call(train_reconstruct.main, *words) == 0
    warnings = [str(entry.message) for entry in recwarn if "NaN" in str(entry.message)]
    assert len(warnings) == 1
    assert re.search(r"ImgNo_0_.*_patch_1.tif: 2048 of 2048 values are NaN and become 0", warnings[0])


def test_a_missing_date_and_an_unpaired_patch_are_named(series_copy, runs, tmp_path, capsys):
    image(series_copy, day=17).unlink()
    message = refused(capsys, train_reconstruct.main, *training(series_copy, tmp_path / "results"))
    assert re.search(rf"patch 1 of {TRAIN_ROI}: one image is missing, the first S2 date 17 \(.*/S2/17/s2_.*\)", message)
    assert message.endswith("complete the download, or add --skip_bad_samples")
    assert not (tmp_path / "results").exists()
    image(series_copy, TEST_ROI, "S1", 3, 9).unlink()
    message = refused(capsys, test_reconstruct.main, *evaluating(runs, series_copy, tmp_path / "inference"))
    assert f"patch 9 of {TEST_ROI}: one image is missing, the first S1 date 3" in message


def test_incomplete_triplets_are_left_out_and_counted(tmp_path, capsys, recwarn):
    write_triplet(tmp_path, "ROIs1158_spring/1", 1, members=("s1", "s2"))
    message = refused(
        capsys, train_reconstruct.main, *training(tmp_path, tmp_path / "results", "--pretrain", "--root3", tmp_path)
    )
    assert "(1 incomplete or misplaced ones were skipped)" in message
    assert any("1 triplets of split 'train' in" in str(entry.message) for entry in recwarn)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_bad_samples_goes_on_and_lists_them_at_the_end(series_copy, tmp_path, capsys, workers):
    truncate(image(series_copy, TEST_ROI, patch=10))
    put(image(series_copy, patch=2), 12, SIZE, "uint16")
    image(series_copy, TEST_ROI, "S1", 3, 9).unlink()
    (series_copy / TEST_ROI / "S2" / "0" / "notes.txt").write_text("not an image")
    words = training(
        series_copy, tmp_path / "results", "--no-vary_samples", "--skip_bad_samples", "--num_workers", workers
    )
    assert call(train_reconstruct.main, *words) == 1  # nothing is left to test on: the list says why
    printed = capsys.readouterr()
    assert "no sample of the test split could be read" in only_error(printed.err)
    assert "3 unreadable patches were skipped:" in printed.out
    assert (tmp_path / "results" / "my_first_experiment" / "model_epoch_1.pth.tar").exists()
    copy_back = image(series_copy, TEST_ROI, patch=10)
    put(copy_back, 13, SIZE, "uint16", 500)
    assert call(train_reconstruct.main, *words) == 0
    end = capsys.readouterr().out.split("unreadable patches were skipped:\n")[1]
    assert re.search(r"patch_2.tif: .*expected 13 bands, found 12", end)
    assert f"patch 9 of {TEST_ROI}: one image is missing" in end
    assert len([line for line in end.splitlines() if line.startswith("  ")]) == 2


# Coverage files


def saved(path: Path, content: object) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_a_coverage_file_for_other_data(series, runs, tmp_path, capsys):
    other = [f"ROIs1868/73/S2/{day}/s2_ROIs1868_73_ImgNo_{day}_2018-06-21_patch_999.tif" for day in range(30)]
    name = tmp_path / "generic_2_test_all_s2cloudless_mask.npy"
    saved(name, {0: {"coverage": [0.5] * 30, "paths": {"S1": other, "S2": other}}})
    for given in (name, tmp_path):
        message = refused(
            capsys,
            test_reconstruct.main,
            *evaluating(runs, series, tmp_path / "inference", "--precomputed", given),
        )
        assert f"coverage file for other data: {name} contains none of the 60 images" in message
        assert "check the split, the region and the root" in message
    wrong = name.rename(tmp_path / "generic_2_test_all_s2cloudless_map.npy")
    message = refused(
        capsys,
        test_reconstruct.main,
        *evaluating(runs, series, tmp_path / "inference", "--precomputed", wrong),
    )
    assert "holds the coverage of s2cloudless_map, but the detector is s2cloudless_mask" in message


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_coverage_file_runs_nothing(series, tmp_path, capsys):
    marker = tmp_path / "executed"
    given = saved(tmp_path / "coverage.npy", {0: Hostile(marker)})
    words = training(series, tmp_path / "results", "--precomputed", given)
    assert f"refused to read {given}: its pickle refers to posix.system" in refused(
        capsys, train_reconstruct.main, *words
    )
    words = ["--root", series, "--out", tmp_path / "store", "--import", given]
    assert "refused to read" in refused(capsys, pre_compute_data_samples.main, *words)
    given.write_bytes(pickle.dumps("no array"))
    words = training(series, tmp_path / "results", "--precomputed", given)
    assert "not a published coverage file" in refused(capsys, train_reconstruct.main, *words)
    assert not marker.exists()
    assert not (tmp_path / "store").exists()


# Other command lines


@pytest.mark.parametrize("how", ["truncated", "bands"])
@pytest.mark.parametrize("workers", [1, 2])
def test_pre_computing_names_the_image_and_stores_the_others(series_copy, tmp_path, capsys, how, workers):
    shutil.rmtree(default_store(series_copy))
    damage, expected = DAMAGE[how]
    path = image(series_copy, VAL_ROI, patch=5)
    damage(path)
    words = [
        "--root",
        series_copy,
        "--out",
        tmp_path / "store",
        "--detector",
        "cloud_cloudshadow_mask",
        "--workers",
        workers,
    ]
    message = refused(capsys, pre_compute_data_samples.main, *words)
    assert "1 of 5 patches could not be computed, the others are stored" in message
    assert re.search(expected.format(re.escape(str(path))), message)
    assert len(list((tmp_path / "store").rglob("patch_*.npz"))) == 4
    assert_whole(tmp_path)


def test_sample_data_is_not_laid_over_other_files(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sample_data.json").write_text('{"rois": ')
    message = refused(capsys, make_sample_data.main, out, "--rois", 3, "--size", 16, code=2)
    assert f"{out} holds other files; name a new folder, or remove it first" in message
    assert files_in(out) == {"sample_data.json": b'{"rois": '}
    message = refused(capsys, make_sample_data.main, tmp_path / "new", "--base", tmp_path)
    assert f"--base {tmp_path}: no clear patch with its radar twin there" in message
    assert not (tmp_path / "new").exists()
    assert_whole(tmp_path)


# As a user meets it: a process of its own


def test_debug_adds_the_traceback(series_copy, tmp_path, capsys):
    truncate(image(series_copy))
    words = training(series_copy, tmp_path / "results", "--no-vary_samples", "--debug")
    assert call(train_reconstruct.main, *words) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: truncated or damaged image")


def test_in_a_process_of_its_own(series_copy, tmp_path):
    path = image(series_copy)
    truncate(path)
    words = [str(word) for word in training(series_copy, tmp_path / "results", "--no-vary_samples", "--num_workers", 2)]
    done = subprocess.run(
        [sys.executable, "train_reconstruct.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert only_error(done.stderr).startswith(f"error: truncated or damaged image: {path}")
    assert_whole(tmp_path)


# Targets with rows of zeros


def test_a_damaged_target_of_the_training_is_masked_with_one_warning(series_copy, tmp_path):
    path = image(series_copy)
    zero_rows(path, SIZE // 2)
    words = training(series_copy, tmp_path / "results", "--epochs", 2, "--no-vary_samples", "--num_workers", 0)
    with pytest.warns(UserWarning, match="are 0 in every band") as caught:
        assert call(train_reconstruct.main, *words) == 0
    texts = [str(entry.message) for entry in caught if "0 in every band" in str(entry.message)]
    assert len(texts) == 1
    assert texts[0].startswith(f"{path}: 512 of 1024 pixels (50.0%) are 0 in every band")


def test_a_damaged_target_of_the_test_is_counted_or_skipped(series_copy, runs, tmp_path, capsys):
    path = image(series_copy, TEST_ROI, patch=9)
    zero_rows(path, 4)
    out = tmp_path / "inference"
    with pytest.warns(UserWarning, match="128 of 1024 pixels"):
        assert call(test_reconstruct.main, *evaluating(runs, series_copy, out, "--export_every", 1)) == 0
    metrics, manifest = (
        json.loads(next(out.rglob(name)).read_text()) for name in ("test_metrics.json", "manifest.json")
    )
    assert metrics["images"] == 2
    assert metrics["left out"]["target_pixels_missing"] == 4 * SIZE
    assert metrics["SAM"] > 0  # a pixel of zeros would have none
    assert "SAM" not in metrics["left out"]
    assert [entry["info"].get("target_pixels_missing") for entry in manifest["samples"].values()] == [4 * SIZE, None]
    capsys.readouterr()
    words = evaluating(runs, series_copy, tmp_path / "skipped", "--skip_bad_samples")
    assert call(test_reconstruct.main, *words) == 0
    assert re.search(rf"1 unreadable patches were skipped:\n  .*: {path}: 128 of 1024 pixels", capsys.readouterr().out)
    metrics = json.loads(next((tmp_path / "skipped").rglob("test_metrics.json")).read_text())
    assert metrics["images"] == 1
    assert "target_pixels_missing" not in metrics["left out"]


def test_images_too_small_for_the_network_are_one_line(series, tmp_path, capsys):
    widths = ["--model", "conv3d_mamba", "--encoder_widths", *[8] * 7, "--decoder_widths", *[8] * 7]
    message = refused(capsys, train_reconstruct.main, *training(series, tmp_path / "results", *widths))
    assert (
        "expected images of 65 x 65 pixels or more for --model conv3d_mamba with 7 --encoder_widths, got 32" in message
    )
