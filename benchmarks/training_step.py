"""Time and peak memory of a training step of our `uncrtaints` relative to an eager build of the published graph.

The README's configuration: 256 x 256 pixels, three dates, radar, MGNLL diag, scale_by 10, Adam. Both compute the same
mathematics (float64: tests/model/backbones/test_uncrtaints.py); the published loss builds a dense 13 x 13 covariance at
every pixel. Variants alternate, each in processes of its own, so that other load affects all alike:

    python -m benchmarks.training_step --out benchmarks/results/training_step.json
    python -m benchmarks.training_step --device cuda --batch 4 16 --steps 20

A variant is a network, a precision and options: `+keep` keeps freed memory (`common.memory`, as training on a CPU
does), `+last` passes maps with channels innermost, `+compile` compiles the network, `+graphs` also uses CUDA graphs.
The goals of `GOALS` are for the variant that `--precision auto` selects. On CUDA the table also gives the share of the
time that the bandwidth of the memory explains (`bandwidth_limit`). No GPU has run this script yet.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.baselines import PlainUncrtaints, dense_gaussian_nll, plain_moments
from benchmarks.harness import benchmark_parser, in_turns, provenance, run_worker
from benchmarks.measure import copy_bandwidth, median_range, peak_memory, time_steps
from common.cli import run_command
from common.errors import DataError, UsageError
from common.files import write_json
from common.memory import keep_freed_memory
from config.schema import ModelConfig
from model.build import build_loss, build_model

PUBLISHED = "published fp32"
VARIANTS = {
    "cpu": (PUBLISHED, "ours fp32", "ours fp32+keep", "published bf16", "ours bf16", "ours bf16+keep")
    + ("published fp32+keep",),
    "cuda": (PUBLISHED, "published bf16", "ours fp32", "ours bf16", "ours bf16+last", "ours bf16+compile")
    + ("ours bf16+last+compile", "ours bf16+last+graphs"),
}
NETWORKS, PRECISIONS, OPTIONS = ("published", "ours"), ("fp32", "bf16"), ("keep", "last", "compile", "graphs")
AUTO = {"cpu": "ours bf16+keep", "cuda": "ours bf16+last+compile"}  # the variants with goals
GOALS = {"times faster": 4.0, "share of peak": 0.5}
PRODUCTS = ("convolution", "convolution_backward", "mm", "bmm", "addmm", "baddbmm")

Step = Callable[[], None]
Run = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each batch size; with --out write them as JSON too."""
    parser = benchmark_parser("training_step", __doc__)
    parser.add_argument("--device", choices=tuple(VARIANTS), default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="samples in a step; a table for each")
    parser.add_argument("--rounds", type=int, default=3, help="of every variant, alternating; medians are reported")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a round, after the warm-up")
    parser.add_argument("--size", type=int, default=256, help="pixels across")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="the first is the reference")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    variants = args.variants or VARIANTS[args.device]
    if args.worker:
        print(json.dumps(measure(args.worker, args.steps, args.size, args.threads, args.batch[0], args.device)))
        return 0
    for name in variants:
        _parse_variant(name)
    tables: dict[int, dict[str, Any]] = {}
    for batch in args.batch:
        runs = in_turns(variants, args.rounds, partial(_measure_in_worker, batch=batch, args=args))
        tables[batch] = summarise(runs, AUTO[args.device])
        _print(tables[batch], variants[0], batch)
    if args.out is not None:
        settings = {"threads": args.threads, "size": args.size, "rounds": args.rounds, "goals": GOALS}
        results = tables[args.batch[0]] if len(args.batch) == 1 else {"by batch": tables}
        write_json(args.out, {**provenance("training_step", argv), **settings, "batch": args.batch, **results})
    return 0


def summarise(runs: Mapping[str, Sequence[Run]], auto: str) -> dict[str, Any]:
    """Medians over rounds, and ratios to the first variant, each taken within a round.

    Args:
        runs: variant -> the measurements of each round.
        auto: the variant with goals.

    Returns:
        `median of rounds` (variant -> figure, and its ratio to the first variant's), `times faster` and `share of peak`
        (variant -> median, least, most of the rounds' ratios), `of auto`: both for the variant with goals, with them.
    """
    first = next(iter(runs))
    table = {
        name: {key: median(run[key] for run in measured) for key in measured[0]} for name, measured in runs.items()
    }
    for row in table.values():
        row |= {f"{key} ratio": row[key] / table[first][key] for key in ("wall_s", "cpu_s", "peak_mb")}
    ratios: dict[str, dict[str, dict[str, float]]] = {"times faster": {}, "share of peak": {}}
    for name, measured in runs.items():
        pairs = list(zip(runs[first], measured, strict=True))
        ratios["times faster"][name] = median_range([base["wall_s"] / run["wall_s"] for base, run in pairs])
        ratios["share of peak"][name] = median_range([run["peak_mb"] / base["peak_mb"] for base, run in pairs])
    of_auto = {key: {**rows[auto], "goal": GOALS[key]} for key, rows in ratios.items() if auto in rows}
    return {"median of rounds": table, **ratios, "of auto": of_auto}


