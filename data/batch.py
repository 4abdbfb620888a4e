"""What the loaders hand over: one sample as published, and a batch as the networks take it."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from common.errors import DataError
from data.constants import N_S1, N_S2
from data.datasets.patch_reader import Stored

_SERIES_PATH = re.compile(r"(ROIs\d+)/(\d+)/S[12]/\d+/[^/]*_patch_(\d+)\.tif")
_MONO_PATH = re.compile(r"(ROIs\d+_[a-z]+)_s[12](?:_cloudy)?/s[12](?:_cloudy)?_(\d+)/[^/]*_p(\d+)\.tif")

Part = TypedDict(
    "Part",
    {
        "S1": Any,
        "S2": Any,
        "masks": Any,
        "coverage": Any,
        "S1 TD": list[int],
        "S2 TD": list[int],
        "S1 path": Any,
        "S2 path": Any,
        "idx": list[int],
        "coord": list[Any],
    },
    total=False,
)
Sample = TypedDict("Sample", {"input": Part, "target": Part, "coverage bin": bool}, total=False)
"""One sample with the published keys. `S2` is a list of T arrays (13, H, W) for a series, one array for a triplet."""


@dataclass(frozen=True)
class SampleInfo:
    """Where one sample comes from: what manifests and error messages name it by.

    Paths are relative to the root of the data; several patches laid side by side are joined by ";" in a path and by
    "+" in the number of the patch. Days are counted from the origin of the data set. `bounds` are left, bottom, right,
    top of the target in its own coordinates.
    """

    index: int
    roi: str
    patch: str
    input_days: tuple[int, ...]
    target_days: int | None
    input_paths: tuple[str, ...]
    sar_paths: tuple[str, ...]
    target_path: str
    bounds: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Every field by name, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Indexed:
    """A sample with its position in the full data set."""

    index: int
    sample: Sample


@dataclass(frozen=True)
class Skipped:
    """Stands for a sample that cannot be read, where bad samples are skipped: which, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Samples side by side, as the networks take them.

    Attributes:
        x: inputs (B, T, C, H, W) in [0, 1]; with radar VV and VH come first, then the 13 optical bands.
        target: the clear image (B, 1, 13, H, W) in reflectance.
        dates: days (B, T); with radar the mean of both sensors' days. None for single dates.
        masks: clouds of the inputs (B, T, H, W), 1 where clouded.
        coverage: share of cloud of the inputs (B, T); NaN where no detector was asked for.
        info: where each sample comes from.
        skipped: samples that were to be here and could not be read.
    """

    x: Tensor
    target: Tensor
    dates: Tensor | None
    masks: Tensor
    coverage: Tensor
    info: tuple[SampleInfo, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def n(self) -> int:
        """Samples in the batch; 0 where every one of them was skipped."""
        return len(self.info)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where copies to a GPU do not wait."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, act: Any) -> "Batch":
        dates = None if self.dates is None else act(self.dates)
        return replace(
            self,
            x=act(self.x),
            target=act(self.target),
            dates=dates,
            masks=act(self.masks),
            coverage=act(self.coverage),
        )


@dataclass(frozen=True)
class Collate:
    """Turns samples into a batch; a batch of one has the same shapes as any other.

    Attributes:
        use_sar: put the radar bands before the optical ones, and take the mean of both sensors' days as the date.
    """

    use_sar: bool

    def __call__(self, items: Sequence[Indexed | Sample | Skipped]) -> Batch:
        """Lay samples side by side; skipped ones are dropped and listed.

        Args:
            items: samples of one data set, all of one size; a sample without a position counts from 0.

        Returns:
            The batch, on the CPU; with n == 0 and empty tensors where every sample was skipped.

        Raises:
            DataError: if the samples differ in size or in their number of dates.
        """
        skipped = tuple(item for item in items if isinstance(item, Skipped))
        kept = [item for item in items if not isinstance(item, Skipped)]
        indexed = [item if isinstance(item, Indexed) else Indexed(at, item) for at, item in enumerate(kept)]
        if not indexed:
            return _empty_batch(self.use_sar, skipped)
        inputs = [_as_series(item.sample["input"]) for item in indexed]
        targets = [_listed(item.sample["target"]["S2"]) for item in indexed]
        _require_equal_shapes(indexed, inputs, targets)
        dates = None
        if all("S2 TD" in part for part in inputs):
            dates = torch.stack([self._days(part) for part in inputs])  # (B, T)
        return Batch(
            x=self._images(inputs),
            target=_filled(targets),  # (B, 1, 13, H, W)
            dates=dates,
            masks=_filled([part["masks"] for part in inputs]),  # (B, T, H, W)
            coverage=torch.tensor([part["coverage"] for part in inputs], dtype=torch.float32),  # (B, T)
            info=tuple(sample_info(item.sample, item.index) for item in indexed),
            skipped=skipped,
        )

    def _images(self, inputs: Sequence[Part]) -> Tensor:
        if not self.use_sar:
            return _filled([part["S2"] for part in inputs])
        first = inputs[0]["S2"]
        images = _room(len(inputs), len(first), N_S1 + N_S2, *first[0].shape[1:])  # (B, T, 15, H, W)
        _fill(images.numpy()[:, :, :N_S1], [part["S1"] for part in inputs])
        _fill(images.numpy()[:, :, N_S1:], [part["S2"] for part in inputs])
        return images

    def _days(self, part: Part) -> Tensor:
        optical = torch.tensor(part["S2 TD"], dtype=torch.float32)
        if not self.use_sar:
            return optical
        return (torch.tensor(part["S1 TD"], dtype=torch.float32) + optical) / 2


def sample_info(sample: Sample, index: int) -> SampleInfo:
    """Where a sample of either data set comes from, read from its paths.

    Args:
        sample: with a target.
        index: its position in the full data set.
    """
    part, target = sample["input"], sample["target"]
    target_path = str(_listed(target["S2 path"])[0])
    members = [_place(path) for path in target_path.split(";")]
    coord = target["coord"][0] if "S2 TD" in target else target["coord"]
    return SampleInfo(
        index=index,
        roi=members[0][0],
        patch="+".join(patch for _, patch, _ in members),
        input_days=tuple(part.get("S2 TD", ())),
        target_days=target["S2 TD"][0] if "S2 TD" in target else None,
        input_paths=tuple(_relative(path) for path in _listed(part["S2 path"])),
        sar_paths=tuple(_relative(path) for path in _listed(part["S1 path"])),
        target_path=_relative(target_path),
        bounds=tuple(float(edge) for edge in coord),
    )


def _place(path: str) -> tuple[str, str, str]:
    """ROI, number of the patch and path from the root on, of one file of either data set."""
    posix = path.replace("\\", "/")
    found = _SERIES_PATH.search(posix) or _MONO_PATH.search(posix)
    if found is None:
        return "", "", path
    return f"{found[1]}/{found[2]}", found[3], found[0]


def _relative(joined: str) -> str:
    return ";".join(_place(path)[2] for path in joined.split(";"))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _filled(rows: Sequence[Sequence[np.ndarray | Stored]]) -> Tensor:
    """Images in rows as one float32 tensor (rows, columns, ...); each is copied or converted once."""
    tensor = _room(len(rows), len(rows[0]), *rows[0][0].shape)
    _fill(tensor.numpy(), rows)
    return tensor


def _fill(room: np.ndarray, rows: Sequence[Sequence[np.ndarray | Stored]]) -> None:
    for at, row in enumerate(rows):
        for column, image in enumerate(row):
            if isinstance(image, Stored):
                image.write(room[at, column])
            else:
                room[at, column] = image


def _room(*shape: int) -> Tensor:
    """Memory for a float32 tensor of this shape.

    In a worker it is shared with the process that asked for the batch, so that none is copied on its way; elsewhere it
    is numpy's, which asks the system for huge pages: a batch of 47 MB is filled in 5 ms, torch's own in 21.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.float32))
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * torch.float32.itemsize)
    return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]


