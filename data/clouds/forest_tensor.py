"""The trees of `data.clouds.compiled_trees` as tensor operations, on any device that torch knows.

Not run on a GPU yet: neither its speed there nor equality to the bit is known. On a CPU the sums equal LightGBM's to
the bit, but it takes several times as long as LightGBM, and `data.clouds.compiled_trees` takes a small part of that time.
`python -m util.pre_compute_data_samples --device cuda` takes this way, if a probe equals LightGBM there;
`benchmarks.cloud_masks --device cuda` compares and times it where there is a GPU.
"""

import numpy as np
import torch

from data.clouds.compiled_trees import Forest, rounded_sigmoid


class TensorForest:
    """A forest on a device.

    Args:
        forest: what `Forest.from_text` read.
        device: where to keep and to evaluate it.
        chunk: pixels at a time; each takes about 40 bytes a tree.
    """

    def __init__(self, forest: Forest, device: str | torch.device = "cpu", chunk: int = 1 << 16) -> None:
        depths = np.array([_depth(left, right) for left, right in zip(forest.left, forest.right, strict=True)])
        order = np.argsort(-depths, kind="stable")  # deepest first: what is still on its way is a beginning
        self._steps = [int((depths > step).sum()) for step in range(int(depths.max()))]
        self._place = np.argsort(order)  # of each tree in the model's order
        splits, leaves = forest.left.shape[1], forest.value.shape[1]
        size = splits + leaves
        children = np.stack([forest.left, forest.right], axis=-1).astype(np.int64)
        children = np.where(children < 0, splits + ~children, children)
        # a leaf leads to itself
        stay = np.broadcast_to(np.arange(splits, size)[None, :, None], (len(order), leaves, 2))
        children = np.concatenate([children, stay], axis=1)[order] + size * np.arange(len(order))[:, None, None]
        pad = ((0, 0), (0, leaves))
        self.device, self._chunk, self._size = torch.device(device), chunk, size
        self._children = self._tensor(children.reshape(-1))
        self._feature = self._tensor(np.pad(forest.feature, pad)[order].reshape(-1).astype(np.int64))
        self._threshold = self._tensor(np.pad(forest.threshold, pad)[order].reshape(-1))
        self._value = self._tensor(np.pad(forest.value, ((0, 0), (splits, 0)))[order].reshape(-1))
        self._edges = self._tensor(forest.edges)

    @torch.inference_mode()
    def raw_scores(self, columns: np.ndarray) -> np.ndarray:
        """As `Forest.raw_scores`: float32 or float64 (features, N) to float64 (N,)."""
        values = self._tensor(columns).to(torch.float64)
        return np.concatenate([self._sums(part).cpu().numpy() for part in values.split(self._chunk, dim=1)])

    def probabilities(self, columns: np.ndarray, threads: int = 1) -> np.ndarray:
        """As `Forest.probabilities`; `threads` is without meaning here."""
        return rounded_sigmoid(self.raw_scores(columns))

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        bins = torch.searchsorted(self._edges, values.contiguous()).to(torch.uint8)  # edges below the value
        n = bins.shape[1]
        flat, pixel = bins.reshape(-1), torch.arange(n, device=self.device)
        roots = self._size * torch.arange(len(self._place), device=self.device)
        node = roots[:, None].repeat(1, n)
        for on_their_way in self._steps:
            at = node[:on_their_way]
            right = flat[self._feature[at] * n + pixel] > self._threshold[at]
            node[:on_their_way] = self._children[2 * at + right]
        total = torch.zeros(n, dtype=torch.float64, device=self.device)
        for place in self._place.tolist():
            total += self._value[node[place]]
        return total

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _depth(left: np.ndarray, right: np.ndarray) -> int:
    deepest, level = 0, [0]
    while level:
        children = [int(child) for node in level for child in (left[node], right[node])]
        level = [child for child in children if child >= 0]
        deepest += 1
    return deepest
