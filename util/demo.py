"""From nothing to a tested ensemble in a quarter of an hour: `python -m util.demo --out demo`.

Every step is a command line that works by itself; it is printed before it runs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.atomic import whole_file
from util.errors import DataError, run_command

SEEDS = (1, 2)  # of the ensemble's members
DATA = {"rois": 20, "patches": 5, "size": 64, "seed": 1}
# The published architecture at half its width and depth, for two cores and a few minutes.
NETWORK = (
    "--model uncrtaints --encoder_widths 64 --decoder_widths 64 64 64 --n_head 8 --d_model 128 --input_t 3 --use_sar"
)
TRAINING = "--loss NIG --scale_by 10 --lr 0.003 --gamma 0.85 --batch_size 4 --epochs 12 --precision auto --device cpu"
OVERALL, CLOUDED = "all samples", "every input >= 30 %"
FIGURES = ("RMSE", "PSNR", "SSIM", "SAM", "NLL", "ENCE", "coverage 90")


def main(argv: Sequence[str] | None = None) -> int:
    """Make data, train, test, export and ensemble; see `--help`."""
    parser = argparse.ArgumentParser(description="Sample data, training, test, exports, an ensemble and a table.")
    parser.add_argument("--out", default="demo", help="folder for data, runs and results (default: demo)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    out = Path(parser.parse_args(argv).out)
    started = time.perf_counter()
    results, inference, data, masks = (out / name for name in ("results", "inference", "data", "masks"))
    series, triplets = data / "SEN12MSCRTS", data / "SEN12MSCR"
    flags = " ".join(f"--{name} {value}" for name, value in DATA.items())
    _call("sample data", f"-m util.make_sample_data {data} {flags}")
    _call("cloud masks, once for all", f"-m util.pre_compute_data_samples --root {series} --out {masks} --workers 2")
    roots = f"--root1 {series} --root2 {series} --root3 {triplets} --precomputed {masks}"
    members = [f"uncrtaints_{seed}" for seed in SEEDS]
    for seed, member in zip(SEEDS, members, strict=True):
        run = f"--experiment_name {member} --res_dir {results} --rdm_seed {seed}"
        _call(f"training of {member}", f"train_reconstruct.py {run} {roots} {NETWORK} {TRAINING}")
        run = f"--experiment_name {member} --weight_folder {results} --res_dir {inference} --device cpu"
        _call(f"test of {member}", f"test_reconstruct.py {run} --plot_every 4")
    exports = " ".join(str(inference / member) for member in members)
    ensemble = inference / "ensemble"
    _call("ensemble", f"ensemble_reconstruct.py {exports} --root {series} --uncertainty both --res_dir {ensemble}")
    summary = summarise(inference, members)
    with whole_file(out / "summary.md") as temporary:
        temporary.write_text(summary, encoding="utf-8")
    print(f"\n{summary}\n{_places(out, inference, members)}\ndone in {(time.perf_counter() - started) / 60:.1f} min")
    return 0


def summarise(inference: Path, members: Sequence[str]) -> str:
    """One table of networks, ensemble and trivial baselines on the test split, as Markdown.

    Args:
        inference: holds a tested run for each member, and `ensemble`.
        members: names of the runs; the baselines stand beside the first.
    """
    rows = {name: _read(inference / name / "test_metrics.json") for name in [*members, "ensemble"]}
    groups = _read(inference / members[0] / "comparison.json")
    model = next(name for name in groups[OVERALL] if name not in ("least_cloudy", "mean", "clear_mean"))
    baselines = {name: entry for name, entry in groups[OVERALL].items() if name != model}
    lines = ["| test split | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for name, figures in {**rows, **baselines}.items():
        cells = (f"{figures[key]:.4f}" if key in figures else "" for key in FIGURES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    gain = groups[OVERALL][model]["PSNR"] - groups[OVERALL]["mean"]["PSNR"]
    lines += ["", f"{members[0]} is {gain:.1f} dB PSNR above the mean of the inputs."]
    if CLOUDED in groups:
        best = max((entry["PSNR"], name) for name, entry in groups[CLOUDED].items() if name != model)
        ahead = groups[CLOUDED][model]["PSNR"] - best[0]
        lines.append(
            f"Where every input is clouded by 30 % or more ({groups[CLOUDED][model]['images']} samples) it is "
            f"{ahead:.1f} dB above the best baseline, {best[1]}."
        )
    return "\n".join(lines) + "\n"


def _places(out: Path, inference: Path, members: Sequence[str]) -> str:
    first = inference / members[0]
    sheets = sorted(first.glob("plots/*/test/samples.png"))
    places = {
        "this table": out / "summary.md",
        "metrics": inference / "*" / "test_metrics.json",
        "by cloud cover": first / "comparison.md",
        "pictures": sheets[0] if sheets else first / "plots",
        "calibration": first / "plot_test_reliability.png",
        "exports": first / "export",
        "ensemble": inference / "ensemble",
        "weights": out / "results",
    }
    return "\n".join(f"{name + ':':<16}{path}" for name, path in places.items())


def _call(title: str, line: str) -> None:
    """Run one command line of this project and stop the demo if it fails."""
    print(f"\n=== {title}\n$ python {line}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *shlex.split(line)], check=False)
    if done.returncode:
        raise DataError(f"the step '{title}' ended with exit code {done.returncode}; its message is above")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
