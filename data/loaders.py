"""Loaders of a run: data sets, subsets, order and workers, from the flags."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from common import process_group as distributed
from common.errors import DataError, UsageError
from data.batch import Batch, Collate, Indexed, Skipped
from data.datasets.custom_samples import read_custom_list
from data.datasets.patch_reader import EmptySplitError, checked_root
from data.datasets.sen12mscr import SEN12MSCR
from data.datasets.sen12mscrts import ROOT_HOLDS, SEN12MSCRTS
from data.sharding import Shares

if TYPE_CHECKING:
    from parse_args import Config

PatchSet = SEN12MSCR | SEN12MSCRTS
Keep = Callable[[int, str], bool]  # of a sample: its position in the split and its ROI
_MOST_WORKERS = 8  # more of them wait for the disk, not for the processor


class Subset(Dataset[Indexed | Skipped]):
    """Some samples of a data set, each with its position in the whole; unreadable ones become `Skipped`.

    Args:
        whole: the data set.
        positions: of the samples.
        radar: whether batches hold radar; it is not read where they do not.

    A worker cannot raise an error that the terminal shows as one line, so errors travel as values, and
    `PatchLoader` raises or lists them.
    """

    def __init__(self, whole: PatchSet, positions: Sequence[int], radar: bool = True) -> None:
        self.whole, self.positions, self.radar = whole, list(positions), radar

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, at: int) -> Indexed | Skipped:
        index = self.positions[at]
        try:
            return Indexed(index, self.whole.load(index, for_batch=True, radar=self.radar))
        except DataError as error:
            return Skipped(self.whole.first_path(index), str(error))


class EpochOrder(Sampler[int]):
    """The order of an epoch: a function of seed and epoch alone, or the given one where nothing is shuffled."""

    def __init__(self, n: int, seed: int, shuffle: bool) -> None:
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.n))
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.n).tolist())


class PatchLoader(DataLoader[Any]):
    """Gives `Batch`es; raises what workers could not read, or lists it where bad samples are skipped.

    Of several processes each gives its share of every batch (`data.sharding`), which may be empty.

    Attributes:
        skipped: what could not be read so far, each once.
    """

    def __init__(self, subset: Subset, order: EpochOrder, skip_bad: bool, batch_size: int, **options: Any) -> None:
        shares = Shares(order, batch_size, distributed.rank(), distributed.world())
        super().__init__(subset, batch_sampler=shares, **options)
        self.patches, self.order, self.skip_bad = subset, order, skip_bad
        self.skipped: list[Skipped] = list(subset.whole.bad_samples)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in self._batches():
            for bad in batch.skipped:
                if not self.skip_bad:
                    raise DataError(f"{bad.reason}; --skip_bad_samples goes on without it")
                if bad not in self.skipped:
                    self.skipped.append(bad)
            yield batch

    def _batches(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise DataError(
                "a process that loads data was ended from outside, perhaps for want of memory; "
                "lower --num_workers or --batch_size, or give a container more shared memory (--shm-size)"
            ) from error

    def set_epoch(self, epoch: int) -> None:
        """Take the order and the dates of this epoch from the next iteration on."""
        self.order.epoch = epoch
        self.patches.whole.set_epoch(epoch)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a training; validation or test is None where that split has no patches."""

    train: PatchLoader
    val: PatchLoader | None
    test: PatchLoader | None

    def set_epoch(self, epoch: int) -> None:
        """Take order and dates of this epoch for training; validation and test are the same in all epochs."""
        self.train.set_epoch(epoch)

    @property
    def skipped(self) -> list[Skipped]:
        """What could not be read so far, in all splits."""
        return [bad for loader in (self.train, self.val, self.test) if loader is not None for bad in loader.skipped]


def build_loaders(config: "Config") -> Loaders:
    """The loaders of a training run.

    Args:
        config: the flags. Series train on root1, validate and test on root2, whose regions are all, as published;
            with `pretrain` all three come from root3.

    Raises:
        DataError: if a root is missing or the training split is empty, or both validation and test are.
        UsageError: if the sample type has no target.
    """
    held = frozenset(config.held_out)
    train = _loader(config, "train", shuffle=True, keep=lambda _, roi: roi not in held)
    held_out: dict[str, PatchLoader | None] = {}
    problems = []
    for split in ("val", "test"):
        try:
            held_out[split] = _loader(config, split, region="all")
        except EmptySplitError as error:
            held_out[split] = None
            problems.append(error)
    if len(problems) == len(held_out):
        raise problems[0]
    for problem in problems:
        warnings.warn(f"{problem}; going on without that split", stacklevel=2)
    return Loaders(train, held_out["val"], held_out["test"])


def build_test_loader(config: "Config") -> PatchLoader:
    """The loader of the test script: the test split in the region asked for, or the custom samples of --use_custom.

    Raises:
        DataError: if the root is missing, the split empty, or the custom list unusable.
    """
    return _loader(config, "test")


