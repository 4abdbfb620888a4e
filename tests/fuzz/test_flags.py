"""Every flag of every command with numbers, text and nothing: never a traceback, one line where it is refused."""

import argparse
import os
from collections.abc import Iterator

import pytest

import ensemble_reconstruct
import reconstruct_scene
import standalone_dataloader
import test_reconstruct
import train_reconstruct
from common.cli import run_command
from parse_args import build_parser
from tests.support.fuzz import COUNTS, NUMBERS
from tests.support.scene_cases import write_run
from util import (
    compare_runs,
    demo,
    download_data,
    export_hdf5,
    make_sample_data,
    pack_dataset,
    pre_compute_data_samples,
)

# what each command needs to check its other flags; it ends where data are read
COMMANDS = {
    "train": (train_reconstruct.main, ["--root1", "none", "--root2", "none", "--root3", "none", "--device", "cpu"]),
    "test": (test_reconstruct.main, ["--weight_folder", ".", "--experiment_name", "run", "--root2", "none"]),
    "ensemble": (ensemble_reconstruct.main, ["none"]),
    "scene": (reconstruct_scene.main, ["--weights", "none", "--out", "maps", "--optical", "none.tif"]),
    "dataloader": (standalone_dataloader.main, ["--root", "none"]),
    "sample data": (make_sample_data.main, ["sample"]),
    "pack": (pack_dataset.main, ["--root", "none", "--out", "pack"]),
    "pre-compute": (pre_compute_data_samples.main, ["--root", "none", "--out", "masks"]),
    "export": (export_hdf5.main, ["--root", "none", "--out", "hdf5"]),
    "download": (download_data.main, ["--list"]),
    "compare": (compare_runs.main, ["none", "other"]),
    "demo": (demo.main, []),
}


def flags_of(main, monkeypatch) -> list[str]:
    """The flags that take a value, as a command declares them."""
    if main in (train_reconstruct.main, test_reconstruct.main):
        parsers = [build_parser("train")]
    else:
        parsers = []
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *_: parsers.append(self) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([])
        monkeypatch.undo()
    return [action.option_strings[0] for action in parsers[0]._actions if action.option_strings and action.nargs != 0]


def lines(flags: list[str]) -> Iterator[list[str]]:
    for flag in flags:
        for value in NUMBERS:
            yield [f"{flag}={value}"]
        yield [flag]
        yield [flag, "1", "2", "3"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_a_flag_ends_in_a_traceback(command, tmp_path, monkeypatch, capsys):
    main, needed = COMMANDS[command]
    flags = flags_of(main, monkeypatch)
    assert flags
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    monkeypatch.setattr("data.synthetic.writer.write_series", lambda *_: 0)
    monkeypatch.setattr("data.synthetic.writer.write_mono", lambda *_: 0)
    monkeypatch.setattr(demo, "run_step", lambda *_: 1 / 0)
    for words in lines(flags):
        given = [*needed, *words]
        capsys.readouterr()
        try:
            code = run_command(main, given)
        except SystemExit as ended:  # of argparse
            code = ended.code
        except ZeroDivisionError:  # the demo starts its first step
            code = 0
        error = capsys.readouterr().err
        found = [line for line in error.splitlines() if "error: " in line]
        assert "Traceback" not in error
        if code:
            assert code in (1, 2), given
            assert len(found) == 1, (given, error[-500:])
            assert not found[0].startswith("error: ") or len(found[0]) < 2050, given
        COUNTS[f"flags of {command}", "refused" if code else "accepted"] += 1
    assert os.getcwd() == str(tmp_path)
