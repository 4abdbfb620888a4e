"""What the tests of bad input share: a tiny tree to damage, a tiny network, and what every refusal must look like."""

import os
import shutil
from pathlib import Path

from common.cli import run_command
from tests.support.fake_trees import coverages_with_clear, series_path, write_series

TRAIN_ROI, VAL_ROI, TEST_ROI = "ROIs1970/21", "ROIs1868/17", "ROIs1868/73"
NAME = "my_first_experiment"
CLEAR = (4, 9)  # dates without a cloud; the target is the first of them
TINY = [
    *("--encoder_widths", "8", "--decoder_widths", "8", "8", "--n_head", "2", "--d_model", "8"),
    *("--input_t", "2", "--epochs", "1", "--batch_size", "1", "--device", "cpu", "--loss", "NIG"),
]


def build_tree(root: Path) -> Path:
    """Two patches of a training region, one to validate on, two of a test region."""
    for roi, patches in ((TRAIN_ROI, (1, 2)), (VAL_ROI, (5,)), (TEST_ROI, (9, 10))):
        for patch in patches:
            write_series(root, roi, patch, coverages_with_clear(*CLEAR))
    return root


def copy_tree(tree: Path, to: Path) -> Path:
    """A copy to damage: images are links until `image` gives one out."""
    return Path(shutil.copytree(tree, to, copy_function=os.link))


def image(root: Path, roi: str = TRAIN_ROI, sensor: str = "S2", day: int = CLEAR[0], patch: int = 1) -> Path:
    """The path of an image in a copied tree, its link to the original cut so that it may be overwritten."""
    path = root / series_path(roi, sensor, day, patch)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def training(root: Path, res_dir: Path, *more) -> list:
    """Arguments of a training on a tree."""
    return ["--root1", root, "--root2", root, "--res_dir", res_dir, *TINY, *more]


def evaluating(runs: Path, root: Path, res_dir: Path, *more) -> list:
    """Arguments of a test of a run."""
    words = ["--weight_folder", runs, "--root2", root, "--res_dir", res_dir, "--device", "cpu"]
    return [*words, "--batch_size", "1", *more]


def call(main, *words) -> int:
    """Run a command line in this process; its exit code, also where argparse ends it."""
    try:
        return run_command(main, [str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)


def only_error(stderr: str) -> str:
    """The one line that names the mistake; there must be no other and no traceback."""
    lines = [line for line in stderr.replace("\r", "\n").split("\n") if "error: " in line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), lines[0]
    assert "Traceback" not in stderr
    return lines[0]


def refused(capsys, main, *words, code: int = 1) -> str:
    """The error of a command line that must end with this exit code."""
    capsys.readouterr()
    ended = call(main, *words)
    stderr = capsys.readouterr().err
    assert ended == code, stderr
    return only_error(stderr)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; empty where the folder does not exist."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_whole(folder: Path) -> None:
    """Nothing half-written: no temporary file is left below this folder."""
    assert [path for path in folder.rglob("*") if ".tmp" in path.name or "unfinished" in path.name] == []
