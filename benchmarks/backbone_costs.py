"""Time, peak memory and FLOPs of a network's training step, on made-up images, alone in its process.

The network and the loss are those of a training command line; precision and allocator are what training uses:

    python -m benchmarks.backbone_costs --size 256 --batch 1 --line "--model utae --loss NIG --use_sar --device cpu"
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from common.cli import run_command
from common.errors import DataError
from config.resolve import resolve_config
from parse_args import Config, parse

if TYPE_CHECKING:
    import torch

    from data.batch import Batch

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("wall_s", "cpu_s", "peak_mb")  # differ from round to round; the others do not


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", required=True, help="flags of train_reconstruct.py")
    parser.add_argument("--size", type=int, default=64, help="pixels across")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    print(json.dumps(measure(shlex.split(options.line), options.size, options.batch, options.steps)))
    return 0


def measure(words: Sequence[str], size: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Run a few training steps in this process.

    Args:
        words: flags of train_reconstruct.py.
        size: pixels across.
        batch_size: samples of a step.
        steps: timed steps, after one that is not.

    Returns:
        `wall_s` and `cpu_s` (processor time of all threads) of the median step; `peak_mb`, on a CPU what the process
        grew by since before the network was built, on a GPU the most that was allocated; `parameters`;
        `gflops_forward` of one sample (multiply and add counted apart, convolutions and matrix products only);
        `precision`.
    """
    import torch

    from common.memory import keep_freed_memory
    from model.build import build_loss, build_model, build_optimizer
    from model.runtime import Compute, choose_device, choose_precision, seed_everything
    from training.engine import profile_step

    values, typed = parse("train", words)
    config, _ = resolve_config(values, typed)
    device = choose_device(config.device)
    dtype, precision = choose_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    seed_everything(config.rdm_seed)
    batch = made_up_batch(config, size, batch_size).to(device)
    before = _resident_mb()
    model = build_model(config).to(device).train()
    criterion, optimizer, compute = build_loss(config), build_optimizer(model, config.lr), Compute(device, dtype)
    walls, cpus = [], []
    for _ in range(steps + 1):
        _wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = criterion(compute.predict(model, batch), batch.target * model.scale_by)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _wait_for(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if cuda else _peak_mb() - before
    report = profile_step(model, criterion, batch, compute)
    return {
        "wall_s": median(walls[1:]),
        "cpu_s": median(cpus[1:]),
        "peak_mb": peak,
        "parameters": report["parameters"],
        "gflops_forward": report["gflops_forward"] / batch_size,
        "precision": precision,
    }


def made_up_batch(config: Config, size: int, batch_size: int) -> "Batch":
    """Noise in the shape of a batch: `input_t` dates, radar where the flags ask for it."""
    import torch

    from data.batch import Batch
    from data.constants import N_S1, N_S2

    generator = torch.Generator().manual_seed(0)
    n_dates, channels = config.input_t, N_S2 + N_S1 * config.use_sar
    dates = 1000.0 + 17 * torch.arange(n_dates).expand(batch_size, n_dates)
    return Batch(
        x=torch.rand(batch_size, n_dates, channels, size, size, generator=generator),
        target=torch.rand(batch_size, 1, N_S2, size, size, generator=generator),
        dates=None if config.pretrain else dates,
        masks=torch.zeros(batch_size, n_dates, size, size),
        coverage=torch.zeros(batch_size, n_dates),
        info=(),
    )


def measure_in_turns(
    lines: dict[str, str], sizes: Sequence[tuple[int, int]], rounds: int, steps: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure several networks, each time in a fresh process, in turns, so that other load falls on all of them.

    Args:
        lines: name -> flags of train_reconstruct.py.
        sizes: (pixels across, samples of a step).
        rounds: turns of each.
        steps: timed steps in a turn.

    Returns:
        name -> "SIZExBATCH" -> what `measure` gives, medians over rounds.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in lines}
    for number in range(rounds):
        for size, batch in sizes:
            for name, line in lines.items():
                run = _in_own_process(line, size, batch, steps)
                found[name].setdefault(f"{size}x{batch}", []).append(run)
                print(
                    f"round {number + 1}, {name}, {size} px x {batch}: {run['wall_s']:.3f} s, {run['peak_mb']:.0f} MB",
                    file=sys.stderr,
                    flush=True,
                )
    return {name: {size: _medians(runs) for size, runs in own.items()} for name, own in found.items()}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: median(run[key] for run in runs) if key in MEASURED else value for key, value in runs[0].items()}


def _in_own_process(line: str, size: int, batch: int, steps: int) -> dict[str, Any]:
    numbers = ["--size", str(size), "--batch", str(batch), "--steps", str(steps)]
    command = [sys.executable, "-m", "benchmarks.backbone_costs", "--line", line, *numbers]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if done.returncode:
        raise DataError(f"measuring '{line}' stopped with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _wait_for(device: "torch.device") -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _resident_mb() -> float:
    """What the process holds now; its peak so far where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return _peak_mb()
    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    raise SystemExit(run_command(main))
