"""Experiments: trainings and tests run by the project's command lines, resumed where they stopped, some in parallel.

Each run has the folders OUT/results/NAME (training) and OUT/inference/NAME (test), a log OUT/logs/NAME.log, and its
command line in OUT/commands/NAME.json, by which a later call recognises it.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, benchmark_parser, commit, cpu_name, provenance, read_json
from benchmarks.tables import write_section
from common.errors import DataError, UsageError
from common.files import write_json
from config.resolve import resolve_config
from config.schema import Config
from parse_args import parse
from util import demo

STAGES = {"train": "train_reconstruct.py", "test": "test_reconstruct.py"}
SHARED = "--use_sar --input_t 3 --head nig --loss NIG --scale_by 10 --lr 0.003 --gamma 0.85 --batch_size 4"
# Half of the published widths, heads and attention channels, for two cores and an hour; conv3d_mamba at about half of
# its own, within 1.5 times the FLOPs of uncrtaints.
NETWORKS = {
    **demo.EXPERTS,
    "utae": "--encoder_widths 32 32 32 64 --decoder_widths 32 32 32 64 --n_head 8 --d_model 128",
}


@dataclass(frozen=True)
class Run:
    """One model trained with one seed.

    Attributes:
        model: the backbone.
        seed: of the training.
        train: arguments of the training script.
        test: arguments of the test script.
        label: replaces the model in the name of the run.
        after: runs that must be done before this one starts.
    """

    model: str
    seed: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str = ""
    after: tuple["Run", ...] = ()

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return f"{self.label or self.model}_seed{self.seed}"

    @property
    def config(self) -> Config:
        """The configuration of the training."""
        return resolve_config(*parse("train", self.train))[0]

    def record(self) -> dict[str, Any]:
        """The fields that identify a run: its results are reused while they are equal."""
        record = json.loads(json.dumps(asdict(self)))
        record["after"] = [run.record() for run in self.after]
        return {key: value for key, value in record.items() if key not in ("label", "after") or value}


def experiment_parser(
    name: str, description: str | None, seeds: Sequence[int], epochs: int, page: str = ""
) -> argparse.ArgumentParser:
    """A parser with the flags of benchmarks that train.

    Args:
        name: the module in this folder.
        description: its docstring.
        seeds: default.
        epochs: default.
        page: default of the page of the results; "": there is none, nor flags for some trainings.
    """
    parser = benchmark_parser(name, description, f"benchmarks/results/{name}.json", "--json")
    parser.add_argument("--root", required=True, help="SEN12MS-CR-TS, or sample data in its layout")
    parser.add_argument("--masks", default="", help="its stored masks")
    parser.add_argument("--out", required=True, help="folder for runs, logs and tests")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--epochs", type=int, default=epochs, help="of each network")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, each on one thread")
    parser.add_argument("--device", default="cpu")
    if page:
        parser.add_argument("--training", default="", metavar="FLAGS", help="more flags for every training")
        parser.add_argument("--flags", nargs="+", default=[], metavar="MODEL=FLAGS", help="more flags for one model")
        parser.add_argument("--page", default=page)
    return parser


def flags_by_model(given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The flags of each model: those of `NETWORKS`, then those of the command line, which take precedence.

    Args:
        given: as `utae=--lr 0.001`.
        models: of this comparison.

    Raises:
        UsageError: if one is not of that form or names no model of this comparison.
    """
    flags = {model: NETWORKS.get(model, "") for model in models}
    for text in given:
        model, equals, words = text.partition("=")
        if not equals or model not in flags:
            raise UsageError(f'--flags takes MODEL="..." with a model of {", ".join(models)}; got {text!r}')
        flags[model] = f"{flags[model]} {words}".strip()
    return flags


def network_line(model: str, flags: Mapping[str, str], options: argparse.Namespace) -> str:
    """The flags of a training of this model, except data, seed and folders."""
    run = f"--epochs {options.epochs} --device {options.device}"
    return " ".join(f"--model {model} {SHARED} --precision auto {run} {options.training} {flags[model]}".split())


