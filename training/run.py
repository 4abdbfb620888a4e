"""What a run needs before it computes: device, precision, folder, seeds and logs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common import process_group
from common.errors import DataError, UsageError
from common.locks import folder_lock
from common.memory import keep_freed_memory
from common.run_folder import RunFolder
from config.schema import Config
from config.stored import write_conf
from data.batch import Skipped
from model.build import describe_scan
from model.runtime import Compute, choose_device, choose_precision, seed_everything

if TYPE_CHECKING:  # importing tensorboard takes a second
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class RunSetup:
    """The folder of a run and where it computes; `precision` and `scan` describe that for the log."""

    folder: RunFolder
    compute: Compute
    precision: str
    scan: str

    @property
    def device(self) -> torch.device:
        """The device of the computation."""
        return self.compute.device

    @property
    def description(self) -> str:
        """Device, precision and scan backend, with their reasons."""
        return f"on {self.device}, precision {self.precision}{self.scan}"


def set_up_run(config: Config) -> RunSetup:
    """Choose device and precision, join the other processes, and seed the random generators.

    Raises:
        UsageError: if the device or the backend of the scan is not available.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype, reason = choose_precision(config.precision, device)
    scan = describe_scan(config, device)
    process_group.init_process_group(device)
    seed_everything(config.rdm_seed)
    folder = RunFolder(Path(config.res_dir), config.experiment_name)
    return RunSetup(folder, Compute(device, dtype), reason, scan)


def lock_run_folder(config: Config) -> AbstractContextManager[None]:
    """Hold the folder of a run, in the process of rank 0; `--profile` writes nothing.

    Raises:
        DataError: if another command is at work there, or it cannot be written.
    """
    if config.profile or not process_group.is_rank_zero():
        return nullcontext()
    return folder_lock(Path(config.res_dir) / config.experiment_name, "--experiment_name or --res_dir", as_sibling=True)


def start_run_folder(folder: RunFolder, config: Config, epoch: int = 0) -> None:
    """Create the folder of a training; one of an earlier training of this name is moved unless it is resumed.

    Args:
        folder: of the run.
        config: the flags.
        epoch: completed epochs.
    """
    folder.sweep()
    earlier = None if config.resume_from else folder.set_aside()
    if earlier is not None:
        print(f"note: an earlier training of this name is now in {earlier}")
    folder.create()
    write_conf(folder.conf, config, epoch)


def refuse_fewer_epochs(config: Config, completed: int) -> None:
    """Raise a `UsageError` if a training that resumes has more epochs than `--epochs`."""
    if completed > config.epochs:
        raise UsageError(
            f"--epochs {config.epochs}: {config.experiment_name} has {completed} epochs already; give as many or more, "
            f"or go back with --resume_at {config.epochs}"
        )


def seed_rank(seed: int, epoch: int) -> None:
    """Give every process but the first dropout of its own, which follows from seed, epoch and rank.

    The first continues the random stream of the checkpoint, as a single process does.
    """
    if not process_group.is_rank_zero():
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, process_group.rank())).generate_state(1)[0]))


@contextmanager
def tensorboard_log(folder: Path, first_step: int = 0) -> "Iterator[SummaryWriter]":
    """A TensorBoard writer; events of earlier processes from `first_step` on are hidden.

    Raises:
        DataError: if the log cannot be written: `folder` is not a folder, or the disk is full.
    """
    from torch.utils.tensorboard import SummaryWriter  # deferred: takes a second, and not every run logs

    excepthook = threading.excepthook

    def ignore_os_errors(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):  # those of the writer's thread are raised again at the next event
            excepthook(args)

    threading.excepthook = ignore_os_errors
    try:
        with SummaryWriter(str(folder), purge_step=first_step) as log:
            yield log
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(folder)):
            raise
        raise DataError(
            f"cannot write the log in {folder}: {error.strerror or error}; make room, and resume with --resume_from"
        ) from error
    finally:
        threading.excepthook = excepthook


@contextmanager
def print_skipped_at_exit(skipped: Callable[[], Sequence[Skipped]]) -> Iterator[None]:
    """List the patches that any process could not read at the end of the block; after an error those of this one."""
    try:
        yield
    except BaseException:
        _print_skipped(skipped())
        raise
    _print_skipped([entry for own in process_group.all_gather_object(skipped()) for entry in own])


def _print_skipped(skipped: Sequence[Skipped]) -> None:
    reasons = {entry.path: entry.reason for entry in skipped}
    if reasons:
        print(f"{len(reasons)} unreadable patches were skipped:")
        for path, reason in reasons.items():
            print(f"  {path}: {reason}")
