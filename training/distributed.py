"""Training in several processes: one loss over all samples, and batch norms over the samples of all processes.

Each process computes its share of a batch. Its mean loss is weighted by its number of samples, so that the mean of the
gradients is the gradient of the whole batch, also where shares differ. (Where targets lack pixels, the weights are by
samples all the same: the pixels of such a share count a little more than in a single process.) A process without a
sample in a batch takes part with an image of noise, at weight 0.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from common import process_group
from data.batch import Batch
from data.constants import N_S2
from model.losses import LossFunction
from model.predictions import Prediction
from model.reconstructor import Reconstructor

Predict = Callable[[Reconstructor, Batch], Prediction]
_NOISE_SIZE = 32  # pixels across, of the image of noise


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in `DistributedDataParallel`; unchanged where there is one process."""
    if process_group.world_size() == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # harmless, of single-channel kernels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")  # its new name is not in 2.4
        # static_graph: some networks have unused weights (`--agg_mode mean` needs no attention)
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, static_graph=True)


class LossModule(nn.Module):
    """From a batch to its loss, as the one module that `wrap_ddp` wraps.

    Args:
        model: the network.
        criterion: (prediction, target) in scaled units, to a scalar.
        predict: computes the prediction of a batch.
    """

    def __init__(self, model: Reconstructor, criterion: LossFunction, predict: Predict) -> None:
        super().__init__()
        self.model, self.criterion, self.predict = model, criterion, predict

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of the batch, a scalar; of an empty batch that of noise."""
        norms = [norm for norm in self.modules() if isinstance(norm, CpuSyncBatchNorm | CudaSyncBatchNorm)]
        for norm in norms:
            norm.has_samples, norm.update_running_stats = batch.n > 0, True
        batch = batch if batch.n else self._noise(batch)
        loss = self.criterion(self.predict(self.model, batch), batch.target * self.model.scale_by, batch.valid)
        for norm in norms:  # activation recomputation in the backward pass runs the norms again
            norm.update_running_stats = False
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


class CpuSyncBatchNorm(nn.Module):
    """A batch norm over the samples of all processes, with the parameters and buffers of the norm it replaces.

    torch's own SyncBatchNorm does the same on GPUs only.

    Attributes:
        has_samples: whether the maps of this process enter the statistics.
        update_running_stats: off while the backward pass recomputes activations.

    Source:
        Ioffe and Szegedy 2015; moments of the processes are combined as in Chan et al. 1979.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.has_samples, self.update_running_stats = True, True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) normalised, of the dtype of x."""
        running_mean, running_var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return F.batch_norm(x, running_mean, running_var, self.weight, self.bias, False, 0.0, self.eps)
        mean, variance, n = _joint_moments(x.detach(), running_mean, running_var, self.has_samples)
        if self.update_running_stats:
            unbiased = variance * (n / (n - 1))
            running_mean.lerp_(mean.to(running_mean), self.momentum)
            running_var.lerp_(unbiased.to(running_var), self.momentum)
            self.get_buffer("num_batches_tracked").add_(1)
        dtype = self.weight.dtype
        normalised: Tensor = _JointNorm.apply(
            x, self.weight, self.bias, mean.to(dtype), variance.to(dtype), n, self.eps, self.has_samples
        )
        return normalised


class CudaSyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm whose running statistics ignore recomputed activations.

    The noise of a process without samples enters the statistics: 1,024 pixels, in the last batch of an epoch only.
    No GPU has run this yet.
    """

    has_samples, update_running_stats = True, True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) normalised, of the dtype of x."""
        if not self.training or self.update_running_stats:
            return super().forward(x)
        momentum, self.momentum = self.momentum, 0.0
        try:
            return super().forward(x)
        finally:
            self.momentum = momentum
            self.get_buffer("num_batches_tracked").sub_(1)


class _JointNorm(torch.autograd.Function):
    """Normalisation by moments that depend on the maps of every process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        n: Tensor,
        eps: float,
        has_samples: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps, ctx.has_samples = eps, has_samples
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, n = ctx.saved_tensors
        # as if the moments were constant; grad_weight is the sum of grad times normalised x, grad_bias that of grad
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = process_group.all_gather_tensor(torch.cat([grad_weight, grad_bias])).sum(dim=0)
        if ctx.has_samples:
            scale = weight * (variance + ctx.eps).rsqrt() / n.to(weight)
            slopes, offsets = (scale * part for part in sums.chunk(2))
            grad_x = grad_x - F.batch_norm(x, mean, variance, slopes, offsets, False, 0.0, ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


def _joint_moments(
    x: Tensor, running_mean: Tensor, running_var: Tensor, has_samples: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance (C,) over all processes' x (B, C, ...), and the number of elements; float64."""
    # momentum 0 leaves the running statistics unchanged: they set the dtype, float32 where x is bf16
    mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, 0.0)  # (C,)
    n = mean.new_full((1,), x.numel() / x.shape[1] if has_samples else 0.0)
    rows = process_group.all_gather_tensor(torch.cat([n, mean, variance]).double())  # (processes, 1 + 2 C)
    share = rows[:, :1] / rows[:, :1].sum()
    means, variances = rows[:, 1:].chunk(2, dim=1)
    joint = (share * means).sum(dim=0)
    return joint, (share * (variances + (means - joint).square())).sum(dim=0), rows[:, 0].sum()


def convert_sync_batchnorm(model: nn.Module) -> None:
    """Let the batch norms of a network use the statistics of all processes; parameters and their names stay."""
    if process_group.world_size() == 1:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _synchronised(child))


def _synchronised(norm: _BatchNorm) -> nn.Module:
    if not norm.weight.is_cuda:
        return CpuSyncBatchNorm(norm)
    synchronised = CudaSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    synchronised.weight, synchronised.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        synchronised.register_buffer(name, buffer)
    return synchronised
