"""Samples with the published keys, and the batches that networks take."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from common.errors import DataError
from data.constants import N_S1, N_S2
from data.layout import parse_path
from data.raster.geotiff import acquisition_date, days_since_origin
from data.raster.rescaling import RawImage

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
        "valid": Any,  # of targets: bool (H, W), False where a pixel has no data
    },
    total=False,
)
Sample = TypedDict("Sample", {"input": Part, "target": Part, "coverage bin": bool}, total=False)
"""A sample with the published keys. `S2` is a list of T arrays (13, H, W) in a series, one array in a triplet."""


@dataclass(frozen=True)
class SampleInfo:
    """Origin of a sample, as named in manifests and error messages.

    Paths are relative to the data root; the patches of a mosaic are joined by ";" in a path and by "+" in the patch
    number. Days are counted from the data set's origin. `bounds` are left, bottom, right, top of the target in its CRS.
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
        """All fields as a dict, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class Note(NamedTuple):
    """A fault of a file that is used nevertheless; of notes with the same key one is reported."""

    key: str
    text: str


@dataclass(frozen=True)
class Indexed:
    """A sample with its index in the full data set, and notes about its files."""

    index: int
    sample: Sample
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Placeholder for a sample that could not be read: its path and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Collated samples, as networks take them.

    Attributes:
        x: inputs (B, T, C, H, W) in [0, 1]; with radar, VV and VH precede the 13 optical bands.
        target: clear image (B, 1, 13, H, W) in reflectance.
        dates: days (B, T); with radar the mean of both sensors' days. None for single dates.
        masks: cloud masks of the inputs (B, T, H, W), 1 in clouds.
        coverage: cloud cover of the inputs (B, T), in [0, 1]; NaN without a detector.
        info: origin of each sample.
        skipped: samples of this batch that could not be read.
        valid: pixels of the targets that have data, bool (B, 1, H, W); None if all have.
        notes: about files of this batch.
    """

    x: Tensor
    target: Tensor
    dates: Tensor | None
    masks: Tensor
    coverage: Tensor
    info: tuple[SampleInfo, ...]
    skipped: tuple[Skipped, ...] = ()
    valid: Tensor | None = None
    notes: tuple[Note, ...] = ()

    @property
    def n(self) -> int:
        """Number of samples; 0 if all were skipped."""
        return len(self.info)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(lambda tensor: tensor.pin_memory())

    def without_missing(self) -> "Batch":
        """The samples whose targets have data at every pixel."""
        if self.valid is None:
            return self
        rows = self.valid.flatten(1).all(dim=1).nonzero()[:, 0]
        info = tuple(self.info[row] for row in rows.tolist())
        return replace(self._map(lambda tensor: tensor[rows]), info=info, valid=None)

    def share_memory(self) -> "Batch":
        """The batch in shared memory; tensors that are there already are not copied."""
        return self._map(lambda tensor: tensor.share_memory_() if tensor.numel() else tensor)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: getattr(self, name) for name in ("x", "target", "dates", "masks", "coverage", "valid")}
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **mapped)


@dataclass(frozen=True)
class Collate:
    """Collates samples into a batch.

    Attributes:
        use_sar: prepend the radar bands to the optical ones, and average the days of both sensors.
    """

    use_sar: bool

    def __call__(self, items: Sequence[Indexed | Sample | Skipped]) -> Batch:
        """Collate samples; skipped ones are dropped and listed.

        Args:
            items: samples of one data set, all of one size; samples without an index are numbered from 0.

        Returns:
            The batch, on the CPU; with n == 0 and empty tensors if all samples were skipped.

        Raises:
            DataError: if the samples differ in size or in their number of dates.
        """
        skipped = tuple(item for item in items if isinstance(item, Skipped))
        kept = [item for item in items if not isinstance(item, Skipped)]
        indexed = [item if isinstance(item, Indexed) else Indexed(index, item) for index, item in enumerate(kept)]
        if not indexed:
            return _empty_batch(self.use_sar, skipped)
        inputs = [_as_series(item.sample["input"]) for item in indexed]
        targets = [_as_list(item.sample["target"]["S2"]) for item in indexed]
        _require_equal_shapes(indexed, inputs, targets)
        dates = None
        if all("S2 TD" in part for part in inputs):
            dates = torch.stack([self._days(part) for part in inputs])  # (B, T)
        batch = Batch(
            x=self._images(inputs),
            target=_stack(targets),  # (B, 1, 13, H, W)
            dates=dates,
            masks=_stack([part["masks"] for part in inputs]),  # (B, T, H, W)
            coverage=torch.tensor([part["coverage"] for part in inputs], dtype=torch.float32),  # (B, T)
            info=tuple(sample_info(item.sample, item.index) for item in indexed),
            skipped=skipped,
            valid=_stack_valid([item.sample["target"] for item in indexed]),  # (B, 1, H, W)
            notes=tuple(note for item in indexed for note in item.notes),
        )
        # torch would share the small tensors in a thread of the worker, whose errors are printed and the batch lost
        return batch if get_worker_info() is None else batch.share_memory()

    def _images(self, inputs: Sequence[Part]) -> Tensor:
        if not self.use_sar:
            return _stack([part["S2"] for part in inputs])
        first = inputs[0]["S2"]
        images = _allocate(len(inputs), len(first), N_S1 + N_S2, *first[0].shape[1:])  # (B, T, 15, H, W)
        _copy_into(images.numpy()[:, :, :N_S1], [part["S1"] for part in inputs])
        _copy_into(images.numpy()[:, :, N_S1:], [part["S2"] for part in inputs])
        return images

    def _days(self, part: Part) -> Tensor:
        optical = torch.tensor(part["S2 TD"], dtype=torch.float32)
        if not self.use_sar:
            return optical
        return (torch.tensor(part["S1 TD"], dtype=torch.float32) + optical) / 2


