"""A convolution that forgets its input: memory of a training step without the time of repeating convolutions.

Norms and activations cost little to compute and as much memory as convolutions to keep. Autograd keeps the output of
each; here only what goes *into* a chain norm -> GELU -> ... -> convolution is kept, and the chain up to the
convolution is walked again in the backward pass. The convolution itself, which is most of the work, is never repeated
(checkpointing whole blocks would repeat it). The gradients are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Prepare = Callable[[Tensor, bool], Tensor]


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution; on a processor, where channels are innermost, a product of matrices that keeps them so."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        return convolve(x, self.weight, self.bias)


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 if x is of that."""
    return x if x.dtype == torch.float64 else x.float()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Convolution with stride 1 and no padding."""
    if not _is_product(x, weight):
        return F.conv2d(x, weight, bias, groups=groups)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` for x and weight, as far as they are needed."""
    if not _is_product(x, weight):
        ones, zeros = [1, 1], [0, 0]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ones, zeros, ones, False, zeros, groups, [*needs, False]
        )
        return of_x, of_weight
    pixels = grad.permute(0, 2, 3, 1)  # (B, H, W, K)
    of_x = (pixels @ weight.flatten(1)).permute(0, 3, 1, 2) if needs[0] else None
    of_weight = None
    if needs[1]:
        of_weight = (pixels.flatten(0, 2).t() @ x.permute(0, 2, 3, 1).flatten(0, 2)).view_as(weight)
    return of_x, of_weight


def _is_product(x: Tensor, weight: Tensor) -> bool:
    innermost = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.device.type == "cpu" and weight.shape[2:] == (1, 1) and innermost


class _ForgetfulConv(torch.autograd.Function):
    """convolve(prepare(x), weight), keeping x alone."""

    @staticmethod
    def forward(ctx: Any, prepare: Prepare, groups: int, x: Tensor, weight: Tensor, *parameters: Tensor) -> Tensor:
        ctx.prepare, ctx.groups = prepare, groups
        ctx.save_for_backward(x, weight, *parameters)
        return convolve(prepare(x, True), weight.to(x.dtype), groups=groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        _, _, needs_x, needs_weight, *needs_parameters = ctx.needs_input_grad
        of_chain = [x.detach().requires_grad_(needs_x), *parameters]
        wanted = [i for i, needed in enumerate([needs_x, *needs_parameters]) if needed]
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            prepared = ctx.prepare(of_chain[0], False)
        grad_prepared, grad_weight = _convolve_backward(
            grad, prepared.detach(), weight.to(x.dtype), ctx.groups, (bool(wanted), needs_weight)
        )
        grads: list[Tensor | None] = [None] * len(of_chain)
        if wanted:
            found = torch.autograd.grad(prepared, [of_chain[i] for i in wanted], grad_prepared)
            for i, one in zip(wanted, found, strict=True):
                grads[i] = one
        return None, None, grads[0], None if grad_weight is None else grad_weight.to(weight.dtype), *grads[1:]


def forgetful_conv(x: Tensor, prepare: Prepare, conv: nn.Module, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The convolution of `prepare(x)`, at stride 1 and without padding.

    Args:
        x: (B, C, H, W); cast to autocast's dtype where autocast is on.
        prepare: (x, first) to the input of the convolution, of the dtype of x. It must give the same tensor each time
            it is called; `first` is true for the call that may have effects (running statistics).
        conv: a Conv2d without bias; its weight and groups are used.
        parameters: those that `prepare` uses.

    Returns:
        (B, K, H', W').
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a Conv2d, got {type(conv).__name__}")
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _ForgetfulConv.apply(prepare, conv.groups, x, conv.weight, *parameters)
        return convolve(prepare(x, True), conv.weight.to(x.dtype), groups=conv.groups)
