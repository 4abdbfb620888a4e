"""Held-out regions of a fusion."""

from pathlib import Path

import pytest
import torch

from common.errors import DataError
from data.holdout import build_evidence_split, build_fit_split, held_out_rois
from data.loaders import build_loaders
from data.splits import hold_out
from parse_args import Config
from tests.support.fake_trees import coverages_with_clear, write_series

TRAIN = ("ROIs1868/36", "ROIs1868/56", "ROIs1868/85", "ROIs1868/114")
VAL = ("ROIs1868/17", "ROIs1868/127", "ROIs1970/65")


@pytest.fixture(scope="module")
def split_tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("split_tree")
    for number, roi in enumerate((*TRAIN, *VAL)):
        write_series(root, roi, number, coverages_with_clear(4, 9), size=8)
    return root


def config_of(tree, **changes) -> Config:
    flags = {"root1": str(tree), "root2": str(tree), "device": "cpu", "input_t": 2, "batch_size": 2, **changes}
    return Config(model="fusion_net", **flags)


def rois_in(loader) -> set[str]:
    return {loader.patches.dataset.roi(index) for index in loader.patches.positions}


def test_the_draw_of_a_region_does_not_depend_on_the_others():
    names = [f"ROIs1868/{n}" for n in range(30)]
    drawn = hold_out(names, 5, seed=1)
    assert drawn == hold_out(list(reversed(names)) * 2, 5, seed=1)
    assert drawn != hold_out(names, 5, seed=2)
    assert hold_out(names, 3, seed=1) == drawn[:3]
    some = [name for name in names if name in drawn or int(name.split("/")[1]) % 3 == 0]
    assert hold_out(some, 5, seed=1) == drawn  # a partial download that has them draws the same
    assert len(hold_out(names, 99, seed=1)) == 30


def test_held_out_regions_train_nobody_and_fit_the_fusion(split_tree):
    config = config_of(split_tree, fit_rois=1)
    held = held_out_rois(config)
    assert len(held) == 1
    with pytest.warns(UserWarning, match="continuing without that split"):  # there is no test region
        loaders = build_loaders(Config(**{**vars(config), "held_out": held}))
    assert rois_in(loaders.train) == set(TRAIN) - set(held)
    split = build_fit_split(config, held)
    assert rois_in(split.fit) == set(held)
    assert split.guard is not None
    assert rois_in(split.guard) == set(VAL)
    first, again = ([batch.dates for batch in split.fit] for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # the dates do not vary


def test_how_many_are_held_out(split_tree):
    assert len(held_out_rois(config_of(split_tree))) == 1  # a tenth of four, but at least one
    assert held_out_rois(config_of(split_tree, fit_rois=0)) == ()
    assert held_out_rois(Config(root1=str(split_tree))) == ()  # another network holds nothing out by default
    with pytest.raises(DataError, match="--fit_rois 4 leaves none of the 4 training regions"):
        held_out_rois(config_of(split_tree, fit_rois=4))


def test_validation_is_divided_by_region_where_nothing_was_held_out(split_tree):
    split = build_fit_split(config_of(split_tree), ())
    assert split.guard is not None
    fit, guard = rois_in(split.fit), rois_in(split.guard)
    assert (len(fit), len(guard)) == (1, 2)
    assert fit | guard == set(VAL)
    assert "1 of 3 validation regions fit the fusion, the others test it" in split.notes[0]
    drawn = {frozenset(rois_in(build_fit_split(config_of(split_tree, rdm_seed=seed), ()).fit)) for seed in range(8)}
    assert len(drawn) > 1


def test_one_patch_cannot_judge(split_tree, tmp_path):
    for roi in (TRAIN[0], VAL[0]):
        write_series(tmp_path, roi, 1, coverages_with_clear(4, 9), size=8)
    split = build_fit_split(config_of(tmp_path), ())
    assert split.guard is None
    assert "validation has one patch only" in split.notes[0]


def test_evidence_is_fitted_on_regions_that_no_weight_saw(split_tree):
    config = config_of(split_tree, fit_rois=1)
    train, held_out = build_evidence_split(config)
    names = held_out_rois(config)
    assert rois_in(train) == set(TRAIN) - set(names)
    assert [rois_in(loader) for loader in held_out] == [set(names), set(VAL)]
    assert [rois_in(loader) for loader in build_evidence_split(config_of(split_tree, fit_rois=0))[1]] == [set(VAL)]
