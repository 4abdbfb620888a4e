"""Convolutions over space and dates against the plain layers."""

import torch

from model.layers.space_time import SpaceTimeBlock


def test_the_convolution_over_dates_is_a_3d_convolution():
    torch.manual_seed(0)
    block, x = SpaceTimeBlock(4, "group", "zeros"), torch.randn(2 * 5, 4, 6, 7)
    valid = torch.ones(2, 5)
    active = torch.nn.functional.gelu(block.norm1(x)).unflatten(0, (2, 5)).transpose(1, 2)  # (B, C, T, H, W)
    weight = block.conv1.weight.unflatten(1, (3, 4)).transpose(1, 2)  # (K, C, 3, 3, 3)
    expected = torch.nn.functional.conv3d(active, weight, padding=1).transpose(1, 2).flatten(0, 1)
    expected = x + torch.nn.functional.conv2d(
        torch.nn.functional.gelu(block.norm2(expected)), block.conv2.weight, padding=1
    )
    torch.testing.assert_close(block(x, valid), expected, rtol=1e-5, atol=1e-5)


def test_a_block_over_dates_has_the_gradients_of_its_parts():
    # float64 against autograd through the plain layers: the block keeps its input alone and recomputes its norms
    torch.manual_seed(0)
    block, x = SpaceTimeBlock(4, "group", "reflect").double(), torch.randn(6, 4, 5, 6, dtype=torch.float64)
    valid = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)

    def plain(x):
        active = torch.nn.functional.gelu(block.norm1(x)).unflatten(0, (2, 3)) * valid[:, :, None, None, None]
        zeros = torch.zeros_like(active[:, :1])
        before, after = torch.cat([zeros, active[:, :-1]], 1), torch.cat([active[:, 1:], zeros], 1)
        stacked = torch.cat([before, active, after], 2)
        pad = torch.nn.functional.pad(stacked.flatten(0, 1), (1, 1, 1, 1), mode="reflect")
        out = torch.nn.functional.gelu(block.norm2(torch.nn.functional.conv2d(pad, block.conv1.weight)))
        pad = torch.nn.functional.pad(out, (1, 1, 1, 1), mode="reflect")
        return x + torch.nn.functional.conv2d(pad, block.conv2.weight)

    x.requires_grad_()
    weight = torch.randn_like(x)
    gradients = torch.autograd.grad((block(x, valid) * weight).sum(), [x, *block.parameters()])
    expected = torch.autograd.grad((plain(x) * weight).sum(), [x, *block.parameters()])
    for actual, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, gradient)
