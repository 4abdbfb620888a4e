"""A convolution that forgets its input: memory of a training step without the time of repeating convolutions.

Norms and activations cost little to compute and as much memory as convolutions to keep. Autograd keeps the output of
each; here only what goes *into* a chain norm -> GELU -> ... -> convolution is kept, and the chain up to the
convolution is walked again in the backward pass. The convolution itself, which is most of the work, is never repeated
(checkpointing whole blocks would repeat it). The gradients are the same. Where a GELU is dear and memory cheap (on a
processor, 16 bits), what goes into the convolution is kept as well.

Two steps in between cost no pass over the maps: a border is folded back in place, and channels that squeeze-excite
weighs are weighed in the convolution's small matrix, whose gradient tells the gradient of the weights too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Prepare = Callable[[Tensor, bool], Tensor]
Excite = Callable[[Tensor], Tensor]
BORDER = {"reflect": (2, -3), "replicate": (1, -2), "circular": (-2, 1), "constant": None}  # what stands on a border


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


@dataclass(frozen=True)
class Chain:
    """What stands between kept maps and a convolution: prepare, GELU, a border or weights of channels.

    Attributes:
        prepare: (x, first) to maps of the dtype of x. It must give the same tensor each time it is called; `first` is
            true for the call that may have effects (running statistics).
        activated: whether a GELU follows.
        padding_mode: how a border of one pixel is added then, of `BORDER`; None for no border.
        excite: means over pixels (B, C), float32 or more, to weights of the channels (B, C); for 1 x 1 convolutions.
    """

    prepare: Prepare
    activated: bool = False
    padding_mode: str | None = None
    excite: Excite | None = None

    def convolve(self, maps: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor | None]:
        """The convolution of maps (B, C, H, W) that `enter` gave, and the means (B, C) that `excite` has seen."""
        if self.excite is None:
            return convolve(maps, weight.to(maps.dtype), groups=groups), None
        means = pixel_means(maps)
        return _mix(maps, weight.flatten(1) * self.excite(means)[:, None]), means

    def enter(self, prepared: Tensor, overwrite: bool = False) -> Tensor:
        """GELU and border of prepared maps, which are lost if `overwrite`. No graph is recorded."""
        if self.activated and self.padding_mode is not None and not prepared.is_contiguous():
            b, c, h, w = prepared.shape
            padded = prepared.new_empty(b, h + 2, w + 2, c).permute(0, 3, 1, 2)
            torch.ops.aten.gelu.out(prepared, out=padded[:, :, 1:-1, 1:-1])
            return _fill_border(padded, self.padding_mode)
        if self.activated:
            prepared = torch.ops.aten.gelu_(prepared) if overwrite else F.gelu(prepared)
        return prepared if self.padding_mode is None else F.pad(prepared, (1, 1, 1, 1), mode=self.padding_mode)

    def plain(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The whole of it, left to autograd or a compiler."""
        maps = self.prepare(x, True)
        maps = F.gelu(maps) if self.activated else maps
        maps = maps if self.padding_mode is None else F.pad(maps, (1, 1, 1, 1), mode=self.padding_mode)
        return self.convolve(maps, weight, groups)[0]


class _ForgetfulConv(torch.autograd.Function):
    """The convolution at the end of a chain, keeping what goes into the chain alone."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, groups: int, x: Tensor, weight: Tensor, *parameters: Tensor) -> Tensor:
        prepared = chain.prepare(x, True)
        maps = chain.enter(prepared, overwrite=prepared is not x)
        out, means = chain.convolve(maps, weight, groups)
        ctx.chain, ctx.groups = chain, groups
        ctx.save_for_backward(x, weight, means, maps if chain.activated and _is_cheap(x) else None, *parameters)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, maps, *parameters = ctx.saved_tensors
        _, _, needs_x, needs_weight, *needs_parameters = ctx.needs_input_grad
        chain = ctx.chain
        wanted = [parameter for parameter, needed in zip(parameters, needs_parameters, strict=True) if needed]
        start = x.detach().requires_grad_(needs_x)
        with torch.autocast(x.device.type, enabled=False):
            with torch.enable_grad():
                prepared = chain.prepare(start, False)
            known = prepared.detach()
            maps = chain.enter(known) if maps is None else maps
            needs = (prepared.requires_grad, needs_weight)
            found: dict[int, Tensor] = {}
            if means is None:
                of_maps, of_weight = _convolve_backward(grad, maps, weight.to(x.dtype), ctx.groups, needs)
                if of_maps is not None and chain.padding_mode is not None:
                    of_maps = _fold_border(of_maps, chain.padding_mode)
            else:
                of_maps, of_weight, found = _excited_backward(chain.excite, grad, maps, means, weight, wanted)
            del maps
            if of_maps is not None and prepared.requires_grad:
                if chain.activated:
                    if known.is_contiguous():  # torch's kernel for these takes its gradient to be so too
                        of_maps = of_maps.contiguous()
                    of_maps = torch.ops.aten.gelu_backward(of_maps, known)
                ends = [start] * needs_x + wanted
                for end, one in zip(ends, torch.autograd.grad(prepared, ends, of_maps, allow_unused=True), strict=True):
                    if one is not None:
                        found[id(end)] = one
        grad_weight = of_weight.to(weight.dtype) if needs_weight and of_weight is not None else None
        return None, None, found.get(id(start)), grad_weight, *(found.get(id(one)) for one in parameters)


def _is_cheap(maps: Tensor) -> bool:
    """Whether activated maps are kept too: on a processor a GELU is dear, and maps of 16 bits take half the room."""
    return maps.device.type == "cpu" and maps.element_size() == 2


def _excited_backward(
    excite: Excite, grad: Tensor, maps: Tensor, means: Tensor, weight: Tensor, wanted: Sequence[Tensor]
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Gradients of a convolution whose input channels are weighed: for maps, for weight, for those wanted of `excite`.

    Of y = W diag(e) a, the sum over pixels of grad a' is the gradient of W diag(e): it holds those of W and of e.
    """
    with torch.enable_grad():
        means = means.detach().requires_grad_()
        weights = excite(means)
    matrix = weight.detach().flatten(1)  # (K, C)
    pairs = zip(_rows(grad), _rows(maps), strict=True)  # one by one: the product of batches would copy them
    joint = torch.stack([of_out.t() @ of_in for of_out, of_in in pairs]).to(matrix.dtype)  # (B, K, C)
    of_weights = (joint * matrix).sum(dim=1)
    ends = [means, *wanted]
    found = torch.autograd.grad(weights, ends, of_weights.to(weights.dtype), allow_unused=True)
    share = found[0] / (maps.shape[2] * maps.shape[3])  # (B, C): each pixel's part in the mean
    weighed = weights.detach()[:, None]  # (B, 1, C)
    of_maps = _mix(grad, (matrix * weighed).transpose(1, 2), share)
    of_weight = (joint * weighed).sum(dim=0).view_as(weight)
    return of_maps, of_weight, {id(end): one for end, one in zip(wanted, found[1:], strict=True) if one is not None}


