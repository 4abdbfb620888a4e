"""Arguments of the selective scan, as every backend takes them."""

from typing import NamedTuple

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """Arguments in the order of `mamba_ssm`; `selective_scan` says what each means."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L)
    A: Tensor  # (D, N)
    B: Tensor  # (B, N, L)
    C: Tensor  # (B, N, L)
    D: Tensor | None = None  # (D,)
    z: Tensor | None = None  # (B, D, L)
    delta_bias: Tensor | None = None  # (D,)
    delta_softplus: bool = False

    @property
    def double(self) -> bool:
        """Whether the scan is to be computed in float64: if u or A have it."""
        return torch.float64 in (self.u.dtype, self.A.dtype)

    def check_shapes(self) -> None:
        """Raise a ValueError if shapes do not fit together."""
        u, A = self.u, self.A
        if u.ndim != 3 or A.ndim != 2 or 0 in u.shape[1:] or 0 in A.shape:
            raise ValueError(
                f"expected u (B, D, L) and A (D, N), none empty, got {tuple(u.shape)} and {tuple(A.shape)}"
            )
        batch, channels, length = u.shape
        states = A.shape[1]
        expected = {
            "delta": (batch, channels, length),
            "A": (channels, states),
            "B": (batch, states, length),
            "C": (batch, states, length),
            "D": (channels,),
            "z": (batch, channels, length),
            "delta_bias": (channels,),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"expected {name} {shape} for u {tuple(u.shape)}, got {tuple(tensor.shape)}")