def measure(variant: str, steps: int, size: int, threads: int = 1, batch: int = 1, device: str = "cpu") -> Run:
    """Run a few steps of one variant in this process.

    Args:
        variant: network, precision and options, as in `VARIANTS`.
        steps: timed steps, after a warm-up step (three on CUDA).
        size: pixels across.
        threads: of torch.
        batch: samples.
        device: cpu or cuda.

    Returns:
        wall_s and cpu_s (processor time, all threads, the system's share included) of the median step; peak_mb in
        addition to the peak of building network and batch; on CUDA all that torch has allocated on the device.
        On CUDA also limit_s, the step's `bandwidth_limit`, and of_limit, its share of wall_s.
    """
    step, cuda, torch_device = build_step(variant, size, threads, batch, device), device == "cuda", torch.device(device)
    before = 0 if cuda else peak_memory()
    figures = time_steps(step, steps, 3 if cuda else 1, torch_device)
    figures["peak_mb"] = (peak_memory(torch_device) - before) / 2**20
    if cuda:
        eager = variant.replace("+compile", "").replace("+graphs", "")  # has the convolutions of the compiled one
        step = step if eager == variant else build_step(eager, size, threads, batch, device)
        figures["limit_s"] = bandwidth_limit(step, torch_device)
        figures["of_limit"] = figures["limit_s"] / figures["wall_s"]
    return figures


def build_step(variant: str, size: int, threads: int = 1, batch: int = 1, device: str = "cpu") -> Step:
    """A function that runs one training step of a variant; arguments as in `measure`.

    Raises:
        UsageError: if there is no such variant.
        DataError: if the allocator cannot keep freed memory.
    """
    network_name, precision, options = _parse_variant(variant)
    if "keep" in options and not keep_freed_memory():
        raise DataError("this system's allocator has no setting that keeps freed memory; omit the +keep variants")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, target = torch.rand(batch, 3, 15, size, size), 10 * torch.rand(batch, 1, 13, size, size)
    dates = torch.tensor([[1000.0, 1020.0, 1060.0]]).repeat(batch, 1)
    x, target, dates = (tensor.to(device) for tensor in (x if network_name == "ours" else 10 * x, target, dates))
    if "last" in options:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (batch, 3))
    network, loss_of = _published() if network_name == "published" else _ours(options)
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


def bandwidth_limit(step: Step, device: torch.device) -> float:
    """Seconds in which the memory could move the inputs and outputs of the step's convolutions and products, each once.

    Norms, activations and sums between them are left out: a perfect compiler fuses them. The bandwidth is that of a
    copy on this device, measured here.

    Args:
        step: eager; it is run once more.
        device: of its tensors.
    """
    return traffic(step) / copy_bandwidth(device)


class _TrafficCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self._counted = 0, {getattr(torch.ops.aten, name).default for name in PRODUCTS}

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in self._counted:
            tensors = [leaf for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output


def traffic(step: Step) -> int:
    """The bytes of all inputs and outputs of the convolutions and matrix products of a step."""
    with _TrafficCounter() as counter:
        step()
    return counter.total


def _parse_variant(variant: str) -> tuple[str, str, list[str]]:
    """Network, precision and options of a variant's name."""
    name, *options = variant.split("+")
    network, _, precision = name.partition(" ")
    if network not in NETWORKS or precision not in PRECISIONS or not set(options) <= set(OPTIONS):
        raise UsageError(
            f"unknown variant {variant!r}; expected {' or '.join(NETWORKS)}, then {' or '.join(PRECISIONS)}, then any "
            f"of {', '.join(f'+{option}' for option in OPTIONS)}, as 'ours bf16+keep'"
        )
    if network == "published" and {"compile", "graphs"} & set(options):
        raise UsageError(f"{variant!r}: the published graph is measured as it is, eager")
    return network, precision, options


def _ours(options: Sequence[str]) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    config = ModelConfig(head="gaussian", loss="MGNLL", covmode="diag", use_sar=True, scale_by=10.0)
    model = build_model(config)
    if "compile" in options or "graphs" in options:
        model.netG.compile(mode="reduce-overhead" if "graphs" in options else "default")
    return model, build_loss(config)


def _published() -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    def loss_of(raw: Tensor, target: Tensor) -> Tensor:
        mean, variance = plain_moments(raw.float())
        loss, covariance = dense_gaussian_nll(mean, target, variance)
        del covariance  # the published step keeps it for its logs
        return loss

    return PlainUncrtaints(), loss_of


def _measure_in_worker(variant: str, batch: int, args: argparse.Namespace) -> Run:
    numbers = {"steps": args.steps, "size": args.size, "threads": args.threads, "batch": batch, "device": args.device}
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return run_worker("training_step", ["--worker", variant, *words], variant)


def _print(table: Mapping[str, Any], base: str, batch: int) -> None:
    print(f"{f'a step of batch {batch}':28}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}   times faster than {base}; peak")
    for name, row in table["median of rounds"].items():
        faster, share = table["times faster"][name], table["share of peak"][name]
        ranges = f"{faster['median']:.2f} ({faster['least']:.2f} to {faster['most']:.2f}); {share['median']:.2f}"
        limit = f"; {row['of_limit']:.0%} of the bandwidth" if "of_limit" in row else ""
        print(f"{name:28}{row['wall_s']:9.3g}{row['cpu_s']:9.3g}{row['peak_mb']:9.0f}   {ranges}{limit}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
