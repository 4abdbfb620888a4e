"""From the scores of fusions to the evidence: paired bootstrap over regions, averages over seeds, Markdown. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fusion_scoring import GUARDED, recalibrated
from benchmarks.tables import header, line, plus_minus, spread

Array = npt.NDArray[np.float64]
Found = dict[str, Any]

FIGURES = {  # name -> decimals; all of the whole test split
    "RMSE": 4,
    "MAE": 4,
    "PSNR": 2,
    "SAM": 2,
    "SSIM": 4,
    "NLL": 3,
    "CRPS": 4,
    "UCE": 4,
    "ENCE": 3,
    "coverage 50": 3,
    "coverage 90": 3,
    "coverage 95": 3,
    "AUSE": 3,
}
RESAMPLES, BOOTSTRAP_SEED = 2000, 0
INTERVAL = (2.5, 97.5)  # per cent
MOST_LOSS = 1.005  # upper end of the interval of the ratio
ENCE_MARGIN = 0.01
COVERAGE = (0.88, 0.92)  # of the central 90 % interval
CRITERIA: dict[str, Callable[[Found], bool]] = {  # of the guarded answer, for each seed
    "RMSE at or below the better expert's": lambda row: row["RMSE ratio"]["value"] <= 1,
    "upper end of that ratio's interval at most 1.005": lambda row: row["RMSE ratio"]["high"] <= MOST_LOSS,
    "SSIM at or above the better one's, within a standard error": lambda row: (
        row["SSIM difference"]["value"] >= -row["SSIM difference"]["error"]
    ),
    "NLL at or below the better recalibrated expert's": lambda row: row["NLL difference"]["value"] <= 0,
    "ENCE at most the best expert's + 0.01": lambda row: row["ENCE difference"] <= ENCE_MARGIN,
    "90 % interval holds 88 to 92 %": lambda row: COVERAGE[0] <= row["coverage 90"] <= COVERAGE[1],
}
CURVES, RATIOS = "images/fusion_calibration.png", "images/fusion_ratios.png"  # beside the page
DRAWN = ("monig", "gated", GUARDED)  # whose ratios the picture shows


def paired_bootstrap(
    values: Sequence[float], reference: Sequence[float], rois: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """Set a figure of some images against another of the same images, regions being drawn with replacement.

    Args:
        values: (N,), one for each image.
        reference: (N,), those of the other.
        rois: (N,), the region of each image; all images of a region are drawn together.
        resamples: how often.

    Returns:
        `ratio` and `difference` of the means over images: each `value`, the 95 % percentile interval `low` to `high`,
        and its standard `error`. The same draw for all figures of one set of regions.
    """
    names, member = np.unique(np.asarray(rois), return_inverse=True)
    n_regions = len(names)
    one, other = (
        np.bincount(member, weights=np.asarray(v, np.float64), minlength=n_regions) for v in (values, reference)
    )
    images = np.bincount(member, minlength=n_regions)
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(n_regions, np.full(n_regions, 1 / n_regions), resamples)
    return {
        "ratio": _interval(float(one.sum() / other.sum()), (draws @ one) / (draws @ other)),
        "difference": _interval(float((one - other).sum() / images.sum()), (draws @ (one - other)) / (draws @ images)),
    }


def compare(seed: int, scores: Mapping[str, Any], guard: Mapping[str, Any], resamples: int = RESAMPLES) -> Found:
    """What one fusion's scores say: figures of each row, and the rules and the guarded answer against the experts.

    The better expert is the one of least RMSE on the test split itself, which the guard could not know; SSIM is set
    against the expert of greatest SSIM, NLL against the recalibrated expert of least NLL, ENCE against the least of
    the experts', recalibrated or not.

    Args:
        seed: of the training.
        scores: see `benchmarks.fusion_scoring.Scores.report`.
        guard: the run's guard.json.
        resamples: of the bootstrap.
    """
    rows, experts, rois = scores["rows"], scores["experts"], scores["rois"]
    figures = {name: {key: row[key] for key in FIGURES} for name, row in rows.items()}
    again = [recalibrated(name) for name in experts]
    better = min(experts, key=lambda name: figures[name]["RMSE"])
    structured = max(experts, key=lambda name: figures[name]["SSIM"])
    likeliest = min(again, key=lambda name: figures[name]["NLL"])
    least_ence = min(figures[name]["ENCE"] for name in (*experts, *again))
    images = scores["per image"]

    def against(name: str, key: str, other: str) -> dict[str, dict[str, float]]:
        return paired_bootstrap(images[name][key], images[other][key], rois, resamples)

    compared: dict[str, Found] = {}
    for name in [*experts, *scores["rules"], GUARDED]:
        rmse = against(name, "RMSE", better)
        compared[name] = {
            "RMSE ratio": rmse["ratio"],
            "RMSE difference": rmse["difference"],
            "SSIM difference": against(name, "SSIM", structured)["difference"],
            "NLL difference": against(name, "NLL", likeliest)["difference"],
            "ENCE difference": figures[name]["ENCE"] - least_ence,
            "coverage 90": figures[name]["coverage 90"],
        }
    return {
        "seed": seed,
        "images": len(rois),
        "regions": len(set(rois)),
        "better": better,
        "r": scores["r"],
        "rho": scores["rho"],
        "AUC": scores["AUC"],
        "guard": {key: guard[key] for key in ("rule", "better", "accepted", "variance", "n_clusters", "clustered_by")},
        "figures": figures,
        "compared": compared,
        "held": {text: bool(holds(compared[GUARDED])) for text, holds in CRITERIA.items()},
    }


def variance_ratios(scores: Mapping[str, Any]) -> dict[str, float]:
    """Mean total variance of each rule over the first expert's: recalibrated, or for monig as stated."""
    rows, first = scores["rows"], scores["experts"][0]
    own, again = rows[first]["mean var"], rows[recalibrated(first)]["mean var"]
    return {rule: rows[rule]["mean var"] / (own if rule == "monig" else again) for rule in scores["rules"]}


