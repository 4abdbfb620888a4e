"""The processes of one run under `torchrun`, and what they exchange; one process alone needs nothing of it.

`torchrun --nproc_per_node N train_reconstruct.py ...` sets rank and world size in the environment. Objects and counts
are exchanged over gloo, gradients and batch statistics on the device's backend (nccl for CUDA, one GPU per process).
Tested on CPUs; it has not run on GPUs yet.
"""

import json
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import DataError, UsageError, UserError

if TYPE_CHECKING:  # torch takes a second to import, and --help needs none
    import torch  # deferred: one process alone does not need it
    from torch import Tensor

TIMEOUT = timedelta(minutes=10)  # after which a silent process counts as lost; one that exits is detected at once
_REPORT_S = 2.0  # a silent process waits before it exits: torchrun then ends all, the one that reports too
_STUCK_S = 5.0  # torchrun kills after 30
_TERMINATED = (
    "this run received SIGTERM, from outside or because another of its processes was lost, which torchrun "
    "names; its files are whole, and --resume_from continues a training"
)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe|socket|tcpstore", re.IGNORECASE)

T = TypeVar("T")


class _PeerLostError(DataError):
    """Another process is the cause; torchrun names it."""


@dataclass
class _Groups:
    """The store that all processes reach and, once the device is known, the process groups."""

    store: Any
    objects: Any = None  # gloo: objects and counts, on the CPU
    statistics: Any = None  # on the device, separate from the group of the gradients, which has an order of its own


_groups: _Groups | None = None


