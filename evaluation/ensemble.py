"""Ensembles: the exports of several models as one mixture, evaluated like a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import DataError, UsageError
from common.files import write_json
from data.raster.missing import missing_pixels
from evaluation.accumulator import EvaluatedBatch
from evaluation.bands import BandMeter
from evaluation.baselines import ComparisonTable, comparison_markdown
from evaluation.charts import plot_coverage, plot_discard, plot_reliability
from evaluation.exports import ExportWriter, exported_target, read_exports, read_inputs
from evaluation.images import plot_sample
from evaluation.mixture import Fields, Image, PredictedImages, check_fields, mix
from evaluation.sample_records import FILE, SampleRecord, SampleRecorder, write_records
from evaluation.split_metrics import SplitMetrics
from model.predictions import Gaussian
from model.runtime import choose_device

NAME = "ensemble"
_IDENTITY = ("roi", "patch", "target_path")  # entries of a manifest that must agree between members


class Members:
    """The exports of an ensemble's members, checked to be about the same samples.

    Args:
        folders: of each member's exports.
        allow_missing: accept members that lack some samples.

    Raises:
        DataError: if a folder has no exports, a member lacks a sample (unless allowed), or manifests disagree about a
            sample.
        UsageError: if a folder is given twice.
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
        paths = [member.folder.resolve() for member in self.exports]
        duplicate = next((path for index, path in enumerate(paths) if path in paths[:index]), None)
        if duplicate is not None:
            raise UsageError(f"{duplicate} is named twice; every member counts once")

    def present(self, sample_id: int) -> list[int]:
        """Positions of the members that have the sample."""
        return [index for index, member in enumerate(self.exports) if sample_id in member.infos]

    def info(self, sample_id: int) -> dict[str, Any]:
        """The manifest's entry about the sample; empty without a manifest."""
        return next((m.infos[sample_id] for m in self.exports if m.infos.get(sample_id)), {})

    def load(self, sample_id: int) -> list[Fields]:
        """The fields of the members that have the sample, in the order of `present`.

        Raises:
            DataError: if they differ in size or in their targets, or hold impossible values.
        """
        positions = self.present(sample_id)
        fields = [self.exports[index].load(sample_id) for index in positions]
        first = self.exports[positions[0]].folder
        for index, member in zip(positions[1:], fields[1:], strict=True):
            folder = self.exports[index].folder
            if member["pred"].shape != fields[0]["pred"].shape:
                shapes = f"{fields[0]['pred'].shape} and {member['pred'].shape}"
                raise DataError(f"sample {sample_id} differs in size between {first} and {folder}: {shapes}")
            identified = all(self.exports[position].infos[sample_id] for position in (positions[0], index))
            targets = [part["target"] for part in (fields[0], member) if "target" in part]
            # Without manifests only the id identifies the patch, so that the targets are compared.
            if not identified and len(targets) == 2 and not np.array_equal(targets[0], targets[1]):
                raise DataError(f"sample {sample_id} has another target in {first} than in {folder}")
        for index, member in zip(positions, fields, strict=True):
            check_fields(member, f"sample {sample_id} in {self.exports[index].folder}")
        return list(fields)

    def _check_identity(self, sample_id: int) -> None:
        expected: dict[str, tuple[object, Path]] = {}
        for member in self.exports:
            info = member.infos.get(sample_id, {})
            for key in (key for key in _IDENTITY if key in info):
                value, folder = expected.setdefault(key, (info[key], member.folder))
                if value != info[key]:
                    raise DataError(
                        f"sample {sample_id} is {key} {value} in {folder}, but {info[key]} in {member.folder}: these "
                        "members were tested on different samples"
                    )

    def _describe(self, sample_id: int) -> str:
        info = self.info(sample_id)
        return f" ({info['roi']}, patch {info['patch']})" if {"roi", "patch"} <= set(info) else ""


@dataclass(frozen=True)
class EnsembleResult:
    """The result of an ensemble: its members, the content of its `test_metrics.json`, and a record of each sample."""

    members: Members
    metrics: dict[str, Any]
    records: list[SampleRecord]


