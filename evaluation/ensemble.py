"""Several models' exports as one mixture: who takes part in which sample, and the mixture's moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import DataError, UsageError
from data.constants import N_S2
from evaluation.exports import NIG_FIELDS, read_exports

UNCERTAINTIES = ("aleatoric", "epistemic", "both")
_IDENTITY = ("roi", "patch", "target_path")  # what a manifest tells that must agree between members

Image = npt.NDArray[np.float32]
Fields = Mapping[str, Image]


@dataclass(frozen=True)
class Mixture:
    """Moments of an equally weighted mixture at each pixel and band, (13,H,W), reflectance (squared)."""

    mean: Image  # mean of the members' means
    aleatoric: Image | None  # mean of the members' predictive variances; None where a member has none
    epistemic: Image  # variance of the members' means
    own_epistemic: Image  # the part of `aleatoric` that members themselves call epistemic

    @property
    def member_split(self) -> tuple[float, float] | None:
        """Mean of what members call aleatoric, and of the rest of the mixture's variance; their sum is `both`."""
        if self.aleatoric is None:
            return None
        return float(np.mean(self.aleatoric - self.own_epistemic)), float(np.mean(self.epistemic + self.own_epistemic))

    def variance(self, uncertainty: str) -> Image:
        """The variance that `uncertainty`, one of UNCERTAINTIES, asks for; `both` is that of the mixture.

        Raises:
            ValueError: if a member has no variance and it is asked for.
        """
        if uncertainty == "epistemic":
            return self.epistemic
        if self.aleatoric is None:
            raise ValueError(f"uncertainty {uncertainty!r} needs the variance of every member")
        return self.aleatoric if uncertainty == "aleatoric" else self.aleatoric + self.epistemic


def mix(members: Sequence[Fields]) -> Mixture:
    """Combine members' predictions of one sample.

    Args:
        members: of each, `pred` (13,H,W), and if it has them `var` (its total predictive variance) and the NIG
            parameters `gamma`, `alpha`, `beta`, from which a missing `var` follows.

    Returns:
        The moments. `aleatoric` averages total predictive variances, so that `both` is the exact variance of the
        mixture; what NIG members themselves hold for epistemic is in `own_epistemic`.

    Source:
        Lakshminarayanan et al. 2017. Changes: variance of means from differences, which does not cancel in float32.
    """
    means = np.stack([member["pred"] for member in members])
    mean = means.mean(axis=0)
    epistemic = np.square(means - mean).mean(axis=0)
    parts = [_variances(member) for member in members]
    variances = [variance for variance, _ in parts if variance is not None]
    aleatoric = np.stack(variances).mean(axis=0) if len(variances) == len(members) else None
    own_epistemic = np.stack([np.broadcast_to(own, mean.shape) for _, own in parts]).mean(axis=0)
    return Mixture(mean, aleatoric, epistemic, own_epistemic)


def _variances(member: Fields) -> tuple[Image | None, Image]:
    """Total predictive variance of a member, and its own epistemic part."""
    if not all(name in member for name in NIG_FIELDS):
        return member.get("var"), np.zeros((), np.float32)
    gamma, alpha, beta = (member[name] for name in NIG_FIELDS)
    aleatoric: Image = beta / (alpha - 1)
    epistemic: Image = aleatoric / gamma
    return member.get("var", aleatoric + epistemic), epistemic