def rois_of(config: "Config", split: str, region: str | None = None) -> list[str]:
    """The ROI of each sample of a split, in order.

    Raises:
        DataError: if the root is missing or the split empty.
    """
    whole = _data_set(config, split, region or config.region)
    return [whole.roi(index) for index in range(len(whole))]


def choose_subset(rois: Sequence[str], max_count: float, fraction: float, seed: int) -> list[int]:
    """Which samples of a split to take.

    Args:
        rois: the region of each sample.
        max_count: at most so many, the first ones, as published.
        fraction: this share of the split, at least one sample; each region gives its share, drawn by the seed.
        seed: of that draw.

    Returns:
        Positions in `rois`, ascending.
    """
    taken: np.ndarray = np.arange(len(rois))
    if fraction < 1.0:
        rng = np.random.default_rng(seed)
        place = np.empty(len(rois))
        _, membership = np.unique(np.asarray(rois), return_inverse=True)
        for region in range(int(membership.max()) + 1):
            members = np.flatnonzero(membership == region)
            # evenly spaced in [0, 1) from a random start: the lowest fraction of all holds that share of each region
            place[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
        n_taken = max(1, int(len(rois) * fraction))
        taken = np.sort(np.argsort(place, kind="stable")[:n_taken])
    return [int(position) for position in taken[: int(max_count)]]


def count_workers(num_workers: int | str) -> int:
    """Processes that load data: as given; for "auto" one less than the processors at hand, at most eight.

    The processors of a machine are shared out among the processes that train on it.
    """
    if num_workers != "auto":
        return int(num_workers)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(cores // distributed.local_world() - 1, 0))


def build_loader(config: "Config", split: str, keep: Keep, region: str | None = None) -> PatchLoader:
    """A loader of part of a split, never shuffled, its dates the same in each epoch.

    Args:
        config: the flags.
        split: train, val or test.
        keep: tells from a sample's position in the split and its ROI whether it belongs to the part.
        region: part of the world (default: that of the flags).

    Raises:
        DataError: if the root is missing, or split or part are empty.
    """
    return _loader(replace(config, vary_samples=False), split, region, keep=keep)


def _loader(
    config: "Config", split: str, region: str | None = None, shuffle: bool = False, keep: Keep | None = None
) -> PatchLoader:
    whole = _data_set(config, split, region or config.region)
    rois = [whole.roi(index) for index in range(len(whole))]
    part = [index for index, roi in enumerate(rois) if keep is None or keep(index, roi)]
    if not part:
        raise EmptySplitError(f"no region is left in the {split} split of {len(set(rois))}; lower --fit_rois")
    chosen = choose_subset(
        [rois[index] for index in part], config.max_samples_count, config.max_samples_frac, config.rdm_seed
    )
    positions = [part[index] for index in chosen]
    return PatchLoader(
        Subset(whole, positions, config.use_sar),
        EpochOrder(len(positions), config.rdm_seed, shuffle),
        config.skip_bad_samples,
        batch_size=config.batch_size,
        num_workers=min(count_workers(config.num_workers), len(positions)),
        collate_fn=Collate(config.use_sar),
        pin_memory=config.device.startswith("cuda"),
    )


def _data_set(config: "Config", split: str, region: str) -> PatchSet:
    if config.pretrain:
        return SEN12MSCR(
            config.root3,
            split,
            region,
            import_data_path=_store_of_triplets(config.precomputed),
            legacy=config.legacy,
            skip_bad_samples=config.skip_bad_samples,
            flag="--root3",
        )
    if config.sample_type != "cloudy_cloudfree":
        raise UsageError(
            f"--sample_type {config.sample_type} has no target; training and testing need cloudy_cloudfree"
        )
    root, flag = (config.root1, "--root1") if split == "train" else (config.root2, "--root2")
    custom = None
    if split == "test" and config.use_custom:
        custom = read_custom_list(config.use_custom, checked_root(root, flag, ROOT_HOLDS))
    return SEN12MSCRTS(
        root,
        split,
        region,
        sampler="random" if split == "train" and config.vary_samples else "fixed",
        n_input_samples=config.input_t,
        min_cov=config.min_cov,
        max_cov=config.max_cov,
        import_data_path=config.precomputed or None,
        custom_samples=custom,
        ref_date=date.fromisoformat(config.ref_date),
        legacy=config.legacy,
        skip_bad_samples=config.skip_bad_samples,
        seed=config.rdm_seed,
        flag=flag,
    )


def _store_of_triplets(precomputed: str) -> str | None:
    """The store for triplets: published coverage files know series only, and do not speak of it."""
    path = Path(precomputed)
    if not precomputed or path.suffix == ".npy" or any(path.glob("generic_*.npy")):
        return None
    return precomputed
