"""Time and peak memory of a training step: our `uncrtaints` against a plain eager build of the published graph.

The README's configuration: 256 x 256 pixels, three dates, radar, MGNLL diag, scale_by 10, Adam. Both compute the same
mathematics (float64: tests/model/backbones/test_uncrtaints.py); the published loss forms a dense 13 x 13
covariance at every pixel. Each variant runs in processes of its own, in turns, so that other load falls on all:

    python -m benchmarks.training_step --out benchmarks/results/training_step.json
    python -m benchmarks.training_step --device cuda --batch 4 16 --steps 20

A variant is a network, a precision and what is added: `+keep` keeps freed memory (`common.memory`, as training on a
processor does), `+last` gives maps with channels innermost, `+compile` compiles the network, `+graphs` by CUDA graphs
as well. The goals of `GOALS` are for the variant that `--precision auto` takes. On CUDA the table also says which
part of the time the memory's bandwidth explains (`bandwidth_limit`). No GPU has run this script yet.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.provenance import provenance
from benchmarks.tables import median_range
from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PUBLISHED = "published fp32"
VARIANTS = {
    "cpu": (
        PUBLISHED,
        "ours fp32",
        "ours fp32+keep",
        "published bf16",
        "ours bf16",
        "ours bf16+keep",
        f"{PUBLISHED}+keep",
    ),
    "cuda": (
        PUBLISHED,
        "published bf16",
        "ours fp32",
        "ours bf16",
        "ours bf16+last",
        "ours bf16+compile",
        "ours bf16+last+compile",
        "ours bf16+last+graphs",
    ),
}
NETWORKS, PRECISIONS, EXTRAS = ("published", "ours"), ("fp32", "bf16"), ("keep", "last", "compile", "graphs")
AUTO = {"cpu": "ours bf16+keep", "cuda": "ours bf16+last+compile"}  # what the goals are for
GOALS = {"times faster": 4.0, "share of peak": 0.5}
ROOT = Path(__file__).resolve().parent.parent

Step = Callable[[], None]
Run = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measure, print a table for each batch size; with --out write them as JSON too."""
    args = _parser().parse_args(argv)
    variants = args.variants or VARIANTS[args.device]
    if args.worker:
        print(json.dumps(measure(args.worker, args.steps, args.size, args.threads, args.batch[0], args.device)))
        return 0
    for name in variants:
        _parts(name)
    tables = {}
    for batch in args.batch:
        runs: dict[str, list[Run]] = {name: [] for name in variants}
        for number in range(args.rounds):
            for name in variants:
                runs[name].append(_in_own_process(name, batch, args))
                print(f"round {number + 1}, {name}: {_words(runs[name][-1])}", file=sys.stderr, flush=True)
        tables[batch] = summarise(runs, AUTO[args.device])
        _print(tables[batch], variants[0], batch)
    if args.out is not None:
        settings = {"threads": args.threads, "size": args.size, "rounds": args.rounds, "goals": GOALS}
        found = tables[args.batch[0]] if len(args.batch) == 1 else {"by batch": tables}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, {**provenance("benchmarks.training_step", argv), **settings, "batch": args.batch, **found})
    return 0


def summarise(runs: Mapping[str, Sequence[Run]], auto: str) -> dict[str, Any]:
    """Medians over rounds, and ratios to the first variant, each taken within a round.

    Args:
        runs: variant -> what each round measured.
        auto: the variant that the goals are for.

    Returns:
        `median of rounds` (variant -> figure, and its ratio to the first variant's), `times faster` and `share of peak`
        (variant -> median, least, most of the rounds' ratios), `of auto`: both for the variant of the goals, with them.
    """
    first = next(iter(runs))
    table = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    for row in table.values():
        row |= {f"{key} ratio": row[key] / table[first][key] for key in ("wall_s", "cpu_s", "peak_mb")}
    ratios: dict[str, dict[str, dict[str, float]]] = {"times faster": {}, "share of peak": {}}
    for name, found in runs.items():
        pairs = list(zip(runs[first], found, strict=True))
        ratios["times faster"][name] = median_range([base["wall_s"] / run["wall_s"] for base, run in pairs])
        ratios["share of peak"][name] = median_range([run["peak_mb"] / base["peak_mb"] for base, run in pairs])
    of_auto = {key: {**rows[auto], "goal": GOALS[key]} for key, rows in ratios.items() if auto in rows}
    return {"median of rounds": table, **ratios, "of auto": of_auto}


def measure(variant: str, steps: int, size: int, threads: int = 1, batch: int = 1, device: str = "cpu") -> Run:
    """Run a few steps of one variant in this process.

    Args:
        variant: network, precision and extras, as in `VARIANTS`.
        steps: timed steps, after one that is not (three on CUDA).
        size: pixels across.
        threads: of torch.
        batch: samples.
        device: cpu or cuda.

    Returns:
        wall_s and cpu_s (processor time, all threads, the system's share included) of the median step; peak_mb above
        what the process held with network and batch; on CUDA all that torch has allocated on the device.
        On CUDA also limit_s, the step's `bandwidth_limit`, and of_limit, its part of wall_s.
    """
    import torch

    step, cuda = build_step(variant, size, threads, batch, device), device == "cuda"

    def held() -> float:
        if cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = 0.0 if cuda else held()
    walls, cpus = [], []
    for number in range(steps + (3 if cuda else 1)):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        if cuda:
            torch.cuda.synchronize()
        if number >= (3 if cuda else 1):
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    found = {"wall_s": median(walls), "cpu_s": median(cpus), "peak_mb": held() - before}
    if cuda:
        eager = variant.replace("+compile", "").replace("+graphs", "")  # its convolutions are those of the compiled one
        step = step if eager == variant else build_step(eager, size, threads, batch, device)
        found["limit_s"] = bandwidth_limit(step, torch.device(device))
        found["of_limit"] = found["limit_s"] / found["wall_s"]
    return found