def aggregate(found: Sequence[Found]) -> Found:
    """Over seeds: `summary` (row -> figure -> `spread`), `ratios` (row -> `spread`, `least`, `largest`), `held`."""
    first = found[0]
    ratios = {name: [one["compared"][name]["RMSE ratio"]["value"] for one in found] for name in first["compared"]}
    return {
        "summary": {
            name: {key: spread(one["figures"][name][key] for one in found) for key in FIGURES}
            for name in first["figures"]
        },
        "ratios": {name: spread(own) | {"least": min(own), "largest": max(own)} for name, own in ratios.items()},
        "held": {text: sum(one["held"][text] for one in found) for text in CRITERIA},
    }


def figure_table(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table of figures: means over seeds, and the ratio of RMSE to the better expert's."""
    lines = header(["test split", *FIGURES, "RMSE / better expert's [range]"])
    for name, row in report["summary"].items():
        ratio = report["ratios"].get(name)
        told = f"{ratio['mean']:.4f} [{ratio['least']:.4f}, {ratio['largest']:.4f}]" if ratio else ""
        lines.append(line([_name(name), *(f"{row[key]['mean']:.{digits}f}" for key, digits in FIGURES.items()), told]))
    return lines


def seed_table(seeds: Sequence[Found]) -> list[str]:
    """The lines of the table of seeds: ratios with their intervals, what the guard said, and what could be had."""
    titles = [
        "seed",
        "better expert",
        "guarded",
        "difference x 1000",
        "gated",
        "monig",
        "guard",
        "r",
        "rho",
        "AUC of gated's w",
    ]
    lines = header(titles)
    for one in seeds:
        guarded, gated, monig = (_ratio(one["compared"][name]["RMSE ratio"]) for name in (GUARDED, "gated", "monig"))
        change = one["compared"][GUARDED]["RMSE difference"]
        told = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**{key: 1000 * at for key, at in change.items()})
        cells = [str(one["seed"]), f"`{one['better']}`", guarded, told, gated, monig, _verdict(one["guard"])]
        lines.append(line([*cells, f"{one['r']:.3f}", f"{one['rho']:.3f}", f"{one['AUC']['gated']:.3f}"]))
    return lines


