"""Triton kernels of the selective scan: many short sequences, the states of a tile in registers.

A program takes a tile of sequences and channels with all their states and iterates over the dates. The backward kernel
iterates in reverse and needs the state before each date: it recomputes it from the last state kept, and the forward
kernel keeps one every `EVERY` dates (none for sequences of up to `EVERY`). Programs of the backward kernel take several
tiles each and sum gradients of parameters in registers, without atomic additions, so that results are deterministic.

Tested on the CPU with Triton's interpreter, and compiled for compute capability 9.0 without register spills; no GPU has
run them yet.
"""

from typing import Any

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _read(at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    return tl.load(at, mask=mask, other=0).to(tl.float32)


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _softplus(x: tl.tensor) -> tl.tensor:
    # log1p by Kahan's quotient: log(1 + w) alone loses the digits of Mamba's small initial steps
    w = tl.exp(-tl.abs(x))
    s = 1 + w
    return tl.maximum(x, 0) + tl.where(s == 1, w, tl.log(s) * (w / tl.where(s == 1, 1, s - 1)))


@triton.jit
def _advance(
    h: tl.tensor,  # (SEQUENCES, CHANNELS, STATES)
    u_at: tl.tensor,  # (SEQUENCES, CHANNELS), at this date; also delta_at
    delta_at: tl.tensor,
    B_at: tl.tensor,  # (SEQUENCES, STATES), at this date
    rates: tl.tensor,  # (1, CHANNELS, STATES)
    bias: tl.tensor,  # (1, CHANNELS)
    channel_mask: tl.tensor,  # (SEQUENCES, CHANNELS)
    state_mask: tl.tensor,  # (SEQUENCES, STATES)
    SOFTPLUS: tl.constexpr,
) -> Any:
    """State after one date, and the terms of its update."""
    u = _read(u_at, channel_mask)
    raw = _read(delta_at, channel_mask) + bias
    dt = raw
    if SOFTPLUS:
        dt = _softplus(raw)
    B = _read(B_at, state_mask)
    decay = tl.exp2(dt[:, :, None] * (rates * LOG2E))
    return decay * h + (dt * u)[:, :, None] * B[:, None, :], decay, dt, raw, u, B


@triton.jit
def forward_kernel(
    u: tl.tensor,
    delta: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    z: tl.tensor,
    A: tl.tensor,
    D: tl.tensor,
    delta_bias: tl.tensor,
    y: tl.tensor,
    last: tl.tensor,
    kept: tl.tensor,
    n_sequences: tl.tensor,
    n_channels: tl.tensor,
    n_states: tl.tensor,
    length: tl.tensor,
    u_row: tl.tensor,
    u_date: tl.tensor,
    delta_row: tl.tensor,
    delta_date: tl.tensor,
    B_row: tl.tensor,
    B_date: tl.tensor,
    C_row: tl.tensor,
    C_date: tl.tensor,
    z_row: tl.tensor,
    z_date: tl.tensor,
    SOFTPLUS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    EVERY: tl.constexpr,
) -> None:
    """Output, last state and kept states; grid: tiles of sequences, blocks of channels."""
    rows = tl.program_id(0).to(tl.int64) * SEQUENCES + tl.arange(0, SEQUENCES)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    states = tl.arange(0, STATES)
    row_in, channel_in, state_in = rows < n_sequences, channels < n_channels, states < n_states
    channel_mask = row_in[:, None] & channel_in[None, :]
    state_mask = row_in[:, None] & state_in[None, :]
    full_mask = channel_mask[:, :, None] & state_in[None, None, :]
    rate_offsets = channels[:, None] * n_states + states[None, :]
    rates = _read(A + rate_offsets, channel_in[:, None] & state_in[None, :])[None]
    state_offsets = rows[:, None, None] * (n_channels * n_states) + rate_offsets[None]
    bias = tl.zeros((1, CHANNELS), tl.float32)
    if delta_bias is not None:
        bias += _read(delta_bias + channels, channel_in)[None]
    h = tl.zeros((SEQUENCES, CHANNELS, STATES), tl.float32)
    for t in range(length):
        u_at = u + rows[:, None] * u_row + t * u_date + channels[None]
        delta_at = delta + rows[:, None] * delta_row + t * delta_date + channels[None]
        B_at = B + rows[:, None] * B_row + t * B_date + states[None]
        h, _, _, _, u_now, _ = _advance(h, u_at, delta_at, B_at, rates, bias, channel_mask, state_mask, SOFTPLUS)
        C_now = _read(C + rows[:, None] * C_row + t * C_date + states[None], state_mask)
        out = tl.sum(h * C_now[:, None, :], 2)
        if D is not None:
            out += _read(D + channels, channel_in)[None] * u_now
        if z is not None:
            gate = _read(z + rows[:, None] * z_row + t * z_date + channels[None], channel_mask)
            out *= gate * _sigmoid(gate)
        tl.store(y + (rows[:, None] * length + t) * n_channels + channels[None], out, mask=channel_mask)
        if kept is not None:
            slot = tl.cast((t + 1) // EVERY - 1, tl.int64) * n_sequences * n_channels * n_states
            if ((t + 1) % EVERY == 0) & (t + 1 < length):
                tl.store(kept + slot + state_offsets, h, mask=full_mask)
    tl.store(last + state_offsets, h, mask=full_mask)


@triton.jit
def backward_kernel(
    u: tl.tensor,
    delta: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    z: tl.tensor,
    A: tl.tensor,
    D: tl.tensor,
    delta_bias: tl.tensor,
    kept: tl.tensor,
    grad_y: tl.tensor,
    grad_last: tl.tensor,
    grad_u: tl.tensor,  # (B, L, D); also grad_delta, grad_z
    grad_delta: tl.tensor,
    grad_z: tl.tensor,
    grad_B: tl.tensor,  # (blocks of channels, B, L, N); also grad_C
    grad_C: tl.tensor,
    grad_A: tl.tensor,  # (programs, D, N)
    grad_D: tl.tensor,  # (programs, D); also grad_bias
    grad_bias: tl.tensor,
    n_sequences: tl.tensor,
    n_channels: tl.tensor,
    n_states: tl.tensor,
    length: tl.tensor,
    u_row: tl.tensor,
    u_date: tl.tensor,
    delta_row: tl.tensor,
    delta_date: tl.tensor,
    B_row: tl.tensor,
    B_date: tl.tensor,
    C_row: tl.tensor,
    C_date: tl.tensor,
    z_row: tl.tensor,
    z_date: tl.tensor,
    grad_row: tl.tensor,
    grad_date: tl.tensor,
    SOFTPLUS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    EVERY: tl.constexpr,
) -> None:
    """Gradients of all inputs; grid: programs that share the tiles of sequences, blocks of channels."""
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    states = tl.arange(0, STATES)
    channel_in, state_in = channels < n_channels, states < n_states
    rate_offsets = channels[:, None] * n_states + states[None, :]
    rate_mask = channel_in[:, None] & state_in[None, :]
    rates = _read(A + rate_offsets, rate_mask)[None]
    bias = tl.zeros((1, CHANNELS), tl.float32)
    if delta_bias is not None:
        bias += _read(delta_bias + channels, channel_in)[None]
    skip = tl.zeros((1, CHANNELS), tl.float32)
    if D is not None:
        skip += _read(D + channels, channel_in)[None]
    sum_A = tl.zeros((CHANNELS, STATES), tl.float32)
    sum_D = tl.zeros((CHANNELS,), tl.float32)
    sum_bias = tl.zeros((CHANNELS,), tl.float32)
    n_chunks = tl.cdiv(length, EVERY)
    for tile in range(tl.program_id(0), tl.cdiv(n_sequences, SEQUENCES), tl.num_programs(0)):
        rows = tl.cast(tile, tl.int64) * SEQUENCES + tl.arange(0, SEQUENCES)
        row_in = rows < n_sequences
        channel_mask = row_in[:, None] & channel_in[None, :]
        state_mask = row_in[:, None] & state_in[None, :]
        full_mask = channel_mask[:, :, None] & state_in[None, None, :]
        state_offsets = rows[:, None, None] * (n_channels * n_states) + rate_offsets[None]
        u_at = u + rows[:, None] * u_row + channels[None]
        delta_at = delta + rows[:, None] * delta_row + channels[None]
        B_at = B + rows[:, None] * B_row + states[None]
        g = tl.zeros((SEQUENCES, CHANNELS, STATES), tl.float32)  # gradient of the state after this date
        if grad_last is not None:
            g += _read(grad_last + state_offsets, full_mask)
        for chunks_done in range(n_chunks):
            chunk = n_chunks - 1 - chunks_done
            start = chunk * EVERY
            stop = tl.minimum(start + EVERY, length)
            first = tl.zeros((SEQUENCES, CHANNELS, STATES), tl.float32)
            if kept is not None:
                slot = tl.cast(chunk - 1, tl.int64) * n_sequences * n_channels * n_states
                if chunk > 0:
                    first = _read(kept + slot + state_offsets, full_mask)
            for dates_done in range(stop - start):
                t = stop - 1 - dates_done
                before = first
                for s in range(start, t):
                    before, _, _, _, _, _ = _advance(
                        before,
                        u_at + s * u_date,
                        delta_at + s * delta_date,
                        B_at + s * B_date,
                        rates,
                        bias,
                        channel_mask,
                        state_mask,
                        SOFTPLUS,
                    )
                h, decay, dt, raw, u_now, B_now = _advance(
                    before,
                    u_at + t * u_date,
                    delta_at + t * delta_date,
                    B_at + t * B_date,
                    rates,
                    bias,
                    channel_mask,
                    state_mask,
                    SOFTPLUS,
                )
                C_now = _read(C + rows[:, None] * C_row + t * C_date + states[None], state_mask)
                grad = _read(grad_y + rows[:, None] * grad_row + t * grad_date + channels[None], channel_mask)
                channel_at = (rows[:, None] * length + t) * n_channels + channels[None]
                if z is not None:
                    gate = _read(z + rows[:, None] * z_row + t * z_date + channels[None], channel_mask)
                    sigmoid = _sigmoid(gate)
                    out = tl.sum(h * C_now[:, None, :], 2) + skip * u_now
                    tl.store(grad_z + channel_at, grad * out * sigmoid * (1 + gate * (1 - sigmoid)), mask=channel_mask)
                    grad *= gate * sigmoid
                g += C_now[:, None, :] * grad[:, :, None]
                grad_drive = tl.sum(g * B_now[:, None, :], 2)
                state_at = ((tl.program_id(1) * n_sequences + rows[:, None]) * length + t) * n_states + states[None]
                tl.store(grad_C + state_at, tl.sum(h * grad[:, :, None], 1), mask=state_mask)
                tl.store(grad_B + state_at, tl.sum(g * (dt * u_now)[:, :, None], 1), mask=state_mask)
                g *= decay
                grad_exponent = g * before
                sum_A += tl.sum(grad_exponent * dt[:, :, None], 0)
                sum_D += tl.sum(grad * u_now, 0)
                grad_step = grad_drive * u_now + tl.sum(grad_exponent * rates, 2)
                if SOFTPLUS:
                    grad_step *= _sigmoid(raw)
                sum_bias += tl.sum(grad_step, 0)
                tl.store(grad_u + channel_at, grad_drive * dt + skip * grad, mask=channel_mask)
                tl.store(grad_delta + channel_at, grad_step, mask=channel_mask)
    program = tl.program_id(0).to(tl.int64) * n_channels
    tl.store(grad_A + program * n_states + rate_offsets, sum_A, mask=rate_mask)
    tl.store(grad_D + program + channels, sum_D, mask=channel_in)
    tl.store(grad_bias + program + channels, sum_bias, mask=channel_in)
