"""LightGBM's boosted trees, evaluated many times faster than by LightGBM and bitwise equal to it.

LightGBM evaluates all trees pixel by pixel, and together they exceed a processor's cache. Here thresholds become bytes
(a feature has at most 254 of them), similar pixels descend a tree together, and the leaves of a pixel are added in the
order of the trees, so that the sums are LightGBM's.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

_GROUP = 512  # pixels that descend a tree together: the fastest of 64 to 1024 on real patches
_CHUNK = 8192  # minimum number of pixels for each thread
_EDGES = 256
_SMALLEST = 1e-30  # LightGBM treats absolute values below 1e-35 as zero
_ROUNDING = 1e-13  # relative; far above the differences between implementations of exp
_HEADER = {"num_class": "1", "num_tree_per_iteration": "1", "objective": "binary sigmoid:1"}


@dataclass(frozen=True)
class CompiledTrees:
    """Trees of a binary classifier; `splits` and `leaves` are those of the largest tree, others are padded.

    Attributes:
        edges: float64 (features, 256), the thresholds of each feature in ascending order, padded with infinity.
        feature: uint8 (trees, splits).
        threshold: uint8 (trees, splits), an index into the feature's edges: a pixel goes left if no more edges lie
            below its value.
        left: int16 (trees, splits), a split, or ~leaf.
        right: as `left`.
        value: float64 (trees, leaves).
    """

    edges: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def from_text(cls, text: str) -> "CompiledTrees":
        """Parse the output of `lightgbm.Booster.model_to_string`.

        Raises:
            ValueError: if the model has unsupported features: more than two classes, categories, missing values, linear
                leaves, averaged trees, or more than 254 thresholds of a feature.
        """
        head, *blocks = text.split("end of trees")[0].split("\nTree=")
        header = _fields(head)
        if any(header.get(name) != value for name, value in _HEADER.items()) or "average_output" in head:
            raise ValueError(f"only sums of trees with {_HEADER} are supported")
        trees = [_tree(_fields(block)) for block in blocks]
        if not trees:
            raise ValueError("no trees in the model")
        features = np.concatenate([tree["split_feature"] for tree in trees])
        thresholds = np.concatenate([tree["threshold"] for tree in trees])
        if (np.abs(thresholds) < _SMALLEST).any():
            raise ValueError("a threshold at zero is not supported")
        edges = np.full((int(header["max_feature_idx"]) + 1, _EDGES), np.inf)
        for index, row in enumerate(edges):
            distinct = np.unique(thresholds[features == index])
            if len(distinct) >= _EDGES - 1:
                raise ValueError(f"feature {index} has {len(distinct)} thresholds; at most {_EDGES - 2} are supported")
            row[: len(distinct)] = distinct
        for tree in trees:
            tree["bin"] = (edges[tree["split_feature"].astype(int)] < tree["threshold"][:, None]).sum(axis=1)
        return cls(
            edges,
            _pad(trees, "split_feature", np.uint8),
            _pad(trees, "bin", np.uint8),
            _pad(trees, "left_child", np.int16),
            _pad(trees, "right_child", np.int16),
            _pad(trees, "leaf_value", np.float64),
        )

    def raw_scores(self, columns: np.ndarray, threads: int = 1) -> np.ndarray:
        """The sums of the leaves, as `lightgbm.Booster.predict(rows, raw_score=True)`.

        Args:
            columns: (features, N), finite: one row for each feature.
            threads: maximum number of threads; the result does not depend on it.

        Returns:
            float64 (N,).

        Raises:
            ImportError: if numba is not installed.
        """
        n_chunks = max(1, min(threads, columns.shape[1] // _CHUNK))
        if n_chunks == 1:
            return self._score_chunk(columns)
        with ThreadPoolExecutor(n_chunks) as pool:  # ended at once: threads would be lost in a fork
            return np.concatenate(list(pool.map(self._score_chunk, np.array_split(columns, n_chunks, axis=1))))

    def probabilities(self, columns: np.ndarray, threads: int = 1) -> np.ndarray:
        """LightGBM's probabilities rounded to float32, (N,); arguments and errors as for `raw_scores`."""
        return rounded_sigmoid(self.raw_scores(columns, threads))

    def _score_chunk(self, columns: np.ndarray) -> np.ndarray:
        from data.clouds.tree_kernels import bin_values, group_similar, sum_leaves  # deferred: imports numba, optional

        bins = bin_values(np.ascontiguousarray(columns), self.edges)
        order, starts = group_similar(bins, _GROUP)
        sums: np.ndarray = sum_leaves(
            bins, order, starts, self.feature, self.threshold, self.left, self.right, self.value
        )
        return sums

    def probe(self, n: int = 256) -> np.ndarray:
        """Values around thresholds, float32 (features, n), for a comparison with LightGBM."""
        rng = np.random.default_rng(0)
        probe = np.zeros((len(self.edges), n), np.float32)
        for row, edges in zip(probe, self.edges, strict=True):
            finite = edges[np.isfinite(edges)]
            if len(finite):
                row[:] = rng.choice(finite, n)
        # a third of them on the threshold, a third on either side of it
        return np.nextafter(probe, probe + rng.integers(-1, 2, probe.shape).astype(np.float32))


def rounded_sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-scores)) as float32, bitwise as with the C library's exp.

    numpy's exp may differ from it in the last digit of float64. In float32 that matters only near the midpoint between
    two numbers, where the C library's exp is used.
    """
    probability = 1.0 / (1.0 + np.exp(-scores))
    ambiguous = (probability * (1 - _ROUNDING)).astype(np.float32) != (probability * (1 + _ROUNDING)).astype(np.float32)
    if ambiguous.any():
        probability[ambiguous] = [1.0 / (1.0 + math.exp(-score)) for score in scores[ambiguous]]
    rounded: np.ndarray = probability.astype(np.float32)
    return rounded


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _tree(fields: dict[str, str]) -> dict[str, np.ndarray]:
    plain = fields["num_cat"] == "0" and fields.get("is_linear", "0") == "0" and int(fields["num_leaves"]) > 1
    # bits of the decision type: 1 categorical, 2 direction of missing values, 4 and 8 kind of missing values
    if not plain or any(int(kind) & ~2 for kind in fields["decision_type"].split()):
        raise ValueError("a tree with categories, missing values, linear leaves or without splits is not supported")
    names = ("split_feature", "threshold", "left_child", "right_child", "leaf_value")
    return {name: np.array(fields[name].split(), np.float64) for name in names}


def _pad(trees: list[dict[str, np.ndarray]], name: str, dtype: Any) -> np.ndarray:
    """One row for each tree, padded with zeros."""
    rows = np.zeros((len(trees), max(len(tree[name]) for tree in trees)), dtype)
    for row, tree in zip(rows, trees, strict=True):
        row[: len(tree[name])] = tree[name]
    return rows
