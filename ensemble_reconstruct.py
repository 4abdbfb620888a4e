"""Combine several tested models into one: mixture moments of their exports, metrics, plots and exports."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError, UsageError, run_command
from evaluation.ensemble import UNCERTAINTIES, Fields, Members, mix, read_inputs, read_target

if TYPE_CHECKING:
    from evaluation.sample_records import SampleRecord

Image = npt.NDArray[np.float32]


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "exports",
        nargs="+",
        metavar="EXPORT_DIR",
        help="a member's exports, RUN/export/epoch_E/test, or RUN",
    )
    parser.add_argument("--root", default="", help="the data set, for targets that were not exported and for inputs")
    parser.add_argument(
        "--uncertainty",
        choices=UNCERTAINTIES,
        default="both",
        help="aleatoric: mean of the members' variances; epistemic: variance of their means; both: the sum (default)",
    )
    parser.add_argument("--res_dir", default="./ensemble", help="where metrics, plots and exports go")
    parser.add_argument("--allow_missing", action="store_true", help="average over the members that have a sample")
    parser.add_argument("--plot_every", type=int, default=-1, help="plot every N-th sample; -1 none (default)")
    parser.add_argument("--export_every", type=int, default=1, help="export every N-th sample; -1 none (default 1)")
    parser.add_argument("--device", default="cpu", help="where metrics are computed: cpu (default), cuda, cuda:N")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Ensemble as the flags say; see `--help`."""
    args = build_parser().parse_args(argv)
    if args.uncertainty == "epistemic" and len(args.exports) == 1:
        raise UsageError("--uncertainty epistemic is the spread between members: name two or more export folders")
    members, out = Members(args.exports, args.allow_missing), Path(args.res_dir)
    folders = [member.folder.resolve() for member in members.exports]
    twice = next((folder for index, folder in enumerate(folders) if folder in folders[:index]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; every member counts once")
    if (out / "export").resolve() in folders:
        raise UsageError(f"--res_dir {out} would overwrite the exports of a member; choose another folder")
    print(f"ensemble of {len(members.exports)} members, {len(members.ids)} samples: {', '.join(members.names)}")
    if members.missing:
        print(f"note: {len(members.missing)} predictions are missing; the members that are there were averaged")
    from training.run import memory_advice

    with memory_advice(args.device, "samples are mixed one by one; use --device cpu, or a machine with more memory"):
        ensemble(args, members, out, sys.argv[1:] if argv is None else argv)
    return 0


def ensemble(args: argparse.Namespace, members: Members, out: Path, words: Sequence[str]) -> None:
    """Evaluate, plot and export the mixture of all samples, report on it, and say where everything is.

    Args:
        args: the flags.
        members: the exports.
        out: where everything goes.
        words: of the command line, for the report.
    """
    from common.files import write_json
    from evaluation.charts import plot_coverage, plot_discard, plot_reliability
    from evaluation.sample_records import FILE, SampleRecord, write_records
    from report.ensemble_page import report_ensemble
    from report.test_page import report_or_say_why

    records: list[SampleRecord] = []
    report, table = evaluate(args, members, out, records)
    write_json(out / "test_metrics.json", report)
    write_records(out / FILE, records)
    plots = plot_discard(report["discard curve SE"], out)
    plots.append(plot_reliability({"ensemble": report}, out / "plot_test_reliability.png"))
    plots.append(plot_coverage({"ensemble": report}, out / "plot_test_coverage.png"))
    print(f"{table}\nmetrics: {out / 'test_metrics.json'}\nplots: {', '.join(str(path) for path in plots)}")
    if args.plot_every > 0:
        print(f"pictures of samples: {out / 'plots'}")
    if args.export_every > 0:
        print(f"exports: {out / 'export'}")
    command = ["ensemble_reconstruct.py", *words]
    report_or_say_why(lambda: report_ensemble(out, members, vars(args), report, records, command))


def evaluate(
    args: argparse.Namespace, members: Members, out: Path, records: "list[SampleRecord]"
) -> tuple[dict[str, Any], str]:
    """Mix and measure every sample; plots and exports are written on the way.

    Args:
        args: the flags.
        members: the exports.
        out: where plots and exports go.
        records: receives that of each sample.

    Returns:
        What the metrics file tells, and a table of the ensemble beside its members.
    """
    import torch
    from tqdm import tqdm

    from evaluation.bands import BandMeter
    from evaluation.baselines import ComparisonTable
    from evaluation.exports import ExportWriter
    from evaluation.image_metrics import Reference
    from evaluation.images import plot_sample
    from evaluation.metrics import EvaluationMeter
    from evaluation.sample_records import record_of
    from model.predictions import Gaussian
    from training.run import choose_device

    device = choose_device(args.device)
    meter, table, splits = EvaluationMeter(has_variance=True), ComparisonTable(), []
    bands = BandMeter()

    def tensor(image: Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image, dtype=np.float32)).to(device)[None, None]  # (1,1,13,H,W)

    with ExportWriter(out / "export") as writer:
        for number, sample_id in enumerate(tqdm(members.ids, desc="ensemble", unit="sample")):
            fields, info = members.load(sample_id), members.info(sample_id)
            target = tensor(_target(fields, info, args.root, sample_id))
            mixture = mix(fields)
            if mixture.aleatoric is None and args.uncertainty != "epistemic":
                raise DataError(f"a member has no variance for sample {sample_id}: use --uncertainty epistemic")
            prediction = Gaussian(tensor(mixture.mean), tensor(mixture.variance(args.uncertainty)))
            coverage = torch.tensor([info["coverage"]]) if info.get("coverage") else None
            reference = Reference(target)
            rows = meter.add(reference, prediction)
            bands.add(target, prediction.mean, prediction.total)
            records.append(record_of(sample_id, info, rows[0]))
            table.add("ensemble", rows, coverage)
            for position, member in zip(members.present(sample_id), fields, strict=True):
                table.add(members.names[position], reference.metrics(tensor(member["pred"])), coverage)
            if mixture.member_split:
                splits.append(mixture.member_split)
            if args.export_every > 0 and number % args.export_every == 0:
                writer.write(sample_id, prediction, target, info)
            if args.plot_every > 0 and number % args.plot_every == 0:
                plot_sample(out / "plots", sample_id, read_inputs(info, args.root), target, prediction)
    report: dict[str, Any] = {
        "members": [str(member.folder) for member in members.exports],
        "uncertainty": args.uncertainty,
        "distribution": "normal, with the mixture's mean and the variance that --uncertainty names",
        "missing predictions": len(members.missing),
        **meter.summary(),
        "bands": bands.summary(),
    }
    if splits:
        report["member split"] = dict(zip(("aleatoric", "epistemic"), np.mean(splits, axis=0).tolist(), strict=True))
    return {**report, "comparison": table.to_json()}, table.markdown()


def _target(fields: Sequence[Fields], info: Mapping[str, Any], root: str, sample_id: int) -> Image:
    """The exported target, or that of the data set."""
    target = next((member["target"] for member in fields if "target" in member), None)
    target = read_target(info, root, sample_id) if target is None else target
    expected = fields[0]["pred"].shape
    if target.shape != expected:
        raise DataError(f"sample {sample_id}: its target has shape {target.shape}, the predictions have {expected}")
    return target


if __name__ == "__main__":
    raise SystemExit(run_command(main))
