"""The selective scan in plain PyTorch, for any device: very many short sequences, one block of them at a time.

States (sequence, date, state, channel) are many times as large as all inputs together. They live only for one block of
sequences, sized to stay in a processor's cache, and are calculated again in the backward pass: only the inputs are kept
for it. Channels come innermost, as they do in the linear maps around the scan.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of states (three arrays) that one block may hold. Per thread of a processor: of 2, 4, 8, 16, 32 MB, 8 took the
# least time, for 3 dates as for 64 (a core with 1 MB of its own cache and 32 MB shared by two).
CPU_BLOCK_BYTES = 2**23
CUDA_BLOCK_BYTES = 2**28


def scan_torch(
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
    """The scan and its last state.

    Takes what `model.ops.selective_scan` takes. Gives y (B, D, L) of the dtype of u, and the last state (B, D, N) in
    the dtype used inside: float64 where u or A have it, else float32. Both carry gradients.
    """
    y, last = _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y, last


class _Block(NamedTuple):
    """What n sequences read, and their steps, in the dtype used inside."""

    u: Tensor  # (n, L, D)
    raw: Tensor  # (n, L, D): steps before softplus
    dt: Tensor  # (n, L, D): steps
    driven: Tensor  # (n, L, D): dt u
    B: Tensor  # (n, L, N)
    C: Tensor  # (n, L, N)
    z: Tensor | None  # (n, L, D)


class _Scan(torch.autograd.Function):
    """The scan with gradients by hand."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:-1])
        ctx.delta_softplus = arguments[-1]
        inputs = _Inputs(*arguments)
        with torch.autocast(inputs.u.device.type, enabled=False):
            y = _empty(inputs.u.shape, inputs.u)
            last = _empty((*inputs.u.shape[:2], inputs.A.shape[1]), inputs.rates)
            buffers = inputs.buffers(2)
            for rows in inputs.blocks():
                block = inputs.block(rows)
                _, h = inputs.states(block, buffers)
                out = inputs.readout(block, h)
                if block.z is not None:
                    out *= F.silu(block.z)
                y[rows] = out.transpose(1, 2)
                last[rows] = h[:, -1].transpose(1, 2)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(*(*ctx.saved_tensors, ctx.delta_softplus))
        grads = _Gradients(inputs)
        with torch.autocast(inputs.u.device.type, enabled=False):
            buffers = inputs.buffers(3)
            for rows in inputs.blocks():
                grads.add_block(rows, buffers, grad_y, grad_last)
        of_A = grads.rates.t()
        return grads.u, grads.delta, of_A, grads.B, grads.C, grads.D, grads.z, grads.delta_bias, None


