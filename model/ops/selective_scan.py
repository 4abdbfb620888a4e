"""The selective scan of Mamba: one function, several backends, and the choice between them.

`torch` runs anywhere; `triton` (ours) and `mamba_ssm` (its CUDA kernels) need a CUDA device and their package, which is
imported at the first call. To add a backend, extend `_BACKENDS`, `_obstacle` and `model.registry.SCAN_BACKENDS`.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from common.errors import UsageError
from model.ops.scan_inputs import ScanInputs
from model.ops.self_test import self_test
from model.ops.torch_scan import scan_torch


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
        delta: (B, D, L), step sizes dt; before bias and softplus if given.
        A: (D, N), rates, negative for states that decay.
        B: (B, N, L), input weights of the N states of a channel.
        C: (B, N, L), output weights of the states.
        D: (D,), weight of the input in the output.
        z: (B, D, L), gate.
        delta_bias: (D,), added to delta.
        delta_softplus: take softplus of delta (after the bias).
        return_last_state: return the state after the last step too.
        backend: auto, torch, triton or mamba_ssm; see `choose_backend` for auto.

    Returns:
        y (B, D, L) of the dtype of u, computed in float32 (by `torch` in float64 if u or A have it); with
        `return_last_state` also the last state (B, D, N), which carries a gradient in `torch` and `triton`.

    Raises:
        ValueError: if shapes do not fit together.
        UsageError: if the backend is unknown, or cannot run on the device of u.

    Source:
        Gu & Dao 2023 (Mamba), Algorithm 2 and eq. 2; arguments in the order of `mamba_ssm.selective_scan_fn`.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    inputs.check_shapes()
    if backend == "auto" and inputs.double:
        backend = "torch"  # the only one in float64
    scan = _scan
    if torch.compiler.is_compiling():  # the scan is left out of compiled graphs
        scan = torch.compiler.disable(_scan)  # not as a decorator: it imports the compiler, which takes a second
    y, last = scan(backend, inputs)
    return (y, last) if return_last_state else y


def choose_backend(name: str, device: torch.device | str) -> tuple[str, str]:
    """Backend that runs on a device, and why.

    Args:
        name: a backend, or auto: the first of triton, mamba_ssm and torch that works on the device, which means that
            a small scan, forward and backward, agrees with torch there.
        device: of the tensors.

    Returns:
        The backend's name, and a reason to log.

    Raises:
        UsageError: if the name is unknown, or that backend cannot run on the device.
    """
    return _choose(name, str(torch.device(device)))


@functools.lru_cache
def _choose(name: str, device: str) -> tuple[str, str]:
    if name == "auto":
        return _choose_auto(device)
    if name not in _BACKENDS:
        raise UsageError(f"unknown --ssm_backend {name!r}; choose from auto, {', '.join(_BACKENDS)}")
    obstacle = _obstacle(name, device)
    if obstacle:
        raise UsageError(f"--ssm_backend {name} {obstacle}; take --ssm_backend auto, or torch, which runs anywhere")
    return name, "as requested"


def _choose_auto(device: str) -> tuple[str, str]:
    if torch.device(device).type != "cuda":
        return "torch", f"triton and mamba_ssm need a CUDA device, and this is {device}"
    skipped: list[str] = []
    for name in ("triton", "mamba_ssm"):
        obstacle = _obstacle(name, device)
        if obstacle is None:
            return name, "; ".join([f"works on {device}", *skipped])
        skipped.append(f"{name} {obstacle}")
    return "torch", "; ".join(skipped)


def _obstacle(name: str, device: str) -> str | None:
    """Reason why a backend cannot run on a device; None if it can."""
    if name == "torch":
        return None
    if torch.device(device).type != "cuda":
        return f"needs a CUDA device, and this is {device}"
    if find_spec(name) is None:
        return f"needs the package {name.replace('_', '-')}, which is not installed"
    if name == "mamba_ssm" and find_spec("selective_scan_cuda") is None:
        return "was installed without its CUDA kernels for Mamba-1"
    return self_test(_BACKENDS[name], device, last_state_gradient=name != "mamba_ssm")


def _scan(backend: str, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    name, _ = choose_backend(backend, inputs.u.device)
    return _BACKENDS[name](inputs)


def _scan_triton(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    from model.ops.triton_scan import scan_triton  # deferred: imports triton, which is optional

    return scan_triton(inputs)


def _scan_mamba_ssm(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """The CUDA kernels of mamba_ssm: all inputs of one dtype, parameters in float32. Not yet run by us on a GPU."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # deferred: optional

    u, delta, A, B, C, D, z, delta_bias, delta_softplus = inputs
    delta, B, C = (x.to(u.dtype) for x in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    D, delta_bias = (None if x is None else x.float() for x in (D, delta_bias))
    y, last = selective_scan_fn(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, True)
    return y, last


_BACKENDS: dict[str, Callable[[ScanInputs], tuple[Tensor, Tensor]]] = {
    "torch": scan_torch,
    "triton": _scan_triton,
    "mamba_ssm": _scan_mamba_ssm,
}
