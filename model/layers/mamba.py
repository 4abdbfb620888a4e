"""Mamba: a selective state space layer along a sequence, linear in its length."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.dates import Calendar
from model.ops import selective_scan

SKIPPED = -1e4  # a step before softplus: exactly zero after it, in any precision


class Mamba(nn.Module):
    """One Mamba layer; parameters, their names and their start are those of `mamba_ssm.Mamba`.

    The start is part of the layer: A_log counts the states, and the bias of dt_proj sets the time scales that the
    layer can see. `apply` therefore does not reach inside: an initialiser that walks over a network leaves it alone.

    Args:
        d_model: channels in and out.
        d_state: states of each inner channel.
        d_conv: taps of the causal convolution along the sequence.
        expand: inner channels are `expand * d_model`.
        dt_rank: rank of the map to steps; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: range in which first steps are drawn, uniformly in their logarithm.
        dt_init: how the weight of dt_proj starts: random, or constant.
        dt_scale: factor of that weight.
        dt_init_floor: smallest first step.
        conv_bias: give the convolution a bias.
        bias: give in_proj and out_proj a bias.
        backend: of the scan: auto, torch, triton or mamba_ssm.

    Raises:
        ValueError: if dt_init is unknown.

    Source:
        Gu & Dao 2023 (Mamba), section 3.4 and, for the start, 3.6; one step at a time for generation is left out.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.backend = backend
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self._start_steps(dt_init, self.dt_rank**-0.5 * dt_scale, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        for parameter, mark in (
            (self.A_log, "_no_weight_decay"),
            (self.D, "_no_weight_decay"),
            (self.dt_proj.bias, "_no_reinit"),
        ):
            setattr(parameter, mark, True)  # as mamba_ssm tells optimisers and initialisers what to leave alone

    def _start_steps(self, how: str, spread: float, lowest: float, highest: float, floor: float) -> None:
        """Start dt_proj so that softplus of its bias is a step drawn between `lowest` and `highest`."""
        if how not in ("random", "constant"):
            raise ValueError(f"expected dt_init random or constant, got {how!r}")
        bias = self.dt_proj.bias
        with torch.no_grad():
            if how == "constant":
                self.dt_proj.weight.fill_(spread)
            else:
                self.dt_proj.weight.uniform_(-spread, spread)
            steps = torch.empty_like(bias).uniform_(math.log(lowest), math.log(highest)).exp().clamp(min=floor)
            bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def apply(self, fn: Callable[[nn.Module], None]) -> "Mamba":
        """Nothing: initialisers stop here."""
        return self

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Run along the sequences; each step sees those before it and itself.

        Args:
            x: (B, L, d_model).
            shift: (G, L, D) or (G, L, 1), D inner channels: added to the step sizes before their softplus, group g for
                the g-th B / G sequences. The size of a step says how much of the state is forgotten and how much
                of the input is taken in; with `SKIPPED` nothing of either.

        Returns:
            (B, L, d_model).
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (B, L, D) each
        u = F.silu(causal_conv(u, self.conv1d.weight, self.conv1d.bias))
        n_states = self.A_log.shape[1]
        dt, B, C = self.x_proj(u).split([self.dt_rank, n_states, n_states], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)  # (B, L, D); the scan adds the bias, in float32
        if shift is not None:
            dt = (dt.unflatten(0, (shift.shape[0], -1)) + shift.to(dt.dtype).unsqueeze(1)).flatten(0, 1)
        y = selective_scan(
            u.transpose(1, 2),
            dt.transpose(1, 2),
            -torch.exp(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            z.transpose(1, 2),
            self.dt_proj.bias,
            delta_softplus=True,
            backend=self.backend,
        )
        assert isinstance(y, Tensor)
        return self.out_proj(y.transpose(1, 2))


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel along the sequence, the last tap on the step itself.

    A sum of shifted products: channels stay innermost, and sequences of a few dates pay for a few taps only.

    Args:
        x: (B, L, D).
        weight: (D, 1, K), as `Conv1d` keeps it.
        bias: (D,) or None.

    Returns:
        (B, L, D); steps before the first count as zero.
    """
    length = x.shape[1]
    taps = weight[:, 0].to(x.dtype).flip(1).unbind(1)  # by how many steps they look back
    out = x * taps[0] if bias is None else torch.addcmul(bias.to(x.dtype), x, taps[0])
    for back, tap in enumerate(taps[1:length], start=1):
        out = out + F.pad(x[:, :-back] * tap, (0, 0, back, 0))
    return out


class DatedMamba(nn.Module):
    """Mamba along the dates of every pixel, forwards and backwards, added to what came in.

    A state is carried over the true time between two images: the step of a date grows with the days since the one
    before it, as (1 + days) ** power where steps are small, so that a longer gap forgets more. Padding takes no step.

    Args:
        width: channels in and out.
        d_state, expand: as in `Mamba`.
        backend: of the scan.

    Source:
        Gu & Dao 2023 (Mamba); both directions as in Zhu et al. 2024 (Vision Mamba). Changes: gaps, padding.
    """

    START_POWER = 0.5

    def __init__(self, width: int, d_state: int = 16, expand: int = 2, backend: str = "auto") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.code = nn.Linear(4, width)  # of the calendar
        self.forwards = Mamba(width, d_state=d_state, expand=expand, backend=backend)
        self.backwards = Mamba(width, d_state=d_state, expand=expand, backend=backend)
        self.gap_power = nn.Parameter(torch.full((2, expand * width), self.START_POWER))

    def forward(self, x: Tensor, calendar: Calendar) -> Tensor:
        """Exchange information between dates.

        Args:
            x: (B * T, C, H, W), dates in order.
            calendar: of the batch.

        Returns:
            The same shape.
        """
        b, t = calendar.present.shape
        height, width = x.shape[-2:]
        told = torch.stack([calendar.since / 4, calendar.until / 4, *calendar.season.unbind(-1)], dim=-1)  # (B, T, 4)
        code, present = self.code(told)[:, None], calendar.present[:, None, :, None]
        tokens = x.unflatten(0, (b, t)).permute(0, 3, 4, 1, 2).flatten(1, 2)  # (B, H W, T, C)
        tokens = ((self.norm(tokens) + code) * present).flatten(0, 1)  # (B H W, T, C)
        skipped = (1 - calendar.present.unsqueeze(-1)) * SKIPPED  # (B, T, 1)
        ahead = self.forwards(tokens, calendar.since.unsqueeze(-1) * self.gap_power[0] + skipped)
        back = calendar.until.unsqueeze(-1) * self.gap_power[1] + skipped
        behind = self.backwards(tokens.flip(1), back.flip(1)).flip(1)
        out = (ahead + behind).unflatten(0, (b, height, width)).permute(0, 3, 4, 1, 2)  # (B, T, C, H, W)
        return x + out.flatten(0, 1)
