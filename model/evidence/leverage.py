"""Leverage of pixels: how unlike the training pixels their features are, from second moments."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-10  # of the correlations' largest eigenvalue: directions below are rounding errors


class FeatureMoments:
    """Second moments of features, streamed in float64.

    Args:
        width: number of features C.

    Attributes:
        count: pixels so far.
        products: (C, C), sum of phi phi' over pixels.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.products = torch.zeros(width, width, dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add all pixels of (B, C, H, W), any float type and device; ValueError if a feature is not finite."""
        rows = features.movedim(1, -1).flatten(0, -2).double()  # (pixels, C)
        if not rows.isfinite().all():
            raise ValueError("features that are not finite have no second moments")
        self.count += len(rows)
        self.products += (rows.T @ rows).cpu()

    def merge(self, states: Iterable["FeatureMoments"]) -> None:
        """Replace the own state by the sum of those of all processes, the own among them."""
        states = list(states)
        self.count = sum(state.count for state in states)
        self.products = torch.stack([state.products for state in states]).sum(dim=0)

    def leverage(self) -> "Leverage":
        """The leverage with respect to all pixels so far.

        Raises:
            ValueError: if every feature was 0, or there was no pixel.
        """
        diagonal = self.products.diagonal() / max(self.count, 1)
        if not diagonal.max() > 0:
            raise ValueError("no pixel with a feature other than 0: leverage is relative to training pixels")
        scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()  # correlations: features may differ much in size
        eigenvalues, vectors = torch.linalg.eigh(scale[:, None] * (self.products / self.count) * scale)
        kept = eigenvalues > RANK_TOLERANCE * eigenvalues[-1]
        return Leverage(scale[:, None] * vectors[:, kept] * eigenvalues[kept].rsqrt(), self.count)


@dataclass(frozen=True, eq=False)
class Leverage:
    """q = phi' G^-1 phi / R of pixels, with G the mean of phi phi' over the training pixels.

    Invariant to invertible linear maps of the features; its mean over the training pixels is 1. In Bayesian linear
    regression on n observations the variance of the mean is R q / n times that of the noise.

    Attributes:
        whitening: (C, R), float64; times its transpose G^-1, or the pseudo-inverse where R, the rank of G, is below C.
        count: training pixels.
    """

    whitening: Tensor
    count: int

    @property
    def rank(self) -> int:
        """R, the number of independent features."""
        return self.whitening.shape[1]

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, C, H, W) to q (B, 1, H, W)."""
        whitened = self.whitening.T.to(features) @ features.flatten(2)  # (B, R, H W)
        return whitened.square().mean(dim=1, keepdim=True).unflatten(2, features.shape[2:])


def quadratic(features: Tensor) -> Tensor:
    """All products of two of the features and 1, (B, C, H, W) to (B, (C + 1)(C + 2) / 2, H, W).

    They span the polynomials of degree 2, which affine maps of the features do not change: neither do leverages.
    """
    extended = torch.cat([torch.ones_like(features[:, :1]), features], dim=1)
    rows, columns = torch.triu_indices(extended.shape[1], extended.shape[1], device=features.device)
    return extended[:, rows] * extended[:, columns]
