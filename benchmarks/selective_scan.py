"""The scan against a plain loop: time and memory of a training step, each in processes of their own.

    python -m benchmarks.selective_scan
    python -m benchmarks.selective_scan --device cuda --sequences 65536 --backends torch triton mamba_ssm

On a processor the peak is the largest resident size of the process, and beside it what that size grows by over the
inputs and their gradients. On a GPU it is what the allocator handed out; the time is set against the bytes that inputs,
outputs and gradients must move, and these against the bandwidth of copying an array. No GPU has run that part yet.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.provenance import provenance
from common.cli import run_command
from common.files import write_json
from model.ops import choose_backend, selective_scan

LOOP, INPUTS = "loop", "inputs"  # the plain loop; no scan at all, for the memory that inputs take


def naive_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scan as its formula reads, in arrays (B, D, L, N): what ours is measured and tested against."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(delta[..., None] * A[:, None])  # (B, D, L, N)
    driven = delta[..., None] * B.transpose(1, 2)[:, None] * u[..., None]  # (B, D, L, N)
    h = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + driven[:, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, dim=2)  # (B, D, L)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y, h


def make_inputs(
    sequences: int,
    channels: int,
    dates: int,
    states: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> dict[str, Any]:
    """Arguments of a scan as the layer gives them: channels innermost, steps between about 0.01 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    def series(width: int) -> Tensor:
        return draw(sequences, dates, width).transpose(1, 2).requires_grad_()

    rates = -torch.arange(1, states + 1, device=device, dtype=dtype).repeat(channels, 1)
    return {
        "u": series(channels),
        "delta": series(channels),
        "A": rates.requires_grad_(),
        "B": series(states),
        "C": series(states),
        "D": draw(channels).requires_grad_(),
        "z": series(channels),
        "delta_bias": (draw(channels) - 2).requires_grad_(),
        "delta_softplus": True,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in fresh processes, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16384)
    parser.add_argument("--dates", type=int, default=3)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="+", default=["torch"])
    parser.add_argument("--repeats", type=int, default=3, help="steps in a process, after one that does not count")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each, taking turns")
    parser.add_argument("--out", default="benchmarks/results/selective_scan.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(measure(options)))
        return 0
    for name in options.backends:
        choose_backend(name, options.device)  # says at once what cannot run
    rows = table(options)
    for name, row in rows.items():
        print(name, json.dumps(row))
    write_json(options.out, {**provenance("benchmarks.selective_scan", argv), "options": vars(options), "rows": rows})
    return 0


def table(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of time and memory for each, and their ratios to the plain loop."""
    names = [INPUTS, LOOP, *options.backends]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            runs[name].append(run_alone(options, name))
    idle = statistics.median(run["peak_mb"] for run in runs[INPUTS])
    rows: dict[str, dict[str, float]] = {}
    for name in names[1:]:
        peak = statistics.median(run["peak_mb"] for run in runs[name])
        row = {
            "forward_s": statistics.median(t for run in runs[name] for t in run["forward_s"]),
            "step_s": statistics.median(t for run in runs[name] for t in run["step_s"]),
            "step_s_least": min(t for run in runs[name] for t in run["step_s"]),
            "peak_mb": peak,
            "above_inputs_mb": peak - idle,
        }
        if name != LOOP:
            loop = rows[LOOP]
            row["times_faster"] = loop["step_s"] / row["step_s"]
            row["share_of_peak"] = row["peak_mb"] / loop["peak_mb"]
            row["share_above_inputs"] = row["above_inputs_mb"] / max(loop["above_inputs_mb"], 1e-9)
        if options.device.startswith("cuda"):
            bandwidth = statistics.median(run["copy_gb_per_s"] for run in runs[name])
            row["share_of_bandwidth"] = least_bytes(options) / row["step_s"] / (bandwidth * 1e9)
        rows[name] = {key: round(value, 4) for key, value in row.items()}
    return rows


def run_alone(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One scan in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selective_scan", "--only", name]
    for flag in ("sequences", "dates", "channels", "states", "device", "repeats"):
        command += [f"--{flag}", str(getattr(options, flag))]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times and peak memory of `options.only` in this process."""
    arguments = make_inputs(options.sequences, options.channels, options.dates, options.states, options.device)
    if options.only == LOOP:  # dates innermost suits it best
        for name in ("u", "delta", "B", "C", "z"):
            arguments[name] = arguments[name].detach().contiguous().requires_grad_()
    parameters = [value for value in arguments.values() if isinstance(value, Tensor)]
    grad_y = torch.ones_like(arguments["u"])
    cuda = torch.device(options.device).type == "cuda"
    forward, step = [], []
    if options.only == INPUTS:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.fill_(1.0)  # touched, so that its pages are there
    else:
        for _ in range(options.repeats + 1):
            for parameter in parameters:
                parameter.grad = None
            times = one_step(options.only, arguments, grad_y, cuda)
            forward.append(times[0])
            step.append(times[1])
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else kilobytes / 2**10
    result = {"forward_s": forward[1:], "step_s": step[1:], "peak_mb": peak}
    return {**result, "copy_gb_per_s": copy_bandwidth(options.device)} if cuda else result


def run_scan(name: str, arguments: dict[str, Any]) -> Tensor:
    """The output y of the scan of that name."""
    if name == LOOP:
        return naive_scan(**arguments)[0]
    y = selective_scan(**arguments, backend=name)
    assert isinstance(y, Tensor)
    return y


def one_step(name: str, arguments: dict[str, Any], grad_y: Tensor, cuda: bool) -> tuple[float, float]:
    """Seconds of the forward pass, and of both passes."""
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    wait()
    start = time.perf_counter()
    y = run_scan(name, arguments)
    wait()
    middle = time.perf_counter()
    y.backward(grad_y)
    wait()
    return middle - start, time.perf_counter() - start


def least_bytes(options: argparse.Namespace) -> int:
    """Bytes a float32 training step must move: forward reads u, delta, z, B, C and writes y; backward twice as much.

    It reads those and the gradient of y, and writes five gradients.
    """
    wide, narrow = (
        options.sequences * options.dates * options.channels,
        options.sequences * options.dates * options.states,
    )
    return 4 * ((3 + 1 + 4 + 3) * wide + (2 + 2 + 2) * narrow)


def copy_bandwidth(device: str) -> float:
    """GB/s of copying 1 GiB, read and written."""
    source = torch.empty(2**28, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    raise SystemExit(run_command(main))
