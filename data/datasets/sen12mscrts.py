"""SEN12MS-CR-TS: series of thirty dates; a few cloudy ones and a clear one make a sample."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from common.errors import DataError, UsageError
from data.batch import Part, Sample
from data.clouds.detectors import mask_and_coverage
from data.constants import N_DATES, N_S1, N_S2
from data.datasets.base import DatasetOptions, PatchDataset, check_choice
from data.datasets.custom_samples import CustomSample, read_custom_list
from data.datasets.date_selection import RULES, Selection, choose_dates
from data.datasets.file_index import index_series
from data.raster.geotiff import Bounds, acquisition_date, days_since_origin
from data.raster.missing import mask_missing, valid_pixels
from data.raster.patch_mosaic import merge_patches
from data.splits import SERIES, rois


class SEN12MSCRTS(PatchDataset):
    """Series of Sentinel-1 and Sentinel-2 patches; an item is a nested dict with the published keys.

    Args:
        root: folder or pack with the regions, ROIs1158 to ROIs2017.
        split: all, train, val or test.
        region: all, africa, america, asiaEast, asiaWest or europa.
        cloud_masks: the cloud detector; None gives masks of 0, coverage NaN, and all dates.
        sample_type: "cloudy_cloudfree", n_input_samples cloudy dates and one clear target; or "generic", all dates.
        sampler: "fixed", "fixedsubset" or "random", see `data.datasets.date_selection.choose_dates`.
        n_input_samples: number of input dates.
        rescale_method: "default", [0, 1]; or "resnet", optical [0, 5] and radar [0, 2].
        min_cov: preferred minimum coverage of the inputs, for the fixed samplers.
        max_cov: preferred maximum coverage of the inputs.
        import_data_path: a mask store, a published coverage file or a folder of them; None is the default store.
        custom_samples: samples that replace those of the split, see
            `data.datasets.custom_samples.read_custom_list`.
        options: fields of `data.datasets.base.DatasetOptions`.

    Attributes:
        paths: {"S1": [...], "S2": [...]} of each sample, relative to the root.
        bad_samples: what was left out, and why.

    Raises:
        DataError: if the root is missing, the split empty, or a patch incomplete.
        UsageError: if an option is unknown.
    """

    name = SERIES
    root_holds = "ROIs1158, ROIs1868, ROIs1970 or ROIs2017"
    sample_types = ("cloudy_cloudfree", "generic")

    def __init__(
        self,
        root: str | Path,
        split: str = "all",
        region: str = "all",
        cloud_masks: str | None = "s2cloudless_mask",
        sample_type: str = "cloudy_cloudfree",
        sampler: str = "fixed",
        n_input_samples: int = 3,
        rescale_method: str = "default",
        min_cov: float = 0.0,
        max_cov: float = 1.0,
        import_data_path: str | Path | None = None,
        custom_samples: Sequence[Any] | str | Path | None = None,
        **options: Any,
    ) -> None:
        check_choice("sampler", sampler, RULES)
        if not 1 <= n_input_samples < N_DATES:
            raise UsageError(f"input_t must lie between 1 and {N_DATES - 1}, for one target of {N_DATES}")
        if cloud_masks is None and sample_type == "cloudy_cloudfree" and custom_samples is None:
            warnings.warn("without cloud masks no date can be chosen: every sample holds all dates", stacklevel=2)
            sample_type = "generic"
        if custom_samples is not None and sample_type == "generic":
            raise UsageError("custom samples name their inputs and target: they need sample_type cloudy_cloudfree")
        chosen = DatasetOptions(**options)
        super().__init__(root, split, region, cloud_masks, sample_type, n_input_samples, rescale_method, chosen)
        self.sampling, self.min_cov, self.max_cov = sampler, min_cov, max_cov
        self.custom_samples: list[CustomSample] | None = None
        if custom_samples is not None:
            self.paths = self.custom_samples = read_custom_list(custom_samples, self.root_dir)
            return
        self.paths, self.bad_samples = index_series(
            self.root_dir, rois(SERIES, split, region), chosen.skip_bad_samples, chosen.legacy
        )
        self._require_samples(len(self.bad_samples))
        self._open_store(import_data_path, (path for paths in self.paths for path in paths["S2"]))

    def first_path(self, index: int) -> str:
        """The path that identifies a sample: its first optical file, or the first target file of a custom sample."""
        if self.custom_samples is not None:
            return self.custom_samples[index]["target"]["S2"][0][0]
        return str(self.paths[index]["S2"][0])

    def select(self, index: int, coverage: np.ndarray | None = None) -> Selection:
        """The dates of sample `index` in this epoch, from the coverage (n,) of its dates (default: looked up)."""
        options = self.options
        return choose_dates(
            self._coverages(self.paths[index]["S2"]) if coverage is None else coverage,
            self.n_input_t,
            self.sampling,
            self.min_cov,
            self.max_cov,
            rng=np.random.default_rng((options.seed, self.epoch, index)) if self.sampling == "random" else None,
            legacy=options.legacy,
            earliest=options.earliest,
            latest=options.latest,
        )

    def load(self, index: int, for_batch: bool = False, radar: bool = True) -> Sample:
        """Read a sample, see `PatchDataset.load`; `for_batch` leaves out radar and mask of the target."""
        if self.custom_samples is not None:
            return self._load_custom(self.custom_samples[index])
        coverage = self._coverages(self.paths[index]["S2"])
        if self.sample_type == "generic":
            dates = dict(self._load_dates(index, range(N_DATES), coverage))
            del dates["idx"]
            return cast(Sample, dates)
        chosen = self.select(index, coverage)
        return {
            "input": self._load_dates(index, chosen.inputs, coverage, False, for_batch, radar or not for_batch),
            "target": self._load_dates(index, [chosen.target], coverage, True, for_batch, not for_batch),
            "coverage bin": chosen.matched,
        }

    def _load_dates(
        self,
        index: int,
        dates: Sequence[int],
        coverage: np.ndarray,
        target: bool = False,
        for_batch: bool = False,
        radar: bool = True,
    ) -> Part:
        s1_paths, s2_paths = ([self.paths[index][sensor][date] for date in dates] for sensor in ("S1", "S2"))
        optical = [self._read_optical(path, target) for path in s2_paths]
        masks = [] if target and for_batch else self._masks(s2_paths, [raw for raw, _ in optical])
        return self._part(
            {"S1": [[path] for path in s1_paths], "S2": [[path] for path in s2_paths]},
            [self._read_radar(path) for path in s1_paths if radar],
            optical,
            masks,
            [float(coverage[date]) for date in dates],
            target,
            for_batch,
        )

    def _load_custom(self, sample: CustomSample) -> Sample:
        parts = {name: self._load_mosaics(sample[name], name == "target") for name in ("input", "target")}
        sizes = {image.shape[1:] for part in parts.values() for image in (*part["S1"], *part["S2"])}
        if len(sizes) != 1:
            raise DataError(f"{sample['target']['S2'][0][0]}: the images of one sample differ in size: {sorted(sizes)}")
        return {"input": parts["input"], "target": parts["target"], "coverage bin": True}

    def _load_mosaics(self, groups: dict[str, list[list[str]]], target: bool) -> Part:
        radar = [merge_patches(self.root_dir, group, N_S1)[0] for group in groups["S1"]]
        mosaics = [merge_patches(self.root_dir, group, N_S2) for group in groups["S2"]]
        optical = [(raw, georef.bounds) for raw, georef in mosaics]
        for group, (raw, _) in zip(groups["S2"], optical, strict=True):
            self._check_optical(group[0], raw, target)
        if self.cloud_masks is None:
            masks = [mask_missing(np.zeros(raw.shape[1:], np.float32), raw) for raw, _ in optical]
            coverage = [float("nan")] * len(masks)
        else:  # on the mosaic, to avoid seams
            detected = [mask_and_coverage(raw, self.cloud_masks) for raw, _ in optical]
            masks, coverage = (list(column) for column in zip(*detected, strict=True))
        return self._part(groups, radar, optical, masks, coverage, target)

    def _part(
        self,
        groups: dict[str, list[list[str]]],
        radar: Sequence[np.ndarray],
        optical: Sequence[tuple[np.ndarray, Bounds]],
        masks: list[np.ndarray],
        coverage: list[float],
        target: bool,
        for_batch: bool = False,
    ) -> Part:
        """Inputs or target with the published keys; `groups` lists the patches of each date, several in a mosaic."""
        s1_paths, s2_paths = ([group[0] for group in groups[sensor]] for sensor in ("S1", "S2"))
        rescale = self._rescale
        part: Part = {
            # strict=False: a batch may need no radar
            "S1": [rescale(path, image, for_batch) for path, image in zip(s1_paths, radar, strict=False)],
            "S2": [rescale(path, raw, for_batch) for path, (raw, _) in zip(s2_paths, optical, strict=True)],
            "masks": masks,
            "coverage": coverage,
            "S1 TD": self._days(s1_paths),
            "S2 TD": self._days(s2_paths),
            "S1 path": self._full_paths(groups["S1"]),
            "S2 path": self._full_paths(groups["S2"]),
            "idx": [int(path.split("/")[-2]) for path in s2_paths],
            "coord": [list(bounds) for _, bounds in optical],
        }
        if target:
            part["valid"] = [valid_pixels(raw) for raw, _ in optical]
        return part

    def _days(self, paths: Sequence[str]) -> list[int]:
        return [days_since_origin(acquisition_date(path), self.options.ref_date) for path in paths]

    def _full_paths(self, groups: Sequence[Sequence[str]]) -> list[str]:
        return [";".join(os.path.join(self.root_dir, path) for path in group) for group in groups]
