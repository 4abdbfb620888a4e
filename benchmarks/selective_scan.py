"""Time and memory of a training step of the selective scan relative to a plain loop, each in processes of their own.

    python -m benchmarks.selective_scan
    python -m benchmarks.selective_scan --device cuda --sequences 65536 --backends torch triton mamba_ssm

On a CPU the peak is the largest resident set of the process, also given without that of the inputs and their gradients.
On a GPU it is the peak of allocated memory; the time is compared with the bytes that inputs, outputs and gradients must
move at the bandwidth of copying an array. No GPU has run that part yet.
"""

import argparse
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import benchmark_parser, in_turns, provenance, run_worker
from benchmarks.measure import copy_bandwidth, peak_memory, synchronize
from common.cli import run_command
from common.files import write_json
from model.ops import choose_backend, selective_scan
from model.ops.scan_inputs import ScanInputs

LOOP, INPUTS = "loop", "inputs"  # the plain loop; no scan at all, for the memory of the inputs


def naive_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """The scan as its formula reads, in arrays (B, D, L, N): the reference of benchmarks and tests."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = inputs
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
    """Arguments of a scan as the layer passes them: channels innermost, steps between about 0.01 and 1."""
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
    parser = benchmark_parser("selective_scan", __doc__, "benchmarks/results/selective_scan.json")
    parser.add_argument("--sequences", type=int, default=16384)
    parser.add_argument("--dates", type=int, default=3)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="+", default=["torch"])
    parser.add_argument("--repeats", type=int, default=3, help="steps in a process, after a warm-up step")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each, alternating")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(measure(options)))
        return 0
    for name in options.backends:
        choose_backend(name, options.device)  # raises at once for those that cannot run
    rows = table(options)
    for name, row in rows.items():
        print(name, json.dumps(row))
    write_json(options.out, {**provenance("selective_scan", argv), "options": vars(options), "rows": rows})
    return 0


def table(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of time and memory for each, and their ratios to the plain loop."""
    sizes = ("sequences", "dates", "channels", "states", "device", "repeats")
    words = [word for name in sizes for word in (f"--{name}", str(getattr(options, name)))]
    runs = in_turns(
        [INPUTS, LOOP, *options.backends],
        options.rounds,
        lambda name: run_worker("selective_scan", ["--only", name, *words], name),
    )
    idle = median(run["peak_mb"] for run in runs.pop(INPUTS))
    rows: dict[str, dict[str, float]] = {}
    for name, measured in runs.items():
        peak = median(run["peak_mb"] for run in measured)
        row = {
            "forward_s": median(t for run in measured for t in run["forward_s"]),
            "step_s": median(t for run in measured for t in run["step_s"]),
            "step_s_least": min(t for run in measured for t in run["step_s"]),
            "peak_mb": peak,
            "above_inputs_mb": peak - idle,
        }
        if name != LOOP:
            loop = rows[LOOP]
            row["times_faster"] = loop["step_s"] / row["step_s"]
            row["share_of_peak"] = row["peak_mb"] / loop["peak_mb"]
            row["share_above_inputs"] = row["above_inputs_mb"] / max(loop["above_inputs_mb"], 1e-9)
        if options.device.startswith("cuda"):
            bandwidth = median(run["copy_gb_per_s"] for run in measured)
            row["share_of_bandwidth"] = least_bytes(options) / row["step_s"] / (bandwidth * 1e9)
        rows[name] = {key: round(value, 4) for key, value in row.items()}
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times and peak memory of `options.only` in this process."""
    arguments = make_inputs(options.sequences, options.channels, options.dates, options.states, options.device)
    if options.only == LOOP:  # dates innermost suits it best
        for name in ("u", "delta", "B", "C", "z"):
            arguments[name] = arguments[name].detach().contiguous().requires_grad_()
    parameters = [value for value in arguments.values() if isinstance(value, Tensor)]
    grad_y = torch.ones_like(arguments["u"])
    device = torch.device(options.device)
    forward, step = [], []
    if options.only == INPUTS:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.fill_(1.0)  # written to, so that its pages are allocated
    else:
        for _ in range(options.repeats + 1):
            for parameter in parameters:
                parameter.grad = None
            times = _time_step(options.only, arguments, grad_y, device)
            forward.append(times[0])
            step.append(times[1])
    results = {"forward_s": forward[1:], "step_s": step[1:], "peak_mb": peak_memory(device) / 2**20}
    return results if device.type == "cpu" else {**results, "copy_gb_per_s": copy_bandwidth(device) / 1e9}


def _time_step(name: str, arguments: dict[str, Any], grad_y: Tensor, device: torch.device) -> tuple[float, float]:
    """Seconds of the forward pass, and of both passes."""
    synchronize(device)
    start = time.perf_counter()
    y: Any = naive_scan(ScanInputs(**arguments))[0] if name == LOOP else selective_scan(**arguments, backend=name)
    synchronize(device)
    middle = time.perf_counter()
    y.backward(grad_y)
    synchronize(device)
    return middle - start, time.perf_counter() - start


def least_bytes(options: argparse.Namespace) -> int:
    """Bytes that a float32 training step must move.

    Forward reads u, delta, z, B, C and writes y; backward reads those and the gradient of y, and writes five gradients.
    """
    wide, narrow = (options.sequences * options.dates * width for width in (options.channels, options.states))
    return 4 * ((3 + 1 + 4 + 3) * wide + (2 + 2 + 2) * narrow)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
