"""The selective scan in Triton: launch of its kernels.

Tested on the CPU with Triton's interpreter; no GPU has run it yet.
"""

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from model.ops.scan_inputs import ScanInputs
from model.ops.triton_kernels import backward_kernel, forward_kernel

KEEP_EVERY = 8  # dates from one kept state to the next
TILE = 2048  # states of a tile: 16 registers in each of 128 threads
MAX_CHANNELS = 128  # of a tile
MAX_PROGRAMS = 1024  # of the backward kernel along the sequences; each has partial sums of the size of A


def scan_triton(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan and last state in float32: y (B, D, L) of the dtype of u, and (B, D, N). Both carry gradients.

    Raises:
        ValueError: for float64.
    """
    if inputs.double:
        raise ValueError("the triton scan computes in float32; take backend='torch' for float64")
    y, last = _Scan.apply(*inputs)
    return y, last


class _Tiles(NamedTuple):
    """Size of a tile of work."""

    sequences: int
    channels: int
    states: int

    @classmethod
    def of(cls, n_channels: int, n_states: int) -> "_Tiles":
        states = triton.next_power_of_2(n_states)
        channels = min(triton.next_power_of_2(n_channels), MAX_CHANNELS, max(TILE // states, 1))
        return cls(max(TILE // (channels * states), 1), channels, states)


class _Scan(torch.autograd.Function):
    """The scan by kernels; keeps its inputs and, for long sequences, the state of every few dates."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        u, delta, A, B, C, D, z, delta_bias, softplus = ScanInputs(*arguments)
        batch, n_channels, length = u.shape
        n_states = A.shape[1]
        tiles = _Tiles.of(n_channels, n_states)
        y = _empty_like(u)
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
        grad_u, grad_delta, grad_z = _empty_like(u), _empty_like(delta), None if z is None else _empty_like(z)
        n_blocks = triton.cdiv(n_channels, tiles.channels)
        programs = min(triton.cdiv(batch, tiles.sequences), MAX_PROGRAMS)
        grad_B, grad_C = torch.empty(2, n_blocks, batch, length, n_states, device=u.device).unbind()
        grad_A = torch.empty(programs, n_channels, n_states, device=u.device)
        grad_D, grad_bias = torch.empty(2, programs, n_channels, device=u.device).unbind()
        if batch:
            with _on(u):
                backward_kernel[(programs, n_blocks)](
                    *(u, delta, B, C, z, A, D, delta_bias, kept, grad_y, grad_last),
                    *(grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_D, grad_bias),
                    *(batch, n_channels, n_states, length),
                    *_strides(u, delta, B, C, z, grad_y),
                    ctx.softplus,
                    *tiles,
                    KEEP_EVERY,
                )
        grad_B, grad_C = (x.sum(0).transpose(1, 2) for x in (grad_B, grad_C))
        sum_D = None if D is None else grad_D.sum(0)
        sum_bias = None if delta_bias is None else grad_bias.sum(0)
        return grad_u, grad_delta, grad_A.sum(0), grad_B, grad_C, sum_D, grad_z, sum_bias, None


def _channels_innermost(x: Tensor | None) -> Tensor | None:
    """The same (B, C, L), with channels innermost in memory."""
    return x if x is None or x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _strides(*series: Tensor | None) -> list[int]:
    """Strides along sequences and along dates of each (B, C, L)."""
    return [stride for x in series for stride in ((0, 0) if x is None else (x.stride(0), x.stride(2)))]


def _empty_like(x: Tensor) -> Tensor:
    """An empty array of the shape of x (B, C, L), with channels innermost."""
    _, channels, length = x.shape
    return x.new_empty_strided(x.shape, (length * channels, 1, channels))


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context in which kernels are launched on the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
