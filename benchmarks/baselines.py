"""The published UnCRtainTS graph in plain eager PyTorch: the reference of our network's speed and memory.

Written from the published description for comparison only, never for training: one module call per operation, all in
float32, every intermediate tensor kept by autograd, and the dense C x C covariance of the published loss. Parameter
names are those of the checkpoints, so weights can be exchanged with `model.backbones.uncrtaints`.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

N_BANDS = 13


class PlainSqueeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(hidden, width // 4, bias=False),
            nn.GELU(),
            nn.Linear(width // 4, hidden, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class PlainMBConv(nn.Module):
    """Inverted bottleneck with expansion 2."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        hidden = 2 * width
        body = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            plain_norm(norm, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, padding_mode="reflect", groups=hidden, bias=False),
            plain_norm(norm, hidden),
            nn.GELU(),
            PlainSqueeze(width, hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            plain_norm(norm, width),
        )
        self.conv = nn.Sequential(OrderedDict(norm=plain_norm(norm, width), fn=body))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        return x + self.conv(x)


class PlainResidual(nn.Module):
    """Three 3 x 3 convolutions and a sum."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (plain_conv(width, width, norm, kernel=3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        return x + self.conv3(self.conv2(self.conv1(x)))


class PlainHeads(nn.Module):
    """Attention weights of learned queries."""

    def __init__(self, n_head: int, d_k: int, d_model: int) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.randn(n_head, d_k) * math.sqrt(2 / d_k))
        self.fc1_k = nn.Linear(d_model, n_head * d_k)

    def forward(self, x: Tensor) -> Tensor:
        """Attention (pixels, N, T) of x (pixels, T, d_model)."""
        n_head, d_k = self.Q.shape
        keys = self.fc1_k(x).unflatten(-1, (n_head, d_k))
        return torch.einsum("ptnk,nk->pnt", keys, self.Q).div(math.sqrt(d_k)).softmax(dim=-1)


class PlainTemporalEncoder(nn.Module):
    """L-TAE that returns attention weights only."""

    def __init__(self, width: int, n_head: int, d_model: int, d_k: int) -> None:
        super().__init__()
        self.inconv = nn.Conv1d(width, d_model, 1)
        self.attention_heads = PlainHeads(n_head, d_k, d_model)
        self.in_norm = nn.GroupNorm(n_head, width)
        d_head = d_model // n_head
        self.periods = 1000.0 ** (2 * (torch.arange(d_head) // 2) / d_head)

    def forward(self, x: Tensor, dates: Tensor) -> Tensor:
        """Attention (N, B, T, H, W) of x (B, T, C, H, W)."""
        b, t, c, h, w = x.shape
        pixels = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, c, t)
        features = self.inconv(self.in_norm(pixels)).transpose(1, 2)
        angles = dates.float()[:, :, None] / self.periods
        code = torch.where(torch.arange(len(self.periods)) % 2 == 0, angles.sin(), angles.cos())
        code = code.repeat(1, 1, len(self.attention_heads.Q)).repeat_interleave(h * w, dim=0)
        attention = self.attention_heads(features + code)
        return attention.unflatten(0, (b, h, w)).permute(3, 0, 4, 1, 2)


class PlainUncrtaints(nn.Module):
    """The published network with its default options: mbconv, att_group, attention without values."""

    def __init__(
        self,
        in_channels: int = 15,
        width: int = 128,
        n_decoder: int = 5,
        n_head: int = 16,
        d_model: int = 256,
        d_k: int = 4,
        block_type: str = "mbconv",
    ) -> None:
        super().__init__()
        block = PlainMBConv if block_type == "mbconv" else PlainResidual
        self.in_conv = nn.Sequential(OrderedDict(conv=plain_conv(in_channels, width, "group")))
        self.in_block = nn.ModuleList([block(width, "group")])
        self.temporal_encoder = PlainTemporalEncoder(width, n_head, d_model, d_k)
        self.out_block = nn.ModuleList([block(width, "batch") for _ in range(n_decoder)])
        self.out_conv = nn.Sequential(OrderedDict(conv=plain_conv(width, 2 * N_BANDS)))

    def forward(self, x: Tensor, dates: Tensor) -> Tensor:
        """Raw maps (B, 1, 26, H, W), before the output non-linearities, of x (B, T, C, H, W)."""
        b, t, _, h, w = x.shape
        features = self.in_conv(x.flatten(0, 1))
        for block in self.in_block:
            features = block(features)
        small = functional.adaptive_max_pool2d(features, 32).unflatten(0, (b, t))
        attention = self.temporal_encoder(small, dates)
        n_head = attention.shape[0]
        attention = functional.interpolate(attention.flatten(0, 1), size=(h, w), mode="bilinear", align_corners=False)
        attention = functional.dropout(attention, 0.1, self.training).unflatten(0, (n_head, b))
        groups = torch.stack(features.unflatten(0, (b, t)).chunk(n_head, dim=2))
        summed = (attention[:, :, :, None] * groups).sum(dim=2)
        out = torch.cat(list(summed), dim=1)
        for block in self.out_block:
            out = block(out)
        return self.out_conv(out).unsqueeze(1)


def plain_conv(before: int, after: int, norm: str | None = None, kernel: int = 1) -> nn.Module:
    """A convolution with bias, followed by norm and ReLU unless `norm` is None; names as in the checkpoints."""
    layers: list[nn.Module] = [nn.Conv2d(before, after, kernel, padding=kernel // 2, padding_mode="reflect")]
    if norm is not None:
        layers += [plain_norm(norm, after), nn.ReLU()]
    return nn.Sequential(OrderedDict(conv=nn.Sequential(*layers)))


def plain_norm(kind: str, width: int) -> nn.Module:
    """A batch norm, or a group norm of four groups."""
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(4, width)


def plain_moments(raw: Tensor, scale_by: float = 10.0, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, 1, 13, H, W), scaled units, of raw maps (B, 1, 26, H, W)."""
    return scale_by * raw[:, :, :N_BANDS].sigmoid(), functional.softplus(raw[:, :, N_BANDS:]) + eps


def dense_gaussian_nll(mean: Tensor, target: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Multivariate Gaussian NLL by a C x C precision and covariance matrix at every pixel.

    Args:
        mean: (1, 1, C, H, W), scaled units. The published loss is correct for a single item only.
        target: the same shape.
        variance: the same shape.

    Returns:
        The mean over pixels, and the covariance (1, 1, C, C, H, W) that the published loss also returns.
    """

    def of_pixel(mean: Tensor, target: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.diag_embed(1 / variance)
        error = (mean - target).unsqueeze(1)
        distance = (error @ precision @ error.transpose(1, 2)).squeeze().clamp(min=1e-9)
        constant = mean.shape[-1] * math.log(2 * math.pi)
        return 0.5 * (constant + variance.log().sum() + distance), torch.diag_embed(variance)

    variance = variance.clone()
    with torch.no_grad():
        variance.clamp_(min=1e-8)
    per_column = torch.vmap(of_pixel, in_dims=(-1, -1, -1))
    loss, covariance = torch.vmap(per_column, in_dims=(-1, -1, -1))(
        mean.squeeze(1), target.squeeze(1), variance.squeeze(1)
    )
    return loss.mean(), covariance.moveaxis((0, 1), (-1, -2)).unsqueeze(1)
