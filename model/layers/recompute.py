"""A convolution that forgets its input: memory of a training step without the time of recomputing convolutions.

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


class _ForgetfulConv(torch.autograd.Function):
    """conv2d(prepare(x), weight), keeping x alone."""

    @staticmethod
    def forward(ctx: Any, prepare: Prepare, groups: int, x: Tensor, weight: Tensor, *parameters: Tensor) -> Tensor:
        ctx.prepare, ctx.groups = prepare, groups
        ctx.save_for_backward(x, weight, *parameters)
        return F.conv2d(prepare(x, True), weight.to(x.dtype), groups=groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        _, _, needs_x, needs_weight, *needs_parameters = ctx.needs_input_grad
        of_chain = [x.detach().requires_grad_(needs_x), *parameters]
        wanted = [i for i, needed in enumerate([needs_x, *needs_parameters]) if needed]
        found: list[Tensor | None] = [None] * len(of_chain)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            prepared = ctx.prepare(of_chain[0], False)
        grad_prepared, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, prepared.detach(), weight.to(x.dtype), None, [1, 1], [0, 0], [1, 1], False, [0, 0], ctx.groups,
            [bool(wanted), needs_weight, False],
        )  # fmt: skip
        if wanted:
            grads = torch.autograd.grad(prepared, [of_chain[i] for i in wanted], grad_prepared)
            for i, one in zip(wanted, grads, strict=True):
                found[i] = one
        return None, None, found[0], grad_weight.to(weight.dtype) if needs_weight else None, *found[1:]


def forgetful_conv(x: Tensor, prepare: Prepare, conv: nn.Module, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The convolution of `prepare(x)`, at stride 1 and without padding.

    Args:
        x: (B, C, H, W); cast to autocast's dtype where autocast is on.
        prepare: (x, first) to the input of the convolution, of the dtype of x. It must give the same tensor each time
            it is called; `first` is true for the call that may have effects (running statistics).
        conv: a convolution without bias.
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
        return F.conv2d(prepare(x, True), conv.weight.to(x.dtype), groups=conv.groups)
