"""A trial call of a backend of the selective scan, compared with torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.ops.scan_inputs import ScanInputs
from model.ops.torch_scan import scan_torch

Scan = Callable[[ScanInputs], tuple[Tensor, Tensor]]
LENGTH = 9  # dates: one more than between the states that the triton backend keeps
TOLERANCE = 1e-3  # float32, and the approximate exp2 of a GPU


def self_test(scan: Scan, device: torch.device | str, *, last_state_gradient: bool = True) -> str | None:
    """Reason why a backend does not work on a device; None if a small scan and its gradients agree with torch.

    Args:
        scan: the backend.
        device: where it is to run.
        last_state_gradient: whether its last state carries a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7, LENGTH), (5, 7, LENGTH), (7, 3), (5, 3, LENGTH), (5, 3, LENGTH), (7,), (5, 7, LENGTH), (7,)]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        tensors: list[Any] = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        tensors[2] = -tensors[2].abs()
        inputs = ScanInputs(*(*(tensor.requires_grad_() for tensor in tensors), True))
        try:
            actual = _outputs_and_gradients(scan(inputs), tensors, last_state_gradient)
        except Exception as error:  # noqa: BLE001 - a broken package raises anything, as ImportError or errors of a compiler
            return f"failed on {device} ({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]})"
        expected = _outputs_and_gradients(scan_torch(inputs), tensors, last_state_gradient)
    for ours, theirs in zip(actual, expected, strict=True):
        tolerance = TOLERANCE * theirs.abs().max().item()
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=tolerance):
            return f"disagrees with torch on {device}"
    return None


def _outputs_and_gradients(outputs: tuple[Tensor, Tensor], tensors: list[Tensor], last_state: bool) -> list[Tensor]:
    y, last = outputs
    loss = y.sum() + last.square().sum() if last_state else y.sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, tensors)]
