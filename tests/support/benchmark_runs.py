"""Stand-ins for the runs of benchmarks that train: scripts that only log, and the files of a finished run."""

import json
from pathlib import Path

from benchmarks import runner
from benchmarks.harness import ROOT
from benchmarks.tables import put_section


def fake_scripts(monkeypatch, folder: Path, failing: str = ""):
    """Replace the scripts by ones that log their call and write what later stages read.

    Args:
        monkeypatch: of the test.
        folder: for the scripts and their log, which several calls share.
        failing: name of a run whose script fails.

    Returns:
        A function that gives the logged calls, as "train NAME", with " resumed" appended for resumed trainings.
    """
    log, scripts = folder / "calls", folder / "scripts"
    scripts.mkdir(exist_ok=True)
    code = f"""
import pathlib, sys
words = sys.argv[1:]
name, stage = words[words.index("--experiment_name") + 1], pathlib.Path(__file__).stem.split("_")[0]
with open({str(log)!r}, "a") as log: log.write(f"{{stage}} {{name}}{{' resumed' * ('--resume_from' in words)}}\\n")
if name == {failing!r}: sys.exit(3)
if stage == "test":
    folder = pathlib.Path(words[words.index("--res_dir") + 1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("test_metrics.json", "comparison.json"): (folder / file).write_text("{{}}")
"""
    for script in runner.STAGES.values():
        (scripts / script).write_text(code)
    monkeypatch.setattr(runner, "ROOT", scripts)
    monkeypatch.setattr(runner, "commit", lambda: "abc")
    return lambda: log.read_text().splitlines() if log.exists() else []


def finish(out: Path, run: runner.Run, train_samples: int = 8, metrics: dict | None = None, groups: dict | None = None):
    """Write the files that training and test of a run leave, as far as benchmarks read them.

    Args:
        out: folder of the benchmark.
        run: the finished run.
        train_samples: of an epoch.
        metrics: content of test_metrics.json.
        groups: content of comparison.json.
    """
    files = {
        f"inference/{run.name}/test_metrics.json": metrics or {},
        f"inference/{run.name}/comparison.json": groups or {},
        f"results/{run.name}/trainlog.json": {"1": {"train_samples": train_samples}},
        f"commands/{run.name}.json": {"run": run.record(), "commit": "abc"},
    }
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content))


def check_page(page: str, name: str, markdown) -> None:
    """Assert that a section of docs/PAGE is `markdown` of the stored results of benchmark NAME."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    report = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert put_section(text, f"benchmarks.{name}", markdown(report)) == text
