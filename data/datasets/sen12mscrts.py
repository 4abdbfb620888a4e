"""SEN12MS-CR-TS: series of thirty dates, of which a few cloudy ones and one clear one make a sample."""

import os
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from common.errors import DataError, UsageError
from data.batch import Part, Sample, Skipped
from data.clouds.detectors import detect_clouds
from data.clouds.mask_store import MaskStore, open_mask_store
from data.constants import DATE_ORIGIN, N_DATES, N_S1, N_S2
from data.datasets.custom_samples import CustomSample, expand_custom, read_mosaic
from data.datasets.date_selection import RULES, Selection, choose_dates
from data.datasets.file_index import LAYOUT, index_series
from data.datasets.patch_reader import PatchReader, check_choice, check_options, checked_root, empty_split
from data.raster.geotiff import GeoRef, acquisition_date, days_since_origin
from data.raster.image_store import open_images
from data.splits import SERIES, rois

ROOT_HOLDS = "ROIs1158, ROIs1868, ROIs1970 or ROIs2017"
SAMPLE_TYPES = ("cloudy_cloudfree", "generic")


class SEN12MSCRTS(Dataset[Any]):
    """Series of Sentinel-1 and Sentinel-2 patches; an item is a nested dict with the published keys.

    Args:
        root: folder with the regions, ROIs1158 to ROIs2017.
        split: all, train, val or test.
        region: all, africa, america, asiaEast, asiaWest or europa.
        cloud_masks: the cloud detector; None finds no clouds (masks 0, coverage NaN) and gives all dates.
        sample_type: "cloudy_cloudfree", n_input_samples cloudy dates and one clear target; or "generic", all dates.
        sampler: "fixed", "fixedsubset" or "random", see `data.datasets.date_selection.choose_dates`.
        n_input_samples: how many input dates.
        rescale_method: "default", [0, 1]; or "resnet", optical [0, 5] and radar [0, 2].
        min_cov: least coverage wished for the inputs, of the fixed samplers.
        max_cov: largest coverage wished for the inputs.
        import_data_path: a mask store, a published coverage file or a folder of them; None is the default store.
        custom_samples: samples in the place of those of the split, `data.datasets.custom_samples.read_custom_list`.
        ref_date: the day from which days are counted.
        legacy: published behaviour: the target may be among the inputs, files are paired by position.
        skip_bad_samples: leave out what is incomplete; an item that cannot be read is a `data.batch.Skipped`, which
            `data.batch.Collate` drops.
        seed: the dates that "random" draws depend on it, on the epoch and on the position of the sample alone.
        earliest: first date of "fixedsubset".
        latest: first date after it; None is the end.
        flag: what error messages call the root.

    Attributes:
        paths: {"S1": [...], "S2": [...]} for each sample, relative to the root.
        bad_samples: what was left out, and why.

    Raises:
        DataError: if the root is missing, the split empty, or a patch incomplete.
        UsageError: if an option is unknown.
    """

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
        custom_samples: Sequence[Any] | None = None,
        *,
        ref_date: date = DATE_ORIGIN,
        legacy: bool = False,
        skip_bad_samples: bool = False,
        seed: int = 1,
        earliest: int = 0,
        latest: int | None = None,
        flag: str = "root",
    ) -> None:
        check_options(cloud_masks, rescale_method)
        check_choice("sample_type", sample_type, SAMPLE_TYPES)
        check_choice("sampler", sampler, RULES)
        if not 1 <= n_input_samples < N_DATES:
            raise UsageError(f"input_t must lie between 1 and {N_DATES - 1}, for one target of {N_DATES}")
        if cloud_masks is None and sample_type == "cloudy_cloudfree" and custom_samples is None:
            warnings.warn("without cloud masks no date can be chosen: every sample holds all dates", stacklevel=2)
            sample_type = "generic"
        if custom_samples is not None and sample_type == "generic":
            raise UsageError("custom samples name their inputs and target: they need sample_type cloudy_cloudfree")
        self.root_dir = checked_root(root, flag, ROOT_HOLDS)
        self.split, self.region, self.cloud_masks, self.sample_type = split, region, cloud_masks, sample_type
        self.sampling, self.n_input_t, self.min_cov, self.max_cov = sampler, n_input_samples, min_cov, max_cov
        self.ref_date, self.legacy, self.seed, self.epoch = ref_date, legacy, seed, 0
        self.earliest, self.latest, self.skip_bad_samples = earliest, latest, skip_bad_samples
        self.custom_samples: list[CustomSample] | None = None
        self.paths: list[Any]
        self.bad_samples: list[Skipped] = []
        if custom_samples is not None:
            self.paths = self.custom_samples = [expand_custom(entry, self.root_dir) for entry in custom_samples]
        else:
            members = rois(SERIES, split, region)
            self.paths, self.bad_samples = index_series(self.root_dir, members, skip_bad_samples, legacy)
            if not self.paths:
                raise empty_split(self.root_dir, flag, SERIES, split, region, LAYOUT, len(self.bad_samples))
        self._reader = PatchReader(self.root_dir, rescale_method, self._first_size)
        self._store: MaskStore | None = None
        if cloud_masks is not None and custom_samples is None:
            self._store = open_mask_store(
                import_data_path, cloud_masks, n_inputs=n_input_samples, split=split, region=region
            )
            if self._store.imported is not None:
                self._store.require_overlap([path for paths in self.paths for path in paths["S2"]])

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
        """Draw other dates, those of this epoch, where the sampler is random."""
        self.epoch = epoch

    def first_path(self, index: int) -> str:
        """The path that names a sample: its first optical file."""
        if self.custom_samples is not None:
            return self.custom_samples[index]["target"]["S2"][0][0]
        return str(self.paths[index]["S2"][0])

    def roi(self, index: int) -> str:
        """The region that a sample lies in, "ROIs1868/73"."""
        return "/".join(self.first_path(index).split("/")[:2])

    def georeference(self, index: int) -> GeoRef:
        """Bounds, coordinate system and transform of a sample's target, mosaics included."""
        if self.custom_samples is not None:
            return read_mosaic(self.root_dir, self.custom_samples[index]["target"]["S2"][0], N_S2)[1]
        return open_images(self.root_dir).georef(self.first_path(index))

    def select(self, index: int) -> Selection:
        """Which dates sample `index` consists of in this epoch."""
        return self._choose(index, self._coverages(index))

    def load(self, index: int, for_batch: bool = False, radar: bool = True) -> Sample:
        """Read a sample.

        Args:
            index: which.
            for_batch: read what `data.batch.Collate` takes and no more, neither radar nor mask of the target, and
                leave values as stored (`data.datasets.patch_reader.Stored`): they are converted right into the batch.
            radar: False for a batch without radar, which is not read then.

        Raises:
            DataError: if one of its files cannot be used, also where bad samples are skipped.
        """
        if self.custom_samples is not None:
            return self._load_custom(self.custom_samples[index])
        coverage = self._coverages(index)
        if self.sample_type == "generic":
            everything = dict(self._part(index, range(N_DATES), coverage))
            del everything["idx"]
            return cast(Sample, everything)
        chosen = self._choose(index, coverage)
        return {
            "input": self._part(index, chosen.inputs, coverage, stored=for_batch, radar=radar or not for_batch),
            "target": self._part(index, [chosen.target], coverage, True, stored=for_batch, radar=not for_batch),
            "coverage bin": chosen.matched,
        }

    def _coverages(self, index: int) -> np.ndarray:
        if self._store is None:
            return np.full(N_DATES, np.nan)
        return self._store.coverages(self.root_dir, self.paths[index]["S2"])

    def _choose(self, index: int, coverage: np.ndarray) -> Selection:
        rng = np.random.default_rng((self.seed, self.epoch, index)) if self.sampling == "random" else None
        wish = (self.min_cov, self.max_cov)
        return choose_dates(
            coverage, self.n_input_t, self.sampling, *wish, rng, self.legacy, self.earliest, self.latest
        )

    def _part(
        self,
        index: int,
        dates: Sequence[int],
        coverage: np.ndarray,
        target: bool = False,
        stored: bool = False,
        radar: bool = True,
    ) -> Part:
        s1_paths, s2_paths = ([self.paths[index][sensor][day] for day in dates] for sensor in ("S1", "S2"))
        readings = [self._reader.optical(path, target) for path in s2_paths]
        raw = [image for image, _ in readings]
        if target and stored:
            masks = []
        elif self._store is None:
            masks = [np.zeros(image.shape[1:], np.float32) for image in raw]
        else:
            masks = self._store.masks(self.root_dir, s2_paths, raw)
        return {
            "S1": [self._reader.radar(path, stored) for path in s1_paths if radar],
            "S2": [self._reader.scale_optical(path, image, stored) for path, image in zip(s2_paths, raw, strict=True)],
            "masks": masks,
            "coverage": [float(coverage[day]) for day in dates],
            "S1 TD": self._days(s1_paths),
            "S2 TD": self._days(s2_paths),
            "S1 path": [os.path.join(self.root_dir, path) for path in s1_paths],
            "S2 path": [os.path.join(self.root_dir, path) for path in s2_paths],
            "idx": list(dates),
            "coord": [list(bounds) for _, bounds in readings],
        }

    def _load_custom(self, sample: CustomSample) -> Sample:
        parts = {name: self._custom_part(sample[name], name == "target") for name in ("input", "target")}
        sizes = {image.shape[1:] for part in parts.values() for image in (*part["S1"], *part["S2"])}
        if len(sizes) != 1:
            raise DataError(f"{sample['target']['S2'][0][0]}: the images of one sample differ in size: {sorted(sizes)}")
        return {"input": parts["input"], "target": parts["target"], "coverage bin": True}

    def _custom_part(self, groups: dict[str, list[list[str]]], target: bool) -> Part:
        radar = [read_mosaic(self.root_dir, group, N_S1)[0] for group in groups["S1"]]
        optical = [read_mosaic(self.root_dir, group, N_S2) for group in groups["S2"]]
        raw = [image for image, _ in optical]
        if target and not raw[0].any():
            raise DataError(f"{groups['S2'][0][0]}: every value is 0, there is no image to be a target")
        if self.cloud_masks is None:
            masks = [np.zeros(image.shape[1:], np.float32) for image in raw]
        else:
            masks = [detect_clouds(image, self.cloud_masks) for image in raw]  # on the mosaic, so that no seams show
        first = {sensor: [group[0] for group in groups[sensor]] for sensor in ("S1", "S2")}
        unknown = self.cloud_masks is None
        return {
            "S1": [self._reader.scale_radar(path, image) for path, image in zip(first["S1"], radar, strict=True)],
            "S2": [self._reader.scale_optical(path, image) for path, image in zip(first["S2"], raw, strict=True)],
            "masks": masks,
            "coverage": [float("nan") if unknown else float(mask.mean(dtype=np.float64)) for mask in masks],
            "S1 TD": self._days(first["S1"]),
            "S2 TD": self._days(first["S2"]),
            "S1 path": [";".join(os.path.join(self.root_dir, path) for path in group) for group in groups["S1"]],
            "S2 path": [";".join(os.path.join(self.root_dir, path) for path in group) for group in groups["S2"]],
            "idx": [int(path.split("/")[-2]) for path in first["S2"]],
            "coord": [list(georef.bounds) for _, georef in optical],
        }

    def _days(self, paths: Sequence[str]) -> list[int]:
        return [days_since_origin(acquisition_date(path), self.ref_date) for path in paths]

    def _first_size(self) -> tuple[int, int]:
        """Pixels of the first readable file of the data set, which all others must equal."""
        for paths in self.paths:
            try:
                return open_images(self.root_dir).size(paths["S2"][0])
            except DataError:
                if not self.skip_bad_samples:
                    raise
        raise DataError(f"not one readable image in {self.root_dir}")
