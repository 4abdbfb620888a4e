"""What a resumed training leaves in its folder: the best up to the epoch it resumes after, later ones aside."""

import json
import math

import pytest
import torch

from common.errors import DataError
from common.run_folder import RunFolder
from model.weights import load_checkpoint, save_checkpoint
from training.engine import TrainState
from training.trainer import return_to_epoch

LOSSES = {1: 0.5, 2: 0.3, 3: 0.3, 4: 0.4, 5: 0.1}  # 3 is the best up to 4: the latest of equal ones


def write(path, epoch):
    save_checkpoint(path, {"state_dict_G": {"a": torch.full((1,), float(epoch))}, "epoch": epoch, "best_loss": 1.0})


@pytest.fixture
def folder(tmp_path):
    """A run after five epochs, its test done."""
    run = RunFolder(tmp_path / "results", "run")
    for epoch in LOSSES:
        write(run.checkpoint(epoch), epoch)
        run.write_metrics(f"val_epoch_{epoch}", {})
        run.plots(epoch, "val").mkdir(parents=True)
    write(run.best, 5)
    for name in ("conf.json", "test_metrics.json", "comparison.md", "plot_training.png", "nan_epoch_6_batch_0.pth.tar"):
        (run.path / name).write_text("{}")
    run.trainlog.write_text(json.dumps(log(5)))
    run.logs.mkdir(parents=True)
    (run.logs / "events").write_text("events")
    return run


def log(epoch):
    return {str(e): {"val_loss": loss} for e, loss in LOSSES.items() if e <= epoch}


def state(epoch, trainlog=None):
    return TrainState(None, None, None, epoch=epoch, trainlog=log(epoch) if trainlog is None else trainlog)


def names(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())
    )


def test_the_best_is_the_best_up_to_there(folder, capsys):
    return_to_epoch(folder, state(4))
    assert load_checkpoint(folder.best)["epoch"] == 3
    assert json.loads(folder.trainlog.read_text()) == log(4)
    kept = [
        name.format(epoch) for name in ("model_epoch_{}.pth.tar", "val_epoch_{}_metrics.json") for epoch in range(1, 5)
    ]
    kept += [f"plots/epoch_{epoch}/val" for epoch in range(1, 5)]
    assert names(folder.path) == sorted([*kept, "conf.json", "model.pth.tar", "trainlog.json"])
    earlier = RunFolder(folder.res_dir, "run_earlier_1")
    assert f"what came after epoch 4 is now in {earlier.path}" in capsys.readouterr().out
    later = ["model_epoch_5.pth.tar", "val_epoch_5_metrics.json", "plots/epoch_5/val", "nan_epoch_6_batch_0.pth.tar"]
    later += ["test_metrics.json", "comparison.md", "plot_training.png", "conf.json", "model.pth.tar", "trainlog.json"]
    assert names(earlier.path) == sorted(later)
    assert load_checkpoint(earlier.best)["epoch"] == 5
    assert json.loads(earlier.trainlog.read_text()) == log(5)
    for logs in (folder.logs, earlier.logs):
        assert (logs / "events").read_text() == "events"
    return_to_epoch(folder, state(4))  # again: nothing is left to do
    assert load_checkpoint(folder.best)["epoch"] == 3
    assert not (folder.res_dir / "run_earlier_2").exists()


@pytest.mark.parametrize("epoch", [2, None])  # published ones may not name it
def test_a_best_of_the_epochs_that_stay_stays(folder, epoch):
    save_checkpoint(folder.best, {"state_dict_G": {"a": torch.ones(1)}, "epoch": epoch})
    before = folder.best.read_bytes()
    return_to_epoch(folder, state(4))
    assert folder.best.read_bytes() == before


def test_the_latest_epoch_leaves_everything(folder, capsys):
    before = names(folder.path)
    return_to_epoch(folder, state(5))
    assert names(folder.path) == before
    assert capsys.readouterr().out == ""


def test_the_best_of_an_interrupted_epoch_is_dropped(folder):
    """It is repeated, perhaps with another rate, and then another epoch may be the best."""
    folder.checkpoint(5).unlink()
    folder.metrics("test").unlink()
    return_to_epoch(folder, state(4))
    assert load_checkpoint(folder.best)["epoch"] == 3
    assert not (folder.res_dir / "run_earlier_1").exists()


def test_weights_without_their_checkpoint_are_set_aside_if_the_training_was_over(folder):
    folder.checkpoint(5).unlink()
    return_to_epoch(folder, state(4))
    assert load_checkpoint(folder.res_dir / "run_earlier_1" / "model.pth.tar")["epoch"] == 5


def test_a_lost_best_is_taken_from_its_epoch(folder):
    folder.best.unlink()
    return_to_epoch(folder, state(5))
    assert load_checkpoint(folder.best)["epoch"] == 5


def test_a_best_that_cannot_be_recovered_is_named(folder):
    folder.checkpoint(3).unlink()
    before = names(folder.path)
    with pytest.raises(DataError, match=r"model_epoch_3.pth.tar is missing, which has the best weights up to epoch 4"):
        return_to_epoch(folder, state(4))
    assert names(folder.path) == before


@pytest.mark.parametrize("trainlog", [{}, {"1": {"train_loss": 1.0}}, {"1": {"val_loss": math.nan}}])
def test_without_a_validated_epoch_there_is_no_best(folder, trainlog):
    return_to_epoch(folder, state(1, trainlog))
    assert not folder.best.exists()
    assert load_checkpoint(folder.res_dir / "run_earlier_1" / "model.pth.tar")["epoch"] == 5


@pytest.mark.parametrize("name", ["\u00b2", "\u0663", "01", "0", "-1", "1" * 20, "x", "1.5", ""])
def test_only_numbers_of_epochs_are_checkpoints(folder, name):
    (folder.path / f"model_epoch_{name}.pth.tar").write_text("")
    (folder.path / "model_epoch_7").write_text("")
    assert folder.epochs() == [1, 2, 3, 4, 5]
