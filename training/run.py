"""What a run stands on: its folder, its log, its seeds, its device and its precision."""

import os
import random
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import process_group as distributed
from common.errors import DataError, UsageError
from common.files import write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class RunFolder:
    """Where one experiment keeps its files: `RES_DIR/EXPERIMENT`, logs under `RES_DIR/../logs/EXPERIMENT`."""

    res_dir: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.res_dir / self.name

    @property
    def conf(self) -> Path:
        """The resolved flags."""
        return self.path / "conf.json"

    @property
    def best(self) -> Path:
        """The checkpoint that was best on validation."""
        return self.path / "model.pth.tar"

    @property
    def logs(self) -> Path:
        """TensorBoard's folder."""
        parent = self.res_dir.parent if self.res_dir.name not in ("", "..") else self.res_dir / ".."
        return parent / "logs" / self.name

    def checkpoint(self, epoch: int) -> Path:
        """The checkpoint written after `epoch`."""
        return self.path / f"model_epoch_{epoch}.pth.tar"

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, in order."""
        numbers = (
            p.name.removeprefix("model_epoch_").removesuffix(".pth.tar") for p in self.path.glob("model_epoch_*")
        )
        return sorted(int(number) for number in numbers if number.isdigit())

    def plots(self, epoch: int, split: str) -> Path:
        """Where the pictures of one evaluation go."""
        return self.path / "plots" / f"epoch_{epoch}" / split

    def exports(self, epoch: int, split: str) -> Path:
        """Where the arrays of one evaluation go."""
        return self.path / "export" / f"epoch_{epoch}" / split

    def set_aside(self) -> Path | None:
        """Move an earlier training of this name, and its logs, out of the way, so that the two are not mixed up.

        Returns:
            Where it is now; None if there was none.
        """
        if not (self.best.exists() or self.epochs()):
            return None
        number = next(n for n in count(1) if not (self.res_dir / f"{self.name}_earlier_{n}").exists())
        earlier = RunFolder(self.res_dir, f"{self.name}_earlier_{number}")
        for here, there in ((self.path, earlier.path), (self.logs, earlier.logs)):
            try:
                if here.exists() and not there.exists():
                    here.rename(there)
            except OSError as error:
                raise DataError(f"cannot move {here} to {there}: {error.strerror}; choose another --res_dir") from error
        return earlier.path

    def sweep(self) -> None:
        """Remove the temporary files that a killed training was writing; no other must be writing here."""
        for leftover in self.path.rglob(".*.tmp*"):
            leftover.unlink(missing_ok=True)

    def create(self) -> None:
        """Make the folder, or say why it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another --res_dir"
            ) from error

    def write_metrics(self, split: str, metrics: Mapping[str, Any]) -> Path:
        """Write `SPLIT_metrics.json` and return its path."""
        path = self.path / f"{split}_metrics.json"
        write_json(path, metrics)
        return path


def choose_device(name: str) -> torch.device:
    """The device called `name`: cpu, cuda or cuda:N; of several processes each takes the GPU of its number.

    Raises:
        UsageError: if there is no such device; the message names `--device cpu`.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device takes cuda, cuda:N or cpu, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and distributed.world() > 1:
        if device.index is not None:
            raise UsageError(f"--device {name} is one GPU; several processes take one each: write --device cuda")
        device = torch.device("cuda", distributed.local_rank())
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise UsageError(f"--device {name}: there is no CUDA device here; add --device cpu")
        if (device.index or 0) >= count and distributed.world() > 1:
            raise UsageError(
                f"there are {count} CUDA devices for {distributed.local_world()} processes; lower --nproc_per_node"
            )
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: there are {count} CUDA devices, numbered from 0; or use --device cpu")
        if distributed.world() > 1:
            torch.cuda.set_device(device)
    return device


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The dtype of autocast (None: no autocast, float32) and the reason in words."""
    if wanted == "fp32":
        return None, "float32, as asked"
    if wanted in ("bf16", "fp16"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[wanted], f"{wanted}, as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bf16: this GPU has it"
        return torch.float16, "fp16: this GPU has no bf16"
    if _cpu_has_bf16():
        return torch.bfloat16, "bf16: this processor has instructions for it"
    return None, "float32: this processor has no bf16 instructions"


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which the backbone computes in `dtype`; does nothing for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def seed_everything(seed: int) -> None:
    """Seed Python and torch, and ask for algorithms that give the same bits each time."""
    random.seed(seed)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # not use_deterministic_algorithms, which imports the compiler: 1.5 to 3 s at every start
    torch.set_deterministic_debug_mode("warn")
    buffers: Any = torch.utils.deterministic  # Any: the attribute is made at run time
    buffers.fill_uninitialized_memory = False  # filling every new buffer takes a twentieth of a step
    torch.backends.cudnn.benchmark = False


def seed_others(seed: int, epoch: int) -> None:
    """Give each process but the first a dropout of its own, which follows from seed, epoch and rank.

    The first goes on with the stream that a checkpoint holds, as one process alone does.
    """
    if not distributed.is_first():
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, distributed.rank())).generate_state(1)[0]))


@contextmanager
def tensorboard_log(folder: Path, purge_step: int | None = None) -> "Iterator[SummaryWriter]":
    """TensorBoard's log in a folder; events from `purge_step` on, of an earlier run, are hidden.

    Raises:
        DataError: if it cannot be written: the folder is none, or the disk is full.
    """
    from torch.utils.tensorboard import SummaryWriter

    before = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):  # those of the writer's thread come again at the next event
            before(args)

    threading.excepthook = quiet
    try:
        with SummaryWriter(str(folder), purge_step=purge_step) as log:
            yield log
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(folder)):
            raise
        raise DataError(
            f"cannot write the log in {folder}: {error.strerror or error}; make room, and go on with --resume_from"
        ) from error
    finally:
        threading.excepthook = before


@contextmanager
def memory_advice(device: str, flags: str) -> Iterator[None]:
    """Turn a full memory, of the device or of this machine, into a `DataError` that says what lowers the need.

    Args:
        device: where the block computes.
        flags: what to try.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        known = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
        if not isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) and not any(word in text for word in known):
            raise
        where = "of this machine" if isinstance(error, MemoryError) else f"on {device}"
        raise DataError(f"out of memory {where}: {flags}") from error
