"""`python -m util.fit_evidence RUN`: evidence goes into the checkpoint, and what reads it follows."""

import pytest
import torch

from model import load_model
from model.nig import NIG
from model.weights import load_checkpoint
from tests.support.cli_cases import TINY, build_tree, call, only_error
from tests.support.network_cases import random_series
from train_reconstruct import main as train
from util.fit_evidence import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit_evidence")
    root = build_tree(folder / "tree")
    words = ["--root1", root, "--root2", root, "--res_dir", folder / "runs", "--experiment_name", "run", *TINY]
    assert call(train, *words) == 0
    return root, folder / "runs" / "run"


def test_the_checkpoint_gets_evidence_and_keeps_its_weights(trained, capsys):
    root, run = trained
    x, dates = random_series(1, 2, 24, 24)
    before, plain = load_checkpoint(run / "model.pth.tar"), load_model(run)(x, dates)
    assert call(main, run, "--root1", root, "--root2", root, "--device", "cpu") == 0
    assert "independent observations per feature" in capsys.readouterr().out
    after, reconstruct = load_checkpoint(run / "model.pth.tar"), load_model(run)
    assert set(after) - set(before) == {"evidence"}
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
    belief = reconstruct(x, dates)
    assert isinstance(belief, NIG)
    assert torch.equal(belief.mean, plain.mean)
    assert (plain.epistemic / plain.aleatoric).std() == pytest.approx(0, abs=1e-3)  # the same map twice
    assert (belief.epistemic / belief.aleatoric).std() > 0.01


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert call(main, tmp_path / "none") != 0
    assert "none" in only_error(capsys.readouterr().err)
