"""What tests share: small trees of series, sample data with stored masks, and command lines as real processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, TINY, Commands, SampleData
from tests.support.fake_trees import write_series_tree


def pytest_configure() -> None:
    """Heed Ctrl-C, also in the background of a shell, where it is ignored and children inherit that: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The series of `write_series_tree`."""
    root = tmp_path_factory.mktemp("series_2020-01-01_x")  # known issue 14: a root with underscores and a date
    write_series_tree(root)
    return root


@pytest.fixture(scope="session")
def products() -> Path:
    """The folder of real products, which a fresh clone lacks."""
    folder = ROOT.parent / "shared" / "data" / "products"
    if not folder.is_dir():
        pytest.skip("real products lie beside the project, in ../shared/data/products; this clone has none")
    return folder


@pytest.fixture
def copy(tree, tmp_path) -> Path:
    """A tree to damage."""
    return Path(shutil.copytree(tree, tmp_path / "copy"))


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory) -> SampleData:
    from data.clouds.mask_store import default_store
    from util.make_sample_data import make_sample_data
    from util.pre_compute_data_samples import main

    out = tmp_path_factory.mktemp("sample") / "data"
    make_sample_data(out, n_rois=3, n_patches=2, size=32, seed=1)
    found = SampleData(out / "SEN12MSCRTS", out / "SEN12MSCR")
    for root in (found.series, found.mono):
        main(["--root", str(root), "--out", str(default_store(root))])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which published command lines find the scripts, and leave what they write."""
    folder = tmp_path_factory.mktemp("clone")
    for script in ("train_reconstruct.py", "test_reconstruct.py"):
        (folder / script).symlink_to(ROOT / script)
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "support" / "fork_server.py")],
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


@pytest.fixture(scope="session")
def scene_run(tmp_path_factory) -> Path:
    """A run with a tiny untrained network of optical series, to reconstruct scenes with."""
    from tests.support.scene_cases import write_run  # deferred: torch

    return write_run(tmp_path_factory.mktemp("runs") / "tiny")
