"""Train several backbones with several seeds on the same data by the project's command lines, and compare them.

Every run is a training and a test, in folders below --out. Finished runs are reused while their command line is the
same; interrupted ones are resumed:

    python -m benchmarks.backbones --root DATA/SEN12MSCRTS --masks MASKS --out OUT \
        --models uncrtaints conv3d_mamba utae --seeds 1 2 3

`--flags utae="--lr 0.001"` adds flags for one model, `--training "--lr 0.002"` for all. Time, memory and FLOPs of a
step are measured after the trainings, when nothing else of this benchmark runs.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.backbone_costs import measure_in_turns
from benchmarks.harness import commit, read_json
from benchmarks.measure import spread
from benchmarks.runner import Run
from benchmarks.tables import header, line, plus_minus
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from evaluation.baselines import OVERALL
from evaluation.charts import plot_calibration
from model.registry import MODELS

# name -> decimals; all of the whole test split
FIGURES = {"RMSE": 4, "MAE": 4, "PSNR": 2, "SSIM": 4, "SAM": 2, "NLL": 3, "ENCE": 3, "coverage 90": 3}
REFERENCE = "uncrtaints"  # the others are compared with it, seed by seed
PAIRED = {"SSIM": True, "PSNR": True, "RMSE": False, "NLL": False}  # name -> whether higher is better
BASELINES = ("least_cloudy", "mean", "clear_mean")
CURVES = "images/backbones_calibration.png"  # relative to the page

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, measure; write the JSON and the page."""
    options = _parser().parse_args(argv)
    options.models, options.seeds = (list(dict.fromkeys(given)) for given in (options.models, options.seeds))
    flags = runner.flags_by_model(options.flags, options.models)
    out = Path(options.out)
    lines = {model: runner.network_line(model, flags, options) for model in options.models}
    runs = [runner.plan(model, seed, lines[model], options) for seed in options.seeds for model in options.models]
    runner.run_all(runs, out, options.jobs)
    costs = measured_costs(lines, options, out / "costs.json")
    report = runner.experiment_provenance("backbones", argv, options, runs) | collect(runs, out) | {"costs": costs}
    report["settings"] = runner.common_settings(runs[0], flags, options) | {
        "seeds": options.seeds,
        "batch_size": runs[0].config.batch_size,
        "rounds": options.rounds,
    }
    draw(runs, out, Path(options.page).parent / CURVES)
    runner.publish_experiment("backbones", report, markdown, options)
    return 0


