"""The selective scan in Triton: how its kernels are called, and a trial of them.

Tested on the CPU with Triton's interpreter; no GPU has run it yet.
"""

import contextlib
import subprocess
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from model.ops.selective_scan_kernels import backward_kernel, forward_kernel
from model.ops.selective_scan_torch import scan_torch

KEEP_EVERY = 8  # dates from one kept state to the next
TILE = 2048  # states of a tile: 16 registers in each of 128 threads
MAX_CHANNELS = 128  # of a tile
MAX_PROGRAMS = 1024  # of the backward kernel along the sequences; each has partial sums of the size of A
TRIAL_TOLERANCE = 1e-3  # float32, and the approximate exp2 of a GPU


def scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scan and its last state, calculated in float32.

    Takes what `model.ops.selective_scan` takes. Gives y (B, D, L) of the dtype of u, and the last state (B, D, N) in
    float32. Both carry gradients.

    Raises:
        ValueError: for float64.
    """
    if torch.float64 in (u.dtype, A.dtype):
        raise ValueError("the triton scan calculates in float32; take backend='torch' for float64")
    y, last = _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y, last


def failed_trial(device: torch.device | str) -> str | None:
    """Why the kernels do not work on a device; None where a small scan and its gradients agree with torch.

    Sequences of a date more than one kept state apart, an odd number of everything.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (
        [(5, 7, KEEP_EVERY + 1)] * 2 + [(7, 3)] + [(5, 3, KEEP_EVERY + 1)] * 2 + [(7,), (5, 7, KEEP_EVERY + 1), (7,)]
    )
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        arguments: list[Any] = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        arguments[2] = -arguments[2].abs()
        for argument in arguments:
            argument.requires_grad_()
        try:
            found = _results(scan_triton(*(*arguments, True)), arguments)
        except (
            triton.CompilationError,
            triton.OutOfResources,
            subprocess.CalledProcessError,  # no working C compiler for its launcher
            RuntimeError,
            OSError,
        ) as error:
            return f"failed on {device} ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"
        expected = _results(scan_torch(*(*arguments, True)), arguments)
    for one, other in zip(found, expected, strict=True):
        if not torch.allclose(one, other, rtol=TRIAL_TOLERANCE, atol=TRIAL_TOLERANCE * other.abs().max().item()):
            return f"disagrees with torch on {device}"
    return None


def _results(scanned: tuple[Tensor, Tensor], arguments: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients."""
    y, last = scanned
    return [y.detach(), last.detach(), *torch.autograd.grad(y.sum() + last.square().sum(), arguments)]


class _Tiles(NamedTuple):
    """How the work is cut."""

    sequences: int
    channels: int
    states: int

    @classmethod
    def of(cls, n_channels: int, n_states: int) -> "_Tiles":
        states = triton.next_power_of_2(n_states)
        channels = min(triton.next_power_of_2(n_channels), MAX_CHANNELS, max(TILE // states, 1))
        return cls(max(TILE // (channels * states), 1), channels, states)


class _Scan(torch.autograd.Function):
    """The scan by kernels; keeps its inputs and, for long sequences, a state every few dates."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        u, delta, A, B, C, D, z, delta_bias, softplus = arguments
        batch, n_channels, length = u.shape
        n_states = A.shape[1]
        tiles = _Tiles.of(n_channels, n_states)
        y = _series_like(u)
        last = u.new_empty(batch, n_channels, n_states, dtype=torch.float32)
        kept = None
        if any(ctx.needs_input_grad) and length > KEEP_EVERY:
            kept = last.new_empty((length - 1) // KEEP_EVERY, batch, n_channels, n_states)
        D, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
        A = A.contiguous()
        series = [_channels_innermost(x) for x in (u, delta, B, C, z)]
        ctx.save_for_backward(*series, A, D, delta_bias, kept)
        ctx.softplus = softplus
        grid = (triton.cdiv(batch, tiles.sequences), triton.cdiv(n_channels, tiles.channels))
        if batch:
            with _on(u):
                forward_kernel[grid](
                    *(*series, A, D, delta_bias, y, last, kept, batch, n_channels, n_states, length),
                    *_strides(*series),
                    softplus,
                    *tiles,
                    KEEP_EVERY,
                )
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        u, delta, B, C, z, A, D, delta_bias, kept = ctx.saved_tensors
        batch, n_channels, length = u.shape
        n_states = A.shape[1]
        tiles = _Tiles.of(n_channels, n_states)
        grad_y = torch.zeros_like(u) if grad_y is None else grad_y
        grad_y = _channels_innermost(grad_y)
        grad_last = None if grad_last is None else grad_last.contiguous()
        of_u, of_delta, of_z = _series_like(u), _series_like(delta), None if z is None else _series_like(z)
        n_blocks = triton.cdiv(n_channels, tiles.channels)
        programs = min(triton.cdiv(batch, tiles.sequences), MAX_PROGRAMS)
        of_B, of_C = torch.empty(2, n_blocks, batch, length, n_states, device=u.device).unbind()
        of_A = torch.empty(programs, n_channels, n_states, device=u.device)
        of_D, of_bias = torch.empty(2, programs, n_channels, device=u.device).unbind()
        if batch:
            with _on(u):
                backward_kernel[(programs, n_blocks)](
                    *(u, delta, B, C, z, A, D, delta_bias, kept, grad_y, grad_last),
                    *(of_u, of_delta, of_z, of_B, of_C, of_A, of_D, of_bias),
                    *(batch, n_channels, n_states, length),
                    *_strides(u, delta, B, C, z, grad_y),
                    ctx.softplus,
                    *tiles,
                    KEEP_EVERY,
                )
        of_B, of_C = (x.sum(0).transpose(1, 2) for x in (of_B, of_C))
        sum_D = None if D is None else of_D.sum(0)
        sum_bias = None if delta_bias is None else of_bias.sum(0)
        return of_u, of_delta, of_A.sum(0), of_B, of_C, sum_D, of_z, sum_bias, None


def _channels_innermost(x: Tensor | None) -> Tensor | None:
    """The same (B, C, L), its channels side by side in memory."""
    return x if x is None or x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _strides(*series: Tensor | None) -> list[int]:
    """Steps in memory from one sequence to the next, and from one date to the next, of each (B, C, L)."""
    return [step for x in series for step in ((0, 0) if x is None else (x.stride(0), x.stride(2)))]


def _series_like(x: Tensor) -> Tensor:
    """An empty array of the shape of x (B, C, L), all of it with channels innermost."""
    _, channels, length = x.shape
    return x.new_empty_strided(x.shape, (length * channels, 1, channels))


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The device that kernels are launched on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
