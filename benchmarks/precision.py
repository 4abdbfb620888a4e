"""Does bf16 cost accuracy? The same trainings in float32 and in bf16, with the same seeds, by the project's commands.

    python -m benchmarks.precision --root DATA/SEN12MSCRTS --masks MASKS --out OUT

Every run is a training and a test in folders below --out; finished runs are reused. Several seeds show the noise: a
difference between the precisions matters as far as it exceeds the difference between seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.backbones import FIGURES, read_figures
from benchmarks.measure import spread
from benchmarks.tables import header, line, plus_minus
from common.cli import run_command
from common.errors import UsageError
from common.files import write_json

MODEL = "uncrtaints"
PRECISIONS = ("fp32", "bf16")
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # two-sided; key: freedom


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, compare; print the table and write the JSON."""
    options = runner.experiment_parser("precision", __doc__, [1, 2, 3, 4, 5], 8).parse_args(argv)
    seeds = list(dict.fromkeys(options.seeds))
    if not 2 <= len(seeds) <= max(T_95) + 1:
        raise UsageError(f"--seeds: expected 2 to {max(T_95) + 1} different seeds to see noise, got {len(seeds)}")
    shared = (
        f"--model {MODEL} {runner.SHARED} {runner.NETWORKS[MODEL]} --epochs {options.epochs} --device {options.device}"
    )
    runs = {
        (precision, seed): runner.plan(
            MODEL, seed, f"{shared} --precision {precision}", options, f"{MODEL}_{precision}"
        )
        for seed in seeds
        for precision in PRECISIONS
    }
    out = Path(options.out)
    runner.run_all(list(runs.values()), out, options.jobs)
    figures = {key: read_figures(out / "inference" / run.name) for key, run in runs.items()}
    report = {
        **runner.experiment_provenance("precision", argv, options, list(runs.values())),
        "data": runner.sample_data(options.root),
        "training": shared,
        "seeds": seeds,
        "runs": [{"precision": precision, "seed": seed, **row} for (precision, seed), row in figures.items()],
        "figures": compare(figures, seeds),
    }
    write_json(options.json, report)
    print("\n".join(table(report["figures"])))
    return 0


def compare(figures: Mapping[tuple[str, int], Mapping[str, float]], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Each figure in both precisions, and the paired difference with its noise.

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
        differences = [bf16 - fp32 for fp32, bf16 in zip(*values.values(), strict=True)]
        noise = T_95[len(seeds) - 1] * statistics.stdev(differences) / len(seeds) ** 0.5
        rows[name] = {
            **{precision: spread(column) for precision, column in values.items()},
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


if __name__ == "__main__":
    raise SystemExit(run_command(main))
