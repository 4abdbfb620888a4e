"""Device, precision and seeds of a computation."""

import os
import random
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import process_group
from common.errors import UsageError
from data.batch import Batch
from model.predictions import Prediction
from model.reconstructor import Reconstructor


@dataclass(frozen=True)
class Compute:
    """Device and precision of a computation; `dtype` is that of the backbone's autocast (None: float32)."""

    device: torch.device
    dtype: torch.dtype | None = None

    def predict(self, model: Reconstructor, batch: Batch) -> Prediction:
        """The prediction for a batch on this device, in scaled units, float32."""
        with autocast(self.device, self.dtype):
            return model(batch.x, batch.dates)


def choose_device(name: str) -> torch.device:
    """The device `name`: cpu, cuda or cuda:N; each of several processes uses the GPU of its local rank.

    Raises:
        UsageError: if there is no such device; the message names `--device cpu`.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device takes cuda, cuda:N or cpu, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and process_group.world_size() > 1:
        if device.index is not None:
            raise UsageError(f"--device {name} is one GPU; several processes take one each: write --device cuda")
        device = torch.device("cuda", process_group.local_rank())
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise UsageError(f"--device {name}: there is no CUDA device here; add --device cpu")
        if (device.index or 0) >= count and process_group.world_size() > 1:
            n_processes = process_group.local_world_size()
            raise UsageError(f"there are {count} CUDA devices for {n_processes} processes; lower --nproc_per_node")
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: there are {count} CUDA devices, numbered from 0; or use --device cpu")
        if process_group.world_size() > 1:
            torch.cuda.set_device(device)
    return device


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The dtype of autocast (None: no autocast, float32), and the reason for the log."""
    if wanted == "fp32":
        return None, "float32, as requested"
    if wanted in ("bf16", "fp16"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[wanted], f"{wanted}, as requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bf16: this GPU supports it"
        return torch.float16, "fp16: this GPU has no bf16"
    if _cpu_has_bf16():
        return torch.bfloat16, "bf16: this processor supports it"
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
    """Seed Python and torch, and select deterministic algorithms."""
    random.seed(seed)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # not use_deterministic_algorithms, which imports the compiler and takes 1.5 to 3 s
    torch.set_deterministic_debug_mode("warn")
    buffers: Any = torch.utils.deterministic  # Any: the attribute is created at run time
    buffers.fill_uninitialized_memory = False  # filling new buffers takes 5 % of a step
    torch.backends.cudnn.benchmark = False


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
