"""Training by several processes: one loss of all their samples, and batch norms whose statistics are those of all.

Every process computes its share of a batch. Its loss, a mean over its own samples, is weighed by their number, so that
the mean of all processes' gradients is the gradient of the whole batch, also where shares differ; a process without a
sample in a batch takes its part in the exchange with an image of noise that counts for nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import process_group as distributed
from data.batch import Batch
from data.constants import N_S2
from model.predictions import Prediction

if TYPE_CHECKING:
    from model.build import Reconstructor

Predict = Callable[["Reconstructor", Batch], Prediction]
Criterion = Callable[[Prediction, Tensor], Tensor]
_NOISE_SIZE = 32  # pixels across, of the image that counts for nothing


class Trainee(nn.Module):
    """From a batch to its loss, as one module: what `distributed.averaging` wraps.

    Args:
        model: the network.
        criterion: (prediction, target) in scaled units, to a scalar.
        predict: computes the prediction of a batch.
    """

    def __init__(self, model: "Reconstructor", criterion: Criterion, predict: Predict) -> None:
        super().__init__()
        self.model, self.criterion, self.predict = model, criterion, predict

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of the batch, a scalar; of an empty one that of noise, which batch norms pass over."""
        norms = [norm for norm in self.modules() if isinstance(norm, SharedBatchNorm)]
        for norm in norms:
            norm.counts, norm.notices = batch.n > 0, True
        batch = batch if batch.n else self._noise(batch)
        loss = self.criterion(self.predict(self.model, batch), batch.target * self.model.scale_by)
        for norm in norms:
            norm.notices = False
        return loss

    def _noise(self, empty: Batch) -> Batch:
        device = next(self.model.parameters()).device
        single = self.model.config.pretrain
        channels, n_dates = empty.x.shape[2], 1 if single else 2
        values = torch.rand(1, n_dates, channels, _NOISE_SIZE, _NOISE_SIZE, generator=torch.Generator().manual_seed(0))
        x = values.to(device)
        return Batch(
            x=x,
            target=x[:, :1, -N_S2:],
            dates=None if single else torch.arange(float(n_dates), device=device)[None],
            masks=torch.zeros_like(x[:, :, 0]),
            coverage=torch.zeros_like(x[:, :, 0, 0, 0]),
            info=(),
        )


class SharedBatchNorm(nn.Module):
    """A batch norm over the samples of all processes; its parameters and buffers are those of the norm it replaces.

    Attributes:
        counts: whether this process's maps enter the statistics.
        notices: whether running statistics take notice; off while a backward pass walks the forward way again.

    Source:
        Ioffe and Szegedy 2015; means and variances of processes are joined as in Chan et al. 1979. torch's own
        SyncBatchNorm does the same on GPUs alone.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.counts, self.notices = True, True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) normalised, of the dtype of x."""
        running_mean, running_var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return F.batch_norm(x, running_mean, running_var, self.weight, self.bias, False, 0.0, self.eps)
        mean, variance, number = _joint_moments(x.detach(), running_mean, running_var, self.counts)
        if self.notices:
            unbiased = variance * (number / (number - 1))
            running_mean.lerp_(mean.to(running_mean), self.momentum)
            running_var.lerp_(unbiased.to(running_var), self.momentum)
            self.get_buffer("num_batches_tracked").add_(1)
        kind = self.weight.dtype
        joint: Tensor = _JointNorm.apply(
            x, self.weight, self.bias, mean.to(kind), variance.to(kind), number, self.eps, self.counts
        )
        return joint


class _JointNorm(torch.autograd.Function):
    """Normalises by moments that are themselves functions of every process's maps."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        number: Tensor,
        eps: float,
        counts: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, number)
        ctx.eps, ctx.counts = eps, counts
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, number = ctx.saved_tensors
        # as if the moments were constant; `of_weight` is the sum of grad times normalised x, `of_bias` that of grad
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = distributed.stacked(torch.cat([of_weight, of_bias])).sum(dim=0)
        if ctx.counts:
            slope = weight * (variance + ctx.eps).rsqrt() / number.to(weight)
            slopes, offsets = (slope * one for one in sums.chunk(2))
            of_x = of_x - F.batch_norm(x, mean, variance, slopes, offsets, False, 0.0, ctx.eps)
        return of_x, of_weight, of_bias, None, None, None, None, None


def _joint_moments(x: Tensor, running_mean: Tensor, running_var: Tensor, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance (C,) over all processes' x (B, C, ...), and the number of elements; float64."""
    # momentum 0 leaves the running statistics alone: they are there for their dtype, float32 where x is bf16
    mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, 0.0)  # (C,)
    number = mean.new_full((1,), x.numel() / x.shape[1] if counts else 0.0)
    rows = distributed.stacked(torch.cat([number, mean, variance]).double())  # (processes, 1 + 2 C)
    share = rows[:, :1] / rows[:, :1].sum()
    means, variances = rows[:, 1:].chunk(2, dim=1)
    joint = (share * means).sum(dim=0)
    return joint, (share * (variances + (means - joint).square())).sum(dim=0), rows[:, 0].sum()


def share_norms(model: nn.Module) -> None:
    """Let the batch norms of a network take the statistics of all processes; parameters and their names stay."""
    if distributed.world() == 1:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, SharedBatchNorm(child))
