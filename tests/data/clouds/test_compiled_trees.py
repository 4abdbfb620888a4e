import math

import lightgbm
import numpy as np
import pytest

from data.clouds.compiled_trees import CompiledTrees, rounded_sigmoid

ROWS, FEATURES = 3000, 4


def data(seed=0):
    """Few distinct values, as in images: after rounding to float64 many of them lie on thresholds."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 400, (ROWS, FEATURES)) / np.float32(1000)
    return rows, (np.sin(30 * rows[:, 0]) + rows[:, 1] - rows[:, 2] * rows[:, 3] > rng.normal(size=ROWS) / 2).astype(
        int
    )


def train(n_trees=12, **more):
    rows, labels = data()
    settings = {"objective": "binary", "num_leaves": 40, "min_data_in_leaf": 5, "verbose": -1, "num_threads": 1}
    return lightgbm.train({**settings, **more}, lightgbm.Dataset(rows, labels), n_trees)


@pytest.fixture(scope="module")
def booster():
    return train()


@pytest.fixture(scope="module")
def trees(booster):
    return CompiledTrees.from_text(booster.model_to_string())


@pytest.mark.parametrize("n", [1, 2, 511, 513, ROWS])
def test_sums_equal_lightgbm_to_the_bit(booster, trees, n):
    rows = data(seed=1)[0][:n].astype(np.float32)
    want = booster.predict(rows, raw_score=True)
    np.testing.assert_array_equal(trees.raw_scores(np.ascontiguousarray(rows.T)), want)
    probability = booster.predict(rows).astype(np.float32)
    np.testing.assert_array_equal(trees.probabilities(np.ascontiguousarray(rows.T)), probability)
    assert n < ROWS or len(np.unique(want)) > 500  # the comparison is not trivial


def test_values_on_and_beside_thresholds(booster, trees):
    rng = np.random.default_rng(2)
    on = np.stack([rng.choice(edges[np.isfinite(edges)], ROWS) for edges in trees.edges])
    for columns in (on, np.nextafter(on, -np.inf), np.nextafter(on, np.inf), trees.probe(ROWS)):
        np.testing.assert_array_equal(trees.raw_scores(columns), booster.predict(columns.T, raw_score=True))
    # a threshold itself lies on the other side than the next larger number
    assert (trees.raw_scores(on) != trees.raw_scores(np.nextafter(on, np.inf))).any()


def test_values_beyond_all_thresholds(booster, trees):
    rows = np.array([[-1e30, 1e30, 0, 1e-40], [1e30, -1e30, 1e-36, 0], [0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(trees.raw_scores(rows.T), booster.predict(rows, raw_score=True))


def test_pixels_all_alike_are_one_group(booster, trees):
    """More of them than the maximum size of a group: splitting must terminate."""
    columns = np.repeat(data()[0][:1].astype(np.float32).T, 2000, axis=1)
    want = booster.predict(columns.T[:1], raw_score=True)
    np.testing.assert_array_equal(trees.raw_scores(columns), np.repeat(want, 2000))


def test_rare_pixels_that_no_sample_sees(booster, trees):
    """A group that is not split because its sample is identical: the trees must divide it."""
    columns = np.repeat(data()[0][:1].astype(np.float32).T, 5000, axis=1)
    columns[:, 1::97] = data()[0][: len(columns[0, 1::97])].T
    want = booster.predict(columns.T, raw_score=True)
    assert len(np.unique(want)) > 20
    np.testing.assert_array_equal(trees.raw_scores(columns), want)


def test_threads_change_nothing(trees):
    columns = np.ascontiguousarray(np.tile(data()[0].astype(np.float32).T, 6))
    np.testing.assert_array_equal(trees.raw_scores(columns, threads=2), trees.raw_scores(columns, threads=1))


def test_trees_of_different_sizes():
    booster = train(n_trees=30, min_gain_to_split=8.0)
    trees = CompiledTrees.from_text(booster.model_to_string())
    leaves = {tree["num_leaves"] for tree in booster.dump_model()["tree_info"]}
    assert len(leaves) > 1
    rows = data(seed=1)[0].astype(np.float32)
    np.testing.assert_array_equal(trees.raw_scores(rows.T), booster.predict(rows, raw_score=True))


def test_the_sigmoid_is_that_of_the_c_library():
    scores = np.random.default_rng(0).uniform(-45, 45, 20000)
    # scores whose probability is the midpoint of two float32 numbers, where the last digit of float64 decides
    middle = np.nextafter(np.float32(0.4), np.float32(1)).astype(np.float64) / 2 + np.float64(np.float32(0.4)) / 2
    tie = -math.log(1 / middle - 1)
    ties = [tie]
    for _ in range(20):
        ties = [np.nextafter(ties[0], -np.inf), *ties, np.nextafter(ties[-1], np.inf)]
    scores = np.concatenate([scores, ties])
    want = np.array([1 / (1 + math.exp(-score)) for score in scores]).astype(np.float32)
    np.testing.assert_array_equal(rounded_sigmoid(scores), want)
    assert len(np.unique(want[-41:])) == 2  # ties are rounded both ways


def with_missing():
    rows, labels = data()
    rows[::7, 0] = np.nan
    return lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, labels), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train(2, objective="regression"), "only sums of trees with .*binary sigmoid:1"),
        (lambda: train(2, sigmoid=2.0), "only sums of trees with .*binary sigmoid:1"),
        (lambda: train(2, boosting="rf", bagging_freq=1, bagging_fraction=0.5), "only sums of trees"),
        (lambda: train(2, linear_tree=True), "linear leaves"),
        (lambda: train(2, min_gain_to_split=1e9), "without splits"),
        (lambda: train(200, max_bin=1000, min_data_in_bin=1), "feature . has .* thresholds; at most 254 are supported"),
        (with_missing, "missing values"),
    ],
)
def test_models_that_are_not_covered_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        CompiledTrees.from_text(make().model_to_string())