def sample_info(sample: Sample, index: int) -> SampleInfo:
    """Origin of a sample of either data set, read from its paths.

    Args:
        sample: with a target.
        index: its index in the full data set.
    """
    part, target = sample["input"], sample["target"]
    target_path = str(_as_list(target["S2 path"])[0])
    members = [parse_path(path) for path in target_path.split(";")]
    coord = target["coord"][0] if "S2 TD" in target else target["coord"]
    return SampleInfo(
        index=index,
        roi=members[0][0],
        patch="+".join(patch for _, patch, _ in members),
        input_days=tuple(_days(path) for path in _as_list(part["S2 path"])) if "S2 TD" in part else (),
        target_days=_days(target_path) if "S2 TD" in target else None,
        input_paths=tuple(_relative(path) for path in _as_list(part["S2 path"])),
        sar_paths=tuple(_relative(path) for path in _as_list(part["S1 path"])),
        target_path=_relative(target_path),
        bounds=tuple(float(edge) for edge in coord),
    )


def _days(joined: str) -> int:
    """Days from the data set's origin to the date in a file's name; those of a sample count from --ref_date."""
    return days_since_origin(acquisition_date(joined.partition(";")[0]))


def _relative(joined: str) -> str:
    return ";".join(parse_path(path)[2] for path in joined.split(";"))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _stack(samples: Sequence[Sequence[np.ndarray | RawImage]]) -> Tensor:
    """The images of all samples as one float32 tensor (B, T, ...); each is copied or rescaled once."""
    tensor = _allocate(len(samples), len(samples[0]), *samples[0][0].shape)
    _copy_into(tensor.numpy(), samples)
    return tensor


def _stack_valid(targets: Sequence[Part]) -> Tensor | None:
    """The valid pixels of all targets, bool (B, 1, H, W); None if all are valid."""
    masks = [_as_list(part["valid"])[0] if "valid" in part else None for part in targets]
    if all(mask is None or mask.all() for mask in masks):
        return None
    size = next(mask.shape for mask in masks if mask is not None)
    return torch.from_numpy(np.stack([np.ones(size, np.bool_) if mask is None else mask for mask in masks])[:, None])


def _copy_into(out: np.ndarray, samples: Sequence[Sequence[np.ndarray | RawImage]]) -> None:
    for row, images in zip(out, samples, strict=True):
        for date, image in enumerate(images):
            if isinstance(image, RawImage):
                image.to_unit(row[date])
            else:
                row[date] = image


def _allocate(*shape: int) -> Tensor:
    """An uninitialised float32 tensor.

    In a worker it lies in memory shared with the main process, so that the batch is not copied. Elsewhere numpy
    allocates it, with huge pages: a batch of 47 MB is filled in 5 ms, in memory allocated by torch in 21 ms.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.float32))
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * torch.float32.itemsize)
    return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]


def _require_equal_shapes(
    items: Sequence[Indexed], inputs: Sequence[Part], targets: Sequence[Sequence[np.ndarray]]
) -> None:
    n_dates, size = len(inputs[0]["S2"]), targets[0][0].shape[1:]
    for item, part, target in zip(items, inputs, targets, strict=True):
        sizes = {image.shape[1:] for image in (*part["S2"], *part["S1"], *target)}
        if sizes != {size} or len(part["S2"]) != n_dates:
            info = sample_info(item.sample, item.index)
            pixels = " and ".join(_format_size(each) for each in sorted(sizes))
            raise DataError(
                f"{info.target_path}: its sample has {len(part['S2'])} dates of {pixels} pixels, the first of its "
                f"batch {n_dates} dates of {_format_size(size)}; for samples of several sizes use --batch_size 1"
            )


def _format_size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def _as_series(part: Part) -> Part:
    """The input of a triplet as a series of one date; a series unchanged."""
    if isinstance(part["S2"], list):
        return part
    return {"S1": _as_list(part["S1"]), "S2": [part["S2"]], "masks": [part["masks"]], "coverage": [part["coverage"]]}


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
