"""Importing a module does nothing: no arguments are read, nothing is written, no GPU and no extra package is needed."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

SCRIPTS = (
    "parse_args",
    "train_reconstruct",
    "test_reconstruct",
    "ensemble_reconstruct",
    "reconstruct_scene",
    "standalone_dataloader",
)
WALK = """
import argparse, importlib, importlib.abc, json, pkgutil, random, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mamba_ssm", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def parse(*args, **options):
    raise AssertionError("arguments were parsed")

sys.meta_path.insert(0, Absent())
argparse.ArgumentParser.parse_known_args = parse
sys.argv = ["nonsense", "--no-such-flag", "17"]
names = json.loads(sys.stdin.read())
for package in ("data", "model", "report", "scenes", "util", "benchmarks"):
    found = importlib.import_module(package)
    names += [module.name for module in pkgutil.walk_packages(found.__path__, package + ".")]
heavy = ("matplotlib", "s2cloudless", "lightgbm", "tensorboard", "rasterio")
imported = {}
before = random.getstate()
without_triton = []
for name in sorted(names):
    known = set(sys.modules)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        without_triton.append(name)
    for other in heavy:
        if other in sys.modules and other not in known:
            imported[other] = name
import torch
state = {"threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled()}
state |= {"cuda": torch.cuda.is_initialized(), "seeded": random.getstate() != before}
print(json.dumps({"names": sorted(names), "imported": imported, "without triton": without_triton, **state}))
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    (home / "cwd").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WALK],
        input=json.dumps(SCRIPTS),
        cwd=home / "cwd",
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, [path for path in home.rglob("*") if path.is_file()]


def test_every_module_can_be_imported(walk):
    # known issues 13 and 16: no arguments, no extra package, no GPU
    found, said, _ = walk
    files = [
        path
        for room in ("data", "model", "report", "scenes", "util", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    expected = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files} | set(SCRIPTS)
    assert {name for name in expected if not name.endswith("__init__")} <= set(found["names"])
    assert said == ""
    # kernels are written in triton's own language; only the door that has looked for triton opens these files
    assert all(name.startswith("model.ops.triton_") for name in found["without triton"])


def test_nothing_is_written_and_nothing_is_set(walk):
    found, _, written = walk
    assert written == []
    assert not found["seeded"]
    assert not found["cuda"]
    assert not found["deterministic"]


def test_slow_packages_wait_until_they_are_needed(walk):
    found, _, _ = walk
    assert set(found["imported"]) <= {"rasterio"}
