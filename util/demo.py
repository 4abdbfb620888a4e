"""Sample data, tested networks, reports and maps in a quarter of an hour: `python -m util.demo --out demo`.

Every step is a command line that also works on its own; it is printed before it runs.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import run_command
from common.errors import DataError
from common.files import write_text
from common.json_files import read_json
from model.registry import FUSION
from report.screenshot import take_screenshot

DATA = {"rois": 20, "patches": 5, "size": 64, "seed": 1}
# Half of the usual widths and depth, for two cores and a few minutes.
EXPERTS = {
    "uncrtaints": "--encoder_widths 64 --decoder_widths 64 64 64 --n_head 8 --d_model 128",
    "conv3d_mamba": "--encoder_widths 32 32 64 --decoder_widths 32 32 64",
}
SCENE, SCENE_NETWORK, SCENE_DATES = "ROIs1868/73", "conv3d_mamba", "3 4 5"  # a region of the test split
SHARED = "--input_t 3 --use_sar --rdm_seed 1 --fit_rois 3 --batch_size 4 --precision auto --device cpu"
TRAINING = "--loss NIG --scale_by 10 --lr 0.003 --gamma 0.85 --epochs 12"
OVERALL, CLOUDED = "all samples", "every input >= 30 %"
FIGURES = ("RMSE", "PSNR", "SSIM", "SAM", "NLL", "ENCE", "coverage 90")


def main(argv: Sequence[str] | None = None) -> int:
    """Make data, train, test, export, fuse, ensemble and map; see `--help`."""
    parser = argparse.ArgumentParser(
        description="Sample data, training, test, exports, a fusion, an ensemble, reports, maps of a region."
    )
    parser.add_argument("--out", default="demo", help="folder for data, runs and results (default: demo)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    out = Path(args.out)
    started = time.perf_counter()
    results, inference, data, masks = (out / name for name in ("results", "inference", "data", "masks"))
    series, triplets = data / "SEN12MSCRTS", data / "SEN12MSCR"
    flags = " ".join(f"--{name} {value}" for name, value in DATA.items())
    run_step("sample data", f"-m util.make_sample_data {data} {flags}")
    run_step("cloud masks, once for all", f"-m util.pre_compute_data_samples --root {series} --out {masks} --workers 2")
    roots = f"--root1 {series} --root2 {series} --root3 {triplets} --precomputed {masks}"
    runs = {name: f"--model {name} {widths} {TRAINING}" for name, widths in EXPERTS.items()}
    runs[FUSION] = f"--model {FUSION} --experts " + " ".join(f"{name}={results / name}" for name in EXPERTS)
    for name, words in runs.items():
        where = f"--experiment_name {name} --res_dir {results}"
        run_step(f"training of {name}", f"train_reconstruct.py {where} {roots} {SHARED} {words}")
        where = f"--experiment_name {name} --weight_folder {results} --res_dir {inference}"
        run_step(f"test of {name}", f"test_reconstruct.py {where} --device cpu --plot_every 4")
    exports = " ".join(str(inference / name) for name in EXPERTS)
    ensemble = inference / "ensemble"
    run_step("ensemble", f"ensemble_reconstruct.py {exports} --root {series} --uncertainty both --res_dir {ensemble}")
    compared = " ".join(str(inference / name) for name in [*runs, "ensemble"])
    run_step("comparison", f"-m util.compare_runs {compared} --out {out / 'compare.html'} --root {series}")
    picture_report(inference / FUSION / "report.html", out / "report.png")
    where = (
        f"--weights {results / SCENE_NETWORK} --folder {series / SCENE} --numbers {SCENE_DATES} --tile {DATA['size']}"
    )
    run_step("maps of a region", f"reconstruct_scene.py {where} --out {out / 'scene'}")
    summary = summarise(inference, list(runs), _read(results / FUSION / "guard.json"))
    write_text(out / "summary.md", summary)
    print(f"\n{summary}\n{_places(out, inference)}\ndone in {(time.perf_counter() - started) / 60:.1f} min")
    return 0


def summarise(inference: Path, runs: Sequence[str], decision: Mapping[str, Any]) -> str:
    """A table of networks, ensemble and trivial baselines on the test split, as Markdown.

    Args:
        inference: folder with a tested run for each name, and `ensemble`.
        runs: names of the networks, the fusion last, whose comparison.json holds the baselines.
        decision: the guard.json of the fusion.
    """
    rows = {name: _read(inference / name / "test_metrics.json") for name in [*runs, "ensemble"]}
    groups = _read(inference / runs[-1] / "comparison.json")
    model = next(name for name in groups[OVERALL] if name not in ("least_cloudy", "mean", "clear_mean"))
    baselines = {name: entry for name, entry in groups[OVERALL].items() if name != model}
    lines = ["| test split | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for name, figures in {**rows, **baselines}.items():
        cells = (f"{figures[key]:.4f}" if key in figures else "" for key in FIGURES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    better = min(runs[:-1], key=lambda name: rows[name]["RMSE"])
    ratio = rows[runs[-1]]["RMSE"] / rows[better]["RMSE"]
    answer = f"accepted {decision['rule']}" if decision["accepted"] else f"did not accept {decision['rule']}"
    lines += [
        "",
        f"On validation the acceptance test {answer}; on the test split the RMSE of {runs[-1]} is {ratio:.3f} times "
        f"that of {better}, the better network of the two.",
    ]
    gain = groups[OVERALL][model]["PSNR"] - groups[OVERALL]["mean"]["PSNR"]
    lines.append(f"{runs[-1]} is {gain:.1f} dB PSNR above the mean of the inputs.")
    if CLOUDED in groups:
        best = max((entry["PSNR"], name) for name, entry in groups[CLOUDED].items() if name != model)
        ahead = groups[CLOUDED][model]["PSNR"] - best[0]
        lines.append(
            f"Where every input is clouded by 30 % or more ({groups[CLOUDED][model]['images']} samples) it is "
            f"{ahead:.1f} dB above the best baseline, {best[1]}."
        )
    return "\n".join(lines) + "\n"


def picture_report(report: Path, picture: Path) -> None:
    """Write a picture of the first card of a report, as in the README; print a note if there is no browser."""
    taken = take_screenshot(report, picture, ".card")
    missing = f"no picture of {report}: it needs chromium and playwright"
    print(f"\n{missing}" if taken is None else f"\npicture of {report}: {picture}")


def _places(out: Path, inference: Path) -> str:
    first = inference / FUSION
    sheets = sorted(first.glob("plots/*/test/samples.png"))
    places = {
        "reports": inference / "*" / "report.html",
        "comparison": out / "compare.html",
        "maps of a region": out / "scene",
        "this table": out / "summary.md",
        "metrics": inference / "*" / "test_metrics.json",
        "by cloud cover": first / "comparison.md",
        "pictures": sheets[0] if sheets else first / "plots",
        "calibration": first / "plot_test_reliability.png",
        "acceptance test": out / "results" / FUSION / "guard.md",
        "exports": first / "export",
        "ensemble": inference / "ensemble",
        "weights": out / "results",
    }
    return "\n".join(f"{name + ':':<18}{path}" for name, path in places.items())


def run_step(title: str, line: str) -> None:
    """Run a command line of this project.

    Args:
        title: printed before it.
        line: the words after `python`.

    Raises:
        DataError: if it fails.
    """
    print(f"\n=== {title}\n$ python {line}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *shlex.split(line)], check=False)
    if done.returncode:
        raise DataError(f"the step '{title}' ended with exit code {done.returncode}; its message is above")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def _read(path: Path) -> Any:
    return read_json(path, {"type": "object"}, "run the demo again")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
