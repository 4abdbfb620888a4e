"""The series data set: content of an item, pairing of files, and bad files."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import data.raster.image_store
from common.errors import DataError, UsageError
from data.batch import Collate, Skipped
from data.clouds.mask_store import default_store
from data.dataLoader import SEN12MSCRTS
from data.raster.geotiff import write_geotiff
from tests.support.fake_trees import (
    CLEAR,
    COVERAGES,
    DETECTOR,
    ROI,
    SIZE,
    cloud_mask,
    coverages_with_clear,
    days_since_launch,
    image_path,
    optical_date,
    optical_level,
    patch_transform,
    radar_date,
    radar_level,
    series_path,
    write_series,
    zero_rows,
)


def test_an_item_holds_the_published_keys_and_the_right_values(tree):
    series = SEN12MSCRTS(str(tree), split="test")
    assert len(series) == 2
    item = series[1]
    keys = {"S1", "S2", "masks", "coverage", "S1 TD", "S2 TD", "S1 path", "S2 path", "idx", "coord"}
    assert set(item) == {"input", "target", "coverage bin"}
    assert set(item["input"]) == keys
    assert set(item["target"]) == keys | {"valid"}
    assert item["target"]["valid"][0].shape == (SIZE, SIZE)
    assert item["target"]["valid"][0].all()
    assert item["coverage bin"] is True
    for part, dates in ((item["input"], [0, 1, 2]), (item["target"], [4])):
        assert part["idx"] == dates
        assert all(len(part[key]) == len(dates) for key in keys)
        for position, day in enumerate(dates):
            share = coverages_with_clear(*CLEAR)[day]
            mask = cloud_mask(share)
            optical, radar = part["S2"][position], part["S1"][position]
            assert (optical.shape, optical.dtype) == ((13, SIZE, SIZE), np.float32)
            assert (radar.shape, radar.dtype) == ((2, SIZE, SIZE), np.float32)
            assert np.array_equal(part["masks"][position], mask)
            assert part["coverage"][position] == mask.mean()
            levels = np.float32(optical_level(10, day) + 100 * np.arange(13)) / np.float32(10000)
            assert np.array_equal(np.unique(optical[:, mask == 0], axis=1)[:, 0], levels)
            assert np.all(optical[:, mask > 0] == np.float32(0.9))
            # float32 of dB and its rescaling: one unit in the last place of values near 1
            assert np.allclose(radar[0], np.clip(radar_level(10, day) + 25, 0, 25) / 25, atol=1e-6)
            assert part["S2 TD"][position] == days_since_launch(optical_date(day))
            assert part["S1 TD"][position] == days_since_launch(radar_date(day))
            assert part["S2 path"][position] == str(image_path(tree, "S2", day, 10))
            assert part["S1 path"][position] == str(image_path(tree, "S1", day, 10))
            left, top = patch_transform(10).c, patch_transform(10).f
            assert part["coord"][position] == [left, top - 10 * SIZE, left + 10 * SIZE, top]


def test_default_collation_of_torch_works(tree):
    loader = DataLoader(SEN12MSCRTS(str(tree), split="all", region="all", n_input_samples=3), batch_size=2)
    batches = list(loader)
    assert [batch["input"]["S2"][0].shape[0] for batch in batches] == [2, 1]
    assert len(batches[0]["input"]["S2"]) == 3
    assert batches[0]["input"]["S2"][0].dtype == torch.float32
    assert batches[0]["target"]["S2"][0].shape == (2, 13, SIZE, SIZE)


def test_generic_gives_all_dates(tree):
    item = SEN12MSCRTS(tree, "test", sample_type="generic")[0]
    assert set(item) == {"S1", "S2", "masks", "coverage", "S1 TD", "S2 TD", "S1 path", "S2 path", "coord"}
    assert all(len(value) == 30 for value in item.values())
    assert item["coverage"] == [cloud_mask(share).mean() for share in coverages_with_clear(*CLEAR)]
    next(iter(DataLoader(SEN12MSCRTS(tree, "test", sample_type="generic"))))


def test_without_cloud_masks_every_date_comes_with_unknown_coverage(tree):
    # known issue 9: the published loader crashes here
    with pytest.warns(UserWarning, match="without cloud masks no date can be chosen"):
        series = SEN12MSCRTS(tree, "test", cloud_masks=None)
    item = series[0]
    assert len(item["S2"]) == 30
    assert np.isnan(item["coverage"]).all()
    assert not np.any(item["masks"])
    assert next(iter(DataLoader(series)))["masks"][0].shape == (1, SIZE, SIZE)


def test_fixedsubset_chooses_among_its_dates(tree):
    # known issue 9: the published sampler crashes
    item = SEN12MSCRTS(tree, "test", sampler="fixedsubset", earliest=6, latest=12)[0]
    assert (item["input"]["idx"], item["target"]["idx"]) == ([6, 7, 8], [9])


def test_resnet_rescaling(tree):
    plain = SEN12MSCRTS(tree, "test")[0]["input"]
    scaled = SEN12MSCRTS(tree, "test", rescale_method="resnet")[0]["input"]
    assert np.allclose(scaled["S2"][0], plain["S2"][0] * 5, rtol=1e-6)  # / 2000 instead of / 10000
    assert np.allclose(scaled["S1"][0][0], 2 * plain["S1"][0][0], rtol=1e-6)
    level = radar_level(9, 0) - 3
    assert np.allclose(scaled["S1"][0][1], 2 * (level + 32.5) / 32.5, rtol=1e-6)


def test_min_and_max_coverage_choose_the_inputs(tree):
    item = SEN12MSCRTS(tree, "test", min_cov=0.3, max_cov=0.5)[0]
    assert all(0.3 <= share <= 0.5 for share in item["input"]["coverage"])
    assert item["coverage bin"] is True
    item = SEN12MSCRTS(tree, "test", min_cov=0.301, max_cov=0.302)[0]
    assert item["coverage bin"] is False


def test_traps_3_target_is_not_its_own_input(tmp_path):
    # known issue 3: the earliest dates are clear, so in the published choice date 0 is input and target
    write_series(tmp_path, ROI, 1, coverages_with_clear(0, 1, 2))
    ours, published = (SEN12MSCRTS(tmp_path, "test", legacy=legacy)[0] for legacy in (False, True))
    assert (ours["input"]["idx"], ours["target"]["idx"]) == ([1, 2, 3], [0])
    assert set(published["target"]["idx"]) & set(published["input"]["idx"])


def test_random_dates_are_a_function_of_seed_epoch_and_index(tree):
    def dates(seed, epoch, index):
        series = SEN12MSCRTS(tree, "test", sampler="random", seed=seed)
        series.set_epoch(epoch)
        return series.select(index)

    assert dates(1, 3, 0) == dates(1, 3, 0)
    targets = {dates(1, epoch, 0).target for epoch in range(20)}
    assert targets == set(CLEAR)
    several = [[dates(seed, epoch, index).target for epoch in range(20)] for seed, index in ((1, 0), (1, 1), (2, 0))]
    assert several[0] != several[1]
    assert several[0] != several[2]


def test_only_chosen_dates_are_read_and_every_file_is_closed(tree, monkeypatch):
    # known issue 14
    opened = []
    original = data.raster.image_store.read_with_bounds
    monkeypatch.setattr(
        data.raster.image_store, "read_with_bounds", lambda path, *rest: opened.append(path) or original(path, *rest)
    )
    series = SEN12MSCRTS(tree, "test")
    series[0]
    assert len(opened) == 2 * (3 + 1)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        series[1]
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before


def test_days_count_from_the_reference_date(tree):
    day = optical_date(0)
    assert SEN12MSCRTS(tree, "test", ref_date=day)[0]["input"]["S2 TD"][0] == 0


def test_traps_4_pairing_goes_by_patch_number(copy):
    # known issue 4: patch 10 of date 1 was taken a day before patch 9, so a listing sorted by name has it first
    old = image_path(copy, "S2", 1, 10)
    old.rename(old.with_name(old.name.replace("2018-01-15", "2018-01-14")))
    ours = SEN12MSCRTS(copy, "test")
    assert [path.split("patch_")[1] for path in ours.paths[0]["S2"]] == ["9.tif"] * 30
    assert [path.split("patch_")[1] for path in ours.paths[1]["S2"]] == ["10.tif"] * 30
    published = SEN12MSCRTS(copy, "test", legacy=True)
    assert published.paths[0]["S2"][1].endswith("patch_10.tif")
    assert published.paths[0]["S2"][0].endswith("patch_9.tif")


def test_patches_are_in_natural_order_whatever_the_listing(tree):
    numbers = [series.split("patch_")[1] for series in (paths["S1"][0] for paths in SEN12MSCRTS(tree, "test").paths)]
    assert numbers == ["9.tif", "10.tif"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tests"}, "unknown split 'tests'.*train"),
        ({"region": "asia"}, "unknown region 'asia'.*asiaEast"),
        ({"cloud_masks": "fmask"}, "unknown cloud_masks 'fmask'.*s2cloudless_mask"),
        ({"sample_type": "all"}, "unknown sample_type 'all'.*generic"),
        ({"sampler": "best"}, "unknown sampler 'best'.*fixedsubset"),
        ({"rescale_method": "log"}, "unknown rescale_method 'log'.*resnet"),
        ({"n_input_samples": 30}, "input_t must lie between 1 and 29"),
        ({"sample_type": "generic", "custom_samples": []}, "need sample_type cloudy_cloudfree"),
    ],
)
def test_unknown_options_are_usage_errors(tree, changes, message):
    with pytest.raises(UsageError, match=message):
        SEN12MSCRTS(tree, **changes)


def write_published(path: Path, tree: Path, order, clear) -> None:
    """A published coverage file, with patches in the given order."""
    entries = {}
    for position, patch in enumerate(order):
        names = [f"SEN12MSCRTS/{series_path(ROI, 'S2', day, patch)}" for day in range(30)]
        coverage = [torch.tensor(share) for share in coverages_with_clear(clear[patch])]
        entries[position] = {"coverage": coverage, "paths": {"S1": names, "S2": names}}
    np.save(path, entries, allow_pickle=True)


def test_traps_4_published_coverage_is_matched_by_path(tree, tmp_path):
    # known issue 4: the file lists patch 10 first; by position each patch would get the other one's coverage
    file = tmp_path / f"generic_3_test_all_{DETECTOR}.npy"
    write_published(file, tree, order=(10, 9), clear={9: 20, 10: 25})
    for source in (file, tmp_path):
        series = SEN12MSCRTS(tree, "test", import_data_path=str(source))
        assert [series.select(index).target for index in (0, 1)] == [20, 25]


def test_coverage_of_other_data_is_refused(tree, tmp_path):
    file = tmp_path / f"generic_3_test_all_{DETECTOR}.npy"
    write_published(file, tree, order=(77,), clear={77: 3})
    with pytest.raises(DataError, match="coverage file for other data"):
        SEN12MSCRTS(tree, "test", import_data_path=str(file))


def test_coverages_of_the_tree_are_as_its_tests_expect():
    assert min(COVERAGES) > 0.001
    assert max(COVERAGES) < 1


# Bad files are named in one line, or skipped and listed


@pytest.mark.parametrize("sensor", ["S1", "S2"])
def test_a_missing_date_is_named_or_its_patch_left_out(copy, sensor):
    image_path(copy, sensor, 17, 10).unlink()
    expected = rf"patch 10 of ROIs1868/73: one image is missing.*{sensor} date 17 .*{sensor}/17/.*_DATE_patch_10.tif"
    with pytest.raises(DataError, match=expected):
        SEN12MSCRTS(copy, "test")
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert [paths["S2"][0][-6:] for paths in series.paths] == ["_9.tif"]
    assert "patch 10" in series.bad_samples[0].reason


def test_a_missing_folder_is_named(copy):
    shutil.rmtree(copy / ROI / "S1" / "29")
    with pytest.raises(DataError, match=r"patch 9 .*S1 date 29.*\(2 such in ROIs1868/73\); complete the download"):
        SEN12MSCRTS(copy, "test")


def test_a_misplaced_or_doubled_file_is_named(copy):
    shutil.copy(image_path(copy, "S2", 3), image_path(copy, "S2", 5).parent)
    with pytest.raises(DataError, match="S2/5/.*ImgNo_3.* is misplaced"):
        SEN12MSCRTS(copy, "test")
    assert len(SEN12MSCRTS(copy, "test", skip_bad_samples=True)) == 2
    double = image_path(copy, "S2", 5)
    shutil.copy(double, double.with_name(double.name.replace("2018-02-24", "2018-02-25")))
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert len(series) == 1
    assert any("two files for one date" in bad.reason for bad in series.bad_samples)


def test_missing_root_and_empty_split_name_root_split_region_and_layout(tree, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere \(root\).*ROIs1158"):
        SEN12MSCRTS(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"split 'val', region 'africa' in .*series_2020.*\(--root2\); expected .*S2/14/s2_"
    ):
        SEN12MSCRTS(tree, "val", "africa", flag="--root2")


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif how == "no tiff":
        path.write_bytes(b"nothing")
    else:
        bands, size, kind = {
            "size": (13, SIZE // 2, "uint16"),
            "bands": (12, SIZE, "uint16"),
            "type": (13, SIZE, "float32"),
        }[how]
        write_geotiff(path, np.ones((bands, size, size), kind), "EPSG:32633", patch_transform(9))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "truncated or damaged image: .*patch_9.tif"),
        ("no tiff", "not a readable GeoTIFF: .*patch_9.tif"),
        ("size", "patch_9.tif: expected 32 x 32 pixels, found 16 x 16"),
        ("bands", "patch_9.tif: expected 13 bands, found 12"),
        ("type", "patch_9.tif: expected uint16 values, found float32"),
    ],
)
def test_an_unusable_image_is_named_or_skipped(copy, how, message):
    damage(image_path(copy, "S2", 1), how)
    with pytest.raises(DataError, match=message):
        SEN12MSCRTS(copy, "test")[0]
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    bad = series[0]
    assert isinstance(bad, Skipped)
    assert bad.path.endswith("patch_9.tif")
    batch = Collate(use_sar=True)([bad, series[1]])
    assert batch.n == 1
    assert batch.skipped == (bad,)


def test_a_damaged_first_image_does_not_decide_the_size(copy):
    damage(image_path(copy, "S2", 0), "no tiff")
    series = SEN12MSCRTS(copy, "test", skip_bad_samples=True)
    assert isinstance(series[0], Skipped)
    assert series[1]["input"]["idx"] == [0, 1, 2]


def test_nan_is_counted_reported_once_and_becomes_zero(copy):
    radar = np.full((2, SIZE, SIZE), -10, np.float32)
    radar[0, :2] = np.nan
    for day in (0, 1):
        write_geotiff(image_path(copy, "S1", day), radar, "EPSG:32633", patch_transform(9))
    series = SEN12MSCRTS(copy, "test")
    with pytest.warns(UserWarning, match=r"patch_9.tif: 64 of 2048 values are NaN and become 0") as caught:
        item = series[0]
    assert len([entry for entry in caught if "NaN" in str(entry.message)]) == 1
    assert series.nan_values == 2 * 2 * SIZE
    assert np.all(item["input"]["S1"][0][0, :2] == 0)
    assert np.allclose(item["input"]["S1"][0][0, 2:], 0.6)


def blank(path: Path) -> None:
    write_geotiff(path, np.zeros((13, SIZE, SIZE), np.uint16), "EPSG:32633", patch_transform(9))


def test_a_blank_image_is_cloudy_as_an_input_and_no_target(tmp_path):
    write_series(tmp_path, ROI, 9, coverages_with_clear(4), stored=False)
    for day in range(30):
        if day != 4:
            blank(image_path(tmp_path, "S2", day))
    detector = "cloud_cloudshadow_mask"
    with pytest.warns(UserWarning, match="[Bb]lank"):
        item = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector)[0]
    assert item["target"]["idx"] == [4]
    assert item["input"]["coverage"] == [1.0, 1.0, 1.0]
    assert np.all(item["input"]["masks"][0] == 1)
    blank(image_path(tmp_path, "S2", 4))
    shutil.rmtree(default_store(tmp_path))
    series = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector)
    with (
        pytest.warns(UserWarning, match="[Bb]lank"),
        pytest.raises(DataError, match="every value is 0, there is no image to be a target"),
    ):
        series[0]


def test_a_date_with_more_than_half_of_its_pixels_missing_is_no_target(tmp_path):
    write_series(tmp_path, ROI, 9, coverages_with_clear(4, 9), stored=False)
    detector = "cloud_cloudshadow_mask"
    zero_rows(image_path(tmp_path, "S2", 4), SIZE // 2 + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the damaged date is neither target nor input: it is not read
        item = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector, n_input_samples=2)[0]
    assert item["target"]["idx"] == [9]
    five = SEN12MSCRTS(tmp_path, "test", cloud_masks=detector, n_input_samples=5)
    with pytest.warns(UserWarning, match="544 of 1024 pixels"):
        item = five[0]
    assert item["input"]["idx"] == [0, 1, 2, 3, 4]
    assert item["input"]["coverage"][4] == 1.0
    assert item["input"]["masks"][4].sum() == (SIZE // 2 + 1) * SIZE


def test_masks_of_missing_pixels_are_one_without_a_detector_too(copy):
    zero_rows(image_path(copy, "S2", 0), 5)
    with pytest.warns(UserWarning, match="160 of 1024 pixels"):
        item = SEN12MSCRTS(copy, "test", cloud_masks=None)[0]
    assert item["masks"][0].sum() == 160
    assert item["masks"][1].sum() == 0


def test_rows_of_exactly_0_db_are_said_once(copy):
    radar = np.full((2, SIZE, SIZE), -10, np.float32)
    radar[:, :3] = 0
    radar[:, 5, :7] = 0  # bright pixels of a clipped image
    radar[0, 9] = 0  # one polarisation
    write_geotiff(image_path(copy, "S1", 0), radar, "EPSG:32633", patch_transform(9))
    series = SEN12MSCRTS(copy, "test")
    with pytest.warns(UserWarning, match=r"patch_9.tif: 3 of 32 rows are exactly 0 dB, as in damaged files") as caught:
        item = series[0], series[0]
    assert len([entry for entry in caught if "0 dB" in str(entry.message)]) == 1
    assert np.all(item[0]["input"]["S1"][0][:, :3] == 1)  # used as it is
