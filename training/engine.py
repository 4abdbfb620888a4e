"""One epoch of training, one pass of evaluation: the loops, and nothing else."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import process_group as distributed
from common.errors import DataError
from data.batch import Batch, SampleInfo
from model.predictions import Prediction
from training.checkpoint import save_checkpoint
from training.distributed import Trainee
from training.run import autocast

if TYPE_CHECKING:
    from model.build import Reconstructor

Criterion = Callable[[Prediction, Tensor], Tensor]
Observer = Callable[[int, Batch, Prediction], None]  # first sample's id, the batch, its prediction in reflectance


class ScalarLog(Protocol):
    """What the engine asks of a log; TensorBoard's SummaryWriter is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Note one number."""


@dataclass
class TrainState:
    """All that moves during training; a checkpoint holds it, and holding it is enough to go on."""

    model: "Reconstructor"
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    epoch: int = 0  # epochs that are done
    best_loss: float = math.inf  # least validation loss so far
    frozen: tuple[str, ...] = ()  # parameters that wait for --unfreeze_after
    trainlog: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compute:
    """Where and how to compute: the device, and the dtype of the backbone's autocast (None: float32)."""

    device: torch.device
    dtype: torch.dtype | None = None

    def predict(self, model: "Reconstructor", batch: Batch) -> Prediction:
        """The prediction for a batch on this device, in scaled units, float32."""
        with autocast(self.device, self.dtype):
            return model(batch.x, batch.dates)


def train_one_epoch(
    state: TrainState,
    loader: Iterable[Batch],
    criterion: Criterion,
    compute: Compute,
    *,
    steps: int,
    accumulate: int = 1,
    clip_grad: float = 0.0,
    display_step: int = 10,
    log: ScalarLog | None = None,
    rescue: Path | None = None,
) -> dict[str, float]:
    """Train on every batch of `loader` once; the caller advances the scheduler and `state.epoch`.

    Several processes walk side by side, each through its share of every batch; weights stay the same in all.

    Args:
        state: what is trained; changed in place.
        loader: batches on the CPU.
        criterion: (prediction, target), both in scaled units, to a scalar.
        compute: device and precision.
        steps: number of batches that `loader` gives.
        accumulate: batches whose gradients are averaged into one step of the optimiser.
        clip_grad: largest norm of the gradient, 0 for none.
        display_step: batches between two looks at the loss on a device that runs ahead.
        log: receives `train/loss` and `train/lr`.
        rescue: folder for the batch and weights at hand if the loss is not finite.

    Returns:
        `train_loss` (mean over samples), `train_epoch_time` (s), `train_samples`.

    Raises:
        DataError: if the loss is not finite, or no sample could be read.
    """
    model, device = state.model, compute.device
    model.train()
    loss_of = distributed.averaging(Trainee(model, criterion, compute.predict), device)
    total, samples, started = torch.zeros((), device=device), 0, time.perf_counter()
    eager_check = device.type == "cpu"  # reading a number costs nothing there; elsewhere it waits for the device
    title = f"epoch {state.epoch + 1} train"
    unseen: list[_Step] = []  # those whose loss nobody has looked at yet
    latest = math.nan
    state.optimizer.zero_grad(set_to_none=True)
    with _progress(loader, steps, title) as bar:
        for number, cpu_batch in enumerate(bar):
            last_of_group = (number + 1) % accumulate == 0 or number + 1 == steps
            shares = distributed.counts(cpu_batch.n)
            if any(shares):
                group = min(accumulate, steps - number // accumulate * accumulate)
                loss = loss_of(cpu_batch.to(device, non_blocking=True))
                weight = cpu_batch.n * len(shares) / sum(shares)  # 1 where all shares are equal
                state.scaler.scale(loss * weight / group).backward()
                if cpu_batch.n:
                    total, samples = total + loss.detach() * cpu_batch.n, samples + cpu_batch.n
                    unseen.append(_Step(number, loss.detach(), cpu_batch.info))
                shown = (number + 1) % display_step == 0 or number + 1 == steps
                if unseen and (eager_check or shown):
                    latest = _look_at_losses(unseen, state, cpu_batch, rescue)
                    unseen.clear()
                if shown:
                    step, mean = state.epoch * steps + number, _joint_mean(latest * cpu_batch.n, cpu_batch.n)
                    bar.set_postfix(loss=f"{mean:.4g}", refresh=False)
                    if log is not None:
                        log.add_scalar("train/loss", mean, step)
                        log.add_scalar("train/lr", state.optimizer.param_groups[0]["lr"], step)
            if last_of_group:
                _step(state, clip_grad)
    everything = sum(distributed.counts(samples))
    if not everything:
        raise DataError("no sample of the training split could be read; the list of unreadable patches tells why")
    return {
        "train_epoch_time": time.perf_counter() - started,
        "train_loss": _joint_mean(total.item(), samples),
        "train_samples": everything,
    }


def _progress(loader: Iterable[Batch], steps: int | None, title: str) -> "tqdm[Batch]":
    """A bar that one process shows for all."""
    return tqdm(loader, total=steps, desc=title, unit="batch", dynamic_ncols=True, disable=not distributed.is_first())


def _joint_mean(total: float, n: int) -> float:
    """The mean over all processes' samples; `total` is the sum over the n of this one. NaN without samples."""
    rows = [row for row in distributed.gather((total, n)) if row[1]]
    return sum(row[0] for row in rows) / sum(row[1] for row in rows) if rows else math.nan


def _step(state: TrainState, clip_grad: float) -> None:
    if clip_grad > 0:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


class _Step(NamedTuple):
    """One step of training: its number, its loss, and the samples it saw."""

    number: int
    loss: Tensor
    info: tuple[SampleInfo, ...]


def _look_at_losses(steps: Sequence[_Step], state: TrainState, batch: Batch, rescue: Path | None) -> float:
    """The loss of the last step, by one wait for the device for all of them.

    Raises:
        DataError: at the first step whose loss is not finite; `batch`, of the last one, is saved if it is the one.
    """
    losses = torch.stack([step.loss for step in steps]).tolist()
    first = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if first is None:
        return losses[-1]
    number, value, saved = steps[first].number, losses[first], ""
    if rescue is not None:
        who = f"_process_{distributed.rank()}" if distributed.world() > 1 else ""
        path = rescue / f"nan_epoch_{state.epoch + 1}_batch_{number}{who}.pth.tar"
        found: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "batch": number,
            "noticed_at_batch": steps[-1].number,
            "loss": value,
            "samples": [info.to_json() for info in steps[first].info],
            "state_dict": state.model.state_dict(),
        }
        if first == len(steps) - 1:  # else the weights have moved since, and the samples have to be read again
            found |= {"x": batch.x, "target": batch.target, "dates": batch.dates}
        save_checkpoint(path, found)
        saved = f"; the samples and the weights are in {path}"
    raise DataError(
        f"the loss is {value} in epoch {state.epoch + 1}, batch {number}{saved}; try a lower --lr, --clip_grad 1, "
        "or --precision fp32"
    )


