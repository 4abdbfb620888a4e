"""Convolutions that recompute norm and activation in the backward pass.

Norms and activations cost little time and as much memory as convolutions. Autograd keeps the output of each; here only
the input of a chain norm -> GELU -> ... -> convolution is kept, and the chain up to the convolution runs again in the
backward pass. The convolution, most of the work, is never repeated (checkpointing a block would repeat it). Gradients
are the same. On a CPU in 16 bits, where a GELU is slow and maps are small, the convolution's input is kept as well.

Two steps take no pass over the maps: gradients of a border are folded back in place, and channel weights of
squeeze-excite are multiplied into the matrix of the convolution, whose gradient contains theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MapFunction = Callable[[Tensor], Tensor]
# by the padding mode of Conv2d: positions in the padded map that the first and the last pixel of an axis repeat
BORDER = {"reflect": (2, -3), "replicate": (1, -2), "circular": (-2, 1), "zeros": None}


def full_precision(x: Tensor) -> Tensor:
    """X as float32, or as it is if float64."""
    return x if x.dtype == torch.float64 else x.float()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Convolution with stride 1 and no padding."""
    if not _is_product(x, weight):
        return F.conv2d(x, weight, bias, groups=groups)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` for x and weight, each if needed."""
    if not _is_product(x, weight):
        ones, zeros = [1, 1], [0, 0]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ones, zeros, ones, False, zeros, groups, [*needs, False]
        )
        return grad_x, grad_weight
    pixels = grad.permute(0, 2, 3, 1)  # (B, H, W, K)
    grad_x = (pixels @ weight.flatten(1)).permute(0, 3, 1, 2) if needs[0] else None
    grad_weight = None
    if needs[1]:
        grad_weight = (pixels.flatten(0, 2).t() @ x.permute(0, 2, 3, 1).flatten(0, 2)).view_as(weight)
    return grad_x, grad_weight


def _is_product(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution is a matrix product on a CPU: 1 x 1, channels innermost (which the product keeps)."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.device.type == "cpu" and weight.shape[2:] == (1, 1) and channels_last


def apply_norm(norm: nn.Module, x: Tensor, training: bool, update_stats: bool) -> Tensor:
    """Apply a norm, any number of times per training step.

    Args:
        norm: from `build_norm`.
        x: (B, C, H, W).
        training: whether a batch norm takes the statistics of x.
        update_stats: whether it updates its running statistics in training; false when recomputing.

    Returns:
        (B, C, H, W), of the dtype of x.
    """
    if isinstance(norm, nn.BatchNorm2d):
        if training and update_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        use_running = update_stats or not training
        return F.batch_norm(
            x,
            norm.running_mean if use_running else None,
            norm.running_var if use_running else None,
            norm.weight,
            norm.bias,
            training,
            0.1 if norm.momentum is None else norm.momentum,
            norm.eps,
        )
    if x.is_cuda and x.dtype != torch.float32 and isinstance(norm, nn.GroupNorm):
        return norm(full_precision(x)).to(x.dtype)  # as autocast does: the CUDA kernel takes no mixed dtypes
    return norm(x)


class PreConv:
    """Layers between the kept input and a convolution: norm, `post_norm`, GELU, then a border or channel weights.

    Arguments as of `recomputed_conv`; the mode of the norm is that at construction.
    """

    def __init__(
        self, norm: nn.Module, conv: nn.Conv2d, post_norm: MapFunction | None, gelu: bool, excite: nn.Module | None
    ) -> None:
        self.norm, self.post_norm, self.gelu, self.excite = norm, post_norm, gelu, excite
        self.training, self.groups = norm.training, conv.groups
        self.padding_mode = conv.padding_mode if any(conv.padding) else None  # of a border of one pixel

    def forward_norm(self, x: Tensor, update_stats: bool) -> Tensor:
        """Norm and `post_norm` of x (B, C, H, W), which autograd differentiates."""
        maps = apply_norm(self.norm, x, self.training, update_stats)
        return maps if self.post_norm is None else self.post_norm(maps)

    def forward_pre(self, normed: Tensor, overwrite: bool = False) -> Tensor:
        """GELU and border of normed maps, which are lost if `overwrite`; records no graph."""
        if self.gelu and self.padding_mode is not None and not normed.is_contiguous():
            b, c, h, w = normed.shape
            padded = normed.new_empty(b, h + 2, w + 2, c).permute(0, 3, 1, 2)
            torch.ops.aten.gelu.out(normed, out=padded[:, :, 1:-1, 1:-1])
            return _fill_border(padded, self.padding_mode)
        if self.gelu:
            normed = torch.ops.aten.gelu_(normed) if overwrite else F.gelu(normed)
        return self._pad(normed)

    def convolve(self, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolution of maps (B, C, H, W) from `forward_pre`, and the means (B, C) that `excite` read."""
        if self.excite is None:
            return convolve(maps, weight.to(maps.dtype), groups=self.groups), None
        means = pixel_means(maps)
        return _mix_channels(maps, weight.flatten(1) * self.excite(means)[:, None]), means

    def forward_autograd(self, x: Tensor, weight: Tensor) -> Tensor:
        """All layers and the convolution, differentiated by autograd or a compiler."""
        maps = self.forward_norm(x, True)
        return self.convolve(self._pad(F.gelu(maps) if self.gelu else maps), weight)[0]

    def _pad(self, maps: Tensor) -> Tensor:
        if self.padding_mode is None:
            return maps
        return F.pad(maps, (1, 1, 1, 1), mode="constant" if self.padding_mode == "zeros" else self.padding_mode)


class _RecomputedConv(torch.autograd.Function):
    """`PreConv` and its convolution, keeping only the input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, pre: PreConv, x: Tensor, weight: Tensor, *parameters: Tensor) -> Tensor:
        normed = pre.forward_norm(x, True)
        maps = pre.forward_pre(normed, overwrite=normed is not x)
        out, means = pre.convolve(maps, weight)
        ctx.pre = pre
        ctx.save_for_backward(x, weight, means, maps if pre.gelu and _keeps_activation(x) else None, *parameters)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, maps, *parameters = ctx.saved_tensors
        _, needs_x, needs_weight, *needs_parameters = ctx.needs_input_grad
        pre: PreConv = ctx.pre
        trained = [parameter for parameter, needed in zip(parameters, needs_parameters, strict=True) if needed]
        start = x.detach().requires_grad_(needs_x)
        with torch.autocast(x.device.type, enabled=False):
            with torch.enable_grad():
                graph = pre.forward_norm(start, False)
            normed = graph.detach()
            maps = pre.forward_pre(normed) if maps is None else maps
            grads: dict[int, Tensor] = {}  # by id of start and parameters
            if pre.excite is None:
                needs = (graph.requires_grad, needs_weight)
                grad_maps, grad_weight = _convolve_backward(grad, maps, weight.to(x.dtype), pre.groups, needs)
                if grad_maps is not None and pre.padding_mode is not None:
                    grad_maps = _fold_border(grad_maps, pre.padding_mode)
            else:
                grad_maps, grad_weight, grads = _excited_backward(pre.excite, grad, maps, means, weight, trained)
            del maps
            if grad_maps is not None and graph.requires_grad:
                if pre.gelu:
                    if normed.is_contiguous():  # torch's kernel for contiguous maps expects such a gradient
                        grad_maps = grad_maps.contiguous()
                    grad_maps = torch.ops.aten.gelu_backward(grad_maps, normed)
                grads |= _gradients(graph, [start] * needs_x + trained, grad_maps)
        grad_weight = grad_weight.to(weight.dtype) if needs_weight and grad_weight is not None else None
        return None, grads.get(id(start)), grad_weight, *(grads.get(id(parameter)) for parameter in parameters)


def _keeps_activation(maps: Tensor) -> bool:
    """Whether the convolution's input is kept too: on a CPU a GELU is slow, and 16-bit maps take half the memory."""
    return maps.device.type == "cpu" and maps.element_size() == 2


def _gradients(output: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> dict[int, Tensor]:
    """Gradients by id of the inputs that the output depends on."""
    grads = torch.autograd.grad(output, inputs, grad, allow_unused=True)
    return {id(x): grad_x for x, grad_x in zip(inputs, grads, strict=True) if grad_x is not None}


def _excited_backward(
    excite: nn.Module, grad: Tensor, maps: Tensor, means: Tensor, weight: Tensor, trained: Sequence[Tensor]
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Gradients of a convolution with weighted input channels: of maps, of weight, of parameters of `excite` by id.

    With y = W diag(e) a, the sum of grad a' over pixels is the gradient of W diag(e), from which follow W's and e's.
    """
    with torch.enable_grad():
        means = means.detach().requires_grad_()
        weights = excite(means)
    matrix = weight.detach().flatten(1)  # (K, C)
    items = zip(_pixels(grad), _pixels(maps), strict=True)  # item by item: a batched product would copy them
    joint = torch.stack([grad_out.t() @ pixels for grad_out, pixels in items]).to(matrix.dtype)  # (B, K, C)
    grad_weights = (joint * matrix).sum(dim=1)
    grads = _gradients(weights, [means, *trained], grad_weights.to(weights.dtype))
    grad_means = grads.pop(id(means)) / (maps.shape[2] * maps.shape[3])  # (B, C): of each pixel
    scale = weights.detach()[:, None]  # (B, 1, C)
    grad_maps = _mix_channels(grad, (matrix * scale).transpose(1, 2), grad_means)
    return grad_maps, (joint * scale).sum(dim=0).view_as(weight), grads


def pixel_means(maps: Tensor) -> Tensor:
    """Means (B, C) of (B, C, H, W), float32 or more."""
    if maps.device.type == "cpu" and not maps.is_contiguous():  # channels innermost: `mean` would cast bf16 maps first
        rows = F.avg_pool2d(maps, (1, maps.shape[3]))
        return full_precision(rows).mean(dim=(2, 3))
    return full_precision(maps.mean(dim=(2, 3)))


def _pixels(maps: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C), without a copy."""
    return maps.flatten(2).transpose(1, 2)


def _mix_channels(maps: Tensor, matrices: Tensor, shift: Tensor | None = None) -> Tensor:
    """Multiply channels by one matrix per item.

    Args:
        maps: (B, C, H, W).
        matrices: (B, K, C), of any float type.
        shift: (B, K), added; none by default.

    Returns:
        (B, K, H, W), in the dtype and memory format of the maps.
    """
    matrices, size = matrices.to(maps.dtype), maps.shape[2:]
    shift = None if shift is None else shift.to(maps.dtype)
    if maps.is_contiguous():
        flat = maps.flatten(2)
        out = torch.bmm(matrices, flat) if shift is None else torch.baddbmm(shift[:, :, None], matrices, flat)
        return out.unflatten(2, size)
    pixels, matrices = _pixels(maps), matrices.transpose(1, 2)
    out = torch.bmm(pixels, matrices) if shift is None else torch.baddbmm(shift[:, None], pixels, matrices)
    return out.unflatten(1, size).permute(0, 3, 1, 2)


def _fill_border(padded: Tensor, padding_mode: str) -> Tensor:
    """Write the border of one pixel around maps (B, C, H + 2, W + 2), in place."""
    sources = BORDER[padding_mode]
    for axis in (2, 3):
        for border, source in zip((0, -1), sources or (0, 0), strict=True):
            if sources is None:
                padded.select(axis, border).zero_()
            else:
                padded.select(axis, border).copy_(padded.select(axis, source))
    return padded


def _fold_border(grad: Tensor, padding_mode: str) -> Tensor:
    """Add the gradient of a border of one pixel to the pixels it repeats; overwrites its argument.

    Args:
        grad: (B, C, H + 2, W + 2).
        padding_mode: key of `BORDER`.

    Returns:
        (B, C, H, W), a view.
    """
    sources = BORDER[padding_mode]
    if sources is not None:
        for axis in (2, 3):
            for border, source in zip((0, -1), sources, strict=True):
                grad.select(axis, source).add_(grad.select(axis, border))
    return grad[:, :, 1:-1, 1:-1]


def recomputed_conv(
    x: Tensor,
    conv: nn.Module,
    norm: nn.Module,
    post_norm: MapFunction | None = None,
    gelu: bool = False,
    excite: nn.Module | None = None,
) -> Tensor:
    """Convolution of norm, `post_norm`, GELU, border and channel weights of x; all but x is recomputed for gradients.

    Args:
        x: (B, C, H, W); cast to autocast's dtype under autocast.
        conv: a Conv2d without bias, of stride 1: 3 x 3 with padding 1, or without padding.
        norm: from `build_norm`.
        post_norm: maps to maps of any number of channels, without parameters and random numbers.
        gelu: whether a GELU follows.
        excite: means of the maps (B, C), float32 or more, to channel weights (B, C); for 1 x 1 convolutions.

    Returns:
        (B, K, H, W).
    """
    assert isinstance(conv, nn.Conv2d)
    device, pre = x.device.type, PreConv(norm, conv, post_norm, gelu, excite)
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        if torch.compiler.is_compiling():
            return pre.forward_autograd(x, conv.weight)
        parameters = [*norm.parameters(), *(excite.parameters() if excite is not None else ())]
        return _RecomputedConv.apply(pre, x, conv.weight, *parameters)