def evaluate_ensemble(
    folders: Sequence[str | Path],
    out: Path,
    *,
    uncertainty: str = "both",
    root: str = "",
    allow_missing: bool = False,
    plot_every: int = -1,
    export_every: int = 1,
    device: str = "cpu",
) -> EnsembleResult:
    """Mix and measure every sample of several models' exports, and write metrics, plots and exports.

    Args:
        folders: of each member's exports.
        out: folder of the results.
        uncertainty: the variance of the mixture, one of UNCERTAINTIES.
        root: the data set, for targets that were not exported and for inputs; may be empty.
        allow_missing: average over the members that have a sample.
        plot_every: plot every N-th sample; -1 for none.
        export_every: export every N-th sample; -1 for none.
        device: of the computation of metrics.

    Raises:
        DataError: if exports cannot be used, or a member lacks the variance.
        UsageError: if the folders or the device cannot be used.
    """
    if uncertainty == "epistemic" and len(folders) == 1:
        raise UsageError("--uncertainty epistemic is the spread between members: name two or more export folders")
    members = Members(folders, allow_missing)
    if (out / "export").resolve() in [member.folder.resolve() for member in members.exports]:
        raise UsageError(f"--res_dir {out} would overwrite the exports of a member; choose another folder")
    print(f"ensemble of {len(members.exports)} members, {len(members.ids)} samples: {', '.join(members.names)}")
    if members.missing:
        print(f"note: {len(members.missing)} predictions are missing; the members that have a sample are averaged")
    torch_device = choose_device(device)

    def tensor(image: Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image, dtype=np.float32)).to(torch_device)[None, None]  # (1,1,13,H,W)

    split_metrics, table, bands, recorder = SplitMetrics(), ComparisonTable(NAME), BandMeter(), SampleRecorder()
    member_splits = []
    with ExportWriter(out / "export") as writer:
        for number, sample_id in enumerate(tqdm(members.ids, desc="ensemble", unit="sample")):
            fields, info = members.load(sample_id), members.info(sample_id)
            target_image = exported_target(fields, info, root, sample_id)
            target, missing = tensor(target_image), missing_pixels(target_image)
            valid = None if missing is None else torch.from_numpy(~missing).to(torch_device)[None, None]
            mixture = mix([PredictedImages.from_fields(member) for member in fields])
            if mixture.aleatoric is None and uncertainty != "epistemic":
                raise DataError(f"a member has no variance for sample {sample_id}: use --uncertainty epistemic")
            mixed = mixture.prediction(uncertainty)
            assert mixed.total is not None
            prediction = Gaussian(tensor(mixed.mean), tensor(mixed.total))
            coverage = torch.tensor([info["coverage"]]) if info.get("coverage") else None
            batch = EvaluatedBatch(target, prediction, coverage=coverage, infos=[info], first=sample_id, valid=valid)
            for accumulator in (split_metrics, table, bands, recorder):
                accumulator.update(batch)
            for position, member in zip(members.present(sample_id), fields, strict=True):
                per_image = batch.parts[0].reference.metrics(tensor(member["pred"]))
                table.add(members.names[position], per_image, coverage)
            if mixture.member_split:
                member_splits.append(mixture.member_split)
            if export_every > 0 and number % export_every == 0:
                writer.write(sample_id, prediction, target, info)
            if plot_every > 0 and number % plot_every == 0:
                plot_sample(out / "plots", sample_id, read_inputs(info, root), target, prediction)
    metrics: dict[str, Any] = {
        "members": [str(member.folder) for member in members.exports],
        "uncertainty": uncertainty,
        "distribution": "normal, with the mixture's mean and the variance that --uncertainty names",
        "missing predictions": len(members.missing),
        **split_metrics.compute(),
        "bands": bands.compute(),
    }
    if member_splits:
        means = np.mean(member_splits, axis=0).tolist()
        metrics["member split"] = dict(zip(("aleatoric", "epistemic"), means, strict=True))
    metrics["comparison"] = table.compute()
    records = recorder.compute()
    _write_results(out, metrics, records)
    if plot_every > 0:
        print(f"pictures of samples: {out / 'plots'}")
    if export_every > 0:
        print(f"exports: {out / 'export'}")
    return EnsembleResult(members, metrics, records)


def _write_results(out: Path, metrics: dict[str, Any], records: Sequence[SampleRecord]) -> None:
    write_json(out / "test_metrics.json", metrics)
    write_records(out / FILE, records)
    plots = plot_discard(metrics["discard curve SE"], out)
    plots.append(plot_reliability({NAME: metrics}, out / "plot_test_reliability.png"))
    plots.append(plot_coverage({NAME: metrics}, out / "plot_test_coverage.png"))
    print(f"{comparison_markdown(metrics['comparison'])}\nmetrics: {out / 'test_metrics.json'}")
    print(f"plots: {', '.join(str(path) for path in plots)}")


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The names of the runs if they are distinct, else the paths."""
    names = []
    for folder in folders:
        parts = folder.resolve().parts
        names.append(parts[parts.index("export") - 1] if "export" in parts[1:] else folder.resolve().name)
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
