"""Runs of the benchmarks that train: planned, reused, resumed, and described by a portable command line."""

import pytest

from benchmarks import backbones, runner
from common.errors import DataError, UsageError
from tests.support.benchmark_runs import fake_scripts, finish


def options(out, *more):
    words = ["--root", "ROOT", "--masks", "", "--models", "uncrtaints", "utae", "--out", str(out)]
    return backbones._parser().parse_args([*words, *more])


def planned(out, model="uncrtaints", seed=1, **changes):
    given = options(out)
    for name, value in changes.items():
        setattr(given, name, value)
    line = runner.network_line(model, runner.flags_by_model(given.flags, given.models), given)
    return runner.plan(model, seed, line, given)


def test_a_run_is_done_only_for_its_own_command_line(tmp_path):
    run = planned(tmp_path)
    assert runner.progress(run, tmp_path) == "new"
    finish(tmp_path, run)
    assert runner.progress(run, tmp_path) == "done"
    assert runner.progress(planned(tmp_path, epochs=13), tmp_path) == "new"
    assert runner.progress(planned(tmp_path, seed=2), tmp_path) == "new"
    (tmp_path / "inference" / run.name / "comparison.json").unlink()  # killed between the two files
    assert runner.progress(run, tmp_path) == "started"


def test_runs_are_done_once_and_resumed_where_they_stopped(tmp_path, monkeypatch):
    out = tmp_path / "out"
    runs = [planned(out, model) for model in ("uncrtaints", "utae")]
    calls = fake_scripts(monkeypatch, tmp_path, failing="utae_seed1")
    with pytest.raises(DataError, match=r"1 of 2 runs failed, see the end of .*utae_seed1.log; the same command res"):
        runner.run_all(runs, out, jobs=2)
    assert sorted(calls()) == ["test uncrtaints_seed1", "train uncrtaints_seed1", "train utae_seed1"]
    calls = fake_scripts(monkeypatch, tmp_path)
    runner.run_all(runs, out, jobs=1)
    assert calls()[3:] == ["train utae_seed1 resumed", "test utae_seed1"]
    runner.run_all(runs, out, jobs=1)
    assert len(calls()) == 5
    # with another command line the old figures are removed before the new training, which does not resume the old one
    longer = planned(out, epochs=13)
    calls = fake_scripts(monkeypatch, tmp_path, failing="uncrtaints_seed1")
    with pytest.raises(DataError, match="1 of 1 runs failed"):
        runner.run_all([longer], out, jobs=1)
    assert calls()[5:] == ["train uncrtaints_seed1"]
    assert runner.progress(longer, out) == "started"


def test_flags_of_one_model():
    flags = runner.flags_by_model(["utae=--lr 0.001 --n_head 4"], ["utae", "unet"])
    assert flags == {"utae": runner.NETWORKS["utae"] + " --lr 0.001 --n_head 4", "unet": ""}
    for wrong in ("--lr 0.001", "unet=--lr 0.001"):
        with pytest.raises(UsageError, match=r"takes MODEL=.* with a model of utae; got"):
            runner.flags_by_model([wrong], ["utae"])


def test_invalid_flags_of_any_training_are_an_error_before_the_first(tmp_path, monkeypatch):
    calls = fake_scripts(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="must divide"):
        runner.run_all([planned(tmp_path), planned(tmp_path, "utae", flags=["utae=--n_head 5"])], tmp_path, jobs=1)
    assert calls() == []


def test_the_portable_command_line_names_no_folder_of_this_machine(tmp_path):
    given = options(tmp_path)
    words = ["python", "--root", "ROOT", f"--out={tmp_path}", "--page", "x.md", "--flags", "utae=--lr 0.001"]
    assert runner.portable_command(words, given) == "python --root DATA/SEN12MSCRTS --out=OUT --flags 'utae=--lr 0.001'"
    lines = runner.how_to_reproduce("last", {"data": {"rois": 6, "seed": 1}})
    assert lines[0] == "python -m util.make_sample_data DATA --rois 6 --seed 1"
    assert len(runner.how_to_reproduce("last", {"data": {}})) == 2  # real data are not generated
