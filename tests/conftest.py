"""What the end-to-end tests share: small sample data with stored masks, and command lines as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e import TINY, Commands, SampleData


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


@pytest.fixture(scope="session")
def members(commands, sample_data, tmp_path_factory) -> Path:
    """A Gaussian network of three optical dates, and a NIG network of two with radar: trained, tested, exported."""
    folder = tmp_path_factory.mktemp("members")
    lines = {
        "gaussian": "--loss MGNLL --head gaussian --input_t 3 --scale_by 1",
        "nig": "--loss NIG --head nig --input_t 2 --scale_by 10 --use_sar",
    }
    for name, line in lines.items():
        run = ["--epochs 1 --lr 0.003 --res_dir", folder / "results", "--experiment_name", name]
        commands.run("train_reconstruct.py", TINY, line, sample_data.roots, *run).ok()
        run = ["--device cpu --weight_folder", folder / "results", "--experiment_name", name]
        commands.run("test_reconstruct.py", *run, "--res_dir", folder / "inference").ok()
    return folder
