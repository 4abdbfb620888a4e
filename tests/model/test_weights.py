"""Checkpoint files whose declared content is larger than the file."""

import os
import zipfile

import pytest
import torch

from common.errors import DataError
from model.weights import load_checkpoint, save_checkpoint


def test_a_compressed_checkpoint_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path, bomb = tmp_path / "model.pth.tar", tmp_path / "bomb.pth.tar"
    save_checkpoint(path, {"state_dict_G": {"weight": torch.zeros(1 << 20)}, "version": 1})
    assert load_checkpoint(path)["state_dict_G"]["weight"].numel() == 1 << 20
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as deflated:
        for entry in stored.namelist():
            deflated.writestr(entry, stored.read(entry))
    assert bomb.stat().st_size < path.stat().st_size / 100
    assert torch.load(bomb, weights_only=True)["state_dict_G"]["weight"].numel() == 1 << 20  # torch inflates it
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the content was read"))
    with pytest.raises(DataError, match=r"bomb\.pth\.tar is refused: it has \d+ bytes and declares .* of 419\d+"):
        load_checkpoint(bomb)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "model.pth.tar")
    with pytest.raises(DataError, match="is a pipe or a device; expected a checkpoint"):
        load_checkpoint(tmp_path / "model.pth.tar")
