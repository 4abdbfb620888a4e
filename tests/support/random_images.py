"""Random images and predictions of 13 bands."""

import torch

from model.predictions import NIG


def random_images(n=3, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 1, 13, size, size, generator=generator)
    prediction = (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    return target, prediction


def random_nig(mean, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(mean.shape, generator=generator) for _ in range(3)]
    return NIG(mean, 0.5 + draw[0], 1.2 + 4 * draw[1], 1e-3 + 4e-3 * draw[2])