class Members:
    """The exports of an ensemble's members, checked to be about the same samples.

    Args:
        folders: where each member's exports are.
        allow_missing: let members stay out of samples that they lack.

    Raises:
        DataError: if a folder has no exports, a member lacks a sample (unless allowed), or manifests disagree about
            what a number stands for.
    """

    def __init__(self, folders: Sequence[str | Path], allow_missing: bool = False) -> None:
        self.exports = [read_exports(folder) for folder in folders]
        self.names = _short_names([member.folder for member in self.exports])
        self.ids = tuple(sorted({sample_id for member in self.exports for sample_id in member.infos}))
        self.missing = [
            (sample_id, member.folder)
            for member in self.exports
            for sample_id in self.ids
            if sample_id not in member.infos
        ]
        if self.missing and not allow_missing:
            sample_id, folder = self.missing[0]
            raise DataError(
                f"{folder} lacks sample {sample_id}{self._describe(sample_id)} ({len(self.missing)} missing in all); "
                "export it, or add --allow_missing to average over the members that have it"
            )
        for sample_id in self.ids:
            self._check_identity(sample_id)

    def present(self, sample_id: int) -> list[int]:
        """Positions of the members that have the sample."""
        return [index for index, member in enumerate(self.exports) if sample_id in member.infos]

    def info(self, sample_id: int) -> dict[str, object]:
        """What the manifests tell about the sample; empty where there is none."""
        return next((m.infos[sample_id] for m in self.exports if m.infos.get(sample_id)), {})

    def load(self, sample_id: int) -> list[Fields]:
        """The fields of the members that have the sample, in the order of `present`.

        Raises:
            DataError: if they differ in size, or were tested against other targets.
        """
        positions = self.present(sample_id)
        fields = [self.exports[index].load(sample_id) for index in positions]
        first = self.exports[positions[0]].folder
        for index, member in zip(positions[1:], fields[1:], strict=True):
            folder = self.exports[index].folder
            if member["pred"].shape != fields[0]["pred"].shape:
                shapes = f"{fields[0]['pred'].shape} and {member['pred'].shape}"
                raise DataError(f"sample {sample_id} differs in size between {first} and {folder}: {shapes}")
            named = all(self.exports[position].infos[sample_id] for position in (positions[0], index))
            targets = [part["target"] for part in (fields[0], member) if "target" in part]
            # Without manifests only the number says which patch it is: let the targets prove it.
            if not named and len(targets) == 2 and not np.array_equal(targets[0], targets[1]):
                raise DataError(f"sample {sample_id} has another target in {first} than in {folder}")
        return list(fields)

    def _check_identity(self, sample_id: int) -> None:
        known: dict[str, tuple[object, Path]] = {}
        for member in self.exports:
            info = member.infos.get(sample_id, {})
            for key in (key for key in _IDENTITY if key in info):
                value, folder = known.setdefault(key, (info[key], member.folder))
                if value != info[key]:
                    raise DataError(
                        f"sample {sample_id} is {key} {value} in {folder}, but {info[key]} in {member.folder}: these "
                        "members were tested on different samples"
                    )

    def _describe(self, sample_id: int) -> str:
        info = self.info(sample_id)
        return f" ({info['roi']}, patch {info['patch']})" if {"roi", "patch"} <= set(info) else ""


def read_target(info: Mapping[str, object], root: str, sample_id: int) -> Image:
    """The target of a sample, (13,H,W) reflectance, from the data set at `root` by its path in the manifest."""
    path = str(info.get("target_path", ""))
    if not path or ";" in path:
        raise DataError(f"sample {sample_id} has no exported target, and no manifest names its file; export it again")
    if not root:
        raise UsageError(f"sample {sample_id} has no exported target: name the data set by --root to read {path}")
    return _read_optical(root, path)


def read_inputs(info: Mapping[str, object], root: str) -> Image | None:
    """The optical inputs of a sample, (T,13,H,W) reflectance; None without `root` or paths in the manifest."""
    paths = info.get("input_paths")
    if not root or not isinstance(paths, list) or not paths or any(";" in path for path in paths):
        return None
    return np.stack([_read_optical(root, path) for path in paths])


def _read_optical(root: str, path: str) -> Image:
    from data.raster.image_store import open_images
    from data.raster.rescaling import optical_to_unit

    return optical_to_unit(open_images(root).read(path, N_S2)[0])


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The names of the runs where they tell the members apart, else the paths."""
    names = []
    for folder in folders:
        parts = folder.resolve().parts
        names.append(parts[parts.index("export") - 1] if "export" in parts[1:] else folder.resolve().name)
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
