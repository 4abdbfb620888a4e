"""Data loaders of a run: data sets, subsets, sample order and workers."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from common import process_group
from common.errors import DataError, UsageError
from common.parallel import AUTO, available_cores, require_shared_memory
from common.processes import end_with_parent, interrupts_blocked
from config.schema import Config
from data.batch import Batch, Collate, Indexed, Skipped
from data.datasets.base import EmptySplitError, warn_once
from data.datasets.sen12mscr import SEN12MSCR
from data.datasets.sen12mscrts import SEN12MSCRTS

PatchSet = SEN12MSCR | SEN12MSCRTS
Order = Sequence[int] | Sampler[int]
Keep = Callable[[int, str], bool]  # (position in the split, ROI) of a sample -> whether it is used
_MAX_WORKERS = 8  # more would wait for the disk, not for the processor
_NO_SHARED_MEMORY = re.compile(r"unable to \w+ shared memory|</torch_\w+>|Bus error")  # in the errors of torch


class Subset(Dataset[Indexed | Skipped]):
    """Some samples of a data set, each with its position in it; unreadable ones become `Skipped`.

    Args:
        dataset: the data set.
        positions: of the samples.
        radar: whether to read radar.

    An error raised in a worker reaches the terminal with its traceback, so errors travel as values, and `PatchLoader`
    raises or lists them.
    """

    def __init__(self, dataset: PatchSet, positions: Sequence[int], radar: bool = True) -> None:
        self.dataset, self.positions, self.radar = dataset, list(positions), radar

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> Indexed | Skipped:
        index = self.positions[item]
        try:
            sample = self.dataset.load(index, for_batch=True, radar=self.radar)
        except DataError as error:
            return Skipped(self.dataset.first_path(index), str(error))
        return Indexed(index, sample, self.dataset.take_notes())


class EpochOrder(Sampler[int]):
    """The sample order of an epoch: a shuffle that depends on seed and epoch alone, or none."""

    def __init__(self, n: int, seed: int, shuffle: bool) -> None:
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.n))
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.n).tolist())


class ShardedBatchSampler(Sampler[list[int]]):
    """The share of one process in every batch of an epoch.

    The batches are those of a single process, whatever the number of processes: the first `batch_size` positions of
    the order, the next, and so on. Each is cut into runs of consecutive positions, the first ones longer by one where
    they do not divide; in the last batch the share of some processes may be empty.

    Args:
        order: positions in the order of the epoch, the same in all processes.
        batch_size: samples of all processes together.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self, order: Sequence[int] | Sampler[int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)  # type: ignore[arg-type]  # samplers here have a length

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            length, remainder = divmod(len(batch), self.world_size)
            start = self.rank * length + min(self.rank, remainder)
            yield batch[start : start + length + (self.rank < remainder)]


class PatchLoader(DataLoader[Any]):
    """Yields `Batch`es; raises the errors of workers, or collects them if bad samples are skipped; warns of notes.

    Each of several processes yields its share of every batch, which may be empty.

    Attributes:
        skipped: unreadable samples so far, each once.
    """

    def __init__(self, subset: Subset, order: EpochOrder, skip_bad: bool, batch_size: int, **options: Any) -> None:
        sampler = ShardedBatchSampler(order, batch_size, process_group.rank(), process_group.world_size())
        super().__init__(subset, batch_sampler=sampler, **options)
        self.patches, self.order, self.skip_bad = subset, order, skip_bad
        self.skipped: list[Skipped] = list(subset.dataset.bad_samples)
        self._reported: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in self._batches():
            for bad in batch.skipped:
                if not self.skip_bad:
                    raise DataError(f"{bad.reason}; --skip_bad_samples continues without it")
                if bad not in self.skipped:
                    self.skipped.append(bad)
            warn_once(batch.notes, self._reported)
            yield batch

    def _batches(self) -> Iterator[Batch]:
        if self.num_workers:
            require_shared_memory("--num_workers 0")
        with interrupts_blocked():
            batches = super().__iter__()
        try:
            yield from batches
        except RuntimeError as error:
            if _NO_SHARED_MEMORY.search(str(error)):
                raise DataError(
                    "shared memory is full: batches of data loading processes lie in /dev/shm; give a container more "
                    "(docker run --shm-size=8g), or lower --num_workers or --batch_size"
                ) from error
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise DataError(
                "a data loading process was killed from outside, perhaps for lack of memory; "
                "lower --num_workers or --batch_size, or give a container more shared memory (--shm-size)"
            ) from error

    def set_epoch(self, epoch: int) -> None:
        """Use the sample order and dates of this epoch from the next iteration on."""
        self.order.epoch = epoch
        self.patches.dataset.set_epoch(epoch)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a training; validation or test is None if that split has no patches."""

    train: PatchLoader
    val: PatchLoader | None
    test: PatchLoader | None

    def set_epoch(self, epoch: int) -> None:
        """Use order and dates of this epoch for training; validation and test are the same in all epochs."""
        self.train.set_epoch(epoch)

    @property
    def skipped(self) -> list[Skipped]:
        """Unreadable samples so far, in all splits."""
        return [bad for loader in (self.train, self.val, self.test) if loader is not None for bad in loader.skipped]


def build_loaders(config: Config) -> Loaders:
    """The loaders of a training run.

    Args:
        config: the flags. Series: train on root1, validate and test on all regions of root2, as published; with
            `pretrain` all three are from root3.

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
        warnings.warn(f"{problem}; continuing without that split", stacklevel=2)
    return Loaders(train, held_out["val"], held_out["test"])


