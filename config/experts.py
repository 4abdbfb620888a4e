"""The expert runs that `--experts` names, read from their conf.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError
from config.schema import Config
from config.stored import read_conf
from model.registry import MODELS

_SHARED_FLAGS = {"use_sar": bool, "input_t": int, "pretrain": bool}  # all experts must have the same inputs


@dataclass(frozen=True)
class ExpertRun:
    """A trained run: its name in tables, its folder (or a .pth.tar file), and the flags of its conf.json."""

    name: str
    path: Path
    flags: Mapping[str, Any]

    def flag(self, name: str) -> Any:
        """The value of a flag, or its default where the run does not have it."""
        return self.flags.get(name, getattr(Config(), name))


def read_experts(entries: Sequence[str]) -> list[ExpertRun]:
    """The runs that `--experts` names.

    Args:
        entries: as `uncrtaints=RUN`, or `RUN` alone. The part before the equals sign is a backbone, which must be that
            of the run, or any name.

    Returns:
        One run per entry, with distinct names.

    Raises:
        DataError: if a run or its conf.json is missing or cannot be read.
        UsageError: if a run has another backbone than its name says, or predicts no variance.
    """
    runs = []
    for entry in entries:
        name, _, place = entry.rpartition("=")
        path = Path(place)
        folder = path if path.is_dir() else path.parent
        if not place or not path.exists():
            raise DataError(f"--experts {entry}: there is no {path}; expected the folder of a trained run, as name=RUN")
        if not (folder / "conf.json").is_file():
            raise DataError(f"--experts {entry}: there is no conf.json in {folder}; expected the folder of a run")
        flags = read_conf(folder / "conf.json")
        if name in MODELS and name != flags["model"]:
            raise UsageError(f"--experts {entry}: that run is of {flags['model']}; write {flags['model']}={place}")
        if flags["head"] == "mean":
            raise UsageError(f"--experts {entry}: that run predicts no variance; train it with --head nig or gaussian")
        runs.append(ExpertRun(name or folder.name, path, flags))
    names = [run.name for run in runs]
    numbers = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [
        ExpertRun(f"{run.name}_{number}" if names.count(run.name) > 1 else run.name, run.path, run.flags)
        for run, number in zip(runs, numbers, strict=True)
    ]


def resolve_experts(values: dict[str, Any], typed: set[str]) -> list[str]:
    """Give a fusion the inputs of its experts.

    Args:
        values: a value for every flag; `use_sar`, `input_t` and `pretrain` are set.
        typed: names of the flags given on the command line.

    Returns:
        Notes for the user.

    Raises:
        DataError: see `read_experts`.
        UsageError: if the experts have different inputs, or a typed flag contradicts them.
    """
    runs = read_experts(values["experts"])
    adopted = []
    for name, kind in _SHARED_FLAGS.items():
        of_runs = [kind(run.flag(name)) for run in runs]
        if len(set(of_runs)) > 1:
            pairs = ", ".join(f"{run.name} {value}" for run, value in zip(runs, of_runs, strict=True))
            raise UsageError(f"--experts must have the same inputs; their --{name} differs: {pairs}")
        if name in typed and kind(values[name]) != of_runs[0]:
            raise UsageError(f"--{name} {values[name]}: the experts were trained with {of_runs[0]}; leave it out")
        if name not in typed and values[name] != of_runs[0]:
            adopted.append(f"--{name} {of_runs[0]}")
        values[name] = of_runs[0]
    return [f"as the experts were trained: {', '.join(adopted)}"] if adopted else []


def common_held_out(runs: Sequence[ExpertRun]) -> tuple[str, ...]:
    """The training regions that none of the experts trained on."""
    first, *others = ([str(roi) for roi in run.flag("held_out")] for run in runs)
    return tuple(roi for roi in first if all(roi in other for other in others))