class _Inputs:
    """The arguments of a scan, and how they are read block by block."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        self.u, self.delta, self.A, self.B, self.C, self.z = u, delta, A, B, C, z
        self.delta_softplus = delta_softplus
        self.dtype = torch.float64 if torch.float64 in (u.dtype, A.dtype) else torch.float32
        self.D = None if D is None else D.to(self.dtype)
        self.delta_bias = None if delta_bias is None else delta_bias.to(self.dtype)
        self.rates = A.t().to(self.dtype).contiguous()  # (N, D)
        self.rates_log2 = self.rates * math.log2(math.e)  # exp2 takes less than half of the time of exp
        self.length = u.shape[2]
        self.block_size = self._choose_block_size()

    def _choose_block_size(self) -> int:
        on_cpu = self.u.device.type == "cpu"
        allowed = CPU_BLOCK_BYTES * torch.get_num_threads() if on_cpu else CUDA_BLOCK_BYTES
        of_one = 3 * self.length * self.rates.numel() * self.rates.element_size()
        return max(1, min(allowed // of_one, len(self.u)))

    def blocks(self) -> Iterator[slice]:
        """Slices of sequences."""
        for start in range(0, len(self.u), self.block_size):
            yield slice(start, min(start + self.block_size, len(self.u)))

    def buffers(self, count: int) -> list[Tensor]:
        """Arrays (n, L, N, D) that each block uses anew."""
        shape = (self.block_size, self.length, *self.rates.shape)
        return [self.rates.new_empty(shape) for _ in range(count)]

    def block(self, rows: slice) -> _Block:
        """The inputs of some sequences."""
        u, raw = self.rows(self.u, rows), self.rows(self.delta, rows)
        if self.delta_bias is not None:
            raw = raw + self.delta_bias
        dt = F.softplus(raw) if self.delta_softplus else raw
        z = None if self.z is None else self.rows(self.z, rows)
        return _Block(u, raw, dt, dt * u, self.rows(self.B, rows), self.rows(self.C, rows), z)

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Some sequences of x (B, ., L), as (n, L, .) contiguous."""
        return x[rows].transpose(1, 2).to(self.dtype).contiguous()

    def states(self, block: _Block, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Decays exp(dt A) and states, both (n, L, N, D), written into the first two buffers."""
        decay, h = (buffer[: len(block.u)] for buffer in buffers[:2])
        torch.mul(block.dt[:, :, None], self.rates_log2, out=decay).exp2_()
        torch.mul(block.B[..., None], block.driven[:, :, None], out=h)
        for t in range(1, self.length):
            h[:, t].addcmul_(decay[:, t], h[:, t - 1])
        return decay, h

    def readout(self, block: _Block, h: Tensor) -> Tensor:
        """C h + D u, (n, L, D): the output before the gate."""
        y = _over_states(block.C, h)
        return y if self.D is None else y.addcmul_(block.u, self.D)


class _Gradients:
    """Gradients of all inputs, each in the layout of its input, filled block by block."""

    def __init__(self, inputs: _Inputs) -> None:
        self.inputs = inputs
        self.u, self.delta, self.B, self.C = (_empty(x.shape, x) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        self.z = None if inputs.z is None else _empty(inputs.z.shape, inputs.z)
        self.rates = torch.zeros_like(inputs.rates)  # (N, D): of A
        self.D = None if inputs.D is None else torch.zeros_like(inputs.D)
        self.delta_bias = None if inputs.delta_bias is None else torch.zeros_like(inputs.delta_bias)

    def add_block(self, rows: slice, buffers: list[Tensor], grad_y: Tensor | None, grad_last: Tensor | None) -> None:
        """Walk some sequences again, then back."""
        inputs = self.inputs
        block = inputs.block(rows)
        decay, h = inputs.states(block, buffers)
        grad = torch.zeros_like(block.u) if grad_y is None else inputs.rows(grad_y, rows)  # (n, L, D)
        if block.z is not None and self.z is not None:
            grad, of_z = _through_gate(grad, inputs.readout(block, h), block.z)
            self.z[rows] = of_z.transpose(1, 2)
        g = torch.mul(block.C[..., None], grad[:, :, None], out=buffers[2][: len(grad)])  # (n, L, N, D): of h
        if grad_last is not None:
            g[:, -1] += grad_last[rows].transpose(1, 2)
        for t in range(inputs.length - 1, 0, -1):
            g[:, t - 1].addcmul_(decay[:, t], g[:, t])

        # From here each buffer is overwritten by products of its last use. The first date has no state to decay.
        of_exponent = decay[:, 1:].mul_(h[:, :-1]).mul_(g[:, 1:])
        self.C[rows] = h.mul_(grad[:, :, None]).sum(-1).transpose(1, 2)
        of_driven = _over_states(block.B, g)  # (n, L, D)
        of_dt = of_driven * block.u
        of_dt[:, 1:] += torch.mul(of_exponent, inputs.rates, out=h[:, 1:]).sum(2)
        self.rates += of_exponent.mul_(block.dt[:, 1:, None]).sum((0, 1))
        self.B[rows] = g.mul_(block.driven[:, :, None]).sum(-1).transpose(1, 2)
        if inputs.delta_softplus:
            of_dt *= torch.sigmoid(block.raw)
        self.delta[rows] = of_dt.transpose(1, 2)
        if self.delta_bias is not None:
            self.delta_bias += of_dt.sum((0, 1))
        of_u = of_driven.mul_(block.dt)
        if inputs.D is not None and self.D is not None:
            of_u.addcmul_(grad, inputs.D)
            self.D += grad.mul_(block.u).sum((0, 1))
        self.u[rows] = of_u.transpose(1, 2)


def _over_states(weights: Tensor, h: Tensor) -> Tensor:
    """Sum of weights (n, L, N) times h (n, L, N, D) over the states: (n, L, D)."""
    return torch.bmm(weights.flatten(0, 1)[:, None], h.flatten(0, 1)).view(*h.shape[:2], -1)


def _through_gate(grad: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and z for the gradient of y silu(z)."""
    sigmoid = torch.sigmoid(z)
    gate = z * sigmoid
    return grad * gate, sigmoid.mul_(1 + z - gate).mul_(y).mul_(grad)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An array (B, C, L) with channels innermost in memory, of the dtype and device of `like`."""
    batch, channels, length = shape
    return like.new_empty_strided(shape, (length * channels, 1, channels))
