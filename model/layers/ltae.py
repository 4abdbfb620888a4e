"""Lightweight temporal attention encoder (L-TAE): learned queries weight the dates of each pixel."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from common.errors import UsageError
from model.layers.recompute import full_precision

DATE_PERIOD = 1000.0  # longest period of the date encoding is 2 pi times this, in days
PADDED_LOGIT = -1e3  # of a padded date: no attention, unless all dates are padded
VALUE_DROPOUT = 0.2


class DateEncoding(nn.Module):
    """Sinusoidal encoding of dates in `width` channels, repeated for each head.

    Source:
        Vaswani et al. 2017, with base 1000 as in U-TAE.
    """

    periods: Tensor

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        exponents = 2 * torch.div(torch.arange(width), 2, rounding_mode="floor").float() / width
        self.register_buffer("periods", torch.pow(DATE_PERIOD, exponents), persistent=False)
        self.n_head = n_head

    def forward(self, dates: Tensor) -> Tensor:
        """(B, T) days to (B, T, n_head * width), float32."""
        angles = dates.float().unsqueeze(-1) / self.periods
        encoding = angles.cos()
        encoding[..., 0::2] = angles[..., 0::2].sin()
        return encoding.repeat(1, 1, self.n_head)


class AttentionHeads(nn.Module):
    """Attention over dates: learned queries `Q` (N, d_k), equal at all pixels, and keys from the features."""

    def __init__(self, n_head: int, d_k: int, d_model: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.empty(n_head, d_k))
        nn.init.normal_(self.Q, std=math.sqrt(2 / d_k))
        self.fc1_k = nn.Linear(d_model, n_head * d_k)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, padded: Tensor) -> Tensor:
        """Attention of every head.

        Args:
            features: (P, T, d_model), P pixels.
            padded: (P, T) bool.

        Returns:
            (P, N, T), summing to 1 over dates before dropout.
        """
        n_head, d_k = self.Q.shape
        keys = self.fc1_k(features).unflatten(-1, (n_head, d_k))  # (P, T, N, d_k)
        logits = torch.einsum("ptnk,nk->pnt", keys, self.Q) / math.sqrt(d_k)
        return self.dropout(logits.masked_fill(padded.unsqueeze(1), PADDED_LOGIT).softmax(dim=-1))


class TemporalEncoder(nn.Module):
    """L-TAE on each pixel of a small map.

    Args:
        width: channels of the map.
        n_head, d_model, d_k: heads, channels of the features, channels of keys and queries.
        use_dates: whether the encoding of the dates is added to the features.
        value_widths: widths of the MLP that gives the values, d_model first; None for attention alone.
        attention_dropout: dropout of the attention, both for the values and as returned.

    Source:
        Garnot & Landrieu 2020 and U-TAE 2021, in the variants of UnCRtainTS (Ebel et al. 2023): without values the
        "tiny" one; its U-TAE applies dropout to the attention here, the others after up-sampling it. Changes: always
        float32, for the sines of dates; keys are initialised as torch's linear layers.
    """

    def __init__(
        self,
        width: int,
        n_head: int,
        d_model: int,
        d_k: int,
        use_dates: bool = True,
        value_widths: Sequence[int] | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for flag, size in (("encoder_widths", width), ("d_model", d_model)):
            if size % n_head:
                raise UsageError(f"--n_head {n_head} must divide --{flag} {size}")
        self.inconv = nn.Conv1d(width, d_model, 1)
        self.attention_heads = AttentionHeads(n_head, d_k, d_model, attention_dropout)
        self.in_norm = nn.GroupNorm(n_head, width)
        self.date_encoding = DateEncoding(d_model // n_head, n_head) if use_dates else None
        self.mlp: nn.Sequential | None = None
        if value_widths is not None:
            self.out_norm = nn.GroupNorm(n_head, value_widths[-1])
            layers: list[nn.Module] = []
            for in_width, out_width in pairwise(value_widths):
                layers += [nn.Linear(in_width, out_width), nn.BatchNorm1d(out_width), nn.ReLU(inplace=True)]
            self.mlp = nn.Sequential(*layers)
            self.dropout = nn.Dropout(VALUE_DROPOUT)

    def forward(self, maps: Tensor, dates: Tensor | None, padded: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attention, and values if the encoder has them.

        Args:
            maps: (B, T, C, H, W).
            dates: (B, T), days; None only without `use_dates`.
            padded: (B, T) bool; padded dates get no attention (but count in the group norm, as published).

        Returns:
            attention (N, B, T, H, W), and values (B, K, H, W) or None; float32.

        Raises:
            ValueError: if the dates are missing or of another shape.
        """
        b, t, c, h, w = maps.shape
        if self.date_encoding is not None and (dates is None or dates.shape != (b, t)):
            got = "none" if dates is None else f"shape {tuple(dates.shape)}"
            raise ValueError(f"expected dates of shape {(b, t)} (one per map, in days), got {got}")
        with torch.autocast(maps.device.type, enabled=False):
            pixels = full_precision(maps).permute(0, 3, 4, 2, 1).reshape(b * h * w, c, t)
            features = self.inconv(self.in_norm(pixels)).transpose(1, 2)  # (P, T, d_model)
            if self.date_encoding is not None and dates is not None:
                features = features + self.date_encoding(dates).repeat_interleave(h * w, dim=0)
            attention = self.attention_heads(features, padded.repeat_interleave(h * w, dim=0))  # (P, N, T)
            values = None if self.mlp is None else self._values(features, attention, self.mlp).unflatten(0, (b, h, w))
        attention = attention.unflatten(0, (b, h, w)).permute(3, 0, 4, 1, 2)
        return attention, None if values is None else values.permute(0, 3, 1, 2)

    def _values(self, features: Tensor, attention: Tensor, mlp: nn.Sequential) -> Tensor:
        """Values (P, K): each head sums its group of channels over dates, then the MLP."""
        groups = features.unflatten(-1, (attention.shape[1], -1))  # (P, T, N, d_model / N)
        summed = torch.einsum("pnt,ptnd->pnd", attention, groups).flatten(1)
        return self.out_norm(self.dropout(mlp(summed)))
