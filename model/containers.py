"""The base class of frozen containers of tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

Self = TypeVar("Self", bound="TensorFields")


@dataclass(frozen=True, eq=False)
class TensorFields:
    """Named tensors about the same pixels."""

    def fields(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same container with `fn` applied to every tensor, such as `Tensor.detach` or `Tensor.cpu`."""
        return replace(self, **{name: fn(tensor) for name, tensor in self.fields().items()})

    def item(self: Self, i: int) -> Self:
        """One entry of the first dimension, such as an image of a batch; the dimension stays, with size 1."""
        size = len(next(iter(self.fields().values())))
        if not -size <= i < size:
            raise IndexError(f"item {i} of a batch of {size}")
        start = i % size
        return self.map(lambda tensor: tensor[start : start + 1])


def select_pixels(field: Tensor, valid: Tensor) -> Tensor:
    """The pixels of (B, 1, C, H, W) at which `valid` (B, 1, H, W) is True, as a row: (1, 1, C, 1, N)."""
    return field.movedim(2, 0)[:, valid][None, None, :, None]


def check_target(mean: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both have the same shape: (B, C, H, W) would broadcast against (B, 1, C, H, W)."""
    if mean.shape != target.shape:
        raise ValueError(f"expected a target of shape {tuple(mean.shape)}, got {tuple(target.shape)}")
