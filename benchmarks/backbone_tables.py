"""From the metrics files of many trainings to one table: collecting, averages over seeds, paired differences, Markdown.

Pure, save for reading the files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import header, line, plus_minus, spread
from common.errors import DataError
from evaluation.baselines import OVERALL

FIGURES = {  # name -> decimals; all of the whole test split
    "RMSE": 4,
    "MAE": 4,
    "PSNR": 2,
    "SSIM": 4,
    "SAM": 2,
    "NLL": 3,
    "ENCE": 3,
    "coverage 90": 3,
}
PAIRED = {"SSIM": True, "PSNR": True, "RMSE": False, "NLL": False}  # name -> whether more is better
BASELINES = ("least_cloudy", "mean", "clear_mean")
CURVES = "images/backbones_calibration.png"  # beside the page

Row = dict[str, Any]


def read_figures(folder: Path) -> Row:
    """The figures of a tested run: those of `FIGURES` that its test_metrics.json has, and `images`.

    Raises:
        DataError: if the file is missing or is no JSON.
    """
    metrics = _read(folder / "test_metrics.json")
    return {name: metrics[name] for name in ("images", *FIGURES) if name in metrics}


def read_baselines(folder: Path) -> dict[str, Row]:
    """The trivial baselines that a test set beside its network, over all samples."""
    methods = _read(folder / "comparison.json")[OVERALL]
    return {
        name: {key: methods[name][key] for key in ("images", *FIGURES) if key in methods[name]}
        for name in BASELINES
        if name in methods
    }


def same_for_all(named: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Row]:
    """The one value of what every run must agree on.

    Args:
        named: run -> baseline -> figure -> value.

    Raises:
        DataError: if two runs disagree: they were tested on different samples.
    """
    first_name, first = next(iter(named.items()))
    for name, rows in named.items():
        for method, figures in rows.items():
            for key, value in figures.items():
                if not math.isclose(value, first[method][key], rel_tol=1e-5):
                    raise DataError(
                        f"{first_name} and {name} were tested on different samples: {key} of the baseline {method} is "
                        f"{first[method][key]:.6g} and {value:.6g}; use one --out for each --root, and one set of flags"
                    )
    return {method: dict(figures) for method, figures in first.items()}


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> figure -> `spread` over seeds, in the order in which models come.

    Args:
        rows: `model`, `seed` and figures by name; a figure that a row lacks does not count.
    """
    models = dict.fromkeys(row["model"] for row in rows)
    return {
        model: {
            name: spread(row[name] for row in rows if row["model"] == model and name in row)
            for name in FIGURES
            if any(name in row for row in rows if row["model"] == model)
        }
        for model in models
    }


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
        for name, more_is_better in PAIRED.items():
            pairs = {seed: (figures[model, seed], figures[reference, seed]) for seed in seeds}
            known = {seed: a[name] - b[name] for seed, (a, b) in pairs.items() if name in a and name in b}
            if known:
                ahead = sum((value > 0) == more_is_better and value != 0 for value in known.values())
                entry = {"by seed": {str(seed): value for seed, value in known.items()}, "ahead": ahead}
                report.setdefault(model, {})[name] = entry | spread(known.values())
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
    lines = header([f"minus `{reference}`", "figure", *(f"seed {seed}" for seed in seeds), "mean ± sd", "ahead in"])
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
        costs: model -> "SIZExBATCH" -> what `benchmarks.backbone_costs.measure` gives.
    """
    sizes = list(dict.fromkeys(size for own in costs.values() for size in own))
    titles = ["a training step", "parameters"]
    for size in sizes:
        pixels, batch = size.split("x")
        titles += [f"{pixels} px, batch {batch}: time", "peak memory", "forward GFLOP a sample"]
    lines = header(titles)
    for model, own in costs.items():
        cells = [f"`{model}`", f"{next(iter(own.values()))['parameters']:,}"]
        for size in sizes:
            row = own[size]
            cells += [f"{row['wall_s']:.3f} s", f"{row['peak_mb']:.0f} MB", f"{row['gflops_forward']:.2f}"]
        lines.append(line(cells))
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/results.md.

    Args:
        report: what benchmarks/results/backbones.json holds.
    """
    settings, reference = report["settings"], report["reference"]
    images = next(iter(report["runs"]))["images"]
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    lines = [
        "## Backbones on sample data",
        "",
        f"Every network with seeds {seeds}; {settings['epochs']} epochs of the same {settings['training samples']} "
        f"samples, batch {settings['batch_size']}, then the best epoch on validation, tested on {images} images of "
        "regions that no training saw. Mean ± standard deviation over seeds; the trivial baselines need no training.",
        "",
        *quality_table(report["summary"], report["baselines"]),
        "",
    ]
    if report["paired"]:
        lines += [
            "The same seed means the same order of samples and the same dates. Differences, seed by seed:",
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
            f"with one thread, backbone in {precision.split(':')[0]}; medians of {settings['rounds']} rounds in turns. "
            "Peak memory is what the process grew by; FLOPs count convolutions and matrix products, multiply and add "
            "apart.",
            "",
            *cost_table(report["costs"]),
            "",
        ]
    lines += [
        f"Trained at commit {', '.join(report['commits of the runs'])}, torch {report['torch']}. All figures by seed: "
        "`benchmarks/results/backbones.json`. To reproduce:",
        "",
        "```",
        *report["how"],
        "```",
        "",
        "Flags that differ between the networks (widths halved where the published ones are known); all others are "
        f"`{settings['shared']}`. Of a flag that comes twice the last counts.",
        "",
        *(f"- `{model}`: `{flags or '(its defaults)'}`" for model, flags in settings["models"].items()),
    ]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; remove it, and run the benchmark again") from error