def collect(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """The figures of all runs, averages over seeds, paired differences, and baselines."""
    folders = {run: out / "inference" / run.name for run in runs}
    rows = [{"model": run.model, "seed": run.seed, **read_figures(folder)} for run, folder in folders.items()]
    models = [run.model for run in runs]
    reference = REFERENCE if REFERENCE in models else models[0]
    return {
        "runs": rows,
        "summary": summarise(rows),
        "reference": reference,
        "paired": paired_differences(rows, reference),
        "baselines": same_for_all({run.name: read_baselines(folder) for run, folder in folders.items()}),
    }


def draw(runs: Sequence[Run], out: Path, path: Path) -> None:
    """Plot the calibration of the networks of the first seed that have a variance."""
    seed = runs[0].seed
    metrics = {run.model: runner.read_test(run, out) for run in runs if run.seed == seed}
    reports = {model: report for model, report in metrics.items() if "reliability" in report}
    if reports:
        plot_calibration(reports, path, f"Calibration on the test split, seed {seed}")


def measured_costs(lines: dict[str, str], options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Time, memory and FLOPs of a step of each model, from `store` if the same was measured before."""
    sizes = options.costs
    if not sizes:
        return {}
    asked = {"lines": lines, "sizes": [list(size) for size in sizes], "rounds": options.rounds, "steps": options.steps}
    stored = read_json(store) if store.is_file() else {}
    if stored.get("asked") == asked:
        return stored["costs"]
    costs = measure_in_turns(lines, sizes, options.rounds, options.steps)
    write_json(store, {"asked": asked, "commit": commit(), "costs": costs})
    return costs


def read_figures(folder: Path) -> Row:
    """The figures of a tested run: `images`, and those of `FIGURES` that its test_metrics.json has.

    Raises:
        DataError: if the file is missing or not JSON.
    """
    return _select(read_json(folder / "test_metrics.json"))


def read_baselines(folder: Path) -> dict[str, Row]:
    """The figures of the trivial baselines in the comparison.json of a tested run, over all samples."""
    methods = read_json(folder / "comparison.json")[OVERALL]
    return {name: _select(methods[name]) for name in BASELINES if name in methods}


def same_for_all(baselines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Row]:
    """The baselines of the first run, which must be those of every run.

    Args:
        baselines: run -> baseline -> figure -> value.

    Raises:
        DataError: if two runs disagree: they were tested on different samples.
    """
    first_name, first = next(iter(baselines.items()))
    for name, rows in baselines.items():
        for method, figures in rows.items():
            for key, value in figures.items():
                if not math.isclose(value, first[method][key], rel_tol=1e-5):
                    raise DataError(
                        f"{first_name} and {name} were tested on different samples: {key} of the baseline {method} is "
                        f"{first[method][key]:.6g} and {value:.6g}; use one --out for each --root, and one set of flags"
                    )
    return {method: dict(figures) for method, figures in first.items()}


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> figure -> `spread` over seeds, models in order of appearance.

    Args:
        rows: `model`, `seed` and figures by name; missing figures are left out.
    """
    summary = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        values = {name: [row[name] for row in rows if row["model"] == model and name in row] for name in FIGURES}
        summary[model] = {name: spread(column) for name, column in values.items() if column}
    return summary


def paired_differences(rows: Sequence[Row], reference: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every other model minus the reference, seed by seed.

    Args:
        rows: as for `summarise`.
        reference: a model.

    Returns:
        Model -> figure of `PAIRED` -> `by seed`, `mean`, `std`, `n`, and `ahead`: in how many seeds it was better.
        Only seeds that both have count; a model without one is left out.
    """
    figures = {(row["model"], row["seed"]): row for row in rows}
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        seeds = [seed for name, seed in figures if name == model and (reference, seed) in figures]
        if model == reference or not seeds:
            continue
        for name, higher_is_better in PAIRED.items():
            pairs = {seed: (figures[model, seed], figures[reference, seed]) for seed in seeds}
            differences = {str(seed): a[name] - b[name] for seed, (a, b) in pairs.items() if name in a and name in b}
            if differences:
                ahead = sum((value > 0) == higher_is_better and value != 0 for value in differences.values())
                entry = {"by seed": differences, "ahead": ahead} | spread(differences.values())
                report.setdefault(model, {})[name] = entry
    return report


def quality_table(summary: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Row]) -> list[str]:
    """The lines of the table of figures: mean ± standard deviation over seeds, and the trivial baselines."""
    lines = header(["test split", *FIGURES])
    for model, figures in summary.items():
        cells = (plus_minus(figures[name], digits) if name in figures else "" for name, digits in FIGURES.items())
        lines.append(line([f"`{model}`", *cells]))
    for name, row in baselines.items():
        cells = (f"{row[key]:.{digits}f}" if key in row else "" for key, digits in FIGURES.items())
        lines.append(line([name, *cells]))
    return lines


def difference_table(paired: Mapping[str, Mapping[str, Any]], reference: str) -> list[str]:
    """The lines of the table of paired differences."""
    seeds = list(
        dict.fromkeys(seed for figures in paired.values() for row in figures.values() for seed in row["by seed"])
    )
    lines = header([f"minus `{reference}`", "figure", *(f"seed {seed}" for seed in seeds), "mean ± sd", "better in"])
    for model, figures in paired.items():
        for name, row in figures.items():
            digits = FIGURES[name]
            cells = [f"{row['by seed'][seed]:+.{digits}f}" if seed in row["by seed"] else "" for seed in seeds]
            ahead = f"{row['ahead']} of {row['n']}"
            lines.append(line([f"`{model}`", name, *cells, plus_minus(row, digits, sign="+"), ahead]))
    return lines


def cost_table(costs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The lines of the table of costs.

    Args:
        costs: model -> "SIZExBATCH" -> the results of `benchmarks.backbone_costs.measure`.
    """
    sizes = list(dict.fromkeys(size for by_size in costs.values() for size in by_size))
    titles = ["training step", "parameters"]
    for size in sizes:
        pixels, batch = size.split("x")
        titles += [f"{pixels} px, batch {batch}: time", "peak memory", "forward GFLOPs per sample"]
    lines = header(titles)
    for model, by_size in costs.items():
        cells = [f"`{model}`", f"{next(iter(by_size.values()))['parameters']:,}"]
        for size in sizes:
            row = by_size[size]
            cells += [f"{row['wall_s']:.3f} s", f"{row['peak_mb']:.0f} MB", f"{row['gflops_forward']:.2f}"]
        lines.append(line(cells))
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/results.md.

    Args:
        report: the content of benchmarks/results/backbones.json.
    """
    settings, reference = report["settings"], report["reference"]
    images = next(iter(report["runs"]))["images"]
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    lines = [
        "## Backbones on sample data",
        "",
        f"Every network with seeds {seeds}: {settings['epochs']} epochs of the same {settings['training samples']} "
        f"samples, batch size {settings['batch_size']}, best epoch by validation, tested on {images} images of regions "
        "not seen in training. Mean ± standard deviation over seeds; the trivial baselines need no training.",
        "",
        *quality_table(report["summary"], report["baselines"]),
        "",
    ]
    if report["paired"]:
        lines += [
            "Runs with the same seed have the same order of samples and the same dates. Differences by seed:",
            "",
            *difference_table(report["paired"], reference),
            "",
        ]
    if all("ENCE" in row for row in report["runs"]):
        lines += [f"![Reliability and coverage of the networks, first seed]({CURVES})", ""]
    if report["costs"]:
        precision = next(iter(next(iter(report["costs"].values())).values()))["precision"]
        lines += [
            f"Cost of a training step with three dates on {report['device']}, each network alone in a fresh process "
            f"with one thread, backbone in {precision.split(':')[0]}; medians of {settings['rounds']} alternating "
            "rounds. Peak memory is the growth of the process; FLOPs are those of convolutions and matrix products, "
            "multiplications and additions counted separately.",
            "",
            *cost_table(report["costs"]),
            "",
        ]
    return "\n".join([*lines, *runner.reproduction_lines("backbones", report)]) + "\n"


def _select(metrics: Mapping[str, Any]) -> Row:
    return {name: metrics[name] for name in ("images", *FIGURES) if name in metrics}


def _size(text: str) -> tuple[int, int]:
    size, _, batch = text.partition("x")
    if not (size.isdigit() and batch.isdigit()):
        raise argparse.ArgumentTypeError(f"expected pixels and samples as 64x4, got {text!r}")
    return int(size), int(batch)


def _parser() -> argparse.ArgumentParser:
    parser = runner.experiment_parser("backbones", __doc__, [1, 2, 3], 12, "docs/results.md")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["uncrtaints", "conv3d_mamba", "utae"])
    parser.add_argument(
        "--costs", nargs="*", type=_size, default=[(64, 4), (256, 1)], metavar="SIZExBATCH", help="empty: no costs"
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating measurements of the costs")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a measurement")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