def plan(
    model: str, seed: int, line: str, options: argparse.Namespace, label: str = "", after: tuple[Run, ...] = ()
) -> Run:
    """The command lines of one run; `label` and `after` as in `Run`."""
    out = Path(options.out)
    name, results = f"{label or model}_seed{seed}", str(out / "results")
    data = ["--root1", options.root, "--root2", options.root, "--precomputed", options.masks]
    train = ["--experiment_name", name, "--res_dir", results, "--rdm_seed", str(seed), *data, *shlex.split(line)]
    test = ["--experiment_name", name, "--weight_folder", results, "--res_dir", str(out / "inference")]
    test += ["--export_every", "-1", "--device", options.device]
    return Run(model, seed, tuple(train), tuple(test), label, after)


def progress(run: Run, out: Path) -> str:
    """The state of a run, "new", "started" or "done", from its command line, its files and the runs it depends on."""
    record = out / "commands" / f"{run.name}.json"
    if not record.is_file() or read_json(record)["run"] != run.record():
        return "new"
    if any(progress(dependency, out) != "done" for dependency in run.after):
        return "new"
    tested = out / "inference" / run.name
    return "done" if all((tested / file).is_file() for file in ("test_metrics.json", "comparison.json")) else "started"


def run_all(runs: Sequence[Run], out: Path, jobs: int) -> None:
    """Train and test all runs that are not done, some in parallel; each writes to OUT/logs/NAME.log.

    Raises:
        UsageError: before the first training, if flags of any run contradict each other.
        DataError: naming the runs that failed, after all runs that do not depend on them are done.
    """
    for run in runs:
        _ = run.config  # raises UsageError
    waiting = [(run, "train") for run in runs if progress(run, out) != "done"]
    unfinished = {run for run, _ in waiting}
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done already", flush=True)
    running: dict[Run, tuple[str, subprocess.Popen[bytes], float]] = {}
    failed: list[Run] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this process
    try:
        while running or _ready(waiting, unfinished):
            while len(running) < jobs and (ready := _ready(waiting, unfinished)):
                run, stage = ready[0]
                waiting.remove(ready[0])
                running[run] = (stage, start(run, stage, out), time.perf_counter())
            time.sleep(0.2)
            for run, (stage, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                minutes = (time.perf_counter() - since) / 60
                print(f"{run.name}: {stage} ended with exit code {process.returncode}, {minutes:.1f} min", flush=True)
                if process.returncode:
                    failed.append(run)
                elif stage == "train":
                    waiting.insert(0, (run, "test"))
                else:
                    unfinished.remove(run)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        logs = ", ".join(str(_log(run, out)) for run in failed)
        rest = f" ({len(waiting)} that need them were not started)" if waiting else ""
        text = f"{len(failed)} of {len(runs)} runs failed{rest}, see the end of {logs}; the same command resumes"
        raise DataError(text)


def start(run: Run, stage: str, out: Path) -> "subprocess.Popen[bytes]":
    """Start the training (resuming one that was stopped) or the test of a run; its command line is recorded first."""
    words = list(getattr(run, stage))
    if stage == "train":
        if progress(run, out) == "started":
            words.append("--resume_from")
        else:  # metrics of another command line must not count as those of this one
            (out / "inference" / run.name / "test_metrics.json").unlink(missing_ok=True)
            write_json(out / "commands" / f"{run.name}.json", {"run": run.record(), "commit": commit()})
    log = _log(run, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{run.name}: {stage}, {log}", flush=True)
    with log.open("ab") as stream:
        stream.write(f"\n$ {shlex.join(['python', STAGES[stage], *words])}\n".encode())
        stream.flush()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / STAGES[stage]), *words]
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)


def read_test(run: Run, out: Path) -> dict[str, Any]:
    """The test metrics of a run."""
    return read_json(out / "inference" / run.name / "test_metrics.json")


