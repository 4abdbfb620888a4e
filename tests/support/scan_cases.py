"""Comparison of a backend of the selective scan with the plain loop."""

import torch

from benchmarks.selective_scan import naive_scan
from model.ops.scan_inputs import ScanInputs


def outputs_and_gradients(scan, arguments: dict) -> list[torch.Tensor]:
    """y, the last state and the gradients of all tensors, for a weighted sum of y and the last state squared."""
    y, last = scan(ScanInputs(**arguments))
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return [y, last, *torch.autograd.grad((y * weights).sum() + last.square().sum(), tensors)]


def assert_equals_plain_loop(backend, arguments: dict, tolerance: float) -> None:
    """Outputs, last state and all gradients of a backend, relative to the largest value of each."""
    ours = outputs_and_gradients(backend, arguments)
    for actual, expected in zip(ours, outputs_and_gradients(naive_scan, arguments), strict=True):
        scale = max(expected.abs().max().item(), 1)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)
