"""The inputs that a trained run requires and the outputs that it has, read from its conf.json without its weights."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from common.errors import DataError, UsageError
from config.stored import model_config, read_conf
from data.raster.geotiff import days_since_origin
from model.registry import FUSION
from model.restore import CONF, WEIGHTS

VARIANCES = {"nig": ("aleatoric", "epistemic"), "gaussian": ("aleatoric",), "mean": ()}  # by head


@dataclass(frozen=True)
class ModelRequirements:
    """Inputs and outputs of a network.

    Attributes:
        name: of the backbone, as in --model.
        radar: whether it takes radar.
        single: whether it takes a single date.
        dates: number of dates in training; 0 if unknown.
        variances: those that it predicts, of `aleatoric` and `epistemic`.
        reference_day: days since 2014-04-03 of the day from which it counts dates, `--ref_date` of the training.
    """

    name: str
    radar: bool
    single: bool
    dates: int
    variances: tuple[str, ...]
    reference_day: int = 0

    def check(self, n_dates: int, has_radar: bool) -> list[str]:
        """Compare a scene with the requirements.

        Args:
            n_dates: dates of the scene.
            has_radar: whether the scene has radar.

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
            notes.append("this run's network was trained without radar: --sar is ignored")
        if self.dates and n_dates != self.dates and not self.single:
            notes.append(f"{n_dates} dates; the network was trained with {self.dates}")
        return notes


def read_requirements(weights: str | Path) -> tuple[ModelRequirements, list[Path]]:
    """The requirements of a run, and the files that it consists of.

    Args:
        weights: a run's folder or a .pth.tar file beside its conf.json, as `model.load_model` takes it.

    Raises:
        DataError: if files are missing or conf.json cannot be read.
    """
    path = Path(weights)
    folder, checkpoint = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not path.exists():
        raise DataError(f"there is no {path}; --weights takes a run's folder or a .pth.tar file")
    for file in (folder / CONF, checkpoint):
        if not file.is_file():
            raise DataError(f"there is no {file.name} in {folder}; --weights takes the folder of a trained run")
    stored = read_conf(folder / CONF)
    config = model_config(stored, str(folder / CONF))
    dates = stored.get("input_t")
    requirements = ModelRequirements(
        name=config.model,
        radar=config.use_sar,
        single=config.pretrain or config.model == "unet",
        dates=dates if isinstance(dates, int) else 0,
        variances=VARIANCES["nig" if config.model == FUSION else config.head],
        reference_day=_reference_day(stored.get("ref_date"), folder / CONF),
    )
    return requirements, [checkpoint, folder / CONF]


def _reference_day(text: object, conf: Path) -> int:
    """Days since 2014-04-03 of a stored --ref_date; published runs have none."""
    try:
        return days_since_origin(date.fromisoformat(str(text))) if text else 0
    except ValueError as error:
        raise DataError(f"{conf}: ref_date must be YYYY-MM-DD, got {text!r}") from error
