"""What every test shares: what is not a test, how many threads, where the reference values lie."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest

collect_ignore = ["test_reconstruct.py"]

GOLDEN = Path(__file__).parent / "tests" / "golden"
SHARED = Path(__file__).resolve().parent.parent / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The small reference arrays that belong to the project."""
    return GOLDEN


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference values and real patches beside the repository; skips where they are not."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this clone: reference values and real patches are not there")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where there is no CUDA device."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in gpu:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
