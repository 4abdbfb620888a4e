"""Is a fusion better than its experts? Train both and fuse them with several seeds, and set every rule beside them.

Experts and fusions are trained and tested by the project's own command lines, in folders below --out, as
`benchmarks.backbones` does; with the same --out and flags (its `--training "--fit_rois N"`) its runs are used as they
are. What is done is not done again while its command line is the same:

    python -m benchmarks.fusion_evidence --root DATA/SEN12MSCRTS --masks MASKS --out OUT --seeds 1 2 3 4 5 --fit_rois 5

Two controls with the first seed: a second expert after ten steps, and the same expert twice.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.backbones import SHARED, flags_by_model, how_to_reproduce, network_line, plan, sample_data, told
from benchmarks.provenance import cpu_name, provenance
from benchmarks.runner import Run, check, commits, run_all
from benchmarks.tables import write_section
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from config.resolve import resolve_config
from model.registry import EXPERTS
from parse_args import parse

WEAK, STRONG = EXPERTS  # of the controls; conv3d_mamba is of use from its first step, so the other hardly trains
FUSION = "fusion_net"
SECTION = "benchmarks.fusion_evidence"
USELESS_STEPS = 10
SAME = 1e-3  # of RMSE: the same network on the same images, on any device


def main(argv: Sequence[str] | None = None) -> int:
    """Train, fuse, score; write the JSON and the page."""
    options = _parser().parse_args(argv)
    options.seeds = list(dict.fromkeys(options.seeds))
    if options.fit_rois:
        options.training = f"--fit_rois {options.fit_rois} {options.training}".strip()
    flags = flags_by_model(options.flags, (*EXPERTS, FUSION))
    fusions, useless, twins = plan_all(flags, options)
    out = Path(options.out)
    runs = all_of([*fusions, useless, twins])
    check(runs)
    run_all(runs, out, options.jobs)
    from benchmarks.fusion_tables import CURVES, RATIOS, markdown

    found = {run.name: evidence(run, out) for run in (*fusions, useless, twins)}
    report = {**provenance(SECTION, argv), **summarise(fusions, useless, twins, found, options)}
    cuda = options.device.startswith("cuda")
    report["device"] = report["gpu"] if cuda else f"{cpu_name()}, {os.cpu_count()} cores"
    report |= {"commits of the runs": commits(runs, out), "settings": settings(fusions, flags, options)}
    report["command"] = told(["python", "-m", SECTION, *(sys.argv[1:] if argv is None else argv)], options)
    report["how"] = how_to_reproduce(report["command"], report["settings"])
    write_json(options.json, report)
    page = Path(options.page)
    draw(report, found[fusions[0].name], page.parent / RATIOS, page.parent / CURVES)
    write_section(page, SECTION, markdown(report))
    print(f"{markdown(report)}\n{options.json}\n{page}")
    return 0


def plan_all(flags: Mapping[str, str], options: argparse.Namespace) -> tuple[list[Run], Run, Run]:
    """The fusion of each seed, and those of the useless second expert and of the twins; `after` holds their experts."""
    lines = {model: network_line(model, dict(flags), options) for model in flags}

    def fuse(seed: int, experts: Mapping[str, Run], label: str = "") -> Run:
        folders = [f"{name}={Path(options.out) / 'results' / run.name}" for name, run in experts.items()]
        line = f"{lines[FUSION]} --experts {shlex.join(folders)}"
        return plan(FUSION, seed, line, options, label, tuple(dict.fromkeys(experts.values())))

    fusions, first = [], options.seeds[0]
    for seed in options.seeds:
        experts = {model: plan(model, seed, lines[model], options) for model in EXPERTS}
        fusions.append(fuse(seed, experts))
    weak_whole, strong = fusions[0].after
    config, _ = resolve_config(*parse("train", weak_whole.train))
    short = f"{lines[WEAK]} --epochs 1 --max_samples_count {USELESS_STEPS * config.batch_size}"
    weak = plan(WEAK, first, short, options, f"{WEAK}_useless")
    useless = fuse(first, {WEAK: weak, STRONG: strong}, f"{FUSION}_useless")
    return fusions, useless, fuse(first, {STRONG: strong, "twin": strong}, f"{FUSION}_twins")


def all_of(fusions: Sequence[Run]) -> list[Run]:
    """Every run once, experts before what is made of them."""
    return list(dict.fromkeys(run for fusion in fusions for run in (*fusion.after, fusion)))


def evidence(run: Run, out: Path) -> dict[str, Any]:
    """The scores of a fusion, from OUT/evidence/NAME.json where these very weights have been scored.

    Raises:
        DataError: if they disagree with the figures of the tests by command line.
    """
    from benchmarks.fusion_scoring import GUARDED, score_run

    weights = (out / "results" / run.name / "model.pth.tar").read_bytes()
    key = {"run": run.record(), "weights": hashlib.sha256(weights).hexdigest()}
    path = out / "evidence" / f"{run.name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("key") == key:
        print(f"{run.name}: scored already", flush=True)
        return stored["scores"]
    scores = score_run(run.test)
    tests = {GUARDED: run.name}
    if len(run.after) == len(scores["experts"]):
        tests |= {name: expert.name for name, expert in zip(scores["experts"], run.after, strict=True)}
    for row, name in tests.items():
        tested = json.loads((out / "inference" / name / "test_metrics.json").read_text(encoding="utf-8"))["RMSE"]
        agrees(row, scores["rows"][row]["RMSE"], name, tested)
    write_json(path, {"key": key, "scores": scores})
    return scores


def agrees(row: str, scored: float, name: str, tested: float) -> None:
    """Refuse scores that another program does not find too.

    Raises:
        DataError: if the figures differ by more than rounding.
    """
    if not math.isclose(scored, tested, rel_tol=SAME):
        text = f"{row} has RMSE {scored:.6g} in this pass, but {tested:.6g} in the test of {name}"
        raise DataError(f"{text}; have data or code changed since? Remove inference/{name} from --out to test again")


def summarise(
    fusions: Sequence[Run], useless: Run, twins: Run, found: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """What the scores of all fusions say: by seed, over seeds, and of the controls."""
    from benchmarks.fusion_tables import aggregate, compare, variance_ratios

    out = Path(options.out)

    def compared(run: Run) -> dict[str, Any]:
        guard = json.loads((out / "results" / run.name / "guard.json").read_text(encoding="utf-8"))
        return compare(run.seed, found[run.name], guard, options.resamples)

    weak = useless.after[1]
    config, _ = resolve_config(*parse("train", weak.train))
    controls = {
        "weak": WEAK,
        "steps": -(-_samples(weak, out) // config.batch_size),
        "useless": compared(useless),
        "twins": compared(twins),
        "variance ratios": variance_ratios(found[twins.name]),
    }
    seeds = [compared(run) for run in fusions]
    return {"seeds": seeds, **aggregate(seeds), "controls": controls}


def settings(fusions: Sequence[Run], flags: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """What was the same for all, and what was not."""
    expert = fusions[0].after[0]
    config, _ = resolve_config(*parse("train", expert.train))
    held = max(config.fit_rois, 0)  # by --fit_rois, or within --training
    regions = f"{held} held-out training region{'s' if held != 1 else ''}"
    return {
        "shared": f"{SHARED} {options.training}".strip(),
        "models": dict(flags),
        "epochs": config.epochs,
        "training samples": _samples(expert, Path(options.out)),
        "held out": regions if held else "half of the validation regions",
        "data": sample_data(options.root),
        "resamples": options.resamples,
    }


def draw(report: Mapping[str, Any], scores: Mapping[str, Any], ratios: Path, curves: Path) -> None:
    """The ratios by seed, and the calibration of some rows of the first seed."""
    from benchmarks.fusion_scoring import GUARDED, recalibrated
    from benchmarks.fusion_tables import DRAWN
    from evaluation.charts import plot_calibration, plot_ratios

    seeds = report["seeds"]
    by_seed = {name: [one["compared"][name]["RMSE ratio"] for one in seeds] for name in DRAWN}
    plot_ratios(by_seed, [f"seed {one['seed']}" for one in seeds], ratios, "RMSE / RMSE of the better expert, test")
    names = [*(recalibrated(name) for name in scores["experts"]), "monig", "gated", GUARDED]
    reports = {name: scores["rows"][name] for name in names}
    plot_calibration(reports, curves, f"Calibration on the test split, seed {seeds[0]['seed']}")


def _samples(run: Run, out: Path) -> int:
    log = json.loads((out / "results" / run.name / "trainlog.json").read_text(encoding="utf-8"))
    return int(next(iter(log.values()))["train_samples"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--out", required=True, help="folder for runs, logs, tests and scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=12, help="of each expert")
    parser.add_argument(
        "--fit_rois", type=int, default=5, help="training regions that both experts leave to the fusion"
    )
    parser.add_argument("--training", default="", metavar="FLAGS", help="more flags for every training")
    parser.add_argument("--flags", nargs="+", default=[], metavar="MODEL=FLAGS", help="more flags for one model")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--json", default="benchmarks/results/fusion_evidence.json")
    parser.add_argument("--page", default="docs/fusion.md")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
