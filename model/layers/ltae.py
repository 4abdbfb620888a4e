"""Lightweight temporal attention: which date matters at which pixel, by learned queries (Garnot & Landrieu 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.errors import UsageError
from model.layers.recompute import full_precision

DATE_PERIOD = 1000.0  # longest period of the date code is 2 pi times this, in days
PADDED_LOGIT = -1e3  # of a padded date: no attention, unless all dates are padded
VALUE_DROPOUT = 0.2


class DateCode(nn.Module):
    """Sines and cosines of a date at `width` periods, repeated for each head.

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
        code = angles.cos()
        code[..., 0::2] = angles[..., 0::2].sin()
        return code.repeat(1, 1, self.n_head)


class AttentionHeads(nn.Module):
    """Attention over dates: learned queries `Q` (N, d_k) that are the same everywhere, keys from the features."""

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
            (P, N, T), summing to 1 over dates but for dropout.
        """
        n_head, d_k = self.Q.shape
        keys = self.fc1_k(features).unflatten(-1, (n_head, d_k))  # (P, T, N, d_k)
        logits = torch.einsum("ptnk,nk->pnt", keys, self.Q) / math.sqrt(d_k)
        return self.dropout(logits.masked_fill(padded.unsqueeze(1), PADDED_LOGIT).softmax(dim=-1))


class TemporalEncoder(nn.Module):
    """L-TAE on every pixel of a small map.

    Args:
        width: channels of the map.
        n_head, d_model, d_k: heads, channels of the features, channels of keys and queries.
        dated: whether the features know their dates.
        value_widths: layers that make the values, d_model first; None for attention alone.
        attention_dropout: share of the attention that is dropped in training, before values and callers see it.

    Source:
        Garnot & Landrieu 2020 and U-TAE 2021, in the variants of UnCRtainTS (Ebel et al. 2023): without values the
        "tiny" one; its own U-TAE drops attention here, the others where they have up-sampled it. Changes: always
        float32, for the sines of dates; the keys start as torch's linear layers do.
    """

    def __init__(
        self,
        width: int,
        n_head: int,
        d_model: int,
        d_k: int,
        dated: bool = True,
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
        self.date_code = DateCode(d_model // n_head, n_head) if dated else None
        self.mlp: nn.Sequential | None = None
        if value_widths is not None:
            self.out_norm = nn.GroupNorm(n_head, value_widths[-1])
            layers: list[nn.Module] = []
            for before, after in zip(value_widths[:-1], value_widths[1:], strict=True):
                layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
            self.mlp = nn.Sequential(*layers)
            self.dropout = nn.Dropout(VALUE_DROPOUT)

    def forward(self, maps: Tensor, dates: Tensor | None, padded: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attention, and values if there are any.

        Args:
            maps: (B, T, C, H, W).
            dates: (B, T), days; None only if the encoder is not dated.
            padded: (B, T) bool; padded dates get no attention (but count in the group norm, as published).

        Returns:
            attention (N, B, T, H, W), and values (B, K, H, W) or None; float32.

        Raises:
            ValueError: if the dates are missing or of another shape.
        """
        b, t, c, h, w = maps.shape
        if self.date_code is not None and (dates is None or dates.shape != (b, t)):
            got = "none" if dates is None else f"shape {tuple(dates.shape)}"
            raise ValueError(f"expected dates of shape {(b, t)} (one a map, in days), got {got}")
        with torch.autocast(maps.device.type, enabled=False):
            pixels = full_precision(maps).permute(0, 3, 4, 2, 1).reshape(b * h * w, c, t)
            features = self.inconv(self.in_norm(pixels)).transpose(1, 2)  # (P, T, d_model)
            if self.date_code is not None and dates is not None:
                features = features + self.date_code(dates).repeat_interleave(h * w, dim=0)
            attention = self.attention_heads(features, padded.repeat_interleave(h * w, dim=0))  # (P, N, T)
            values = None if self.mlp is None else self._values(features, attention, self.mlp).unflatten(0, (b, h, w))
        by_head = attention.unflatten(0, (b, h, w)).permute(3, 0, 4, 1, 2)
        return by_head, None if values is None else values.permute(0, 3, 1, 2)

    def _values(self, features: Tensor, attention: Tensor, mlp: nn.Sequential) -> Tensor:
        """(P, K): each head sums its share of the channels over dates, an MLP mixes them."""
        shares = features.unflatten(-1, (attention.shape[1], -1))  # (P, T, N, d_model / N)
        summed = torch.einsum("pnt,ptnd->pnd", attention, shares).flatten(1)
        return self.out_norm(self.dropout(mlp(summed)))
