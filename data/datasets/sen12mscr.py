"""SEN12MS-CR: triplets of radar, cloudy and clear image of single dates, for pre-training."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError
from data.batch import Sample
from data.datasets.base import DatasetOptions, PatchDataset
from data.layout import list_images
from data.raster.image_store import open_images
from data.raster.missing import valid_pixels
from data.splits import MONO, rois

MEMBERS = {"S1": "s1", "S2": "s2", "S2_cloudy": "s2_cloudy"}


class SEN12MSCR(PatchDataset):
    """Triplets of one radar, one cloudy and one clear patch; an item is a nested dict with the published keys.

    Args:
        root: folder or pack with ROIs1970_fall_s1 etc.
        split: all, train, val or test.
        region: all; this data set has no others.
        cloud_masks: the cloud detector; None gives masks of 0 and coverage NaN.
        sample_type: "pretrain", the only one.
        rescale_method: "default", [0, 1]; or "resnet", optical [0, 5] and radar [0, 2].
        n_input_samples: 1.
        import_data_path: a mask store; None is the default store.
        options: fields of `data.datasets.base.DatasetOptions`.

    Attributes:
        paths: {"S1": ..., "S2": ..., "S2_cloudy": ...} of each sample, relative to the root.
        bad_samples: always empty; incomplete triplets are left out, and counted in a warning.

    Raises:
        DataError: if the root is missing or the split empty.
        UsageError: if an option is unknown.
    """

    name = MONO
    root_holds = "ROIs1158_spring_s1, ROIs1158_spring_s2 etc."
    sample_types = ("pretrain",)

    def __init__(
        self,
        root: str | Path,
        split: str = "all",
        region: str = "all",
        cloud_masks: str | None = "s2cloudless_mask",
        sample_type: str = "pretrain",
        rescale_method: str = "default",
        n_input_samples: int = 1,
        import_data_path: str | Path | None = None,
        **options: Any,
    ) -> None:
        if n_input_samples != 1:
            raise UsageError(f"{MONO} has one date a sample, not input_t {n_input_samples}")
        chosen = DatasetOptions(**options)
        super().__init__(root, split, region, cloud_masks, sample_type, n_input_samples, rescale_method, chosen)
        self.paths, n_incomplete = index_triplets(self.root_dir, rois(MONO, split, region, chosen.legacy))
        if n_incomplete:
            warnings.warn(
                f"{n_incomplete} triplets of split {split!r} in {self.root_dir} lack a member and are left out",
                stacklevel=2,
            )
        self._require_samples(n_incomplete)
        self._open_store(import_data_path, (paths["S2_cloudy"] for paths in self.paths))

    def first_path(self, index: int) -> str:
        """The path that identifies a sample: its cloudy image."""
        return str(self.paths[index]["S2_cloudy"])

    def load(self, index: int, for_batch: bool = False, radar: bool = True) -> Sample:
        """Read a sample, see `PatchDataset.load`."""
        paths = self.paths[index]
        clear, bounds = self._read_optical(paths["S2"], target=True)
        cloudy, _ = self._read_optical(paths["S2_cloudy"])
        coverage = float(self._coverages([paths["S2_cloudy"]], [cloudy])[0])
        full_paths = {member: os.path.join(self.root_dir, path) for member, path in paths.items()}
        with_radar = radar or not for_batch
        return {
            "input": {
                "S1": self._rescale(paths["S1"], self._read_radar(paths["S1"]), for_batch) if with_radar else [],
                "S2": self._rescale(paths["S2_cloudy"], cloudy, for_batch),
                "masks": self._masks([paths["S2_cloudy"]], [cloudy])[0],
                "coverage": coverage,
                "S1 path": full_paths["S1"],
                "S2 path": full_paths["S2_cloudy"],
                "coord": list(bounds),
            },
            "target": {
                "S2": self._rescale(paths["S2"], clear, for_batch),
                "S2 path": full_paths["S2"],
                "coord": list(bounds),
                "valid": valid_pixels(clear),
            },
        }


def index_triplets(root: str | Path, regions: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """Find the complete triplets of some regions.

    Args:
        root: folder or pack of the data set; regions that it lacks are ignored.
        regions: such as "ROIs1970_fall/139".

    Returns:
        The paths of each triplet, relative to the root, by region and patch number; and the number of incomplete
        triplets.
    """
    names = open_images(root).names
    triplets: list[dict[str, str]] = []
    n_incomplete = 0
    for roi in regions:
        patches: dict[int, dict[str, str]] = {}
        for member, stack in MEMBERS.items():
            for _, number, path in list_images(names, MONO, roi, stack):
                if number is not None:
                    patches.setdefault(number, {})[member] = path
        complete = [patches[number] for number in sorted(patches) if len(patches[number]) == len(MEMBERS)]
        triplets.extend(complete)
        n_incomplete += len(patches) - len(complete)
    return triplets, n_incomplete
