"""The loaders of a run: which samples, in which order, in what batches, and what happens to bad ones."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError, UsageError
from data.batch import Batch, Collate, Indexed, Skipped
from data.constants import DATE_ORIGIN
from data.dataLoader import SEN12MSCRTS
from data.loaders import build_loaders, build_test_loader, choose_subset, count_workers
from data.raster import image_store
from parse_args import Config
from tests.support.fake_trees import (
    DETECTOR,
    SIZE,
    coverages_with_clear,
    optical_date,
    optical_level,
    radar_date,
    series_path,
    triplet_path,
    write_series,
    write_triplet,
    zero_rows,
)

TRAIN = ("ROIs1970/21", "ROIs1970/35")
VAL, TEST = "ROIs2017/22", "ROIs1868/73"


@pytest.fixture(scope="module")
def loader_tree(tmp_path_factory) -> Path:
    """Three patches in each of two training regions, one of validation and two of test."""
    root = tmp_path_factory.mktemp("series")
    for roi in TRAIN:
        for patch in (1, 2, 3):
            write_series(root, roi, patch, coverages_with_clear(4, 9, 15, 22))
    write_series(root, VAL, 1, coverages_with_clear(4))
    for patch in (1, 2):
        write_series(root, TEST, patch, coverages_with_clear(4))
    return root


def config_for(tree, **changes) -> Config:
    given = {"root1": str(tree), "root2": str(tree), "device": "cpu", "batch_size": 4, "use_sar": True, "input_t": 3}
    return Config(**(given | changes))


def seen(loader) -> list[tuple[int, tuple[int, ...], int]]:
    return [(info.index, info.input_days, info.target_days) for batch in loader for info in batch.info]


def test_a_batch_holds_radar_first_then_optical_and_the_mean_of_both_days(loader_tree):
    loader = build_test_loader(config_for(loader_tree))
    (batch,) = loader
    assert isinstance(batch, Batch)
    assert batch.n == 2
    assert batch.x.shape == (2, 3, 15, SIZE, SIZE)
    assert batch.x.dtype == torch.float32
    assert batch.target.shape == (2, 1, 13, SIZE, SIZE)
    assert batch.masks.shape == (2, 3, SIZE, SIZE)
    assert batch.coverage.shape == (2, 3)
    assert torch.allclose(batch.masks.mean(dim=(2, 3)), batch.coverage)
    item = SEN12MSCRTS(loader_tree, "test")[1]
    assert np.array_equal(batch.x[1, 2, :2], item["input"]["S1"][2])
    assert np.array_equal(batch.x[1, 2, 2:], item["input"]["S2"][2])
    assert np.array_equal(batch.target[1, 0], item["target"]["S2"][0])
    mean = [((radar_date(day) - DATE_ORIGIN).days + (optical_date(day) - DATE_ORIGIN).days) / 2 for day in range(3)]
    assert batch.dates.tolist() == [mean, mean]
    assert mean[1] != int(mean[1])  # the sensors' days differ by three
    info = batch.info[1]
    assert (info.index, info.roi, info.patch) == (1, TEST, "2")
    assert info.target_path == series_path(TEST, "S2", 4, 2)
    assert info.sar_paths[1] == series_path(TEST, "S1", 1, 2)
    assert info.to_json()["input_paths"] == [series_path(TEST, "S2", day, 2) for day in range(3)]


def test_without_radar_the_days_are_the_optical_ones(loader_tree):
    (batch,) = build_test_loader(config_for(loader_tree, use_sar=False))
    assert batch.x.shape == (2, 3, 13, SIZE, SIZE)
    assert batch.dates[0].tolist() == [(optical_date(day) - DATE_ORIGIN).days for day in range(3)]


def test_traps_11_a_batch_of_one_is_nothing_special(loader_tree):
    # known issue 11: the published dates become (T,) at batch size 1, and keep the configured size in a smaller last
    # batch
    (both,) = build_test_loader(config_for(loader_tree))
    single = list(build_test_loader(config_for(loader_tree, batch_size=1)))
    for name in ("x", "target", "dates", "masks", "coverage"):
        assert torch.equal(torch.cat([getattr(batch, name) for batch in single]), getattr(both, name))
    sizes = [(batch.n, batch.dates.shape) for batch in build_loaders(config_for(loader_tree)).train]
    assert sizes == [(4, (4, 3)), (2, (2, 3))]


def test_traps_12_coverage_and_number_of_dates_reach_the_test(loader_tree):
    # known issue 12
    (batch,) = build_test_loader(config_for(loader_tree, min_cov=0.3, max_cov=0.5, input_t=2))
    assert batch.x.shape[1] == 2
    assert ((batch.coverage >= 0.3) & (batch.coverage <= 0.5)).all()


def test_splits_come_from_their_roots(loader_tree, tmp_path):
    write_series(tmp_path, "ROIs1970/40", 8, coverages_with_clear(4))
    loaders = build_loaders(config_for(loader_tree, root1=str(tmp_path)))
    assert [len(part.patches) for part in (loaders.train, loaders.val, loaders.test)] == [1, 1, 2]
    assert loaders.train.patches.dataset.roi(0) == "ROIs1970/40"


def test_validation_and_test_of_a_training_see_all_regions(loader_tree):
    loaders = build_loaders(config_for(loader_tree, region="africa"))
    assert len(loaders.test.patches) == 2  # asiaEast
    with pytest.raises(DataError, match=r"split 'test', region 'africa' .*--root2"):
        build_test_loader(config_for(loader_tree, region="africa"))


def test_order_and_dates_are_a_function_of_seed_and_epoch(loader_tree):
    def epochs(numbers, **changes):
        loaders = build_loaders(config_for(loader_tree, **changes))
        found = []
        for number in numbers:
            loaders.set_epoch(number)
            found.append(seen(loaders.train))
        return found

    first, second, third = epochs([1, 2, 3])
    assert epochs([3]) == [third]  # as after a resume
    assert epochs([1, 2], num_workers=2) == [first, second]  # whatever the workers
    assert sorted(entry[0] for entry in first) == list(range(6))
    assert len({str([entry[0] for entry in epoch]) for epoch in (first, second, third)}) > 1
    assert sorted(first) != sorted(second)  # other targets
    assert epochs([1], rdm_seed=2) != [first]
    fixed = epochs([1, 2], vary_samples=False)
    assert sorted(fixed[0]) == sorted(fixed[1])
    assert fixed[0] != fixed[1]


def test_validation_does_not_change_with_the_epoch(loader_tree):
    loaders = build_loaders(config_for(loader_tree))
    before = seen(loaders.val) + seen(loaders.test)
    loaders.set_epoch(7)
    assert seen(loaders.val) + seen(loaders.test) == before


def test_traps_6_the_fraction_is_of_each_split_and_spread_over_regions(loader_tree):
    # known issue 6: the published fraction of val and test is that of the training's length, and takes one region
    rois = ["a"] * 100 + ["b"] * 50 + ["c"] * 10
    taken = choose_subset(rois, 1e9, 0.1, seed=1)
    assert taken == sorted(set(taken))
    assert len(taken) == 16
    counts = [sum(rois[position] == name for position in taken) for name in "abc"]
    assert all(abs(count - 0.1 * size) <= 1 for count, size in zip(counts, (100, 50, 10), strict=True))
    assert choose_subset(rois, 1e9, 0.1, seed=1) == taken
    assert choose_subset(rois, 1e9, 0.1, seed=2) != taken
    loaders = build_loaders(config_for(loader_tree, max_samples_frac=0.5))
    assert [len(part.patches) for part in (loaders.train, loaders.val, loaders.test)] == [3, 1, 1]
    assert {loaders.train.patches.dataset.roi(index) for index in loaders.train.patches.positions} == set(TRAIN)


@pytest.mark.parametrize("seed", range(5))
def test_no_region_is_left_out_while_its_share_is_a_sample(seed):
    rois = [str(number) for number in range(20) for _ in range(10)]
    taken = choose_subset(rois, 1e9, 0.1, seed)
    assert len(taken) == 20
    counts = np.unique([rois[position] for position in taken], return_counts=True)[1]
    assert counts.tolist() == [1] * 20


def test_count_takes_the_first_and_whole_is_whole():
    assert choose_subset(["a"] * 5, 2, 1.0, 1) == [0, 1]
    assert choose_subset(["a"] * 5, 1e9, 1.0, 1) == [0, 1, 2, 3, 4]
    assert choose_subset(["a"] * 5, 1e9, 0.01, 1)  # at least one
    assert len(choose_subset(["a"] * 50, 3, 0.5, 1)) == 3


def test_traps_14_every_loader_has_workers(loader_tree):
    # known issue 14: the published test loader has none
    loaders = build_loaders(config_for(loader_tree, num_workers=2))
    assert [part.num_workers for part in (loaders.train, loaders.val, loaders.test)] == [2, 1, 2]
    assert seen(loaders.test) == seen(build_test_loader(config_for(loader_tree)))


def test_auto_counts_the_processors_at_hand(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert count_workers("auto") == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert count_workers("auto") == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert count_workers("auto") == 0
    assert count_workers(5) == 5


@pytest.fixture
def damaged(loader_tree, tmp_path) -> Path:
    """The first test patch is truncated in a date that is an input; a training patch lacks a date."""
    copy = Path(shutil.copytree(loader_tree, tmp_path / "copy"))
    path = copy / series_path(TEST, "S2", 1, 1)
    path.write_bytes(path.read_bytes()[:2000])
    (copy / series_path(TRAIN[0], "S1", 8, 2)).unlink()
    return copy


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_patch_stops_with_one_line_also_out_of_a_worker(damaged, num_workers):
    loader = build_test_loader(config_for(damaged, num_workers=num_workers))
    with pytest.raises(DataError, match=r"truncated .*S2/1/.*patch_1.tif .*--skip_bad_samples") as caught:
        list(loader)
    assert "\n" not in str(caught.value).strip()
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_samples_are_skipped_and_listed(damaged, num_workers):
    with pytest.raises(DataError, match="patch 2 of ROIs1970/21: one image is missing"):
        build_loaders(config_for(damaged))
    loaders = build_loaders(config_for(damaged, skip_bad_samples=True, num_workers=num_workers, batch_size=1))
    assert len(loaders.train.patches) == 5
    for _ in range(2):
        assert [batch.n for batch in loaders.test] == [0, 1]  # a batch without samples is empty
    assert [(bad.path, bad.reason.split(":")[0]) for bad in loaders.skipped] == [
        (series_path(TRAIN[0], "S1", 0, 2), "patch 2 of ROIs1970/21"),
        (series_path(TEST, "S2", 0, 1), "truncated or damaged image"),
    ]


def test_batches_hold_what_samples_hold_and_open_no_more_than_that(loader_tree, monkeypatch):
    opened: list[str] = []
    original = image_store.read_with_bounds
    monkeypatch.setattr(
        image_store, "read_with_bounds", lambda path, *rest: opened.append(path) or original(path, *rest)
    )
    for use_sar, files in ((True, 7), (False, 4)):  # three inputs and one target; never the target's radar
        loader = build_test_loader(config_for(loader_tree, use_sar=use_sar, batch_size=1))
        batch = next(iter(loader))
        assert len(opened) == files
        sample = loader.patches.dataset[batch.info[0].index]  # converted before it is collated
        plain = Collate(use_sar)([Indexed(batch.info[0].index, sample)])
        for name in ("x", "target", "dates", "masks", "coverage"):
            ours, theirs = getattr(batch, name), getattr(plain, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        assert batch.info == plain.info
        opened.clear()


def test_batches_of_workers_are_those_without(loader_tree):
    (there,), (here,) = (build_test_loader(config_for(loader_tree, num_workers=n, batch_size=2)) for n in (1, 0))
    for name in ("x", "target", "dates", "masks", "coverage"):
        assert torch.equal(getattr(there, name), getattr(here, name))


def test_an_empty_batch_goes_the_way_of_the_others():
    batch = Collate(use_sar=True)([Skipped("a.tif", "truncated")])
    assert (batch.n, len(batch.x), batch.x.shape[2]) == (0, 0, 15)
    assert batch.to("cpu").skipped == (Skipped("a.tif", "truncated"),)


def test_collate_is_picklable_and_refuses_samples_of_several_sizes(loader_tree, tmp_path):
    write_series(tmp_path, TEST, 1, coverages_with_clear(4), size=16)
    small, large = (SEN12MSCRTS(root, "test")[0] for root in (tmp_path, loader_tree))
    collate = pickle.loads(pickle.dumps(Collate(use_sar=False)))
    assert collate == Collate(use_sar=False)
    assert collate([small]).x.shape[-1] == 16
    with pytest.raises(DataError, match=r"3 dates of 32 x 32 pixels, the first .* 16 x 16; .*--batch_size 1"):
        collate([small, large])


def test_missing_roots_and_empty_splits_name_the_flag(loader_tree, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*gone \(--root1\)"):
        build_loaders(config_for(loader_tree, root1=str(tmp_path / "gone")))
    with pytest.raises(UsageError, match="--root2 is not given"):
        build_loaders(config_for(loader_tree, root2=""))
    with pytest.raises(DataError, match=r"split 'train', region 'all' in .*\(--root1\)"):
        build_loaders(config_for(loader_tree, root1=str(tmp_path)))
    with pytest.raises(DataError, match=r"split 'val', region 'all' in .*\(--root2\)"):
        build_loaders(config_for(loader_tree, root2=str(tmp_path)))
    with pytest.raises(DataError, match=r"no folder .*gone \(--root3\)"):
        build_loaders(config_for(loader_tree, root3=str(tmp_path / "gone"), pretrain=True, sample_type="pretrain"))
    with pytest.raises(UsageError, match="--sample_type generic has no target"):
        build_loaders(config_for(loader_tree, sample_type="generic"))


def test_one_empty_split_of_two_is_a_warning(tmp_path):
    for roi in ("ROIs2017_winter/112", "ROIs1970_fall/139"):  # training and test, as in the scrap of real patches
        write_triplet(tmp_path, roi, 5)
    with pytest.warns(UserWarning, match=r"split 'val', .*\(--root3\).*continuing without that split"):
        loaders = build_loaders(config_for("", root3=str(tmp_path), pretrain=True, sample_type="pretrain", input_t=1))
    assert loaders.val is None
    (batch,) = loaders.test
    assert batch.x.shape == (1, 1, 15, SIZE, SIZE)
    assert batch.dates is None
    assert batch.info[0].target_path == triplet_path("ROIs1970_fall/139", "s2", 5)


def test_custom_samples_reach_the_test(loader_tree, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(f'[{{"target": ["{series_path(TEST, "S2", 4, 2)}"], "inputs": [1, 3]}}]')
    loader = build_test_loader(config_for(loader_tree, use_custom=str(path)))
    loader.patches.dataset.cloud_masks = "cloud_cloudshadow_mask"  # spares the tests the slow detector
    (batch,) = loader
    assert batch.x.shape == (1, 2, 15, SIZE, SIZE)
    assert batch.info[0].target_path == series_path(TEST, "S2", 4, 2)
    assert batch.target[0, 0, 0, 0, 0] == np.float32(optical_level(2, 4) / 1e4)
    with pytest.raises(DataError, match="no twin of .*patch_171.tif"):
        build_test_loader(config_for(loader_tree, use_custom="published"))


def test_published_coverage_serves_series_and_leaves_triplets_alone(loader_tree, tmp_path):
    names = [f"data/{series_path(TEST, 'S2', day, patch)}" for patch in (1, 2) for day in range(30)]
    share = coverages_with_clear(25)
    entries = {
        position: {"coverage": [torch.tensor(value) for value in share], "paths": {"S2": names[30 * position :][:30]}}
        for position in range(2)
    }
    np.save(tmp_path / f"generic_3_test_all_{DETECTOR}.npy", entries, allow_pickle=True)
    (batch,) = build_test_loader(config_for(loader_tree, precomputed=str(tmp_path)))
    assert batch.info[0].target_path == series_path(TEST, "S2", 25, 1)
    triplets = tmp_path / "triplets"
    write_triplet(triplets, "ROIs1970_fall/139", 5)
    mono = {"root3": str(triplets), "pretrain": True, "sample_type": "pretrain", "precomputed": str(tmp_path)}
    assert next(iter(build_test_loader(config_for(loader_tree, **mono)))).n == 1


@pytest.fixture
def damaged_tree(tmp_path) -> Path:
    """Two patches of a training region, of validation and test; one training target lacks its lower half."""
    for roi, patches in ((TRAIN[0], (1, 2)), (VAL, (1,)), (TEST, (1, 2))):
        for patch in patches:
            write_series(tmp_path, roi, patch, coverages_with_clear(4))
    zero_rows(tmp_path / series_path(TRAIN[0], "S2", 4, 2), SIZE // 2)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_target_is_masked_and_said_once_in_all_epochs(damaged_tree, workers):
    loaders = build_loaders(config_for(damaged_tree, num_workers=workers, vary_samples=False))
    batches = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in (1, 2, 3):
            loaders.set_epoch(epoch)
            batches += list(loaders.train)
    texts = [str(entry.message) for entry in caught if "0 in every band" in str(entry.message)]
    path = damaged_tree / series_path(TRAIN[0], "S2", 4, 2)
    assert len(texts) == 1
    assert texts[0].startswith(f"{path}: 512 of 1024 pixels (50.0%) are 0 in every band")
    for batch in batches:
        assert batch.valid.shape == (2, 1, SIZE, SIZE)
        damaged = [info.patch for info in batch.info].index("2")
        assert batch.valid[1 - damaged].all()
        assert batch.valid[damaged, 0].sum() == SIZE * SIZE // 2
        assert not batch.valid[damaged, 0, SIZE // 2 :].any()
        assert torch.equal(batch.valid, (batch.target > 0).any(dim=2))
        complete = batch.without_missing()
        assert (complete.n, complete.valid, len(complete.x), complete.info[0].patch) == (1, None, 1, "1")
        assert torch.equal(complete.target, batch.target[1 - damaged : 2 - damaged])
    assert next(iter(loaders.test)).valid is None


def test_a_damaged_target_is_left_out_if_bad_samples_are_skipped(damaged_tree):
    loaders = build_loaders(config_for(damaged_tree, skip_bad_samples=True, vary_samples=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = loaders.train
    assert (batch.n, batch.valid) == (1, None)
    (skipped,) = loaders.skipped
    assert "512 of 1024 pixels (50.0%) are 0 in every band" in skipped.reason
