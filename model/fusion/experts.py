"""The experts of a fusion: trained runs, found by `--experts`, checked to fit together, and loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError, UsageError
from parse_args import MODELS, Config, read_conf

if TYPE_CHECKING:
    from model.build import Reconstructor

SHARED = {"use_sar": bool, "input_t": int, "pretrain": bool}  # what experts see must be the same


@dataclass(frozen=True)
class ExpertRun:
    """One expert: its name in tables, the run's folder (or a .pth.tar file), and the flags of its conf.json."""

    name: str
    path: Path
    flags: Mapping[str, Any]

    def of(self, flag: str) -> Any:
        """The value of a flag, or its default where the run does not have it."""
        default = getattr(Config(), flag)
        return self.flags.get(flag, default)


def read_experts(entries: Sequence[str]) -> list[ExpertRun]:
    """The runs that `--experts` names.

    Args:
        entries: as `uncrtaints=RUN`, or `RUN` alone. Before the equals sign stands a backbone, which the run must be
            of, or any name.

    Returns:
        One for each, names made different.

    Raises:
        DataError: if a run or its conf.json is missing or cannot be read.
        UsageError: if a run is of another backbone than its name says, or predicts no variance.
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
    numbers = [names[: at + 1].count(name) for at, name in enumerate(names)]
    return [
        ExpertRun(f"{run.name}_{number}" if names.count(run.name) > 1 else run.name, run.path, run.flags)
        for run, number in zip(runs, numbers, strict=True)
    ]


def settle_experts(values: dict[str, Any], typed: set[str]) -> list[str]:
    """Take from the experts what a fusion must see like them.

    Args:
        values: a value for every flag; `use_sar`, `input_t` and `pretrain` are set.
        typed: names of the flags that were given by hand.

    Returns:
        Notes for the user.

    Raises:
        DataError: see `read_experts`.
        UsageError: if the experts see different things, or a flag was typed that contradicts them.
    """
    runs = read_experts(values["experts"])
    taken = []
    for name, kind in SHARED.items():
        found = [kind(run.of(name)) for run in runs]
        if len(set(found)) > 1:
            pairs = ", ".join(f"{run.name} {value}" for run, value in zip(runs, found, strict=True))
            raise UsageError(f"--experts must see the same inputs; their --{name} differs: {pairs}")
        if name in typed and kind(values[name]) != found[0]:
            raise UsageError(f"--{name} {values[name]}: the experts were trained with {found[0]}; leave it out")
        if name not in typed and values[name] != found[0]:
            taken.append(f"--{name} {found[0]}")
        values[name] = found[0]
    return [f"as the experts were trained: {', '.join(taken)}"] if taken else []


def common_held_out(runs: Sequence[ExpertRun]) -> tuple[str, ...]:
    """The training regions that none of the experts trained on."""
    first, *others = ([str(roi) for roi in run.of("held_out")] for run in runs)
    return tuple(roi for roi in first if all(roi in other for other in others))


def load_experts(runs: Sequence[ExpertRun]) -> tuple[list["Reconstructor"], tuple[dict[str, Any], ...]]:
    """The experts with their weights, strictly, on the CPU.

    Returns:
        The networks, and for conf.json the name, run and flags of each, from which a fusion is rebuilt.

    Raises:
        DataError: if weights are missing or do not fit; the keys are listed.
    """
    from model.restore import load_model

    networks, entries = [], []
    for run in runs:
        network = load_model(run.path).model
        flags = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(network.config).items()}
        networks.append(network)
        entries.append({"name": run.name, "run": str(run.path), "flags": flags})
    return networks, tuple(entries)