@torch.inference_mode()
def evaluate(
    model: "Reconstructor",
    loader: Iterable[Batch],
    criterion: Criterion | None,
    compute: Compute,
    *,
    title: str,
    steps: int | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, float]:
    """Predict every sample of `loader`, show each batch to the observers, and average the loss.

    Of several processes each predicts its share of every batch and shows that to its own observers; sample ids are
    those that one process would count, and loss and number are of all.

    Args:
        model: the network, put into eval mode.
        loader: batches on the CPU.
        criterion: (prediction, target) in scaled units; None if no loss is wanted.
        compute: device and precision.
        title: what the progress bar says.
        steps: number of batches, for the progress bar.
        observers: called with the id of the batch's first sample (samples are counted, known issue 7), the batch on the
            device and the prediction in reflectance.

    Returns:
        `loss` (mean over samples, NaN without a criterion), `samples`, `epoch_time` (s).

    Raises:
        DataError: if no sample could be read.
    """
    model.eval()
    total, seen, own, started = torch.zeros((), device=compute.device), 0, 0, time.perf_counter()
    with _progress(loader, steps, title) as bar:
        for cpu_batch in bar:
            shares = distributed.counts(cpu_batch.n)
            first = seen + sum(shares[: distributed.rank()])
            seen, own = seen + sum(shares), own + cpu_batch.n
            if not cpu_batch.n:
                continue
            batch = cpu_batch.to(compute.device, non_blocking=True)
            prediction = compute.predict(model, batch)
            if criterion is not None:
                total = total + criterion(prediction, batch.target * model.scale_by) * batch.n
            prediction = prediction.unscaled(model.scale_by)
            for observe in observers:
                observe(first, batch, prediction)
    if not seen:
        raise DataError(f"no sample of the {title} split could be read; the list of unreadable patches tells why")
    loss = _joint_mean(total.item(), own) if criterion is not None else math.nan
    return {"loss": loss, "samples": seen, "epoch_time": time.perf_counter() - started}


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def profile_step(model: "Reconstructor", criterion: Criterion, batch: Batch, compute: Compute) -> dict[str, Any]:
    """Measure one forward and backward pass.

    Args:
        model: the network.
        criterion: the loss, in scaled units.
        batch: one batch on the CPU.
        compute: device and precision.

    Returns:
        `parameters`, `gflops_forward` (multiply and add counted apart), `forward_backward_s`, and on CUDA
        `peak_memory_mib`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.train()
    batch = batch.to(compute.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute.predict(model, batch)
    cuda = compute.device.type == "cuda"
    for _ in range(2):  # the first pass warms up
        if cuda:
            torch.cuda.synchronize(compute.device)
            torch.cuda.reset_peak_memory_stats(compute.device)
        started = time.perf_counter()
        criterion(compute.predict(model, batch), batch.target * model.scale_by).backward()
        if cuda:
            torch.cuda.synchronize(compute.device)
        elapsed = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
    report: dict[str, Any] = {
        "parameters": count_parameters(model),
        "gflops_forward": counter.get_total_flops() / 1e9,
        "forward_backward_s": elapsed,
    }
    if cuda:
        report["peak_memory_mib"] = torch.cuda.max_memory_allocated(compute.device) / 2**20
    return report
