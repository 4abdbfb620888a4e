"""Time and peak memory of a training step: our `uncrtaints` against a plain eager build of the published graph.

The README's configuration: 256 x 256 pixels, three dates, radar, batch 1, MGNLL diag, scale_by 10, Adam. Both compute
the same mathematics (tests/test_model_uncrtaints.py holds them equal in float64); the published loss forms a dense
13 x 13 covariance at every pixel. Each variant runs in processes of its own, in turns, so that other load falls on all:

    python -m benchmarks.training_step --out benchmarks/results/training_step.json

A variant `NAME+keep` runs with `util.memory.keep_freed_memory`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.provenance import provenance
from util.errors import DataError, run_command

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLISHED = "published fp32"
VARIANTS = (
    PUBLISHED,
    "ours fp32",
    "ours fp32+keep",
    "published bf16",
    "ours bf16",
    "ours bf16+keep",
    f"{PUBLISHED}+keep",
)
ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure, print a table; with --out write it as JSON too."""
    args = _parser().parse_args(argv)
    if args.worker:
        print(json.dumps(measure(args.worker, args.steps, args.size, args.threads)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.variants}
    for number in range(args.rounds):
        for name in args.variants:
            runs[name].append(_in_own_process(name, args))
            print(f"round {number + 1}, {name}: {_words(runs[name][-1])}", file=sys.stderr, flush=True)
    table = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    base = table[args.variants[0]]
    for row in table.values():
        row |= {f"{key} ratio": row[key] / base[key] for key in ("wall_s", "cpu_s", "peak_mb")}
    _print(table, args.variants[0])
    if args.out is not None:
        result = {**provenance("benchmarks.training_step", argv), "threads": args.threads, "size": args.size}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**result, "median of rounds": table}, indent=4) + "\n", encoding="utf-8")
    return 0


def measure(variant: str, steps: int, size: int, threads: int) -> dict[str, float]:
    """Run a few steps of one variant in this process.

    Args:
        variant: of `VARIANTS`.
        steps: timed steps, after one that is not.
        size: pixels across.
        threads: of torch.

    Returns:
        wall_s and cpu_s (processor time, all threads, the system's share included) of the median step, peak_mb above
        what the process held before the network was built.
    """
    import torch

    from util.memory import keep_freed_memory

    name, _, keep = variant.partition("+")
    kind, precision = name.split()
    if keep and not keep_freed_memory():
        raise DataError("this system's allocator cannot be told to keep memory; leave the +keep variants out")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, target = torch.rand(1, 3, 15, size, size), 10 * torch.rand(1, 1, 13, size, size)
    dates = torch.tensor([[1000.0, 1020.0, 1060.0]])
    network, loss_of = _published() if kind == "published" else _ours()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    walls, cpus = [], []
    for _ in range(steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = network(x if kind == "ours" else 10 * x, dates)
        loss = loss_of(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        del output, loss
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"wall_s": median(walls[1:]), "cpu_s": median(cpus[1:]), "peak_mb": peak}


def _ours() -> tuple["nn.Module", Callable[[Any, "Tensor"], "Tensor"]]:
    from model.build import build_loss, build_model
    from model.config import ModelConfig

    config = ModelConfig(head="gaussian", loss="MGNLL", covmode="diag", use_sar=True, scale_by=10.0)
    return build_model(config), build_loss(config)


def _published() -> tuple["nn.Module", Callable[[Any, "Tensor"], "Tensor"]]:
    from benchmarks.baselines import PlainUncrtaints, dense_gaussian_nll, plain_moments

    def loss_of(raw: "Tensor", target: "Tensor") -> "Tensor":
        mean, variance = plain_moments(raw.float())
        loss, covariance = dense_gaussian_nll(mean, target, variance)
        del covariance  # the published step keeps it for its logs
        return loss

    return PlainUncrtaints(), loss_of


def _in_own_process(variant: str, args: argparse.Namespace) -> dict[str, float]:
    words = ["--worker", variant, "--steps", str(args.steps), "--size", str(args.size), "--threads", str(args.threads)]
    command = [sys.executable, "-m", "benchmarks.training_step", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise DataError(f"{variant} stopped with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def _words(run: dict[str, float]) -> str:
    return f"{run['wall_s']:.2f} s, processor {run['cpu_s']:.2f} s, peak {run['peak_mb']:.0f} MB"


def _print(table: dict[str, dict[str, float]], base: str) -> None:
    print(f"{'a training step':22}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}   relative to {base}: wall, cpu, peak")
    for name, row in table.items():
        ratios = "  ".join(f"{row[f'{key} ratio']:.2f}" for key in ("wall_s", "cpu_s", "peak_mb"))
        print(f"{name:22}{row['wall_s']:9.2f}{row['cpu_s']:9.2f}{row['peak_mb']:9.0f}   {ratios}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and memory of a training step, ours and the published graph.")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every variant; medians are reported")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a turn, after one that is not")
    parser.add_argument("--size", type=int, default=256, help="pixels across")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="the first is the measure")
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
