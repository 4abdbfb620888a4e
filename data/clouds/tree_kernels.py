"""Numba kernels of `data.clouds.compiled_trees`.

The first call in a fresh installation compiles them for a few seconds; the result is cached on disk.
"""

import numpy as np
from numba import njit

_SAMPLE = 32  # pixels of a group that determine its split


@njit(nogil=True, cache=True)
def bin_values(columns: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Number of edges below each value.

    Args:
        columns: (F, N), one row for each feature.
        edges: float64 (F, 256), ascending, padded with infinity.

    Returns:
        uint8 (N, F).
    """
    n_features, n = columns.shape
    bins = np.empty((n, n_features), np.uint8)
    for f in range(n_features):
        for i in range(n):
            value = np.float64(columns[f, i])
            below, step = 0, 128
            while step > 0:  # bisection without a branch
                below += step * (edges[f, below + step - 1] < value)
                step >>= 1
            bins[i, f] = below
    return bins


@njit(nogil=True, cache=True)
def group_similar(bins: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Group similar pixels: split at the middle of the widest feature until the groups are small enough.

    Args:
        bins: uint8 (N, F).
        largest: maximum size of a group, unless a sample of its pixels is identical.

    Returns:
        int32 (N,): the pixels by group; int32 (groups + 1,): start of each group, and N.
    """
    n, n_features = bins.shape
    order = np.arange(n).astype(np.int32)
    starts = np.empty(n + 1, np.int32)
    n_groups = 0
    pending = np.empty((256 * n_features, 2), np.int32)  # each split shortens the range of a feature
    pending[0, 0], pending[0, 1] = 0, n
    depth = 1
    low, high = np.empty(n_features, np.uint8), np.empty(n_features, np.uint8)
    while depth > 0:
        depth -= 1
        start, stop = pending[depth]
        widest, width = 0, 0
        if stop - start > largest:
            low[:] = 255
            high[:] = 0
            for i in range(start, stop, (stop - start) // _SAMPLE + 1):
                for f in range(n_features):
                    value = bins[order[i], f]
                    low[f] = min(low[f], value)
                    high[f] = max(high[f], value)
            for f in range(n_features):
                if int(high[f]) - int(low[f]) > width:
                    widest, width = f, int(high[f]) - int(low[f])
        if width == 0:
            starts[n_groups] = start
            n_groups += 1
            continue
        middle = (int(low[widest]) + int(high[widest])) // 2
        cut = start
        for i in range(start, stop):
            pixel = order[i]
            order[i] = order[cut]
            order[cut] = pixel
            cut += bins[pixel, widest] <= middle
        pending[depth, 0], pending[depth, 1] = cut, stop
        pending[depth + 1, 0], pending[depth + 1, 1] = start, cut
        depth += 2
    starts[n_groups] = n
    return order, starts[: n_groups + 1]


@njit(nogil=True, cache=True)
def sum_leaves(
    bins: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    value: np.ndarray,
) -> np.ndarray:
    """The sum of each pixel's leaves over all trees, added in the order of the trees.

    A group descends each tree together. A split outside the group's range costs two comparisons for all its pixels;
    only at other splits are the pixels compared one by one, and the group divided.

    Args:
        bins: uint8 (N, F).
        order: from `group_similar`.
        starts: from `group_similar`.
        feature: uint8 (trees, splits).
        threshold: uint8 (trees, splits); a pixel goes left where its bin is not greater.
        left: int16 (trees, splits), a split, or ~leaf.
        right: as `left`.
        value: float64 (trees, leaves).

    Returns:
        float64 (N,).
    """
    n_features = bins.shape[1]
    sums = np.empty(len(bins), np.float64)
    largest = 0
    for group in range(len(starts) - 1):
        largest = max(largest, starts[group + 1] - starts[group])
    local = np.empty((n_features, largest), np.uint8)  # bins of the group, contiguous by feature
    total, members = np.empty(largest, np.float64), np.empty(largest, np.int32)
    low, high = np.empty(n_features, np.uint8), np.empty(n_features, np.uint8)
    pending = np.empty((feature.shape[1] + 1, 3), np.int32)
    for group in range(len(starts) - 1):
        first = starts[group]
        size = starts[group + 1] - first
        for f in range(n_features):
            lowest, highest = np.uint8(255), np.uint8(0)
            for i in range(size):
                bin_ = bins[order[first + i], f]
                local[f, i] = bin_
                lowest, highest = min(lowest, bin_), max(highest, bin_)
            low[f], high[f] = lowest, highest
        for i in range(size):
            total[i], members[i] = 0.0, i
        for tree in range(len(feature)):
            pending[0, 0], pending[0, 1], pending[0, 2] = 0, 0, size
            depth = 1
            while depth > 0:
                depth -= 1
                node, start, stop = pending[depth]
                while node >= 0:
                    f, bound = feature[tree, node], threshold[tree, node]
                    if high[f] <= bound:
                        node = np.int32(left[tree, node])
                        continue
                    if low[f] > bound:
                        node = np.int32(right[tree, node])
                        continue
                    cut = start
                    for i in range(start, stop):  # partitioned in place, without a branch
                        member = members[i]
                        members[i] = members[cut]
                        members[cut] = member
                        cut += local[f, member] <= bound
                    if cut == start:
                        node = np.int32(right[tree, node])
                        continue
                    if cut < stop:
                        pending[depth, 0], pending[depth, 1], pending[depth, 2] = right[tree, node], cut, stop
                        depth += 1
                        stop = cut
                    node = np.int32(left[tree, node])
                leaf = value[tree, ~node]
                for i in range(start, stop):
                    total[members[i]] += leaf
        for i in range(size):
            sums[order[first + i]] = total[i]
    return sums
