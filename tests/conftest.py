"""What the end-to-end tests share: small sample data with stored masks, and command lines as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e import Commands, SampleData


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory) -> SampleData:
    from data.mask_store import default_store
    from util.make_sample_data import make_sample_data
    from util.pre_compute_data_samples import main

    out = tmp_path_factory.mktemp("sample") / "data"
    make_sample_data(out, n_rois=3, n_patches=2, size=32, seed=1)
    found = SampleData(out / "SEN12MSCRTS", out / "SEN12MSCR")
    for root in (found.series, found.mono):
        main(["--root", str(root), "--out", str(default_store(root))])
    return found


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        yield Commands(server, tmp_path_factory.mktemp("commands"))
        server.stdin.close()
