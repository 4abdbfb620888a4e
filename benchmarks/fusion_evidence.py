"""Is a fusion better than its experts? Train both with several seeds, fuse them, and compare every rule with them.

Experts and fusions are trained and tested by the project's command lines, in folders below --out, as by
`benchmarks.backbones`, whose runs with the same --out and flags (`--training "--fit_rois N"`) are reused. Finished runs
are reused while their command line is the same:

    python -m benchmarks.fusion_evidence --root DATA/SEN12MSCRTS --masks MASKS --out OUT --seeds 1 2 3 4 5 --fit_rois 5

Two controls with the first seed: a second expert after ten steps, and the same expert twice.
"""

import argparse
import hashlib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import runner
from benchmarks.fusion_scoring import GUARDED, recalibrated, score_run
from benchmarks.harness import read_json
from benchmarks.measure import spread
from benchmarks.runner import Run
from benchmarks.tables import header, line, plus_minus
from common.cli import run_command
from common.errors import DataError
from common.files import write_json
from evaluation.charts import plot_calibration, plot_ratios
from model.registry import EXPERTS, FUSION

Array = npt.NDArray[np.float64]
Comparison = dict[str, Any]

WEAK, STRONG = EXPERTS  # of the controls; conv3d_mamba is useful from its first step, so the other is trained little
USELESS_STEPS = 10
SAME = 1e-3  # relative difference of RMSE: the same network on the same images, on any device
# name -> decimals; all of the whole test split
FIGURES = {"RMSE": 4, "MAE": 4, "PSNR": 2, "SAM": 2, "SSIM": 4, "NLL": 3, "CRPS": 4, "UCE": 4, "ENCE": 3}
FIGURES |= {"coverage 50": 3, "coverage 90": 3, "coverage 95": 3, "AUSE": 3}
RESAMPLES, BOOTSTRAP_SEED = 2000, 0
INTERVAL = (2.5, 97.5)  # per cent
MAX_LOSS = 1.005  # upper end of the interval of the ratio
ENCE_MARGIN = 0.01
COVERAGE = (0.88, 0.92)  # of the central 90 % interval
CRITERIA: dict[str, Callable[[Comparison], bool]] = {  # of the guarded answer, for each seed
    "RMSE at or below the better expert's": lambda row: row["RMSE ratio"]["value"] <= 1,
    "upper end of that ratio's interval at most 1.005": lambda row: row["RMSE ratio"]["high"] <= MAX_LOSS,
    "SSIM at or above the better one's, within a standard error": lambda row: (
        row["SSIM difference"]["value"] >= -row["SSIM difference"]["error"]
    ),
    "NLL at or below the better recalibrated expert's": lambda row: row["NLL difference"]["value"] <= 0,
    "ENCE at most the best expert's + 0.01": lambda row: row["ENCE difference"] <= ENCE_MARGIN,
    "90 % interval holds 88 to 92 %": lambda row: COVERAGE[0] <= row["coverage 90"] <= COVERAGE[1],
}
CURVES, RATIOS = "images/fusion_calibration.png", "images/fusion_ratios.png"  # relative to the page
PLOTTED = ("monig", "gated", GUARDED)  # rows whose ratios are plotted


def main(argv: Sequence[str] | None = None) -> int:
    """Train, fuse, score; write the JSON and the page."""
    options = _parser().parse_args(argv)
    options.seeds = list(dict.fromkeys(options.seeds))
    if options.fit_rois:
        options.training = f"--fit_rois {options.fit_rois} {options.training}".strip()
    flags = runner.flags_by_model(options.flags, (*EXPERTS, FUSION))
    fusions, useless, twins = plan_all(flags, options)
    out = Path(options.out)
    runs = all_of([*fusions, useless, twins])
    runner.run_all(runs, out, options.jobs)
    scores = {run.name: evidence(run, out) for run in (*fusions, useless, twins)}
    report = runner.experiment_provenance("fusion_evidence", argv, options, runs)
    report |= summarise(fusions, useless, twins, scores, options)
    report["settings"] = settings(fusions[0].after[0], flags, options)
    draw(report, scores[fusions[0].name], Path(options.page).parent)
    runner.publish_experiment("fusion_evidence", report, markdown, options)
    return 0


