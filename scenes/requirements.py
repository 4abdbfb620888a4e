"""What a trained run asks of a scene, read from its conf.json: no weights are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError, UsageError

VARIANCES = {"nig": ("aleatoric", "epistemic"), "gaussian": ("aleatoric",), "mean": ()}  # by head


@dataclass(frozen=True)
class Needs:
    """What a network takes and gives.

    Attributes:
        name: of the backbone, as --model spells it.
        radar: whether it takes radar.
        single: whether it takes one date only.
        dates: how many dates it was trained with; 0 where nobody wrote it down.
        variances: those it predicts, `aleatoric` and `epistemic`, one or none.
    """

    name: str
    radar: bool
    single: bool
    dates: int
    variances: tuple[str, ...]

    def check(self, n_dates: int, has_radar: bool) -> list[str]:
        """Compare a scene with what the network takes.

        Args:
            n_dates: dates of the scene.
            has_radar: whether there is radar of it.

        Returns:
            Notes for the user.

        Raises:
            UsageError: if the network cannot take the scene.
        """
        if self.single and n_dates != 1:
            raise UsageError(
                f"this run's network ({self.name}, of single images) takes one date, got {n_dates}; "
                "name one file with --optical, or a run that was trained on series"
            )
        if not self.single and n_dates == 1:
            raise UsageError(
                "one date only: a single clouded image cannot show the ground below its clouds; "
                "give --optical two dates or more, best some days apart"
            )
        if self.radar and not has_radar:
            raise UsageError("this run's network was trained with radar (--use_sar): give --sar, a file for each date")
        notes = []
        if has_radar and not self.radar:
            notes.append("this run's network was trained without radar: --sar is not looked at")
        if self.dates and n_dates != self.dates and not self.single:
            notes.append(f"{n_dates} dates; the network was trained with {self.dates}")
        return notes


def read_needs(weights: str | Path) -> tuple[Needs, list[Path]]:
    """What the network of a run needs, and the files that it is made of.

    Args:
        weights: a run's folder or a .pth.tar file beside its conf.json, as `model.load_model` takes it.

    Raises:
        DataError: if files are missing or conf.json cannot be read.
    """
    from model.compat import from_conf
    from model.restore import CONF, WEIGHTS
    from parse_args import read_conf

    path = Path(weights)
    folder, checkpoint = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not path.exists():
        raise DataError(f"there is no {path}; --weights takes a run's folder or a .pth.tar file")
    for file in (folder / CONF, checkpoint):
        if not file.is_file():
            raise DataError(f"there is no {file.name} in {folder}; --weights takes the folder of a trained run")
    stored: dict[str, Any] = read_conf(folder / CONF)
    flags = from_conf(stored, str(folder / CONF))
    head = "nig" if flags.model == "fusion_net" else flags.head
    dates = stored.get("input_t")
    needs = Needs(
        flags.model,
        flags.use_sar,
        flags.pretrain or flags.model == "unet",
        dates if isinstance(dates, int) else 0,
        VARIANCES[head],
    )
    return needs, [checkpoint, folder / CONF]