def experiment_provenance(
    name: str, argv: Sequence[str] | None, options: argparse.Namespace, runs: Sequence[Run]
) -> dict[str, Any]:
    """`harness.provenance`, with a command line that holds on any machine, and the commits of the runs."""
    report = provenance(name, argv)
    cuda = options.device.startswith("cuda")
    report["device"] = report["gpu"] if cuda else f"{cpu_name()}, {os.cpu_count()} cores"
    words = ["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if argv is None else argv)]
    records = [read_json(Path(options.out) / "commands" / f"{run.name}.json") for run in runs]
    commits = sorted({record["commit"] for record in records})
    return report | {"command": portable_command(words, options), "commits of the runs": commits}


def portable_command(words: Sequence[str], options: argparse.Namespace) -> str:
    """A command line with this machine's folders replaced by names, without the flags that place its results."""
    names = {options.root: "DATA/SEN12MSCRTS", options.masks: "MASKS", options.out: "OUT"}
    portable: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--json", "--page") or word in ("--json", "--page"):
            continue
        folder = next((path for path in names if path and (word == path or word.endswith(f"={path}"))), "")
        portable.append(word.removesuffix(folder) + names[folder] if folder else word)
    return shlex.join(portable)


def common_settings(run: Run, flags: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Settings that all runs share, and the flags of each model.

    Args:
        run: any of them that trained a backbone.
        flags: of each model.
        options: of the command line.
    """
    return {
        "shared": f"{SHARED} --precision auto {options.training}".strip(),
        "models": dict(flags),
        "epochs": run.config.epochs,
        "training samples": training_samples(run, Path(options.out)),
        "data": sample_data(options.root),
    }


def training_samples(run: Run, out: Path) -> int:
    """Samples of an epoch of a trained run."""
    log = read_json(out / "results" / run.name / "trainlog.json")
    return int(next(iter(log.values()))["train_samples"])


def sample_data(root: str) -> dict[str, Any]:
    """The arguments that made the sample data; empty for other data."""
    note = Path(root).parent / "sample_data.json"
    data = read_json(note) if note.is_file() else {}
    return {name: data[name] for name in ("rois", "patches", "size", "seed") if name in data}


def how_to_reproduce(command: str, settings: Mapping[str, Any]) -> list[str]:
    """The command lines that lead to the results."""
    lines = []
    if settings["data"]:
        numbers = " ".join(f"--{name} {value}" for name, value in settings["data"].items())
        lines.append(f"python -m util.make_sample_data DATA {numbers}")
    lines.append("python -m util.pre_compute_data_samples --root DATA/SEN12MSCRTS --out MASKS")
    return [*lines, command]


def reproduction_lines(name: str, report: Mapping[str, Any]) -> list[str]:
    """The end of a section: commits, command lines and flags."""
    settings = report["settings"]
    return [
        f"Trained at commit {', '.join(report['commits of the runs'])} on {report['device']}, torch {report['torch']}. "
        f"All figures by seed: `benchmarks/results/{name}.json`. To reproduce:",
        "",
        "```",
        *report["how"],
        "```",
        "",
        f"All trainings share the flags `{settings['shared']}`. If a flag is repeated, the last value counts. Flags of "
        "single models (half of the published widths where those are known):",
        "",
        *(f"- `{model}`: `{flags or '(its defaults)'}`" for model, flags in settings["models"].items()),
    ]


def publish_experiment(
    name: str, report: dict[str, Any], markdown: Callable[[Mapping[str, Any]], str], options: argparse.Namespace
) -> None:
    """Write the JSON and the section of the page, and print the section."""
    report["how"] = how_to_reproduce(report["command"], report["settings"])
    section = markdown(report)
    write_json(options.json, report)
    write_section(Path(options.page), f"benchmarks.{name}", section)
    print(f"{section}\n{options.json}\n{options.page}")


def _ready(waiting: Sequence[tuple[Run, str]], unfinished: set[Run]) -> list[tuple[Run, str]]:
    """The waiting stages of runs whose dependencies are done."""
    return [(run, stage) for run, stage in waiting if not any(part in unfinished for part in run.after)]


def _log(run: Run, out: Path) -> Path:
    return out / "logs" / f"{run.name}.log"