def plan_all(flags: Mapping[str, str], options: argparse.Namespace) -> tuple[list[Run], Run, Run]:
    """The fusion of each seed, that with the useless expert, and that of the twins; `after` holds their experts."""
    lines = {model: runner.network_line(model, flags, options) for model in flags}

    def fuse(seed: int, experts: Mapping[str, Run], label: str = "") -> Run:
        folders = [f"{name}={Path(options.out) / 'results' / run.name}" for name, run in experts.items()]
        line = f"{lines[FUSION]} --experts {shlex.join(folders)}"
        return runner.plan(FUSION, seed, line, options, label, tuple(dict.fromkeys(experts.values())))

    fusions, first = [], options.seeds[0]
    for seed in options.seeds:
        experts = {model: runner.plan(model, seed, lines[model], options) for model in EXPERTS}
        fusions.append(fuse(seed, experts))
    trained_fully, strong = fusions[0].after
    short = f"{lines[WEAK]} --epochs 1 --max_samples_count {USELESS_STEPS * trained_fully.config.batch_size}"
    weak = runner.plan(WEAK, first, short, options, f"{WEAK}_useless")
    useless = fuse(first, {WEAK: weak, STRONG: strong}, f"{FUSION}_useless")
    return fusions, useless, fuse(first, {STRONG: strong, "twin": strong}, f"{FUSION}_twins")


def all_of(fusions: Sequence[Run]) -> list[Run]:
    """Every run once, experts before their fusions."""
    return list(dict.fromkeys(run for fusion in fusions for run in (*fusion.after, fusion)))


def evidence(run: Run, out: Path) -> dict[str, Any]:
    """The scores of a fusion, from OUT/evidence/NAME.json if its weights have been scored before.

    Raises:
        DataError: if they disagree with the metrics of the test scripts.
    """
    weights = (out / "results" / run.name / "model.pth.tar").read_bytes()
    key = {"run": run.record(), "weights": hashlib.sha256(weights).hexdigest()}
    path = out / "evidence" / f"{run.name}.json"
    stored = read_json(path) if path.is_file() else {}
    if stored.get("key") == key:
        print(f"{run.name}: scored already", flush=True)
        return stored["scores"]
    scores = score_run(run.test)
    tests = {GUARDED: run}
    if len(run.after) == len(scores["experts"]):
        tests |= dict(zip(scores["experts"], run.after, strict=True))
    for row, tested in tests.items():
        check_agreement(row, scores["rows"][row]["RMSE"], tested.name, runner.read_test(tested, out)["RMSE"])
    write_json(path, {"key": key, "scores": scores})
    return scores


def check_agreement(row: str, scored: float, name: str, tested: float) -> None:
    """Raise a `DataError` if the RMSE of this script differs from that of the test script by more than rounding."""
    if not math.isclose(scored, tested, rel_tol=SAME):
        text = f"{row} has RMSE {scored:.6g} in this pass, but {tested:.6g} in the test of {name}"
        raise DataError(f"{text}; have data or code changed since? Remove inference/{name} from --out to test again")


