"""SEN12MS-CR: triplets of radar, cloudy and clear image of single dates, for pre-training."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.errors import DataError, UsageError
from data.batch import Sample, Skipped
from data.clouds.mask_store import MaskStore, open_mask_store
from data.datasets.patch_reader import PatchReader, check_choice, check_options, checked_root, empty_split
from data.raster.geotiff import GeoRef
from data.raster.image_store import open_images
from data.splits import MONO, rois

LAYOUT = (
    "ROOT/ROIs1970_fall_s1/s1_139/ROIs1970_fall_s1_139_p839.tif with its twins ROIs1970_fall_s2/s2_139/… and "
    "ROIs1970_fall_s2_cloudy/s2_cloudy_139/…"
)
MEMBERS = {"S1": "s1", "S2": "s2", "S2_cloudy": "s2_cloudy"}


class SEN12MSCR(Dataset[Any]):
    """Triplets of one radar, one cloudy and one clear patch; an item is a nested dict with the published keys.

    Args:
        root: folder with ROIs1970_fall_s1 and its like.
        split: all, train, val or test.
        region: all; this data set has no others.
        cloud_masks: the cloud detector; None finds no clouds (mask 0, coverage NaN).
        sample_type: "pretrain", the only one.
        rescale_method: "default", [0, 1]; or "resnet", optical [0, 5] and radar [0, 2].
        n_input_samples: 1.
        import_data_path: a mask store; None is the default store.
        legacy: the published split, in which test regions are also trained on.
        skip_bad_samples: an item that cannot be read is a `data.batch.Skipped`, which `data.batch.Collate` drops.
        flag: what error messages call the root.

    Attributes:
        paths: {"S1": ..., "S2": ..., "S2_cloudy": ...} for each sample, relative to the root.
        bad_samples: always empty; triplets that lack a member are left out, and counted in a warning.

    Raises:
        DataError: if the root is missing or the split empty.
        UsageError: if an option is unknown.
    """

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
        *,
        legacy: bool = False,
        skip_bad_samples: bool = False,
        flag: str = "root",
    ) -> None:
        check_options(cloud_masks, rescale_method)
        check_choice("sample_type", sample_type, ("pretrain",))
        if n_input_samples != 1:
            raise UsageError(f"{MONO} has one date a sample, not input_t {n_input_samples}")
        self.root_dir = checked_root(root, flag, "ROIs1158_spring_s1, ROIs1158_spring_s2 and their like")
        self.split, self.region, self.cloud_masks, self.sample_type = split, region, cloud_masks, sample_type
        self.n_input_t, self.legacy, self.skip_bad_samples = n_input_samples, legacy, skip_bad_samples
        self.bad_samples: list[Skipped] = []
        self.paths, n_incomplete = index_triplets(self.root_dir, rois(MONO, split, region, legacy))
        if n_incomplete:
            warnings.warn(
                f"{n_incomplete} triplets of split {split!r} in {self.root_dir} lack a member and are left out",
                stacklevel=2,
            )
        if not self.paths:
            raise empty_split(self.root_dir, flag, MONO, split, region, LAYOUT, n_incomplete)
        self._reader = PatchReader(self.root_dir, rescale_method, self._first_size)
        self._store: MaskStore | None = None
        if cloud_masks is not None:
            self._store = open_mask_store(import_data_path, cloud_masks, n_inputs=1, split=split, region=region)
            self._store.require_overlap([paths["S2_cloudy"] for paths in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | Skipped:
        try:
            return self.load(index)
        except DataError as error:
            if not self.skip_bad_samples:
                raise
            return Skipped(self.first_path(index), str(error))

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def first_path(self, index: int) -> str:
        """The path that names a sample: its cloudy image."""
        return self.paths[index]["S2_cloudy"]

    def roi(self, index: int) -> str:
        """The region that a sample lies in, "ROIs1970_fall/139"."""
        season, region, _ = self.paths[index]["S1"].split("/")
        return f"{season.removesuffix('_s1')}/{region.removeprefix('s1_')}"

    def georeference(self, index: int) -> GeoRef:
        """Bounds, coordinate system and transform of a sample's target."""
        return open_images(self.root_dir).georef(self.paths[index]["S2"])

    def load(self, index: int, for_batch: bool = False, radar: bool = True) -> Sample:
        """Read a sample.

        Args:
            index: which.
            for_batch: leave values as stored (`data.datasets.patch_reader.Stored`), for `data.batch.Collate` to convert.
            radar: False for a batch without radar, which is not read then.

        Raises:
            DataError: if one of its files cannot be used, also where bad samples are skipped.
        """
        paths = self.paths[index]
        clear, bounds = self._reader.optical(paths["S2"], target=True)
        cloudy, _ = self._reader.optical(paths["S2_cloudy"])
        if self._store is None:
            mask, coverage = np.zeros(cloudy.shape[1:], np.float32), float("nan")
        else:
            name = [paths["S2_cloudy"]]
            coverage = float(self._store.coverages(self.root_dir, name, [cloudy])[0])
            mask = self._store.masks(self.root_dir, name, [cloudy])[0]
        coord = list(bounds)
        full = {member: os.path.join(self.root_dir, path) for member, path in paths.items()}
        return {
            "input": {
                "S1": self._reader.radar(paths["S1"], for_batch) if radar or not for_batch else [],
                "S2": self._reader.scale_optical(paths["S2_cloudy"], cloudy, for_batch),
                "masks": mask,
                "coverage": coverage,
                "S1 path": full["S1"],
                "S2 path": full["S2_cloudy"],
                "coord": coord,
            },
            "target": {
                "S2": self._reader.scale_optical(paths["S2"], clear, for_batch),
                "S2 path": full["S2"],
                "coord": coord,
            },
        }

    def _first_size(self) -> tuple[int, int]:
        """Pixels of the first readable file of the data set, which all others must equal."""
        for paths in self.paths:
            try:
                return open_images(self.root_dir).size(paths["S2_cloudy"])
            except DataError:
                if not self.skip_bad_samples:
                    raise
        raise DataError(f"not one readable image in {self.root_dir}")


def index_triplets(root: str | Path, members: Sequence[str]) -> tuple[list[dict[str, str]], int]:
    """Find the complete triplets of some regions.

    Args:
        root: where the seasons' folders lie; regions that are not there are passed over.
        members: such as "ROIs1970_fall/139".

    Returns:
        The paths of each triplet, relative to the root, by region and patch number; and how many triplets lack a
        member.
    """
    triplets: list[dict[str, str]] = []
    n_incomplete = 0
    for roi in members:
        found: dict[int, dict[str, str]] = {}
        for member, sensor in MEMBERS.items():
            for number, path in _patches(root, roi, sensor):
                found.setdefault(number, {})[member] = path
        whole = [found[number] for number in sorted(found) if len(found[number]) == len(MEMBERS)]
        triplets.extend(whole)
        n_incomplete += len(found) - len(whole)
    return triplets, n_incomplete


def _patches(root: str | Path, roi: str, sensor: str) -> list[tuple[int, str]]:
    season, region = roi.split("/")
    folder = f"{season}_{sensor}/{sensor}_{region}"
    belongs = re.compile(re.escape(f"{season}_{sensor}_{region}_p") + r"(\d+)\.tif").fullmatch
    matches = ((belongs(name), name) for name in open_images(root).names(folder))
    return [(int(match[1]), f"{folder}/{name}") for match, name in matches if match]
