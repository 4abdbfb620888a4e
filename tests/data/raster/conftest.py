"""The series of `tree` as a pack."""

from pathlib import Path

import pytest

from util.pack_dataset import main


@pytest.fixture(scope="module")
def pack(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "series"
    assert main(["--root", str(tree), "--out", str(out)]) == 0
    return out
