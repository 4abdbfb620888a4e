"""Padding of images to sizes that a U-Net can halve."""

import torch

from model.layers.unet_blocks import pad_to_multiple


def test_sizes_are_padded_by_reflection_up_to_a_multiple():
    x = torch.rand(2, 3, 16, 24)
    assert pad_to_multiple(x, 8) is x
    ragged = x[..., :13, :21]
    torch.testing.assert_close(
        pad_to_multiple(ragged, 8), torch.nn.functional.pad(ragged, (0, 3, 0, 3), mode="reflect")
    )
    tiny = torch.tensor([[0.0, 1.0, 2.0]])
    assert pad_to_multiple(tiny, 4).shape == (8, 8)  # twice the factor, or the smallest map could not be reflected
    assert pad_to_multiple(tiny, 4)[5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