def control_lines(controls: Mapping[str, Any]) -> list[str]:
    """What the two controls say."""
    useless, twins = controls["useless"], controls["twins"]
    guarded = _ratio(useless["compared"][GUARDED]["RMSE ratio"])
    weak = useless["compared"][controls["weak"]]["RMSE ratio"]["value"]
    shares = ", ".join(f"`{rule}` {value:.3f}" for rule, value in controls["variance ratios"].items())
    return [
        f"- A useless second expert (`{controls['weak']}` after {controls['steps']} steps, RMSE {weak:.3f} times the "
        f"better expert's): guarded / better expert {guarded}; {_verdict(useless['guard'])}. Unguarded `gated` "
        f"{useless['compared']['gated']['RMSE ratio']['value']:.3f}, `monig` "
        f"{useless['compared']['monig']['RMSE ratio']['value']:.3f}.",
        f"- Twins (the same run twice): total variance over that of the one expert, where 1 is honest: {shares}; "
        f"{_verdict(twins['guard'])}.",
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The section of docs/fusion.md.

    Args:
        report: what benchmarks/results/fusion_evidence.json holds.
    """
    settings, seeds = report["settings"], report["seeds"]
    n, one = len(seeds), seeds[0]
    ratio = report["ratios"][GUARDED]
    lines = [
        "### On sample data",
        "",
        f"Two experts with seeds {', '.join(str(own['seed']) for own in seeds)}, {settings['epochs']} epochs of the "
        f"same {settings['training samples']} samples, and their fusion, fitted on {settings['held out']}. All rows "
        f"come from one pass over {one['images']} test images of {one['regions']} regions that no training saw, with "
        "the same frozen experts; rules as they are, without the guard, except in the row `guarded`, which is what the "
        "fusion answers. Means over seeds.",
        "",
        *figure_table(report),
        "",
        f"RMSE over that of the expert that is better *on the test split* (and minus it), with the 95 % interval of "
        f"{settings['resamples']} paired resamples of the test regions; r = V1/V2 and the correlation rho of the "
        "experts' errors there; AUC of the gate's weight (0.5 is a coin):",
        "",
        *seed_table(seeds),
        "",
        f"![RMSE of fusions over the better expert's]({RATIOS})",
        "",
        f"![Reliability and coverage, first seed]({CURVES})",
        "",
        f"What a fusion should do, and in how many of {n} seeds the guarded answer did:",
        "",
        *header(["the guarded answer", "seeds"]),
        *(line([text, f"{count} of {n}"]) for text, count in report["held"].items()),
        line(["mean RMSE ratio over seeds", plus_minus(ratio, 4)]),
        "",
        f"Controls, seed {one['seed']}:",
        "",
        *control_lines(report["controls"]),
        "",
        f"Trained at commit {', '.join(report['commits of the runs'])} on {report['device']}, torch {report['torch']}. "
        "All figures by seed: `benchmarks/results/fusion_evidence.json`. To reproduce:",
        "",
        "```",
        *report["how"],
        "```",
        "",
        f"Flags of all: `{settings['shared']}`; of one:",
        "",
        *(f"- `{model}`: `{flags or '(its defaults)'}`" for model, flags in settings["models"].items()),
    ]
    return "\n".join(lines) + "\n"


def _interval(value: float, resampled: Array) -> dict[str, float]:
    low, high = np.percentile(resampled, INTERVAL)
    return {"value": value, "low": float(low), "high": float(high), "error": float(resampled.std(ddof=1))}


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _verdict(guard: Mapping[str, Any]) -> str:
    if guard["accepted"]:
        return f"accepts {guard['rule']}, {guard['variance']} variance"
    return f"falls back to {guard['better']}, {guard['variance']} variance"


def _name(row: str) -> str:
    expert, comma, rest = row.partition(",")
    return f"`{expert}`{comma}{rest}"
