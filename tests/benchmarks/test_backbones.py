"""The comparison of backbones: what is done, what goes on, and what the table says of made-up metrics files."""

import json
import math

import pytest

from benchmarks import backbone_costs, backbone_tables, backbones, runner
from common.errors import DataError, UsageError

WORDS = ["--root", "ROOT", "--masks", "", "--models", "uncrtaints", "utae"]


def options(tmp_path, *more):
    return backbones._parser().parse_args([*WORDS, "--out", str(tmp_path), *more])


def planned(tmp_path, model="uncrtaints", seed=1, **changes):
    given = options(tmp_path)
    for name, value in changes.items():
        setattr(given, name, value)
    line = backbones.network_line(model, backbones.flags_by_model(given.flags, given.models), given)
    return backbones.plan(model, seed, line, given)


def pretend_tested(out, run, **figures):
    """The files that a training and a test leave, as far as the comparison reads them."""
    folder = out / "inference" / run.name
    folder.mkdir(parents=True)
    metrics = {
        "images": 4,
        "RMSE": 0.1,
        "SSIM": 0.8,
        "NLL": -1.0,
        "ENCE": 0.05,
        "AUSE": 0.4,
        "coverage 90": 0.9,
        **figures,
    }
    metrics["reliability"] = {"RMV": [0.1, 0.2], "RMSE": [0.1, 0.25]}
    metrics["coverage curve"] = {"nominal": [0.5, 0.9], "inside": [0.4, 0.9]}
    (folder / "test_metrics.json").write_text(json.dumps(metrics))
    table = {"all samples": {run.model: metrics, "mean": {"images": 4, "RMSE": 0.3, "left out": {}}}}
    (folder / "comparison.json").write_text(json.dumps(table))
    record = out / "commands" / f"{run.name}.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"run": run.record(), "commit": "abc"}))
    trainlog = out / "results" / run.name / "trainlog.json"
    trainlog.parent.mkdir(parents=True)
    trainlog.write_text(json.dumps({"1": {"train_samples": 8}}))


def test_a_run_is_done_only_for_its_own_command_line(tmp_path):
    run = planned(tmp_path)
    assert runner.progress(run, tmp_path) == "new"
    pretend_tested(tmp_path, run)
    assert runner.progress(run, tmp_path) == "done"
    assert runner.progress(planned(tmp_path, epochs=13), tmp_path) == "new"
    assert runner.progress(planned(tmp_path, seed=2), tmp_path) == "new"
    (tmp_path / "inference" / run.name / "comparison.json").unlink()  # killed between the two files
    assert runner.progress(run, tmp_path) == "begun"


