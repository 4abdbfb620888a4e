"""A small data set, a trained run and its exports, shared by the tests of command lines; none may be changed."""

import shutil
from pathlib import Path

import pytest

import test_reconstruct
import train_reconstruct
from tests.support.cli_cases import NAME, build_tree, call, copy_tree, evaluating, training


@pytest.fixture(scope="session")
def series(tmp_path_factory) -> Path:
    """The series of `build_tree`."""
    return build_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def series_copy(series, tmp_path) -> Path:
    """A copy of the series to damage."""
    return copy_tree(series, tmp_path / "data")


@pytest.fixture(scope="session")
def runs(series, tmp_path_factory) -> Path:
    """A folder with the run `my_first_experiment`, trained for one epoch."""
    res_dir = tmp_path_factory.mktemp("runs") / "results"
    assert call(train_reconstruct.main, *training(series, res_dir)) == 0
    return res_dir


@pytest.fixture
def runs_copy(runs, tmp_path) -> Path:
    """A copy of the configuration and checkpoints of the run, to damage or to resume."""
    for name in ("conf.json", "model.pth.tar", "model_epoch_1.pth.tar"):
        copy = tmp_path / "results" / NAME / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs / NAME / name, copy)
    return tmp_path / "results"


@pytest.fixture(scope="session")
def exports(series, runs, tmp_path_factory) -> Path:
    """The exports of a test of the run."""
    out = tmp_path_factory.mktemp("exports")
    assert call(test_reconstruct.main, *evaluating(runs, series, out)) == 0
    return out / NAME / "export" / "epoch_1" / "test"
