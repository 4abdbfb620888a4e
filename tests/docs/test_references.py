"""Paths, modules, commands and links that README.md and docs/*.md mention exist."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.commands import ROOT

ROOMS = "benchmarks|common|config|data|docs|evaluation|model|report|scenes|tests|training|util"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
HISTORY = ROOT / "docs" / "lab_notebook.md"  # names files as they were called at the time
PATH = re.compile(rf"(?<![\w./-])(?:{ROOMS})/[\w./-]*\w")
SCRIPT = re.compile(r"(?<![\w./-])\w+\.py\b")
COMMAND = re.compile(r"python -m ([\w.]+)")
DOTTED = re.compile(rf"(?<![\w./-])(?:{ROOMS})(?:\.[A-Za-z_]\w*)+")
FILE_ENDINGS = (".html", ".tar", ".json", ".md", ".npy")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ISSUE = re.compile(r"known issues? (\d+(?:(?:, | and | to )\d+)*)", re.IGNORECASE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
current_pages = pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY], ids=lambda page: page.name)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or path.is_dir():
            value = importlib.import_module(module) if length < len(parts) else None
            for attribute in parts[length:]:
                if not hasattr(value, attribute):
                    return False
                value = getattr(value, attribute)
            return True
    return False


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def issues(path: Path) -> set[int]:
    """Numbers of the known issues that a file refers to."""
    return {int(number) for numbers in ISSUE.findall(read(path)) for number in re.findall(r"\d+", numbers)}


@current_pages
def test_every_path_exists(page):
    missing = {path for path in PATH.findall(read(page)) if not (ROOT / path).exists()}
    assert not missing


@current_pages
def test_every_script_exists(page):
    names = {path.name for path in ROOT.glob("*.py")}
    names |= {path.name for room in ROOMS.split("|") for path in (ROOT / room).rglob("*.py")}
    assert not set(SCRIPT.findall(read(page))) - names


@every_page
def test_every_command_exists(page):
    missing = {name for name in COMMAND.findall(read(page)) if importlib.util.find_spec(name) is None}
    assert not missing


@current_pages
def test_every_dotted_name_resolves(page):
    names = {name for name in DOTTED.findall(read(page)) if not name.endswith(FILE_ENDINGS)}
    assert not {name for name in names if not resolves(name)}


@every_page
def test_every_link_leads_somewhere(page):
    broken = []
    for link in LINK.findall(read(page)):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and anchor not in anchors(read(path))):
            broken.append(link)
    assert not broken


def test_the_tree_of_the_architecture_is_that_of_the_repository():
    tree = read(ROOT / "docs" / "architecture.md").split("```")[1]
    folders: list[str] = []
    entries = set()
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        path = "".join(folders)
        assert (ROOT / path).exists(), f"docs/architecture.md: no {path}"
        assert path not in entries, f"docs/architecture.md lists {path} twice"
        entries.add(path)
    rooms = {
        path.parent
        for room in ROOMS.split("|")
        if room not in ("tests", "docs")
        for path in ROOT.glob(f"{room}/**/*.py")
    }
    unlisted = {f"{room.relative_to(ROOT)}/" for room in rooms} - entries
    assert not {folder for folder in unlisted if not folder.startswith("util/")}


def test_known_issues_name_the_test_modules_that_refer_to_them():
    sections = re.split(r"^## (\d+)\. ", read(ROOT / "docs" / "known_issues.md"), flags=re.MULTILINE)[1:]
    listed = {
        int(number): set(re.findall(r"`(tests/[\w/]+\.py)`", text))
        for number, text in zip(sections[::2], sections[1::2], strict=True)
    }
    mentions: dict[int, set[str]] = {number: set() for number in range(1, 19)}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for number in issues(path):
            mentions[number].add(path.relative_to(ROOT).as_posix())
    assert listed == mentions


def test_code_refers_to_known_issues_of_the_list():
    for path in (path for room in ROOMS.split("|") for path in (ROOT / room).rglob("*.py")):
        assert issues(path) <= set(range(1, 19)), path