def build_step(variant: str, size: int, threads: int = 1, batch: int = 1, device: str = "cpu") -> Step:
    """One training step of a variant, ready to be called; arguments as in `measure`.

    Raises:
        UsageError: if there is no such variant.
        DataError: if the allocator cannot keep memory as it should.
    """
    import torch

    from common.memory import keep_freed_memory

    kind, precision, extras = _parts(variant)
    if "keep" in extras and not keep_freed_memory():
        raise DataError("this system's allocator cannot be told to keep memory; leave the +keep variants out")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, target = torch.rand(batch, 3, 15, size, size), 10 * torch.rand(batch, 1, 13, size, size)
    dates = torch.tensor([[1000.0, 1020.0, 1060.0]]).repeat(batch, 1)
    x, target, dates = (tensor.to(device) for tensor in (x if kind == "ours" else 10 * x, target, dates))
    if "last" in extras:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (batch, 3))
    network, loss_of = _published() if kind == "published" else _ours(extras)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            output = network(x, dates)
        loss = loss_of(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bandwidth_limit(step: Step, device: "torch.device") -> float:
    """The time in which the memory could move what the step's convolutions and products read and write, each once.

    Norms, activations and sums between them are left out: a perfect compiler merges them. The bandwidth is that of a
    copy on this device, measured here.

    Args:
        step: eager; it is run once more.
        device: of its tensors.

    Returns:
        Seconds.
    """
    import torch

    bytes_of_step = traffic(step)
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device)
    sink = torch.empty_like(source)
    times = []
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        sink.copy_(source)
        _wait(device)
        times.append(time.perf_counter() - started)
    return bytes_of_step / (2 * source.numel() * source.element_size() / median(times[1:]))


def traffic(step: Step) -> int:
    """The bytes of all tensors that convolutions and matrix products of a step take and give."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    names = ("convolution", "convolution_backward", "mm", "bmm", "addmm", "baddbmm")
    counted = {getattr(torch.ops.aten, name).default for name in names}

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if function in counted:
                tensors = [one for one in tree_leaves((args, found)) if isinstance(one, torch.Tensor)]
                self.total += sum(one.numel() * one.element_size() for one in tensors)
            return found

    with Counter() as counter:
        step()
    return counter.total


def _wait(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parts(variant: str) -> tuple[str, str, list[str]]:
    """Network, precision and extras of a variant's name."""
    name, *extras = variant.split("+")
    kind, _, precision = name.partition(" ")
    if kind not in NETWORKS or precision not in PRECISIONS or not set(extras) <= set(EXTRAS):
        raise UsageError(
            f"unknown variant {variant!r}; expected {' or '.join(NETWORKS)}, then {' or '.join(PRECISIONS)}, then any "
            f"of {', '.join(f'+{extra}' for extra in EXTRAS)}, as 'ours bf16+keep'"
        )
    if kind == "published" and {"compile", "graphs"} & set(extras):
        raise UsageError(f"{variant!r}: the published graph is measured as it is, eager")
    return kind, precision, extras


def _ours(extras: Sequence[str]) -> tuple["nn.Module", Callable[[Any, "Tensor"], "Tensor"]]:
    from config.schema import ModelConfig
    from model.build import build_loss, build_model

    config = ModelConfig(head="gaussian", loss="MGNLL", covmode="diag", use_sar=True, scale_by=10.0)
    model = build_model(config)
    if "compile" in extras or "graphs" in extras:
        model.netG.compile(mode="reduce-overhead" if "graphs" in extras else "default")
    return model, build_loss(config)


def _published() -> tuple["nn.Module", Callable[[Any, "Tensor"], "Tensor"]]:
    from benchmarks.baselines import PlainUncrtaints, dense_gaussian_nll, plain_moments

    def loss_of(raw: "Tensor", target: "Tensor") -> "Tensor":
        mean, variance = plain_moments(raw.float())
        loss, covariance = dense_gaussian_nll(mean, target, variance)
        del covariance  # the published step keeps it for its logs
        return loss

    return PlainUncrtaints(), loss_of


def _in_own_process(variant: str, batch: int, args: argparse.Namespace) -> Run:
    numbers = {"steps": args.steps, "size": args.size, "threads": args.threads, "batch": batch, "device": args.device}
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.training_step", "--worker", variant, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise DataError(f"{variant} stopped with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def _words(run: Run) -> str:
    return f"{run['wall_s']:.3g} s, processor {run['cpu_s']:.3g} s, peak {run['peak_mb']:.0f} MB"


def _print(found: Mapping[str, Any], base: str, batch: int) -> None:
    print(f"{f'a step of batch {batch}':28}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}   times faster than {base}; peak")
    for name, row in found["median of rounds"].items():
        faster, share = found["times faster"][name], found["share of peak"][name]
        ranges = f"{faster['median']:.2f} ({faster['least']:.2f} to {faster['most']:.2f}); {share['median']:.2f}"
        limit = f"; {row['of_limit']:.0%} of the bandwidth" if "of_limit" in row else ""
        print(f"{name:28}{row['wall_s']:9.3g}{row['cpu_s']:9.3g}{row['peak_mb']:9.0f}   {ranges}{limit}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and memory of a training step, ours and the published graph.")
    parser.add_argument("--device", choices=tuple(VARIANTS), default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="samples in a step; a table for each")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every variant; medians are reported")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a turn, after those that warm up")
    parser.add_argument("--size", type=int, default=256, help="pixels across")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="the first is the measure")
    parser.add_argument("--out", type=Path, help="JSON file for the tables")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
