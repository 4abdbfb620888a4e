"""Does bf16 cost accuracy? The same trainings in float32 and in bf16, with the same seeds, by the project's commands.

    python -m benchmarks.precision --root DATA/SEN12MSCRTS --masks MASKS --out OUT

Every run is a training and a test in folders below --out; one that is done is not done again. Seeds tell the noise: a
difference between the precisions counts for as much as it is larger than that between seeds.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.backbone_tables import FIGURES, read_figures
from benchmarks.backbones import plan, sample_data, told
from benchmarks.provenance import provenance
from benchmarks.runner import check, commits, run_all
from benchmarks.tables import header, line, plus_minus, spread
from common.cli import run_command
from common.errors import UsageError
from common.files import write_json
from util import demo

MODEL = "uncrtaints"
PRECISIONS = ("fp32", "bf16")
SHARED = "--use_sar --input_t 3 --head nig --loss NIG --scale_by 10 --lr 0.003 --gamma 0.85 --batch_size 4"
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # two-sided, by freedom


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, compare; print the table and write the JSON."""
    options = _parser().parse_args(argv)
    seeds = list(dict.fromkeys(options.seeds))
    if not 2 <= len(seeds) <= max(T_95) + 1:
        raise UsageError(f"--seeds: expected 2 to {max(T_95) + 1} different seeds to see noise, got {len(seeds)}")
    shared = f"--model {MODEL} {SHARED} {demo.EXPERTS[MODEL]} --epochs {options.epochs} --device {options.device}"
    runs = {
        (precision, seed): plan(MODEL, seed, f"{shared} --precision {precision}", options, f"{MODEL}_{precision}")
        for seed in seeds
        for precision in PRECISIONS
    }
    out = Path(options.out)
    check(list(runs.values()))
    run_all(list(runs.values()), out, options.jobs)
    figures = {key: read_figures(out / "inference" / run.name) for key, run in runs.items()}
    given = sys.argv[1:] if argv is None else argv
    report = {
        **provenance("benchmarks.precision", argv),
        "command": told(["python", "-m", "benchmarks.precision", *given], options),
        "commits of the runs": commits(list(runs.values()), out),
        "data": sample_data(options.root),
        "training": shared,
        "seeds": seeds,
        "runs": [{"precision": precision, "seed": seed, **row} for (precision, seed), row in figures.items()],
        "figures": compare(figures, seeds),
    }
    write_json(options.json, report)
    print("\n".join(table(report["figures"])))
    return 0


def compare(figures: Mapping[tuple[str, int], Mapping[str, float]], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Each figure in both precisions, and the paired difference beside its noise.

    Args:
        figures: (precision, seed) -> figure -> value.
        seeds: of both precisions.

    Returns:
        Figure -> `fp32` and `bf16` (mean, std, n over seeds), `bf16 - fp32` (the same of paired differences), `noise`
        (half the 95 % interval of the mean difference, by Student's t), and `within noise`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in FIGURES:
        values = {p: [figures[p, seed][name] for seed in seeds] for p in PRECISIONS}
        differences = [low - exact for exact, low in zip(*values.values(), strict=True)]
        noise = T_95[len(seeds) - 1] * statistics.stdev(differences) / len(seeds) ** 0.5
        rows[name] = {
            **{precision: spread(found) for precision, found in values.items()},
            "bf16 - fp32": spread(differences),
            "noise": noise,
            "within noise": abs(statistics.fmean(differences)) <= noise,
        }
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: mean ± standard deviation over seeds."""
    lines = header(["test split", *PRECISIONS, "bf16 - fp32, paired", "95 % noise", "within"])
    for name, row in rows.items():
        digits = FIGURES[name]
        cells = [plus_minus(row[precision], digits) for precision in PRECISIONS]
        cells += [plus_minus(row["bf16 - fp32"], digits, "+"), f"{row['noise']:.{digits}f}"]
        lines.append(line([name, *cells, "yes" if row["within noise"] else "**no**"]))
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--out", required=True, help="folder for runs, logs and tests")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default="benchmarks/results/precision.json", help="where the figures go")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