def fake_scripts(monkeypatch, tmp_path, broken=""):
    """Scripts that note how they were called and leave what the real ones leave; `broken` fails."""
    log = tmp_path / "calls"
    scripts = tmp_path / "scripts"
    scripts.mkdir(exist_ok=True)
    code = f"""
import json, pathlib, sys
words = sys.argv[1:]
name, stage = words[words.index("--experiment_name") + 1], pathlib.Path(__file__).stem.split("_")[0]
with open({str(log)!r}, "a") as log: log.write(f"{{stage}} {{name}}{{' on' * ('--resume_from' in words)}}\\n")
if name == {broken!r}: sys.exit(3)
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


def test_runs_are_done_once_and_go_on_where_they_stopped(tmp_path, monkeypatch):
    out = tmp_path / "out"
    runs = [planned(out, model) for model in ("uncrtaints", "utae")]
    calls = fake_scripts(monkeypatch, tmp_path, broken="utae_seed1")
    with pytest.raises(DataError, match=r"1 of 2 runs failed, see the end of .*utae_seed1.log; the same command goes"):
        runner.run_all(runs, out, jobs=2)
    assert sorted(calls()) == ["test uncrtaints_seed1", "train uncrtaints_seed1", "train utae_seed1"]
    calls = fake_scripts(monkeypatch, tmp_path)
    runner.run_all(runs, out, jobs=1)
    assert calls()[3:] == ["train utae_seed1 on", "test utae_seed1"]
    runner.run_all(runs, out, jobs=1)
    assert len(calls()) == 5
    # another command line: the old figures are gone before the new training starts, which does not go on with the old
    longer = planned(out, epochs=13)
    calls = fake_scripts(monkeypatch, tmp_path, broken="uncrtaints_seed1")
    with pytest.raises(DataError, match="1 of 1 runs failed"):
        runner.run_all([longer], out, jobs=1)
    assert calls()[5:] == ["train uncrtaints_seed1"]
    assert runner.progress(longer, out) == "begun"


def test_flags_of_one_model():
    found = backbones.flags_by_model(["utae=--lr 0.001 --n_head 4"], ["utae", "unet"])
    assert found == {"utae": backbones.NETWORKS["utae"] + " --lr 0.001 --n_head 4", "unet": ""}
    for wrong in ("--lr 0.001", "unet=--lr 0.001"):
        with pytest.raises(UsageError, match=r"takes MODEL=.* with a model of utae; got"):
            backbones.flags_by_model([wrong], ["utae"])


def test_what_a_training_would_refuse_is_refused_before_the_first(tmp_path):
    runner.check([planned(tmp_path), planned(tmp_path, "utae")])
    with pytest.raises(UsageError, match="must divide"):
        runner.check([planned(tmp_path), planned(tmp_path, "utae", flags=["utae=--n_head 5"])])


def row(model, seed, **figures):
    return {"model": model, "seed": seed, "images": 4, **figures}


def test_averages_and_paired_differences():
    rows = [row("a", 1, SSIM=0.8, NLL=-1.0), row("b", 1, SSIM=0.9, NLL=0.5), row("b", 2, SSIM=0.6, NLL=-3.0)]
    rows += [row("a", 2, SSIM=0.7, NLL=-2.0), row("b", 3, SSIM=0.1), row("c", 7, SSIM=0.0)]
    summary = backbone_tables.summarise(rows)
    assert summary["a"]["SSIM"] == pytest.approx({"mean": 0.75, "std": 0.1 / math.sqrt(2), "n": 2})
    assert list(summary) == ["a", "b", "c"]
    assert math.isnan(summary["c"]["SSIM"]["std"])
    assert "RMSE" not in summary["a"]
    paired = backbone_tables.paired_differences(rows, "a")
    assert list(paired) == ["b"]  # c shares no seed with a; seed 3 of b has no twin
    ssim, nll = paired["b"]["SSIM"], paired["b"]["NLL"]
    assert ssim["by seed"] == pytest.approx({"1": 0.1, "2": -0.1})
    assert (ssim["ahead"], ssim["n"], ssim["mean"]) == (1, 2, pytest.approx(0))
    assert nll["by seed"] == pytest.approx({"1": 1.5, "2": -1.0})
    assert nll["ahead"] == 1  # lower is better


def test_tests_on_different_samples_are_not_compared():
    same = {"a_seed1": {"mean": {"RMSE": 0.3}}, "b_seed1": {"mean": {"RMSE": 0.3}}}
    assert backbone_tables.same_for_all(same) == {"mean": {"RMSE": 0.3}}
    same["b_seed1"] = {"mean": {"RMSE": 0.31}}
    with pytest.raises(DataError, match="a_seed1 and b_seed1 were tested on different samples: RMSE of the baseline"):
        backbone_tables.same_for_all(same)


def test_the_whole_table(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for model, ssim in (("uncrtaints", 0.8), ("utae", 0.7)):
        for seed in (1, 2):
            pretend_tested(out, planned(out, model, seed), SSIM=ssim + 0.02 * seed)
    cost = {"wall_s": 0.5, "peak_mb": 300.0, "gflops_forward": 14.7, "parameters": 106740, "precision": "bf16: it can"}
    turns = []

    def measured(lines, sizes, *_):
        turns.append(sizes)
        return {model: {"64x4": cost} for model in lines}

    monkeypatch.setattr(backbones, "measure_in_turns", measured)
    page, table = tmp_path / "results.md", tmp_path / "backbones.json"
    page.write_text("# Results\n\nBefore.\n\n", encoding="utf-8")
    words = [
        *WORDS,
        "--out",
        str(out),
        "--seeds",
        "1",
        "2",
        "--costs",
        "64x4",
        "--json",
        str(table),
        "--page",
        str(page),
    ]
    assert backbones.main(words) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\nBefore.\n")
    assert "| `uncrtaints` | 0.1000 ± 0.0000 |  |  | 0.8300 ± 0.0141 |" in text
    assert "| mean | 0.3000 |" in text
    assert "| `utae` | SSIM | -0.1000 | -0.1000 | -0.1000 ± 0.0000 | 0 of 2 |" in text
    assert "| `utae` | 106,740 | 0.500 s | 300 MB | 14.70 |" in text
    assert "![Reliability and coverage of the networks, first seed](images/backbones_calibration.png)" in text
    assert (tmp_path / "images" / "backbones_calibration.png").stat().st_size > 1000
    assert str(out) not in text + table.read_text(encoding="utf-8")  # no folder of this machine
    report = json.loads(table.read_text(encoding="utf-8"))
    assert report["settings"]["training samples"] == 8
    assert report["commits of the runs"] == ["abc"]
    page.write_text(text + "\nAfter.\n", encoding="utf-8")
    assert backbones.main(words) == 0
    assert page.read_text(encoding="utf-8") == text + "\nAfter.\n"
    assert turns == [[(64, 4)]]  # measured once
    page.write_text("<!-- benchmarks.backbones: from here -->", encoding="utf-8")
    with pytest.raises(DataError, match="only one of the marks"):
        backbones.main(words)


def test_costs_are_measured_in_turns(monkeypatch, capsys):
    walls = iter([1.0, 5.0, 2.0, 6.0, 9.0, 7.0])
    order = []

    def fake(line, size, batch, steps):
        order.append(line)
        return {"wall_s": next(walls), "cpu_s": 1.0, "peak_mb": 10.0, "parameters": 5}

    monkeypatch.setattr(backbone_costs, "_in_own_process", fake)
    found = backbone_costs.measure_in_turns({"a": "A", "b": "B"}, [(32, 2)], rounds=3, steps=1)
    assert order == ["A", "B"] * 3
    assert found["a"]["32x2"] == {"wall_s": 2.0, "cpu_s": 1.0, "peak_mb": 10.0, "parameters": 5}
    assert found["b"]["32x2"]["wall_s"] == 6.0


def test_a_step_is_measured():
    line = "--model uncrtaints --encoder_widths 8 --decoder_widths 8 8 --n_head 2 --d_model 8 --device cpu --loss NIG"
    small, large = (backbone_costs._in_own_process(line, size, 2, 1) for size in (32, 128))
    assert small["parameters"] == large["parameters"] > 0
    # the attention is on a fixed grid, all else grows with the pixels
    assert 8 < large["gflops_forward"] / small["gflops_forward"] <= 16
    assert large["peak_mb"] > 0  # which is larger is not certain: steps this small hide in what the libraries take
    assert small["peak_mb"] > 0
    assert small["wall_s"] > 0
    with pytest.raises(DataError, match="stopped with exit code 2"):
        backbone_costs._in_own_process("--loss l3", 32, 2, 1)


def test_the_command_line_told_names_no_folder_of_this_machine(tmp_path):
    given = options(tmp_path)
    words = ["python", "--root", "ROOT", f"--out={tmp_path}", "--page", "x.md", "--flags", "utae=--lr 0.001"]
    assert backbones.told(words, given) == "python --root DATA/SEN12MSCRTS --out=OUT --flags 'utae=--lr 0.001'"
    data = backbones.how_to_reproduce("last", {"data": {"rois": 6, "seed": 1}})
    assert data[0] == "python -m util.make_sample_data DATA --rois 6 --seed 1"
    assert len(backbones.how_to_reproduce("last", {"data": {}})) == 2  # real data is not made
