"""Train several backbones with several seeds on the same data by the project's own command lines, and compare them.

Every run is a training and a test as a user would type them, in folders below --out. A run that is done is not done
again while its command line is the same, one that was stopped goes on where it stopped:

    python -m benchmarks.backbones --root DATA/SEN12MSCRTS --masks MASKS --out OUT \
        --models uncrtaints conv3d_mamba utae --seeds 1 2 3

`--flags utae="--lr 0.001"` adds flags for one model, `--training "--lr 0.002"` for all. Time, memory and FLOPs of a
step are measured after the trainings, when nothing else of this benchmark runs.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.backbone_costs import measure_in_turns
from benchmarks.backbone_tables import (
    CURVES,
    markdown,
    paired_differences,
    read_baselines,
    read_figures,
    same_for_all,
    summarise,
)
from benchmarks.provenance import commit, cpu_name, provenance
from benchmarks.runner import Run, check, commits, run_all
from benchmarks.tables import write_section
from common.cli import run_command
from common.errors import UsageError
from common.files import write_json
from config.resolve import resolve_config
from model.registry import MODELS
from parse_args import parse
from util import demo

SECTION = "benchmarks.backbones"
SHARED = (
    "--use_sar --input_t 3 --head nig --loss NIG --scale_by 10 --lr 0.003 --gamma 0.85 --batch_size 4 --precision auto"
)
# Half of the published widths, heads and attention channels, for two cores and an hour; conv3d_mamba at about half of
# its own, within 1.5 times the FLOPs of uncrtaints.
NETWORKS = {
    **demo.EXPERTS,
    "utae": "--encoder_widths 32 32 32 64 --decoder_widths 32 32 32 64 --n_head 8 --d_model 128",
}
REFERENCE = "uncrtaints"  # what the others are set against, seed by seed


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, measure; write the JSON and the page."""
    options = _parser().parse_args(argv)
    options.models, options.seeds = (list(dict.fromkeys(given)) for given in (options.models, options.seeds))
    flags = flags_by_model(options.flags, options.models)
    out = Path(options.out)
    lines = {model: network_line(model, flags, options) for model in options.models}
    runs = [plan(model, seed, lines[model], options) for seed in options.seeds for model in options.models]
    check(runs)
    run_all(runs, out, options.jobs)
    costs = measured_costs(lines, options, out / "costs.json")
    report = {**provenance("benchmarks.backbones", argv), **collect(runs, out)}
    cuda = options.device.startswith("cuda")
    report["device"] = report["gpu"] if cuda else f"{cpu_name()}, {os.cpu_count()} cores"
    report |= {"costs": costs, "settings": settings(runs, flags, options, out)}
    report["command"] = told(
        ["python", "-m", "benchmarks.backbones", *(sys.argv[1:] if argv is None else argv)], options
    )
    report["how"] = how_to_reproduce(report["command"], report["settings"])
    write_json(options.json, report)
    page = Path(options.page)
    draw(runs, out, page.parent / CURVES)
    write_section(page, SECTION, markdown(report))
    print(f"{markdown(report)}\n{options.json}\n{page}")
    return 0


