"""The selective scan in plain PyTorch, for any device: very many short sequences, one block of them at a time.

States (sequence, date, state, channel) are many times as large as all inputs together. They exist only for one block of
sequences, sized to stay in a processor's cache, and are recomputed in the backward pass: only the inputs are kept.
Channels are innermost, as in the linear layers around the scan.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.scan_inputs import ScanInputs

# Bytes of states (three arrays) per block. Per thread of a processor: of 2, 4, 8, 16, 32 MB, 8 took the least time, for
# 3 dates as for 64 (a core with 1 MB of its own cache and 32 MB shared by two).
CPU_BLOCK_BYTES = 2**23
CUDA_BLOCK_BYTES = 2**28


def scan_torch(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan and last state: y (B, D, L) of the dtype of u, and (B, D, N) in float64 if u or A have it, else float32.

    Both carry gradients.
    """
    y, last = _Scan.apply(*inputs)
    return y, last


class _Scan(torch.autograd.Function):
    """The scan with a hand-written backward pass."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = ScanInputs(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-1])
        ctx.delta_softplus = inputs.delta_softplus
        scan = _BlockedScan(inputs)
        with torch.autocast(inputs.u.device.type, enabled=False):
            y = _empty(inputs.u.shape, inputs.u)
            last = _empty((*inputs.u.shape[:2], len(scan.rates)), scan.rates)
            buffers = scan.buffers(2)
            for rows in scan.blocks():
                block = scan.block(rows)
                _, h = scan.states(block, buffers)
                out = scan.readout(block, h)
                if block.z is not None:
                    out *= F.silu(block.z)
                y[rows] = out.transpose(1, 2)
                last[rows] = h[:, -1].transpose(1, 2)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        scan = _BlockedScan(ScanInputs(*(*ctx.saved_tensors, ctx.delta_softplus)))
        grads = _Gradients(scan)
        with torch.autocast(scan.inputs.u.device.type, enabled=False):
            buffers = scan.buffers(3)
            for rows in scan.blocks():
                grads.add_block(rows, buffers, grad_y, grad_last)
        return grads.u, grads.delta, grads.rates.t(), grads.B, grads.C, grads.D, grads.z, grads.delta_bias, None


class _Block(NamedTuple):
    """Inputs of n sequences, in the dtype of the computation."""

    u: Tensor  # (n, L, D)
    raw_dt: Tensor  # (n, L, D): step sizes before softplus
    dt: Tensor  # (n, L, D): step sizes
    drive: Tensor  # (n, L, D): dt u
    B: Tensor  # (n, L, N)
    C: Tensor  # (n, L, N)
    z: Tensor | None  # (n, L, D)


class _BlockedScan:
    """The inputs of a scan, read block by block, and the states of a block."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.inputs = inputs
        self.dtype = torch.float64 if inputs.double else torch.float32
        self.D = None if inputs.D is None else inputs.D.to(self.dtype)
        self.delta_bias = None if inputs.delta_bias is None else inputs.delta_bias.to(self.dtype)
        self.rates = inputs.A.t().to(self.dtype).contiguous()  # (N, D)
        self.rates_log2 = self.rates * math.log2(math.e)  # exp2 takes less than half of the time of exp
        self.n_sequences, _, self.length = inputs.u.shape
        on_cpu = inputs.u.device.type == "cpu"
        block_bytes = CPU_BLOCK_BYTES * torch.get_num_threads() if on_cpu else CUDA_BLOCK_BYTES
        sequence_bytes = 3 * self.length * self.rates.nbytes
        self.block_size = max(1, min(block_bytes // sequence_bytes, self.n_sequences))

    def blocks(self) -> Iterator[slice]:
        """Slices of sequences."""
        for start in range(0, self.n_sequences, self.block_size):
            yield slice(start, min(start + self.block_size, self.n_sequences))

    def buffers(self, count: int) -> list[Tensor]:
        """Arrays (n, L, N, D) that all blocks reuse."""
        shape = (self.block_size, self.length, *self.rates.shape)
        return [self.rates.new_empty(shape) for _ in range(count)]

    def block(self, rows: slice) -> _Block:
        """Inputs of some sequences."""
        inputs = self.inputs
        u, raw_dt = self.rows(inputs.u, rows), self.rows(inputs.delta, rows)
        if self.delta_bias is not None:
            raw_dt = raw_dt + self.delta_bias
        dt = F.softplus(raw_dt) if inputs.delta_softplus else raw_dt
        z = None if inputs.z is None else self.rows(inputs.z, rows)
        return _Block(u, raw_dt, dt, dt * u, self.rows(inputs.B, rows), self.rows(inputs.C, rows), z)

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Some sequences of x (B, ., L), as (n, L, .) contiguous."""
        return x[rows].transpose(1, 2).to(self.dtype).contiguous()

    def states(self, block: _Block, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Decays exp(dt A) and states, both (n, L, N, D), written into the first two buffers."""
        decay, h = (buffer[: len(block.u)] for buffer in buffers[:2])
        torch.mul(block.dt[:, :, None], self.rates_log2, out=decay).exp2_()
        torch.mul(block.B[..., None], block.drive[:, :, None], out=h)
        for t in range(1, self.length):
            h[:, t].addcmul_(decay[:, t], h[:, t - 1])
        return decay, h

    def readout(self, block: _Block, h: Tensor) -> Tensor:
        """C h + D u, (n, L, D): the output before the gate."""
        y = _sum_states(block.C, h)
        return y if self.D is None else y.addcmul_(block.u, self.D)


class _Gradients:
    """Gradients of all inputs, each in the layout of its input, filled block by block."""

    def __init__(self, scan: _BlockedScan) -> None:
        self.scan = scan
        inputs = scan.inputs
        self.u, self.delta, self.B, self.C = (_empty(x.shape, x) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        self.z = None if inputs.z is None else _empty(inputs.z.shape, inputs.z)
        self.rates = torch.zeros_like(scan.rates)  # (N, D): of A
        self.D = None if scan.D is None else torch.zeros_like(scan.D)
        self.delta_bias = None if scan.delta_bias is None else torch.zeros_like(scan.delta_bias)

    def add_block(self, rows: slice, buffers: list[Tensor], grad_y: Tensor | None, grad_last: Tensor | None) -> None:
        """Recompute the states of some sequences, then propagate gradients backwards."""
        scan = self.scan
        block = scan.block(rows)
        decay, h = scan.states(block, buffers)
        grad = torch.zeros_like(block.u) if grad_y is None else scan.rows(grad_y, rows)  # (n, L, D)
        if block.z is not None and self.z is not None:
            grad, grad_z = _gate_backward(grad, scan.readout(block, h), block.z)
            self.z[rows] = grad_z.transpose(1, 2)
        grad_h = torch.mul(block.C[..., None], grad[:, :, None], out=buffers[2][: len(grad)])  # (n, L, N, D)
        if grad_last is not None:
            grad_h[:, -1] += grad_last[rows].transpose(1, 2)
        for t in range(scan.length - 1, 0, -1):
            grad_h[:, t - 1].addcmul_(decay[:, t], grad_h[:, t])

        # From here each buffer is overwritten by products of its last use. At the first date no state decays.
        grad_exponent = decay[:, 1:].mul_(h[:, :-1]).mul_(grad_h[:, 1:])
        self.C[rows] = h.mul_(grad[:, :, None]).sum(-1).transpose(1, 2)
        grad_drive = _sum_states(block.B, grad_h)  # (n, L, D)
        grad_dt = grad_drive * block.u
        grad_dt[:, 1:] += torch.mul(grad_exponent, scan.rates, out=h[:, 1:]).sum(2)
        self.rates += grad_exponent.mul_(block.dt[:, 1:, None]).sum((0, 1))
        self.B[rows] = grad_h.mul_(block.drive[:, :, None]).sum(-1).transpose(1, 2)
        if scan.inputs.delta_softplus:
            grad_dt *= torch.sigmoid(block.raw_dt)
        self.delta[rows] = grad_dt.transpose(1, 2)
        if self.delta_bias is not None:
            self.delta_bias += grad_dt.sum((0, 1))
        grad_u = grad_drive.mul_(block.dt)
        if scan.D is not None and self.D is not None:
            grad_u.addcmul_(grad, scan.D)
            self.D += grad.mul_(block.u).sum((0, 1))
        self.u[rows] = grad_u.transpose(1, 2)


def _sum_states(weights: Tensor, h: Tensor) -> Tensor:
    """Sum of weights (n, L, N) times h (n, L, N, D) over the states: (n, L, D)."""
    return torch.bmm(weights.flatten(0, 1)[:, None], h.flatten(0, 1)).view(*h.shape[:2], -1)


def _gate_backward(grad: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and z from that of y silu(z)."""
    sigmoid = torch.sigmoid(z)
    gate = z * sigmoid
    return grad * gate, sigmoid.mul_(1 + z - gate).mul_(y).mul_(grad)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An array (B, C, L) with channels innermost in memory, of the dtype and device of `like`."""
    batch, channels, length = shape
    return like.new_empty_strided(shape, (length * channels, 1, channels))
