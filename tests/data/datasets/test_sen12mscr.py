"""The triplet data set: exact splits, complete triplets, content of an item."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import DataError, UsageError
from data.batch import Collate, Skipped
from data.dataLoader import SEN12MSCR
from data.raster.geotiff import write_geotiff
from tests.support.fake_trees import (
    DETECTOR,
    SIZE,
    cloud_mask,
    optical_level,
    patch_transform,
    radar_level,
    triplet_path,
    write_triplet,
    zero_rows,
)

TEST, TRAIN = "ROIs1970_fall/139", "ROIs1970_fall/3"


@pytest.fixture(scope="module")
def triplets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("triplets_s1_2020")  # a root whose name looks like a sensor's
    for patch in (10, 9):
        write_triplet(root, TEST, patch, coverage=0.25)
    write_triplet(root, TRAIN, 839)
    write_triplet(root, "ROIs1158_spring/106", 5)  # test; "s1_1" puts it into the published training split
    return root


@pytest.fixture
def triplets_copy(triplets, tmp_path) -> Path:
    return Path(shutil.copytree(triplets, tmp_path / "copy"))


def test_an_item_holds_the_published_keys_and_the_right_values(triplets):
    mono = SEN12MSCR(str(triplets), split="test", region="all")
    assert [mono.roi(index) for index in range(len(mono))] == ["ROIs1158_spring/106", TEST, TEST]
    assert [paths["S1"][-7:] for paths in mono.paths[1:]] == ["_p9.tif", "p10.tif"]
    item = mono[2]
    assert set(item) == {"input", "target"}
    assert set(item["input"]) == {"S1", "S2", "masks", "coverage", "S1 path", "S2 path", "coord"}
    assert set(item["target"]) == {"S2", "S2 path", "coord", "valid"}
    assert item["target"]["valid"].shape == (SIZE, SIZE)
    assert item["target"]["valid"].all()
    mask = cloud_mask(0.25)
    assert np.array_equal(item["input"]["masks"], mask)
    assert item["input"]["coverage"] == 0.25
    levels = np.float32(optical_level(10, 0) + 100 * np.arange(13)) / np.float32(10000)
    assert item["target"]["S2"].dtype == item["input"]["S2"].dtype == item["input"]["S1"].dtype == np.float32
    assert np.array_equal(item["target"]["S2"], np.broadcast_to(levels.reshape(13, 1, 1), (13, SIZE, SIZE)))
    assert np.all(item["input"]["S2"][:, mask > 0] == np.float32(0.9))
    # float32 rescaling of dB: one unit in the last place of values near 1
    assert np.allclose(item["input"]["S1"][0], (radar_level(10, 0) + 25) / 25, atol=1e-6)
    assert item["input"]["S2 path"] == str(triplets / triplet_path(TEST, "s2_cloudy", 10))
    assert item["input"]["S1 path"] == str(triplets / triplet_path(TEST, "s1", 10))
    assert item["target"]["S2 path"] == str(triplets / triplet_path(TEST, "s2", 10))
    corner = patch_transform(10)
    assert item["target"]["coord"] == [corner.c, corner.f - 10 * SIZE, corner.c + 10 * SIZE, corner.f]


def test_default_collation_of_torch_works(triplets):
    batch = next(iter(DataLoader(SEN12MSCR(triplets, split="all"), batch_size=4)))
    assert batch["input"]["S2"].shape == (4, 13, SIZE, SIZE)
    assert batch["input"]["S2"].dtype == torch.float32


def test_traps_2_no_test_region_is_trained_on(triplets):
    # known issue 2: by substring, training on s1_1 takes s1_106 and s1_139 of the test split as well
    assert not regions(triplets, "train") & regions(triplets, "test")
    published = regions(triplets, "train", legacy=True) & regions(triplets, "test", legacy=True)
    assert published == {"ROIs1158_spring/106", "ROIs1970_fall/139"}


def regions(triplets, split, legacy=False) -> set[str]:
    mono = SEN12MSCR(triplets, split, legacy=legacy)
    return {mono.roi(index) for index in range(len(mono))}


@pytest.mark.parametrize("member", ["s1", "s2", "s2_cloudy"])
def test_an_incomplete_triplet_is_left_out_and_counted(triplets_copy, member):
    (triplets_copy / triplet_path(TEST, member, 9)).unlink()
    with pytest.warns(UserWarning, match="1 triplets of split 'test' .* lack a member"):
        mono = SEN12MSCR(triplets_copy, "test")
    assert len(mono) == 2


def test_without_cloud_masks_coverage_is_unknown(triplets):
    # known issue 9: the published loader crashes here
    item = SEN12MSCR(triplets, "test", cloud_masks=None)[0]
    assert np.isnan(item["input"]["coverage"])
    assert not item["input"]["masks"].any()


def test_resnet_rescaling(triplets):
    plain, scaled = (SEN12MSCR(triplets, "test", rescale_method=method)[0] for method in ("default", "resnet"))
    assert np.allclose(scaled["target"]["S2"], 5 * plain["target"]["S2"], rtol=1e-6)


def test_masks_are_stored_and_read_again(triplets_copy, monkeypatch):
    shutil.rmtree(triplets_copy / ".mask_store")
    detector = "cloud_cloudshadow_mask"
    first = SEN12MSCR(triplets_copy, "test", cloud_masks=detector)[0]["input"]
    monkeypatch.setattr("data.clouds.mask_store.mask_and_coverage", lambda *_: pytest.fail("computed again"))
    again = SEN12MSCR(triplets_copy, "test", cloud_masks=detector)[0]["input"]
    assert np.array_equal(first["masks"], again["masks"])
    assert first["coverage"] == again["coverage"] == first["masks"].mean()
    assert (triplets_copy / ".mask_store").is_dir()


def test_errors_name_what_came(triplets, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere \(--root3\)"):
        SEN12MSCR(tmp_path / "nowhere", flag="--root3")
    with pytest.raises(DataError, match=r"SEN12MS-CR, split 'val', region 'all' in .*\(root\); expected .*s1_139_p839"):
        SEN12MSCR(triplets, "val")
    with pytest.raises(UsageError, match="--region all"):
        SEN12MSCR(triplets, region="africa")
    with pytest.raises(UsageError, match="one date a sample, not input_t 3"):
        SEN12MSCR(triplets, n_input_samples=3)
    with pytest.raises(UsageError, match="unknown sample_type 'generic'.*pretrain"):
        SEN12MSCR(triplets, sample_type="generic")


def test_a_damaged_target_and_input_are_masked_and_said_once(triplets_copy):
    target, cloudy = (triplets_copy / triplet_path(TEST, sensor, 9) for sensor in ("s2", "s2_cloudy"))
    for path in (target, cloudy):
        zero_rows(path, SIZE // 4)
    mono = SEN12MSCR(triplets_copy, "test")
    with pytest.warns(UserWarning, match="are 0 in every band") as caught:
        items = mono[1], mono[1]
    texts = [str(entry.message) for entry in caught if "0 in every band" in str(entry.message)]
    assert len(texts) == 2
    for path, text in zip((target, cloudy), texts, strict=True):
        assert text.startswith(f"{path}: 256 of 1024 pixels (25.0%) are 0 in every band, as in damaged files: ")
    for item in items:
        assert item["target"]["valid"].sum() == 768
        assert not item["target"]["valid"][-SIZE // 4 :].any()
        assert (item["input"]["masks"][-SIZE // 4 :] == 1).all()  # the stored mask is clear there
    collated = next(iter(DataLoader(mono, batch_size=3)))
    assert collated["target"]["valid"].dtype == torch.bool
    assert collated["target"]["valid"].sum(dim=(1, 2)).tolist() == [1024, 768, 1024]
    skipping = SEN12MSCR(triplets_copy, "test", skip_bad_samples=True)
    bad = skipping[1]
    assert isinstance(bad, Skipped)
    assert "s2_139_p9.tif: 256 of 1024 pixels (25.0%) are 0 in every band" in bad.reason
    target.unlink()
    write_triplet(triplets_copy, TEST, 9, members=("s2",))
    with pytest.warns(UserWarning, match="0 in every band"):
        assert skipping[1]["target"]["valid"].all()  # samples with damaged inputs are used


def test_an_unusable_image_is_named_or_skipped(triplets_copy):
    path = triplets_copy / triplet_path(TEST, "s2", 9)
    write_geotiff(path, np.zeros((13, SIZE, SIZE), np.uint16), "EPSG:32633", patch_transform(9))
    with pytest.raises(DataError, match="s2_139_p9.tif: every value is 0, there is no image to be a target"):
        SEN12MSCR(triplets_copy, "test")[1]
    path.write_bytes(path.read_bytes()[:400])
    mono = SEN12MSCR(triplets_copy, "test", skip_bad_samples=True)
    assert isinstance(mono[1], Skipped)
    batch = Collate(use_sar=False)([mono[0], mono[1]])
    assert (batch.n, len(batch.skipped)) == (1, 1)
    assert "s2_139_p9.tif" in batch.skipped[0].reason


def test_a_batch_of_triplets_is_a_series_of_one_date(triplets):
    mono = SEN12MSCR(triplets, "test")
    batch = Collate(use_sar=True)([mono[0], mono[1]])
    assert batch.x.shape == (2, 1, 15, SIZE, SIZE)
    assert batch.target.shape == (2, 1, 13, SIZE, SIZE)
    assert batch.masks.shape == (2, 1, SIZE, SIZE)
    assert batch.coverage.tolist() == [[pytest.approx(cloud_mask(0.4).mean())], [0.25]]
    assert batch.dates is None
    assert (batch.info[1].roi, batch.info[1].patch) == (TEST, "9")
    assert batch.info[1].target_path == triplet_path(TEST, "s2", 9)


@pytest.mark.shared
def test_real_patches(shared):
    root = shared / "data" / "SEN12MSCR"
    train, test = SEN12MSCR(root, "train", cloud_masks=None), SEN12MSCR(root, "test", cloud_masks=None)
    assert [train.roi(0), test.roi(0)] == ["ROIs2017_winter/112", "ROIs1970_fall/139"]
    with pytest.warns(UserWarning, match="1 triplets"), pytest.raises(DataError, match="1 incomplete"):
        SEN12MSCR(root, "val")
    item = test[0]
    assert item["input"]["S2"].shape == (13, 256, 256)
    assert 0 <= item["input"]["S1"].min() < item["input"]["S1"].max() <= 1


@pytest.mark.shared
def test_real_masks_are_the_reference_masks(shared, tmp_path):
    root, store = shared / "data" / "SEN12MSCR", tmp_path / "store"
    with pytest.warns(UserWarning, match="no masks of .* are stored"):
        mono = SEN12MSCR(root, "test", cloud_masks=DETECTOR, import_data_path=store)
    with np.load(shared / "golden" / "reference" / "cloud_masks.npz") as reference:
        (name,) = [key for key in reference.files if key == f"p839_{DETECTOR}"]
        assert np.array_equal(mono[0]["input"]["masks"], reference[name])
