"""One epoch of training, and the profile of one step."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common import process_group
from common.errors import DataError
from common.progress import progress_bar
from data.batch import Batch, SampleInfo
from model.losses import LossFunction
from model.reconstructor import Reconstructor
from model.runtime import Compute, count_parameters
from model.weights import save_checkpoint
from training.distributed import LossModule, wrap_ddp


class ScalarLog(Protocol):
    """The part of TensorBoard's SummaryWriter that training uses."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Log one number."""


@dataclass
class TrainState:
    """All that changes during training; a checkpoint holds it, and it suffices to resume."""

    model: Reconstructor
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ExponentialLR
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    epoch: int = 0  # completed epochs
    best_loss: float = math.inf  # lowest validation loss so far
    frozen: tuple[str, ...] = ()  # parameters frozen until --unfreeze_after
    trainlog: dict[str, dict[str, float]] = field(default_factory=dict)

    def completed_steps(self, steps: int) -> int:
        """Batches of all completed epochs, the unit of TensorBoard; `steps` in an epoch that is not in the log."""
        rows = (self.trainlog.get(str(epoch), {}) for epoch in range(1, self.epoch + 1))
        return sum(int(row.get("train_steps", steps)) for row in rows)


def train_one_epoch(
    state: TrainState,
    loader: Iterable[Batch],
    criterion: LossFunction,
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

    Several processes run side by side, each on its share of every batch; their weights stay equal.

    Args:
        state: the training; changed in place.
        loader: batches on the CPU.
        criterion: (prediction, target, valid pixels or None), in scaled units, to a scalar.
        compute: device and precision.
        steps: number of batches in `loader`.
        accumulate: batches whose gradients are averaged into one optimiser step.
        clip_grad: largest norm of the gradient, 0 for none.
        display_step: batches between log entries; on a GPU the loss is read only then.
        log: receives `train/loss` and `train/lr`.
        rescue: folder for the current batch and weights if the loss is not finite.

    Returns:
        `train_loss` (mean over samples), `train_epoch_time` (s), `train_samples`, `train_steps` (batches).

    Raises:
        DataError: if the loss is not finite, or no sample could be read.
    """
    model, device = state.model, compute.device
    model.train()
    loss_of = wrap_ddp(LossModule(model, criterion, compute.predict), device)
    total, samples, started = torch.zeros((), device=device), 0, time.perf_counter()
    check_every_step = device.type == "cpu"  # reading the loss is free there; a GPU has to be waited for
    unchecked: list[_Step] = []
    first_step = state.completed_steps(steps)
    latest = math.nan
    state.optimizer.zero_grad(set_to_none=True)
    with progress_bar(loader, steps, f"epoch {state.epoch + 1} train") as bar:
        for number, cpu_batch in enumerate(bar):
            counts = process_group.all_gather_int(cpu_batch.n)
            if any(counts):
                group = min(accumulate, steps - number // accumulate * accumulate)
                loss = loss_of(cpu_batch.to(device, non_blocking=True))
                weight = cpu_batch.n * len(counts) / sum(counts)  # 1 where all shares are equal
                state.scaler.scale(loss * weight / group).backward()
                if cpu_batch.n:
                    total, samples = total + loss.detach() * cpu_batch.n, samples + cpu_batch.n
                    unchecked.append(_Step(number, loss.detach(), cpu_batch.info))
                display = (number + 1) % display_step == 0 or number + 1 == steps
                if unchecked and (check_every_step or display):
                    latest = _check_losses(unchecked, state, cpu_batch, rescue)
                    unchecked.clear()
                if display:
                    step = first_step + number
                    mean = process_group.all_reduce_mean(latest * cpu_batch.n, cpu_batch.n)
                    bar.set_postfix(loss=f"{mean:.4g}", refresh=False)
                    if log is not None:
                        log.add_scalar("train/loss", mean, step)
                        log.add_scalar("train/lr", state.optimizer.param_groups[0]["lr"], step)
            if (number + 1) % accumulate == 0 or number + 1 == steps:
                _optimizer_step(state, clip_grad)
    n_samples = sum(process_group.all_gather_int(samples))
    if not n_samples:
        raise DataError("no sample of the training split could be read; see the list of unreadable patches")
    return {
        "train_epoch_time": time.perf_counter() - started,
        "train_loss": process_group.all_reduce_mean(total.item(), samples),
        "train_samples": n_samples,
        "train_steps": steps,
    }


def profile_step(model: Reconstructor, criterion: LossFunction, batch: Batch, compute: Compute) -> dict[str, Any]:
    """Measure one forward and backward pass.

    Args:
        model: the network.
        criterion: the loss, in scaled units.
        batch: one batch on the CPU.
        compute: device and precision.

    Returns:
        `parameters`, `gflops_forward` (a multiply-add counts as two), `forward_backward_s`, and on CUDA
        `peak_memory_mib`.
    """
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
        criterion(compute.predict(model, batch), batch.target * model.scale_by, batch.valid).backward()
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


def _optimizer_step(state: TrainState, clip_grad: float) -> None:
    if clip_grad > 0:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


class _Step(NamedTuple):
    """One step of training: its number, its loss, and its samples."""

    number: int
    loss: Tensor
    info: tuple[SampleInfo, ...]


def _check_losses(steps: Sequence[_Step], state: TrainState, batch: Batch, rescue: Path | None) -> float:
    """The loss of the last step, after checking all of them in one transfer from the device.

    Raises:
        DataError: at the first step whose loss is not finite; `batch`, of the last step, is saved if it is that one.
    """
    losses = torch.stack([step.loss for step in steps]).tolist()
    first = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if first is None:
        return losses[-1]
    number, value, saved = steps[first].number, losses[first], ""
    if rescue is not None:
        suffix = f"_process_{process_group.rank()}" if process_group.world_size() > 1 else ""
        path = rescue / f"nan_epoch_{state.epoch + 1}_batch_{number}{suffix}.pth.tar"
        content: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "batch": number,
            "noticed_at_batch": steps[-1].number,
            "loss": value,
            "samples": [info.to_json() for info in steps[first].info],
            "state_dict": state.model.state_dict(),
        }
        if first == len(steps) - 1:  # else the weights have changed since, and the samples must be read again
            content |= {"x": batch.x, "target": batch.target, "dates": batch.dates, "valid": batch.valid}
        save_checkpoint(path, content)
        saved = f"; the samples and the weights are in {path}"
    raise DataError(
        f"the loss is {value} in epoch {state.epoch + 1}, batch {number}{saved}; try a lower --lr, --clip_grad 1, "
        "or --precision fp32"
    )
