"""The arrows of docs/architecture.md: which room may import which, without circles and without hidden imports."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {  # room -> rooms whose modules it may import, besides its own
    "common": set(),
    "config": {"common", "data.constants", "model.registry"},
    "data": {"config", "common"},
    "model": {"data", "config", "common"},
    "scenes": {"model", "data", "config", "common"},
    "evaluation": {"model", "data", "config", "common"},
    "report": {"evaluation", "data", "config", "common"},
    "training": {"report", "evaluation", "model", "data", "config", "common"},
}
TOP = ("util", "benchmarks")  # commands: they import anything, and no room imports them
SCRIPTS = (
    "train_reconstruct",
    "test_reconstruct",
    "ensemble_reconstruct",
    "reconstruct_scene",
    "standalone_dataloader",
)
PUBLISHED_PATHS = {"util.metrics", "util.calibration", "util.detect_cloudshadow", "data.sampling", "data.cloud_masks"}
DRAWING = {"evaluation.images", "evaluation.charts", "scenes.outputs.ndvi_plot"}  # scenes may not import evaluation
OPTIONAL = {"numba", "triton", "mamba_ssm", "lightgbm"}
MAX_MODULES = 16  # side by side in a folder
DIALECT = re.compile(r"\b(settl(e|es|ed|ing)|judg(e|es|ed|ing)|told|mend(s|ed|ing)?|showing|notices|forgetful)\b")


class Import(NamedTuple):
    """One import of a module, with its line, whether it is inside a function, and whether a comment explains it."""

    source: str
    target: str
    line: int
    in_function: bool
    commented: bool


def modules() -> dict[str, Path]:
    """Modules by dotted name: rooms, commands and scripts."""
    paths = [path for room in (*ROOMS, *TOP) for path in (ROOT / room).rglob("*.py")]
    paths += [ROOT / f"{script}.py" for script in (*SCRIPTS, "parse_args")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


MODULES = modules()


def imports_of(name: str) -> list[Import]:
    """All imports of a module; `from package import module` counts as an import of the module."""
    text = MODULES[name].read_text(encoding="utf-8")
    lines, found = text.splitlines(), []

    def visit(node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            function = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            targets = []
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}: imports are absolute"
                whole = [f"{child.module}.{alias.name}" for alias in child.names]
                targets = [target if target in MODULES else str(child.module) for target in whole]
            elif isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            for target in dict.fromkeys(targets):
                block = "".join(lines[child.lineno - 1 : child.end_lineno])
                found.append(Import(name, target, child.lineno, in_function, "#" in block))
            visit(child, function)

    visit(ast.parse(text), False)
    return found


IMPORTS = [item for name in MODULES for item in imports_of(name)]
OURS = [item for item in IMPORTS if item.target in MODULES]


def room_of(module: str) -> str:
    return module.split(".")[0]


def where(item: Import) -> str:
    return f"{MODULES[item.source].relative_to(ROOT)}:{item.line} imports {item.target}"


def test_the_modules_are_found():
    assert len(MODULES) > 100
    assert len(OURS) > 300
    assert {room_of(name) for name in MODULES} >= set(ROOMS)


def test_rooms_import_along_the_arrows():
    forbidden = []
    for item in OURS:
        source, target = room_of(item.source), room_of(item.target)
        if source not in ROOMS or source == target:
            continue
        if not any(item.target == allowed or item.target.startswith(f"{allowed}.") for allowed in ROOMS[source]):
            forbidden.append(where(item))
    assert forbidden == []


def test_published_paths_lead_to_modules_and_nothing_of_ours_uses_them():
    assert set(MODULES) >= PUBLISHED_PATHS
    assert [where(item) for item in OURS if item.target in PUBLISHED_PATHS] == []


def test_few_modules_draw_figures():
    drawing = {item.source for item in IMPORTS if item.target.startswith(("matplotlib.figure", "matplotlib.pyplot"))}
    assert {module for module in drawing if room_of(module) in ROOMS} <= DRAWING


def test_there_are_no_circles_between_modules():
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for item in OURS:
        edges[item.source].add(item.target)
    finished: set[str] = set()
    circles = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circles.append(" -> ".join((*path[path.index(name) :], name)))
            return
        if name not in finished:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            finished.add(name)

    for name in MODULES:
        visit(name, ())
    assert circles == []


def test_imports_inside_functions_give_a_reason():
    silent = [where(item) for item in IMPORTS if item.in_function and not item.commented]
    assert [place for place in silent if not place.startswith("benchmarks/")] == []


def test_imports_for_types_alone_give_a_reason():
    guards = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES.values()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.startswith("if TYPE_CHECKING:") and "#" not in line
    ]
    assert guards == []


def test_only_commands_import_our_modules_inside_functions():
    """Rooms do so only for modules that need an optional package, and packages to be imported without torch."""
    optional = {item.source for item in IMPORTS if item.target.split(".")[0] in OPTIONAL and not item.in_function}
    hidden = [item for item in OURS if item.in_function and room_of(item.source) in ROOMS]
    packages = ("model", "scenes")
    assert [where(item) for item in hidden if item.target not in optional and item.source not in packages] == []
    scripts = Counter(item.source for item in OURS if item.in_function and item.source in SCRIPTS)
    assert all(count <= 2 for count in scripts.values()), scripts


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - {ROOT}))
def test_a_folder_has_few_modules_side_by_side(folder):
    if folder.name != "benchmarks":
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_MODULES


def test_names_and_prose_use_the_terms_of_the_field():
    """Words of an earlier dialect, which remain where attributes of earlier checkpoints are named."""
    paths = [path for path in ROOT.rglob("*.py") if not set(path.relative_to(ROOT).parts) & {".venv", "demo", "bench"}]
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        if path != Path(__file__) and path.name not in ("compat.py", "test_first_edition.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DIALECT.search(line)
    ]
    assert hits == []
