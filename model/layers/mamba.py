"""Mamba: a selective state space layer along a sequence, in time linear in its length."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.dates import DateOrder
from model.ops import selective_scan

SKIPPED = -1e4  # a step size before softplus: exactly zero after it, in any precision


class Mamba(nn.Module):
    """One Mamba layer, with the parameters, names and initialisation of `mamba_ssm.Mamba`.

    The initialisation is part of the layer: A_log counts the states, and the bias of dt_proj sets the time scales of
    the layer. `apply` therefore does nothing: initialisers applied to a network leave the layer as it is.

    Args:
        d_model: channels in and out.
        d_state: states of each inner channel.
        d_conv: taps of the causal convolution along the sequence.
        expand: inner channels are `expand * d_model`.
        dt_rank: rank of the map to step sizes; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: range of initial step sizes, log-uniform.
        dt_init: initial weight of dt_proj: random, or constant.
        dt_scale: factor of that weight.
        dt_init_floor: smallest initial step size.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have a bias.
        backend: of the scan: auto, torch, triton or mamba_ssm.

    Raises:
        ValueError: if dt_init is unknown.

    Source:
        Gu & Dao 2023 (Mamba), section 3.4; initialisation: section 3.6. Changes: no step-by-step generation.
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
        self._initialise_steps(dt_init, self.dt_rank**-0.5 * dt_scale, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        # marks that optimisers and initialisers read from mamba_ssm's parameters
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def _initialise_steps(self, dt_init: str, scale: float, dt_min: float, dt_max: float, floor: float) -> None:
        """Initialise dt_proj: softplus of its bias is a step size between `dt_min` and `dt_max`."""
        if dt_init not in ("random", "constant"):
            raise ValueError(f"expected dt_init random or constant, got {dt_init!r}")
        bias = self.dt_proj.bias
        with torch.no_grad():
            if dt_init == "constant":
                self.dt_proj.weight.fill_(scale)
            else:
                self.dt_proj.weight.uniform_(-scale, scale)
            steps = torch.empty_like(bias).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp(min=floor)
            bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def apply(self, fn: Callable[[nn.Module], None]) -> "Mamba":
        """Do nothing: initialisers must not change the layer."""
        return self

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Transform sequences causally.

        Args:
            x: (B, L, d_model).
            shift: (G, L, D) or (G, L, 1), D inner channels: added to the step sizes before their softplus, group g for
                the g-th B / G sequences. A larger step forgets more of the state and takes in more of the input; with
                `SKIPPED` the state stays as it is.

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
    """Depthwise causal convolution along the sequence.

    A sum of shifted products: channels stay innermost, and sequences of a few dates need a few taps only.

    Args:
        x: (B, L, D).
        weight: (D, 1, K), as in `Conv1d`.
        bias: (D,) or None.

    Returns:
        (B, L, D); zero-padded before the first step.
    """
    length = x.shape[1]
    taps = weight[:, 0].to(x.dtype).flip(1).unbind(1)  # by lag
    out = x * taps[0] if bias is None else torch.addcmul(bias.to(x.dtype), x, taps[0])
    for lag, tap in enumerate(taps[1:length], start=1):
        out = out + F.pad(x[:, :-lag] * tap, (0, 0, lag, 0))
    return out


class DatedMamba(nn.Module):
    """Residual bidirectional Mamba along the dates of each pixel, with step sizes that depend on the gaps.

    The step size of a date grows with the days since the previous one, as (1 + days) ** power where steps are small,
    so that more of the state is forgotten over a longer gap. Padding takes no step.

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
        self.code = nn.Linear(4, width)  # of gaps and season
        self.forwards = Mamba(width, d_state=d_state, expand=expand, backend=backend)
        self.backwards = Mamba(width, d_state=d_state, expand=expand, backend=backend)
        self.gap_power = nn.Parameter(torch.full((2, expand * width), self.START_POWER))

    def forward(self, x: Tensor, date_order: DateOrder) -> Tensor:
        """Exchange information between dates.

        Args:
            x: (B * T, C, H, W), dates in order.
            date_order: of the batch.

        Returns:
            The same shape.
        """
        gap_before, gap_after, valid = date_order.gap_before, date_order.gap_after, date_order.valid
        b, t = valid.shape
        height, width = x.shape[-2:]
        code = self.code(torch.stack([gap_before / 4, gap_after / 4, *date_order.season.unbind(-1)], dim=-1))
        tokens = x.unflatten(0, (b, t)).permute(0, 3, 4, 1, 2).flatten(1, 2)  # (B, H W, T, C)
        tokens = ((self.norm(tokens) + code[:, None]) * valid[:, None, :, None]).flatten(0, 1)  # (B H W, T, C)
        skipped = (1 - valid.unsqueeze(-1)) * SKIPPED  # (B, T, 1)
        shift = gap_before.unsqueeze(-1) * self.gap_power[0] + skipped
        reverse_shift = gap_after.unsqueeze(-1) * self.gap_power[1] + skipped
        out = self.forwards(tokens, shift) + self.backwards(tokens.flip(1), reverse_shift.flip(1)).flip(1)
        out = out.unflatten(0, (b, height, width)).permute(0, 3, 4, 1, 2)  # (B, T, C, H, W)
        return x + out.flatten(0, 1)