def is_distributed() -> bool:
    """Whether torchrun started this process together with others."""
    return all(os.environ.get(name) for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Rank of this process, from 0."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def local_rank() -> int:
    """Rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if is_distributed() else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_distributed() else 1


def is_rank_zero() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def describe_processes(batch_size: int) -> str:
    """For the log: the number of processes that share a batch; empty for one."""
    return f", {world_size()} processes share each batch of {batch_size}" if is_distributed() else ""


def check_batch_size(batch_size: int) -> None:
    """Raise a `UsageError` unless every process gets a sample of each batch."""
    if batch_size < world_size():
        raise UsageError(
            f"--batch_size {batch_size} is the batch of all {world_size()} processes together: expected at least one "
            f"sample for each, as --batch_size {4 * world_size()}"
        )


@contextmanager
def rank_zero_only() -> Iterator[None]:
    """Silence output and warnings of all processes but rank 0, where all do the same, such as parsing flags."""
    if is_rank_zero():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stderr(nowhere),
        redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        except SystemExit:
            time.sleep(_REPORT_S)
            raise


@contextmanager
def session() -> Iterator[None]:
    """Connect the processes; only rank 0 prints, and when one process fails, one message is shown and all exit.

    Raises:
        DataError: in place of the connection errors that the exit of another process causes.
    """
    global _groups
    if not is_distributed():
        yield
        return
    import torch.distributed as dist  # deferred: one process alone does not need it

    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of --max_restarts, which keeps the store
    _groups = _Groups(dist.PrefixStore(f"attempt {attempt}", store))
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=_exit_when_stuck, args=(reader,), daemon=True).start()
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if is_rank_zero() else redirect_stdout(nowhere):
            yield
    except Exception as error:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # from torchrun, when another process exits before this one reports
        reported = _translate_error(error)
        if not _claim_first_failure():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_REPORT_S)
            raise SystemExit(1) from None
        if isinstance(reported, _PeerLostError):
            print(file=sys.stderr)  # the last line holds the progress bar of the lost process
        else:
            _write_torchrun_error(reported)
        if reported is error:
            raise
        raise reported from error
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(-1)
        os.close(writer)
    if dist.is_initialized():
        dist.destroy_process_group()
    _groups = None


def init_process_group(device: "torch.device") -> None:
    """Set up the process groups for computation on `device`."""
    if _groups is None:
        return
    import torch.distributed as dist  # deferred: one process alone does not need it

    backend = "nccl" if device.type == "cuda" else "gloo"
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python handlers do not run while torch waits
    dist.init_process_group(backend, store=_groups.store, rank=rank(), world_size=world_size(), timeout=TIMEOUT)
    _groups.objects = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _groups.statistics = dist.new_group(backend=backend, timeout=TIMEOUT)
    signal.signal(signal.SIGTERM, before)


def all_gather_object(value: T) -> list[T]:
    """The values of all processes, by rank; anything that can be pickled."""
    if _groups is None:
        return [value]
    import torch.distributed as dist  # deferred: one process alone does not need it

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_groups.objects)
    return values


def all_gather_int(number: int) -> list[int]:
    """The integers of all processes, by rank; faster than `all_gather_object`."""
    if _groups is None:
        return [number]
    import torch  # deferred: one process alone does not need it
    import torch.distributed as dist  # deferred: one process alone does not need it

    own = torch.tensor([number], dtype=torch.int64)
    numbers = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(numbers, own, group=_groups.objects)
    return [int(n) for n in numbers]


def barrier() -> None:
    """Wait for all processes."""
    if _groups is not None:
        import torch.distributed as dist  # deferred: one process alone does not need it

        dist.monitored_barrier(group=_groups.objects, timeout=TIMEOUT)


def all_gather_tensor(row: "Tensor") -> "Tensor":
    """The rows (K,) of all processes as (processes, K), on their device."""
    import torch  # deferred: one process alone does not need it
    import torch.distributed as dist  # deferred: one process alone does not need it

    if _groups is None:
        return row[None]
    rows = [torch.empty_like(row) for _ in range(world_size())]
    dist.all_gather(rows, row, group=_groups.statistics)
    return torch.stack(rows)


def all_reduce_mean(total: float, n: int) -> float:
    """The mean over the samples of all processes; `total` is the sum over the n of this one. NaN without samples."""
    rows = [row for row in all_gather_object((total, n)) if row[1]]
    return sum(row[0] for row in rows) / sum(row[1] for row in rows) if rows else math.nan


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _PeerLostError(_TERMINATED)


def _exit_when_stuck(reader: int) -> None:
    """Exit some time after a SIGTERM: Python handlers do not run while torch waits for another process."""
    while (received := os.read(reader, 1)) and received[0] != signal.SIGTERM:
        pass
    os.close(reader)
    if received:
        time.sleep(_STUCK_S)
        if _claim_first_failure():
            print(f"\nerror: {_TERMINATED}", file=sys.stderr, flush=True)
        os._exit(1)


def _translate_error(error: Exception) -> Exception:
    """The error to report: of a lost connection, that another process is gone."""
    import torch.distributed as dist  # deferred: one process alone does not need it

    text = str(error)
    if isinstance(error, UserError) or not isinstance(error, RuntimeError | dist.DistError) or not _LOST.search(text):
        return error
    match = re.search(r"[Rr]anks? ([\d, ]*\d) failed", text)
    peer = f"process {match[1]}" if match else "another process"
    return _PeerLostError(
        f"{peer} of the {world_size()} of this run has exited or stopped answering, so all exit (noticed by process "
        f"{rank()}); its files are whole, and --resume_from continues a training"
    )


def _claim_first_failure() -> bool:
    """Whether this process is the first to fail, and so reports the reason."""
    import torch.distributed as dist  # deferred: one process alone does not need it

    if _groups is None:
        return True
    try:
        return int(_groups.store.add("failed", 1)) == 1
    except (RuntimeError, dist.DistError):  # the process that kept the store is gone
        return True


def _write_torchrun_error(error: Exception) -> None:
    """Leave the message where torchrun reads it, so that its summary names the reason.

    torch's own `record` decorator would write a traceback for every process, and imports torch at start-up.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": " ".join(f"error: {error}".split()), "timestamp": int(time.time())}, file)
