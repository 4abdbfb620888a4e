"""The Python of docs/usage.md runs as it stands there; its commands and those of docs/inputs.md have valid flags."""

import re
import shlex

import pytest

from reconstruct_scene import build_parser
from tests.support.commands import ROOT
from tests.support.scene_cases import write_run, write_scene


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(language: str, page: str = "usage.md") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [content for kind, content in found if kind == language]


def test_python_runs_as_it_stands(tmp_path, monkeypatch):
    files = write_scene(tmp_path, 40, 48)
    write_run(tmp_path / "results" / "my_run")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    arrays, coordinates = blocks("python")
    exec(compile(arrays, "docs/usage.md", "exec"), names)
    assert names["clear"].shape == names["deviation"].shape == files.clear.shape
    assert (names["low"] < names["high"]).all()
    exec(compile(coordinates, "docs/usage.md", "exec"), names)
    maps = names["maps"]
    assert maps.reflectance.shape == maps.total.shape == files.clear.shape
    assert list(maps.data_vars) == ["reflectance", "aleatoric", "epistemic", "total"]
    assert names["ndvi"].dims == ("y", "x")
    assert float(names["ndvi"].y[0]) == 5_399_995


@pytest.mark.parametrize("page", ["usage.md", "inputs.md"])
def test_commands_name_flags_that_exist(page):
    lines = [line for block in blocks("", page) for line in block.splitlines() if "reconstruct_scene.py" in line]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line)
        build_parser().parse_args(words[words.index("reconstruct_scene.py") + 1 :])
    known = build_parser().format_help()
    # of other programs: the training's flags, and Dask's
    others = {"--use_sar", "--loss", "--host", "--nworkers", "--nthreads"}
    for flag in set(re.findall(r"(?<![\w-])--[a-z_]+", text_of(page))) - others:
        assert flag in known, f"docs/{page} names {flag}, which reconstruct_scene.py does not know"
