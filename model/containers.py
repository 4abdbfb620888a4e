"""Base classes of the frozen containers of tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

Self = TypeVar("Self", bound="TensorFields")
SelfPrediction = TypeVar("SelfPrediction", bound="PixelPrediction")


@dataclass(frozen=True, eq=False)
class TensorFields:
    """Named tensors about the same pixels."""

    def fields(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same container with `fn` applied to every tensor, such as `Tensor.detach` or `Tensor.cpu`."""
        return replace(self, **{name: fn(tensor) for name, tensor in self.fields().items()})


@dataclass(frozen=True, eq=False)
class PixelPrediction(TensorFields):
    """A prediction per pixel and band: tensors (B, 1, C, H, W); (B, C, H, W) is accepted too."""

    def item(self: SelfPrediction, i: int) -> SelfPrediction:
        """One image of the batch; the batch dimension stays, with size 1."""
        batch = next(iter(self.fields().values())).shape[0]
        if not -batch <= i < batch:
            raise IndexError(f"image {i} of a batch of {batch}")
        start = i % batch
        return self.map(lambda tensor: tensor[start : start + 1])


def check_target(mean: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both have the same shape: (B, C, H, W) would broadcast against (B, 1, C, H, W)."""
    if mean.shape != target.shape:
        raise ValueError(f"expected a target of shape {tuple(mean.shape)}, got {tuple(target.shape)}")