def build_test_loader(config: Config) -> PatchLoader:
    """The loader of a test: the test split of the region, or the custom samples of --use_custom.

    Raises:
        DataError: if the root is missing, the split empty, or the custom list unusable.
    """
    return _loader(config, "test")


def rois_of(config: Config, split: str, region: str | None = None) -> list[str]:
    """The ROI of each sample of a split, in order.

    Raises:
        DataError: if the root is missing or the split empty.
    """
    dataset = _build_dataset(config, split, region or config.region)
    return [dataset.roi(index) for index in range(len(dataset))]


def choose_subset(rois: Sequence[str], max_count: float, fraction: float, seed: int) -> list[int]:
    """Choose a subset of a split.

    Args:
        rois: the ROI of each sample.
        max_count: maximum number; the first ones are kept, as published.
        fraction: of the split, at least one sample; drawn by the seed, with the same fraction of each ROI.
        seed: of that draw.

    Returns:
        Positions in `rois`, ascending.
    """
    chosen: np.ndarray = np.arange(len(rois))
    if fraction < 1.0:
        rng = np.random.default_rng(seed)
        rank = np.empty(len(rois))
        _, membership = np.unique(np.asarray(rois), return_inverse=True)
        for roi in range(int(membership.max()) + 1):
            members = np.flatnonzero(membership == roi)
            # evenly spaced in [0, 1) from a random start: the lowest fraction of all contains that fraction of each ROI
            rank[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
        n_chosen = max(1, int(len(rois) * fraction))
        chosen = np.sort(np.argsort(rank, kind="stable")[:n_chosen])
    return [int(position) for position in chosen[: int(max_count)]]


def count_workers(num_workers: int | str) -> int:
    """Data loading processes: as given; for "auto" one less than the available cores, at most eight.

    The processes that train on one machine divide its cores among them.
    """
    if num_workers != AUTO:
        return int(num_workers)
    return min(_MAX_WORKERS, max(available_cores() // process_group.local_world_size() - 1, 0))


def build_loader(config: Config, split: str, keep: Keep, region: str | None = None) -> PatchLoader:
    """A loader of part of a split, not shuffled, with the same dates in each epoch.

    Args:
        config: the flags.
        split: train, val or test.
        keep: whether to use a sample, by its position in the split and its ROI.
        region: part of the world (default: that of the flags).

    Raises:
        DataError: if the root is missing, or split or part is empty.
    """
    return _loader(replace(config, vary_samples=False), split, region, keep=keep)


def _loader(
    config: Config, split: str, region: str | None = None, shuffle: bool = False, keep: Keep | None = None
) -> PatchLoader:
    dataset = _build_dataset(config, split, region or config.region)
    rois = [dataset.roi(index) for index in range(len(dataset))]
    part = [index for index, roi in enumerate(rois) if keep is None or keep(index, roi)]
    if not part:
        raise EmptySplitError(f"no region is left in the {split} split of {len(set(rois))}; lower --fit_rois")
    chosen = choose_subset(
        [rois[index] for index in part], config.max_samples_count, config.max_samples_frac, config.rdm_seed
    )
    positions = [part[index] for index in chosen]
    return PatchLoader(
        Subset(dataset, positions, config.use_sar),
        EpochOrder(len(positions), config.rdm_seed, shuffle),
        config.skip_bad_samples,
        batch_size=config.batch_size,
        num_workers=min(count_workers(config.num_workers), len(positions)),
        collate_fn=Collate(config.use_sar),
        worker_init_fn=_start_worker,
        pin_memory=config.device.startswith("cuda"),
    )


def _start_worker(number: int) -> None:
    """Called in each data loading process: torch's own check for the end of the parent takes up to five seconds."""
    end_with_parent()


def _build_dataset(config: Config, split: str, region: str) -> PatchSet:
    if config.pretrain:
        return SEN12MSCR(
            config.root3,
            split,
            region,
            import_data_path=_triplet_store(config.precomputed),
            legacy=config.legacy,
            skip_bad_samples=config.skip_bad_samples,
            flag="--root3",
        )
    if config.sample_type != "cloudy_cloudfree":
        raise UsageError(
            f"--sample_type {config.sample_type} has no target; training and testing need cloudy_cloudfree"
        )
    root, flag = (config.root1, "--root1") if split == "train" else (config.root2, "--root2")
    return SEN12MSCRTS(
        root,
        split,
        region,
        sampler="random" if split == "train" and config.vary_samples else "fixed",
        n_input_samples=config.input_t,
        min_cov=config.min_cov,
        max_cov=config.max_cov,
        import_data_path=config.precomputed or None,
        custom_samples=(config.use_custom or None) if split == "test" else None,
        ref_date=date.fromisoformat(config.ref_date),
        legacy=config.legacy,
        skip_bad_samples=config.skip_bad_samples,
        seed=config.rdm_seed,
        flag=flag,
    )


def _triplet_store(precomputed: str) -> str | None:
    """The mask store of triplets; published coverage files are about series only."""
    path = Path(precomputed)
    if not precomputed or path.suffix == ".npy" or any(path.glob("generic_*.npy")):
        return None
    return precomputed