def pixel_means(maps: Tensor) -> Tensor:
    """Means (B, C) of (B, C, H, W), float32 or more."""
    if maps.device.type == "cpu" and not maps.is_contiguous():  # channels innermost: `mean` would cast bf16 maps first
        rows = F.avg_pool2d(maps, (1, maps.shape[3]))
        return full_precision(rows).mean(dim=(2, 3))
    return full_precision(maps.mean(dim=(2, 3)))


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C), without a copy."""
    return maps.flatten(2).transpose(1, 2)


def _mix(maps: Tensor, matrices: Tensor, shift: Tensor | None = None) -> Tensor:
    """Mix channels by a matrix for each item.

    Args:
        maps: (B, C, H, W).
        matrices: (B, K, C), of any float type.
        shift: (B, K), added; none by default.

    Returns:
        (B, K, H, W), of the maps' dtype and order in memory.
    """
    matrices, size = matrices.to(maps.dtype), maps.shape[2:]
    if maps.is_contiguous():
        flat = maps.flatten(2)
        out = (
            torch.bmm(matrices, flat)
            if shift is None
            else torch.baddbmm(shift[:, :, None].to(maps.dtype), matrices, flat)
        )
        return out.unflatten(2, size)
    rows, turned = _rows(maps), matrices.transpose(1, 2)
    out = torch.bmm(rows, turned) if shift is None else torch.baddbmm(shift[:, None].to(maps.dtype), rows, turned)
    return out.unflatten(1, size).permute(0, 3, 1, 2)


def _fill_border(padded: Tensor, padding_mode: str) -> Tensor:
    """Write the border of one pixel around maps (B, C, H + 2, W + 2), in place."""
    places = BORDER[padding_mode]
    for axis in (2, 3):
        for border, source in zip((0, -1), places or (0, 0), strict=True):
            if places is None:
                padded.select(axis, border).zero_()
            else:
                padded.select(axis, border).copy_(padded.select(axis, source))
    return padded


def _fold_border(grad: Tensor, padding_mode: str) -> Tensor:
    """Lead the gradient of a border of one pixel back to the pixels it repeats; overwrites what it is given.

    Args:
        grad: (B, C, H + 2, W + 2).
        padding_mode: of `BORDER`.

    Returns:
        (B, C, H, W), a view.
    """
    places = BORDER[padding_mode]
    if places is not None:
        for axis in (2, 3):
            for border, source in zip((0, -1), places, strict=True):
                grad.select(axis, source).add_(grad.select(axis, border))
    return grad[:, :, 1:-1, 1:-1]


def forgetful_conv(
    x: Tensor,
    prepare: Prepare,
    conv: nn.Module,
    parameters: Sequence[nn.Parameter],
    activated: bool = False,
    padding_mode: str | None = None,
    excite: Excite | None = None,
) -> Tensor:
    """The convolution of what `prepare`, GELU, border and weights of channels make of x, at stride 1.

    Args:
        x: (B, C, H, W); cast to autocast's dtype where autocast is on.
        prepare: (x, first) to maps of the dtype of x, as in `Chain`.
        conv: a Conv2d without bias; its weight and groups are used.
        parameters: those that `prepare` and `excite` use.
        activated: whether a GELU follows `prepare`.
        padding_mode: how a border of one pixel is added then, of `BORDER`; None for no border.
        excite: means of the maps (B, C) to weights of their channels (B, C); the convolution must be 1 x 1, one group.

    Returns:
        (B, K, H', W').
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected a Conv2d, got {type(conv).__name__}")
    device, chain = x.device.type, Chain(prepare, activated, padding_mode, excite)
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        if torch.compiler.is_compiling():
            return chain.plain(x, conv.weight, conv.groups)
        return _ForgetfulConv.apply(chain, conv.groups, x, conv.weight, *parameters)
