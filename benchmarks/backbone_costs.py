"""Time, peak memory and FLOPs of a network's training step on random images, alone in its process.

Network and loss are those of a training command line; precision and allocator are those of training:

    python -m benchmarks.backbone_costs --size 256 --batch 1 --line "--model utae --loss NIG --use_sar --device cpu"

Under `torchrun` the processes share the samples of a step.
"""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import in_turns, run_worker
from benchmarks.measure import peak_memory, resident_memory, time_steps
from common import process_group
from common.cli import run_command
from common.memory import keep_freed_memory
from config.resolve import resolve_config
from config.schema import Config
from data.batch import Batch, SampleInfo
from data.constants import N_S1, N_S2
from model.build import build_loss, build_model, build_optimizer
from model.runtime import Compute, choose_device, choose_precision, count_parameters, seed_everything
from parse_args import parse
from training.distributed import LossModule, convert_sync_batchnorm, wrap_ddp

MEASURED = ("wall_s", "cpu_s", "peak_mb")  # differ from round to round; the others do not


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", required=True, help="flags of train_reconstruct.py")
    parser.add_argument("--size", type=int, default=64, help="pixels across")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after a warm-up step")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    with process_group.session():
        print(json.dumps(measure(shlex.split(options.line), options.size, options.batch, options.steps)))
    return 0


def measure(words: Sequence[str], size: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Run a few training steps in this process.

    Args:
        words: flags of train_reconstruct.py.
        size: pixels across.
        batch_size: samples of a step.
        steps: timed steps, after a warm-up step.

    Returns:
        `wall_s` and `cpu_s` (processor time of all threads and processes) of the median step; `peak_mb`, on a CPU the
        growth of the largest process since before the network was built, on a GPU the peak of allocated memory;
        `parameters`; `gflops_forward` of one sample (multiplications and additions counted separately, convolutions
        and matrix products only); `precision`.
    """
    config, _ = resolve_config(*parse("train", words))
    device = choose_device(config.device)
    process_group.init_process_group(device)
    dtype, precision = choose_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    seed_everything(config.rdm_seed)
    batch = _random_batch(config, size, batch_size // process_group.world_size()).to(device)
    before = 0 if device.type == "cuda" else resident_memory()
    model = build_model(config).to(device).train()
    convert_sync_batchnorm(model)
    optimizer, compute = build_optimizer(model, config.lr), Compute(device, dtype)
    loss_of = wrap_ddp(LossModule(model, build_loss(config), compute.predict), device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(batch).backward()
        optimizer.step()
        process_group.barrier()

    times = time_steps(step, steps, device=device)
    peak = peak_memory(device) - before
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        compute.predict(model, batch)
    return {
        "wall_s": times["wall_s"],
        "cpu_s": sum(process_group.all_gather_object(times["cpu_s"])),
        "peak_mb": max(process_group.all_gather_object(peak)) / 1e6,
        "parameters": count_parameters(model),
        "gflops_forward": flops.get_total_flops() / 1e9 / batch.n,
        "precision": precision,
    }


def _random_batch(config: Config, size: int, batch_size: int) -> Batch:
    """Noise in the shape of a batch: `input_t` dates, with radar if the flags ask for it."""
    generator = torch.Generator().manual_seed(0)
    n_dates, channels = config.input_t, N_S2 + N_S1 * config.use_sar
    dates = 1000.0 + 17 * torch.arange(n_dates).expand(batch_size, n_dates)
    return Batch(
        x=torch.rand(batch_size, n_dates, channels, size, size, generator=generator),
        target=torch.rand(batch_size, 1, N_S2, size, size, generator=generator),
        dates=None if config.pretrain else dates,
        masks=torch.zeros(batch_size, n_dates, size, size),
        coverage=torch.zeros(batch_size, n_dates),
        info=(SampleInfo(0, "", "", (), None, (), (), ""),) * batch_size,
    )


def measure_in_turns(
    lines: Mapping[str, str], sizes: Sequence[tuple[int, int]], rounds: int, steps: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure several networks, each time in a fresh process.

    Args:
        lines: name -> flags of train_reconstruct.py.
        sizes: (pixels across, samples of a step).
        rounds: measurements of each, alternating.
        steps: timed steps of a measurement.

    Returns:
        name -> "SIZExBATCH" -> the results of `measure`, medians over rounds.
    """
    variants = [(name, size, batch) for size, batch in sizes for name in lines]
    runs = in_turns(variants, rounds, lambda variant: measure_in_worker(lines[variant[0]], *variant[1:], steps))
    costs: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in lines}
    for (name, size, batch), measured in runs.items():
        medians = {key: median(run[key] for run in measured) for key in MEASURED}
        costs[name][f"{size}x{batch}"] = measured[0] | medians
    return costs


def measure_in_worker(line: str, size: int, batch: int, steps: int, processes: int = 1) -> dict[str, Any]:
    """The results of `measure` in a fresh process, or in several that share the samples; one thread per process."""
    words = ["--line", line, "--size", str(size), "--batch", str(batch), "--steps", str(steps)]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    launcher = torchrun if processes > 1 else ()
    return run_worker("backbone_costs", words, f"measuring '{line}'", {"OMP_NUM_THREADS": "1"}, launcher)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