def summarise(
    fusions: Sequence[Run], useless: Run, twins: Run, scores: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The comparison of all fusions with their experts: by seed, over seeds, and of the controls."""
    out = Path(options.out)

    def compared(run: Run) -> dict[str, Any]:
        guard = read_json(out / "results" / run.name / "guard.json")
        return compare(run.seed, scores[run.name], guard, options.resamples)

    weak = useless.after[1]
    controls = {
        "weak": WEAK,
        "steps": -(-runner.training_samples(weak, out) // weak.config.batch_size),
        "useless": compared(useless),
        "twins": compared(twins),
        "variance ratios": variance_ratios(scores[twins.name]),
    }
    seeds = [compared(run) for run in fusions]
    return {"seeds": seeds, **aggregate(seeds), "controls": controls}


def settings(expert: Run, flags: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Settings that all runs share, and the flags of each model."""
    held_out = max(expert.config.fit_rois, 0)  # by --fit_rois, or within --training
    regions = f"{held_out} held-out training region{'s' if held_out != 1 else ''}"
    return runner.common_settings(expert, flags, options) | {
        "held out": regions if held_out else "half of the validation regions",
        "resamples": options.resamples,
    }


def draw(report: Mapping[str, Any], scores: Mapping[str, Any], folder: Path) -> None:
    """Plot the ratios by seed, and the calibration of some rows of the first seed."""
    seeds = report["seeds"]
    by_seed = {name: [seed["compared"][name]["RMSE ratio"] for seed in seeds] for name in PLOTTED}
    titles = [f"seed {seed['seed']}" for seed in seeds]
    plot_ratios(by_seed, titles, folder / RATIOS, "RMSE / RMSE of the better expert, test")
    names = [*(recalibrated(name) for name in scores["experts"]), "monig", "gated", GUARDED]
    reports = {name: scores["rows"][name] for name in names}
    plot_calibration(reports, folder / CURVES, f"Calibration on the test split, {titles[0]}")


def paired_bootstrap(
    values: Sequence[float], reference: Sequence[float], rois: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """Compare two figures of the same images by resampling regions with replacement.

    Args:
        values: (N,), one for each image.
        reference: (N,), the other figure.
        rois: (N,), the region of each image; all images of a region are drawn together.
        resamples: number of draws.

    Returns:
        `ratio` and `difference` of the means over images: each `value`, the 95 % percentile interval `low` to `high`,
        and its standard `error`. All figures of one set of regions have the same draws.
    """
    names, member = np.unique(np.asarray(rois), return_inverse=True)
    n_regions = len(names)
    left, right = (
        np.bincount(member, weights=np.asarray(v, np.float64), minlength=n_regions) for v in (values, reference)
    )
    images = np.bincount(member, minlength=n_regions)
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(n_regions, np.full(n_regions, 1 / n_regions), resamples)
    difference = left - right
    return {
        "ratio": _interval(float(left.sum() / right.sum()), (draws @ left) / (draws @ right)),
        "difference": _interval(float(difference.sum() / images.sum()), (draws @ difference) / (draws @ images)),
    }


def compare(seed: int, scores: Mapping[str, Any], guard: Mapping[str, Any], resamples: int = RESAMPLES) -> Comparison:
    """The figures of each row of one fusion, and the rules and the guarded answer compared with the experts.

    The better expert is the one of lowest RMSE on the test split itself, which the acceptance test had no access to;
    SSIM is compared with the expert of highest SSIM, NLL with the recalibrated expert of lowest NLL, ENCE with the
    lowest of the experts', recalibrated or not.

    Args:
        seed: of the training.
        scores: see `benchmarks.fusion_scoring.Scores.compute`.
        guard: the run's guard.json.
        resamples: of the bootstrap.
    """
    rows, experts, rois = scores["rows"], scores["experts"], scores["rois"]
    figures = {name: {key: row[key] for key in FIGURES} for name, row in rows.items()}
    recalibrated_experts = [recalibrated(name) for name in experts]
    lowest_rmse = min(experts, key=lambda name: figures[name]["RMSE"])
    highest_ssim = max(experts, key=lambda name: figures[name]["SSIM"])
    lowest_nll = min(recalibrated_experts, key=lambda name: figures[name]["NLL"])
    lowest_ence = min(figures[name]["ENCE"] for name in (*experts, *recalibrated_experts))
    images = scores["per image"]

    def bootstrap(name: str, key: str, reference: str) -> dict[str, dict[str, float]]:
        return paired_bootstrap(images[name][key], images[reference][key], rois, resamples)

    compared: dict[str, Comparison] = {}
    for name in [*experts, *scores["rules"], GUARDED]:
        rmse = bootstrap(name, "RMSE", lowest_rmse)
        compared[name] = {
            "RMSE ratio": rmse["ratio"],
            "RMSE difference": rmse["difference"],
            "SSIM difference": bootstrap(name, "SSIM", highest_ssim)["difference"],
            "NLL difference": bootstrap(name, "NLL", lowest_nll)["difference"],
            "ENCE difference": figures[name]["ENCE"] - lowest_ence,
            "coverage 90": figures[name]["coverage 90"],
        }
    return {
        "seed": seed,
        "images": len(rois),
        "regions": len(set(rois)),
        "better": lowest_rmse,
        "r": scores["r"],
        "rho": scores["rho"],
        "AUC": scores["AUC"],
        "guard": {key: guard[key] for key in ("rule", "better", "accepted", "variance", "n_clusters", "clustered_by")},
        "figures": figures,
        "compared": compared,
        "held": {text: bool(holds(compared[GUARDED])) for text, holds in CRITERIA.items()},
    }


def variance_ratios(scores: Mapping[str, Any]) -> dict[str, float]:
    """Mean total variance of each rule over that of the first expert: recalibrated, except for monig."""
    rows, first = scores["rows"], scores["experts"][0]
    references = {rule: rows[first if rule == "monig" else recalibrated(first)] for rule in scores["rules"]}
    return {rule: rows[rule]["mean var"] / reference["mean var"] for rule, reference in references.items()}


def aggregate(seeds: Sequence[Comparison]) -> Comparison:
    """Over seeds: `summary` (row -> figure -> `spread`), `ratios` (row -> `spread`, `least`, `largest`), `held`."""
    first = seeds[0]
    ratios = {name: [seed["compared"][name]["RMSE ratio"]["value"] for seed in seeds] for name in first["compared"]}
    return {
        "summary": {
            name: {key: spread(seed["figures"][name][key] for seed in seeds) for key in FIGURES}
            for name in first["figures"]
        },
        "ratios": {name: spread(v) | {"least": min(v), "largest": max(v)} for name, v in ratios.items()},
        "held": {text: sum(seed["held"][text] for seed in seeds) for text in CRITERIA},
    }


def figure_table(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table of figures: means over seeds, and the ratio of RMSE to the better expert's."""
    lines = header(["test split", *FIGURES, "RMSE / better expert's [range]"])
    for name, row in report["summary"].items():
        figures = (f"{row[key]['mean']:.{digits}f}" for key, digits in FIGURES.items())
        ratio = report["ratios"].get(name)
        text = f"{ratio['mean']:.4f} [{ratio['least']:.4f}, {ratio['largest']:.4f}]" if ratio else ""
        lines.append(line([_row_title(name), *figures, text]))
    return lines


def seed_table(seeds: Sequence[Comparison]) -> list[str]:
    """The lines of the table of seeds: ratios with their intervals, the acceptance test, r, rho and AUC."""
    titles = ["seed", "better expert", "guarded", "difference x 1000", "gated", "monig", "acceptance test"]
    lines = header([*titles, "r", "rho", "AUC of gated's w"])
    for seed in seeds:
        guarded, gated, monig = (_ratio(seed["compared"][name]["RMSE ratio"]) for name in (GUARDED, "gated", "monig"))
        milli = {key: 1000 * value for key, value in seed["compared"][GUARDED]["RMSE difference"].items()}
        difference = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**milli)
        cells = [str(seed["seed"]), f"`{seed['better']}`", guarded, difference, gated, monig, _decision(seed["guard"])]
        lines.append(line([*cells, f"{seed['r']:.3f}", f"{seed['rho']:.3f}", f"{seed['AUC']['gated']:.3f}"]))
    return lines


def control_lines(controls: Mapping[str, Any]) -> list[str]:
    """The lines of the two controls."""
    useless, twins = controls["useless"], controls["twins"]
    ratios = {name: row["RMSE ratio"] for name, row in useless["compared"].items()}
    variances = ", ".join(f"`{rule}` {value:.3f}" for rule, value in controls["variance ratios"].items())
    return [
        f"- A useless second expert (`{controls['weak']}` after {controls['steps']} steps, RMSE "
        f"{ratios[controls['weak']]['value']:.3f} times the better expert's): guarded / better expert "
        f"{_ratio(ratios[GUARDED])}; {_decision(useless['guard'])}. Unguarded `gated` {ratios['gated']['value']:.3f}, "
        f"`monig` {ratios['monig']['value']:.3f}.",
        f"- Twins (the same run twice): total variance over that of the single expert, 1 is correct: {variances}; "
        f"{_decision(twins['guard'])}.",
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/fusion.md.

    Args:
        report: the content of benchmarks/results/fusion_evidence.json.
    """
    settings, seeds = report["settings"], report["seeds"]
    n, first = len(seeds), seeds[0]
    lines = [
        "### On sample data",
        "",
        f"Two experts with seeds {', '.join(str(seed['seed']) for seed in seeds)}, {settings['epochs']} epochs of the "
        f"same {settings['training samples']} samples, and their fusion, fitted on {settings['held out']}. All rows "
        f"are from one pass over {first['images']} test images of {first['regions']} regions not seen in training, "
        "with the same frozen experts. The rules are unguarded, except in the row `guarded`, the output of the fusion. "
        "Means over seeds.",
        "",
        *figure_table(report),
        "",
        f"RMSE over that of the better expert *on the test split* (and their difference), with the 95 % interval of "
        f"{settings['resamples']} paired resamples of the test regions; r = V1/V2 and the correlation rho of the "
        "experts' errors there; AUC of the gate's weight (0.5 is chance):",
        "",
        *seed_table(seeds),
        "",
        f"![RMSE of fusions over the better expert's]({RATIOS})",
        "",
        f"![Reliability and coverage, first seed]({CURVES})",
        "",
        f"Requirements on the fusion, and in how many of {n} seeds the guarded answer met them:",
        "",
        *header(["guarded answer", "seeds"]),
        *(line([text, f"{count} of {n}"]) for text, count in report["held"].items()),
        line(["mean RMSE ratio over seeds", plus_minus(report["ratios"][GUARDED], 4)]),
        "",
        f"Controls, seed {first['seed']}:",
        "",
        *control_lines(report["controls"]),
        "",
        *runner.reproduction_lines("fusion_evidence", report),
    ]
    return "\n".join(lines) + "\n"


def _interval(value: float, resampled: Array) -> dict[str, float]:
    low, high = np.percentile(resampled, INTERVAL)
    return {"value": value, "low": float(low), "high": float(high), "error": float(resampled.std(ddof=1))}


def _ratio(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def _decision(guard: Mapping[str, Any]) -> str:
    if guard["accepted"]:
        return f"accepts {guard['rule']}, {guard['variance']} variance"
    return f"falls back to {guard['better']}, {guard['variance']} variance"


def _row_title(row: str) -> str:
    expert, comma, rest = row.partition(",")
    return f"`{expert}`{comma}{rest}"


def _parser() -> argparse.ArgumentParser:
    parser = runner.experiment_parser("fusion_evidence", __doc__, [1, 2, 3, 4, 5], 12, "docs/fusion.md")
    parser.add_argument("--fit_rois", type=int, default=5, help="training regions that both experts hold out to fit on")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
