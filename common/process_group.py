"""Several processes that train or test one network together: the only place that knows `torch.distributed`.

`torchrun --nproc_per_node N train_reconstruct.py ...` starts them and tells each its rank in the environment; without
that, all here answers for one process, and nothing is imported. Processes talk over gloo; gradients and statistics of
GPUs go over nccl, one GPU a process. On processors all of it is tested; on GPUs it has not run yet.
"""

import json
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

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)  # a process that is silent for so long counts as lost; one that ends is noticed at once
_SPEAK_S = 2.0  # what a silent process waits before it ends: torchrun ends the others, the one that speaks too
_STUCK_S = 5.0  # torchrun waits for thirty, then kills
_TOLD = (
    "this run was told to end (SIGTERM), from outside or because another of its processes was lost, which torchrun "
    "names; its files are whole, and a training goes on with --resume_from"
)
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe|socket|tcpstore", re.IGNORECASE)

T = TypeVar("T")


class _Ended(DataError):
    """Another process is the reason; torchrun knows which."""


@dataclass
class _Links:
    """Open connections: the store that all reach, and, once the device is known, the groups."""

    store: Any
    talk: Any = None  # gloo: numbers and objects on the CPU
    statistics: Any = None  # on the device, apart from the gradients' group, whose order is its own


_links: _Links | None = None


def launched() -> bool:
    """Whether this is one of several processes that were started together."""
    return all(os.environ.get(name) for name in _NEEDED) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def local_world() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if launched() else 1


def is_first() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def words(batch_size: int) -> str:
    """For the log: how many processes share a batch; empty for one."""
    return f", {world()} processes share each batch of {batch_size}" if launched() else ""


def refuse(config: Any) -> None:
    """Raise a `UsageError` for a training that several processes cannot share.

    Args:
        config: the flags.
    """
    if not launched():
        return
    alone = "; start it with python instead of torchrun"
    if config.model == "fusion_net":
        raise UsageError(
            "--model fusion_net is fitted by one process; train its experts with torchrun, each in a run of its own, "
            "then fuse them with --experts" + alone
        )
    if config.profile:
        raise UsageError("--profile measures one process" + alone)
    if config.legacy and config.loss == "MGNLL":
        raise UsageError("--legacy --loss MGNLL depends on the batch of a process, as published" + alone)
    require_batch(config.batch_size)


def require_batch(batch_size: int) -> None:
    """Raise a `UsageError` if a batch is too small for the processes to share it."""
    if batch_size < world():
        raise UsageError(
            f"--batch_size {batch_size} is the batch of all {world()} processes together: expected at least one "
            f"sample for each, as --batch_size {4 * world()}"
        )


@contextmanager
def muted() -> Iterator[None]:
    """Let only the first process show messages and warnings of what all do alike, such as reading the flags."""
    if is_first():
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
            time.sleep(_SPEAK_S)
            raise


@contextmanager
def session() -> Iterator[None]:
    """Within it, the first process prints, and when one process fails, one message is shown and all end.

    Raises:
        DataError: in place of what the connection to a process that has ended says.
    """
    global _links
    if not launched():
        yield
        return
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of --max_restarts, which keeps the store
    _links = _Links(dist.PrefixStore(f"attempt {attempt}", store))
    before = signal.signal(signal.SIGTERM, _told_to_end)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=_end_stuck, args=(reader,), daemon=True).start()
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
            yield
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, who sees another process end before this one speaks
        told = _translated(error)
        if not _speaks_first():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_SPEAK_S)
            raise SystemExit(1) from None
        if isinstance(told, _Ended):
            print(file=sys.stderr)  # the progress bar of the one that ended stands in the last line
        else:
            _tell_torchrun(told)
        if told is error:
            raise
        raise told from error
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(-1)
        os.close(writer)
    if dist.is_initialized():
        dist.destroy_process_group()
    _links = None


def connect(device: "torch.device") -> None:
    """Join the other processes of the session, to compute on `device` together."""
    if _links is None:
        return
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing of Python's is heard while torch waits for others
    dist.init_process_group(backend, store=_links.store, rank=rank(), world_size=world(), timeout=TIMEOUT)
    _links.talk = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _links.statistics = dist.new_group(backend=backend, timeout=TIMEOUT)
    signal.signal(signal.SIGTERM, before)


def gather(value: T) -> list[T]:
    """What every process has to give, by rank; plain values and arrays, as they are pickled."""
    if _links is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, group=_links.talk)
    return found


def counts(number: int) -> list[int]:
    """One whole number of every process, by rank; quicker than `gather`."""
    if _links is None:
        return [number]
    import torch
    import torch.distributed as dist

    own = torch.tensor([number], dtype=torch.int64)
    found = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(found, own, group=_links.talk)
    return [int(one) for one in found]


def barrier() -> None:
    """Wait until all processes are here."""
    if _links is not None:
        import torch.distributed as dist

        dist.monitored_barrier(group=_links.talk, timeout=TIMEOUT)


def stacked(row: "Tensor") -> "Tensor":
    """(K,) of every process to (processes, K), on the device of the session."""
    import torch
    import torch.distributed as dist

    if _links is None:
        return row[None]
    found = [torch.empty_like(row) for _ in range(world())]
    dist.all_gather(found, row, group=_links.statistics)
    return torch.stack(found)


def averaging(module: "nn.Module", device: "torch.device") -> "nn.Module":
    """A module whose backward pass leaves the mean of all processes' gradients; its weights become the first's."""
    if _links is None:
        return module
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of single-channel kernels: no matter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")  # its new name is not in 2.4
        # static_graph: some networks have weights that they do not use (`--agg_mode mean` needs no attention)
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, static_graph=True)


def _told_to_end(number: int, frame: FrameType | None) -> None:
    raise _Ended(_TOLD)


def _end_stuck(reader: int) -> None:
    """End this process some time after a SIGTERM: one that waits for another inside torch hears of it too late."""
    while (heard := os.read(reader, 1)) and heard[0] != signal.SIGTERM:
        pass
    os.close(reader)
    if heard:
        time.sleep(_STUCK_S)
        if _speaks_first():
            print(f"\nerror: {_TOLD}", file=sys.stderr, flush=True)
        os._exit(1)


def _translated(error: Exception) -> Exception:
    """What to tell of an error: of a lost connection, that another process is gone."""
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, UserError) or not isinstance(error, RuntimeError | dist.DistError) or not _LOST.search(text):
        return error
    named = re.search(r"[Rr]anks? ([\d, ]*\d) failed", text)
    who = f"process {named[1]}" if named else "another process"
    return _Ended(
        f"{who} of the {world()} of this run has ended or stopped answering, so all end (noticed by process {rank()}); "
        "its files are whole, and a training goes on with --resume_from"
    )


def _speaks_first() -> bool:
    """Whether this process is the first that fails, and so tells why."""
    import torch.distributed as dist

    if _links is None:
        return True
    try:
        return int(_links.store.add("failed", 1)) == 1
    except (RuntimeError, dist.DistError):  # the store is gone with the process that kept it
        return True


def _tell_torchrun(error: Exception) -> None:
    """Leave the message where torchrun looks for it, so that its last words name the reason."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": " ".join(f"error: {error}".split()), "timestamp": int(time.time())}, file)