def _require_equal_shapes(
    items: Sequence[Indexed], inputs: Sequence[Part], targets: Sequence[Sequence[np.ndarray]]
) -> None:
    first = (len(inputs[0]["S2"]), targets[0][0].shape[1:])
    for item, part, target in zip(items, inputs, targets, strict=True):
        shapes = {image.shape[1:] for image in (*part["S2"], *part["S1"], *target)}
        if shapes != {first[1]} or len(part["S2"]) != first[0]:
            info = sample_info(item.sample, item.index)
            found = f"{len(part['S2'])} dates of {' and '.join(_size(shape) for shape in sorted(shapes))} pixels"
            raise DataError(
                f"{info.target_path}: its sample has {found}, the first of its batch {first[0]} dates of "
                f"{_size(first[1])}; for samples of several sizes use --batch_size 1"
            )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def _as_series(part: Part) -> Part:
    """A triplet's input as a series of one date; a series as it is."""
    if isinstance(part["S2"], list):
        return part
    return {"S1": _listed(part["S1"]), "S2": [part["S2"]], "masks": [part["masks"]], "coverage": [part["coverage"]]}


def _empty_batch(use_sar: bool, skipped: tuple[Skipped, ...]) -> Batch:
    channels = N_S2 + (N_S1 if use_sar else 0)
    return Batch(
        x=torch.empty(0, 0, channels, 0, 0),
        target=torch.empty(0, 1, N_S2, 0, 0),
        dates=torch.empty(0, 0),
        masks=torch.empty(0, 0, 0, 0),
        coverage=torch.empty(0, 0),
        info=(),
        skipped=skipped,
    )