def flags_by_model(given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The flags of each model: those of the table, then those given by hand, which win.

    Args:
        given: as `utae=--lr 0.001`.
        models: of this comparison.

    Raises:
        UsageError: if one is not of that form or names no model of this comparison.
    """
    found = {model: NETWORKS.get(model, "") for model in models}
    for text in given:
        model, equals, words = text.partition("=")
        if not equals or model not in found:
            raise UsageError(f'--flags takes MODEL="..." with a model of {", ".join(models)}; got {text!r}')
        found[model] = f"{found[model]} {words}".strip()
    return found


def network_line(model: str, flags: dict[str, str], options: argparse.Namespace) -> str:
    """What a training of this model is told beside its data and its name."""
    parts = (f"--model {model}", SHARED, f"--epochs {options.epochs} --device {options.device}", options.training)
    return " ".join(part for part in (*parts, flags[model]) if part)


def plan(
    model: str, seed: int, line: str, options: argparse.Namespace, label: str = "", after: tuple[Run, ...] = ()
) -> Run:
    """The command lines of one run; `label` and `after` as `Run` has them."""
    out = Path(options.out)
    name, results = f"{label or model}_seed{seed}", str(out / "results")
    data = ["--root1", options.root, "--root2", options.root, "--precomputed", options.masks]
    train = ["--experiment_name", name, "--res_dir", results, "--rdm_seed", str(seed), *data, *shlex.split(line)]
    test = ["--experiment_name", name, "--weight_folder", results, "--res_dir", str(out / "inference")]
    test += ["--export_every", "-1", "--device", options.device]
    return Run(model, seed, tuple(train), tuple(test), label, after)


def collect(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """The figures of all runs, averages over seeds, paired differences, baselines, and the commits they ran at."""
    folders = {run: out / "inference" / run.name for run in runs}
    rows = [{"model": run.model, "seed": run.seed, **read_figures(folder)} for run, folder in folders.items()]
    models = dict.fromkeys(run.model for run in runs)
    reference = REFERENCE if REFERENCE in models else next(iter(models))
    return {
        "runs": rows,
        "summary": summarise(rows),
        "reference": reference,
        "paired": paired_differences(rows, reference),
        "baselines": same_for_all({run.name: read_baselines(folder) for run, folder in folders.items()}),
        "commits of the runs": commits(runs, out),
    }


def draw(runs: Sequence[Run], out: Path, path: Path) -> None:
    """Lay the calibration of the networks of the first seed side by side."""
    from evaluation.charts import plot_calibration

    metrics = {
        run.model: json.loads((out / "inference" / run.name / "test_metrics.json").read_text(encoding="utf-8"))
        for run in runs
        if run.seed == runs[0].seed
    }
    reports = {model: report for model, report in metrics.items() if "reliability" in report}
    if reports:
        plot_calibration(reports, path, f"Calibration on the test split, seed {runs[0].seed}")


def measured_costs(lines: dict[str, str], options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Time, memory and FLOPs of a step of each model, from `store` where the same has been measured."""
    sizes = options.costs
    if not sizes:
        return {}
    asked = {"lines": lines, "sizes": [list(size) for size in sizes], "rounds": options.rounds, "steps": options.steps}
    known = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    if known.get("asked") == asked:
        return known["costs"]
    costs = measure_in_turns(lines, sizes, options.rounds, options.steps)
    write_json(store, {"asked": asked, "commit": commit(), "costs": costs})
    return costs


def settings(runs: Sequence[Run], flags: dict[str, str], options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What was the same for all, and what was not."""
    config, _ = resolve_config(*parse("train", runs[0].train))
    log = json.loads((out / "results" / runs[0].name / "trainlog.json").read_text(encoding="utf-8"))
    return {
        "shared": f"{SHARED} {options.training}".strip(),
        "models": flags,
        "seeds": options.seeds,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "training samples": next(iter(log.values()))["train_samples"],
        "data": sample_data(options.root),
        "rounds": options.rounds,
    }


def sample_data(root: str) -> dict[str, Any]:
    """How the sample data were made, where they are such."""
    note = Path(root).parent / "sample_data.json"
    data = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    return {name: data[name] for name in ("rois", "patches", "size", "seed") if name in data}


def told(words: Sequence[str], options: argparse.Namespace) -> str:
    """A command line with folders of this machine replaced by names, and those of the results left out."""
    names = {options.root: "DATA/SEN12MSCRTS", options.masks: "MASKS", options.out: "OUT"}
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--json", "--page") or word in ("--json", "--page"):
            continue  # where this machine wrote
        own = next((value for value in names if value and (word == value or word.endswith(f"={value}"))), "")
        found.append(word.removesuffix(own) + names[own] if own else word)
    return shlex.join(found)


def how_to_reproduce(command: str, found: dict[str, Any]) -> list[str]:
    """The command lines that lead to the table."""
    lines = []
    if found["data"]:
        numbers = " ".join(f"--{name} {value}" for name, value in found["data"].items())
        lines.append(f"python -m util.make_sample_data DATA {numbers}")
    lines.append("python -m util.pre_compute_data_samples --root DATA/SEN12MSCRTS --out MASKS")
    return [*lines, command]


def _size(text: str) -> tuple[int, int]:
    size, _, batch = text.partition("x")
    if not (size.isdigit() and batch.isdigit()):
        raise argparse.ArgumentTypeError(f"expected pixels and samples as 64x4, got {text!r}")
    return int(size), int(batch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--out", required=True, help="folder for runs, logs and tests")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["uncrtaints", "conv3d_mamba", "utae"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--training", default="", metavar="FLAGS", help="more flags for every training")
    parser.add_argument("--flags", nargs="+", default=[], metavar="MODEL=FLAGS", help="more flags for one model")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--costs", nargs="*", type=_size, default=[(64, 4), (256, 1)], metavar="SIZExBATCH", help="bare: no costs"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns in which costs are measured")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--json", default="benchmarks/results/backbones.json")
    parser.add_argument("--page", default="docs/results.md")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
