"""The selective scan of Mamba: one door, several backends, and the choice between them.

`torch` runs anywhere; `triton` (ours) and `mamba_ssm` (its CUDA kernels) need a CUDA device and their package. Nothing
is imported before it is used. Other scans are added in `_BACKENDS` and `_obstacle`.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from common.errors import UsageError
from model.ops.selective_scan_torch import scan_torch

Scan = Callable[..., tuple[Tensor, Tensor]]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t) from h = 0 along the last axis.

    Args:
        u: (B, D, L), inputs of D channels.
        delta: (B, D, L), steps dt; before the bias and softplus where those are given.
        A: (D, N), rates, negative for states that decay.
        B: (B, N, L), how the input drives the N states of a channel.
        C: (B, N, L), how they are read.
        D: (D,), weight of the input in the output.
        z: (B, D, L), gate.
        delta_bias: (D,), added to delta.
        delta_softplus: take softplus of delta (after the bias).
        return_last_state: give the state after the last step too.
        backend: auto, torch, triton or mamba_ssm; `choose_backend` says what auto takes.

    Returns:
        y (B, D, L) of the dtype of u, calculated in float32 (by `torch` in float64 where u or A have it); with
        `return_last_state` also the last state (B, D, N), which carries a gradient in `torch` and `triton`.

    Raises:
        ValueError: if shapes do not fit together.
        UsageError: if the backend is unknown, or cannot run on the device of u.

    Source:
        Gu & Dao 2023 (Mamba), Algorithm 2 and eq. 2; arguments laid out as in `mamba_ssm.selective_scan_fn`.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    if backend == "auto" and torch.float64 in (u.dtype, A.dtype):
        backend = "torch"  # the only one in float64
    scan = _scan
    if torch.compiler.is_compiling():  # a network being compiled steps out of its graph
        scan = torch.compiler.disable(_scan)  # not as a decorator: it imports the compiler, which takes a second
    y, last = scan(backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last) if return_last_state else y


def choose_backend(name: str, device: torch.device | str) -> tuple[str, str]:
    """Which backend runs on a device, and why.

    Args:
        name: a backend, or auto: the first of triton, mamba_ssm and torch that works on the device. Triton counts as
            working when a small scan of its own, forward and backward, agrees with torch there.
        device: where the tensors will be.

    Returns:
        The backend's name, and a reason to log.

    Raises:
        UsageError: if the name is unknown, or that backend cannot run on the device.
    """
    return _choose(name, str(torch.device(device)))


@functools.lru_cache
def _choose(name: str, device: str) -> tuple[str, str]:
    if name == "auto":
        return _choose_freely(device)
    if name not in _BACKENDS:
        raise UsageError(f"unknown --ssm_backend {name!r}; choose from auto, {', '.join(_BACKENDS)}")
    obstacle = _obstacle(name, device)
    if obstacle:
        raise UsageError(f"--ssm_backend {name} {obstacle}; take --ssm_backend auto, or torch, which runs anywhere")
    return name, "as asked for"


def _choose_freely(device: str) -> tuple[str, str]:
    if torch.device(device).type != "cuda":
        return "torch", f"triton and mamba_ssm need a CUDA device, and this is {device}"
    passed_over: list[str] = []
    for name in ("triton", "mamba_ssm"):
        obstacle = _obstacle(name, device)
        if obstacle is None and name == "triton":
            obstacle = _failed_trial(device)
        if obstacle is None:
            return name, "; ".join([f"works on {device}", *passed_over])
        passed_over.append(f"{name} {obstacle}")
    return "torch", "; ".join(passed_over)


def _obstacle(name: str, device: str) -> str | None:
    """Why a backend cannot run on a device; None if it can."""
    if name == "torch":
        return None
    if torch.device(device).type != "cuda":
        return f"needs a CUDA device, and this is {device}"
    if find_spec(name) is None:
        return f"needs the package {name.replace('_', '-')}, which is not installed"
    if name == "mamba_ssm" and find_spec("selective_scan_cuda") is None:
        return "was installed without its CUDA kernels for Mamba-1"
    return None


def _failed_trial(device: str) -> str | None:
    from model.ops.selective_scan_triton import failed_trial

    return failed_trial(device)


def _scan(backend: str, u: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    name, _ = choose_backend(backend, u.device)
    return _BACKENDS[name](u, *others)


def _scan_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from model.ops.selective_scan_triton import scan_triton

    return scan_triton(*arguments)


def _scan_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The CUDA kernels of mamba_ssm: all inputs of one dtype, parameters in float32. Not yet run by us on a GPU."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta, B, C = (x.to(u.dtype) for x in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    D, delta_bias = (None if x is None else x.float() for x in (D, delta_bias))
    y, last = selective_scan_fn(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, True)
    return y, last


_BACKENDS: dict[str, Scan] = {"torch": scan_torch, "triton": _scan_triton, "mamba_ssm": _scan_mamba_ssm}


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2 or 0 in u.shape[1:] or 0 in A.shape:
        raise ValueError(f"expected u (B, D, L) and A (D, N), none empty, got {tuple(u.shape)} and {tuple(A.shape)}")
    batch, channels, length = u.shape
    states = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"expected {name} {shape} beside u {tuple(u.shape)}, got {tuple(tensor.shape)}")
