"""One split, looked at from every side: loss, metrics, calibration, baselines, plots, exports, log."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import process_group
from common.errors import DataError
from common.files import atomic_file, write_json
from common.run_folder import RunFolder
from config.schema import Config
from data.batch import Batch, Skipped
from data.constants import DATE_ORIGIN, N_S2, RGB
from data.loaders import PatchLoader
from evaluation.baselines import ComparisonTable, trivial_predictions
from evaluation.charts import plot_coverage, plot_discard, plot_reliability, plot_strata
from evaluation.exports import ExportWriter
from evaluation.image_metrics import Reference
from evaluation.images import SampleRow, plot_sample, plot_samples
from evaluation.metrics import EvaluationMeter
from evaluation.sample_records import FILE as SAMPLES_FILE
from evaluation.sample_records import write_records
from evaluation.showing import SplitLog, report_test
from model.predictions import Prediction
from model.reconstructor import Reconstructor
from model.runtime import Compute
from report.test_page import report_or_say_why

if TYPE_CHECKING:  # importing tensorboard takes a second
    from torch.utils.tensorboard import SummaryWriter

Criterion = Callable[[Prediction, Tensor], Tensor]
Observer = Callable[[int, Batch, Prediction], None]  # first sample's id, the batch, its prediction in reflectance
HEADLINE = ("RMSE", "MAE", "PSNR", "SAM", "SSIM", "NLL", "ENCE", "UCE SE", "AUCE SE")


@torch.inference_mode()
def evaluate(
    model: Reconstructor,
    loader: Iterable[Batch],
    criterion: Criterion | None,
    compute: Compute,
    *,
    title: str,
    steps: int | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, float]:
    """Predict every sample of `loader`, show each batch to the observers, and average the loss.

    Of several processes each predicts its share of every batch and shows that to its own observers; sample ids are
    those that one process would count, and loss and number are of all.

    Args:
        model: the network, put into eval mode.
        loader: batches on the CPU.
        criterion: (prediction, target) in scaled units; None if no loss is wanted.
        compute: device and precision.
        title: what the progress bar says.
        steps: number of batches, for the progress bar.
        observers: called with the id of the batch's first sample (samples are counted, known issue 7), the batch on the
            device and the prediction in reflectance.

    Returns:
        `loss` (mean over samples, NaN without a criterion), `samples`, `epoch_time` (s).

    Raises:
        DataError: if no sample could be read.
    """
    model.eval()
    total, seen, own, started = torch.zeros((), device=compute.device), 0, 0, time.perf_counter()
    with tqdm(
        loader, total=steps, desc=title, unit="batch", dynamic_ncols=True, disable=not process_group.is_rank_zero()
    ) as bar:
        for cpu_batch in bar:
            shares = process_group.all_gather_int(cpu_batch.n)
            first = seen + sum(shares[: process_group.rank()])
            seen, own = seen + sum(shares), own + cpu_batch.n
            if not cpu_batch.n:
                continue
            batch = cpu_batch.to(compute.device, non_blocking=True)
            prediction = compute.predict(model, batch)
            if criterion is not None:
                total = total + criterion(prediction, batch.target * model.scale_by) * batch.n
            prediction = prediction.unscaled(model.scale_by)
            for observe in observers:
                observe(first, batch, prediction)
    if not seen:
        raise DataError(f"no sample of the {title} split could be read; the list of unreadable patches tells why")
    loss = process_group.all_reduce_mean(total.item(), own) if criterion is not None else math.nan
    return {"loss": loss, "samples": seen, "epoch_time": time.perf_counter() - started}


class Evaluation:
    """Evaluates a model on a split and leaves metrics, plots and exports in the run's folder.

    Several processes share the samples; each exports and plots its own, all know the metrics, and the first writes
    what is of all.

    Args:
        config: the run's flags.
        folder: where it writes.
        criterion: the loss, in scaled units.
        compute: device and precision.
        log: TensorBoard, or None.
        command: the words of the command line of a test, for its report.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        criterion: Criterion,
        compute: Compute,
        log: "SummaryWriter | None",
        command: Sequence[str] = (),
    ) -> None:
        self.config, self.folder, self.criterion, self.compute, self.log = config, folder, criterion, compute, log
        self.command = command

    def run(
        self,
        model: Reconstructor,
        loader: PatchLoader,
        split: str,
        epoch: int,
        *,
        baselines: bool = False,
        samples: SplitLog | None = None,
    ) -> tuple[dict[str, Any], ComparisonTable | None]:
        """Evaluate `model` on `loader`.

        Args:
            model: a Reconstructor.
            loader: batches of the split.
            split: "val" or "test", for names.
            epoch: the epoch of the weights, for names.
            baselines: put the trivial baselines beside the model, overall and by cloud cover.
            samples: takes in every sample, for a report.

        Returns:
            The metrics as they are written to `SPLIT_metrics.json`, and the table of the baselines or None.
        """
        meter = EvaluationMeter(has_variance=self.config.head != "mean")
        table = ComparisonTable() if baselines else None
        name = self.config.model
        writer: ExportWriter | None = None
        plots: _Plots | None = None
        with ExitStack() as stack:
            observers: list[Observer] = [_measure(meter, table, name)]
            if samples is not None:
                observers.append(samples.watch(meter))
            if self.config.export_every > 0:
                writer = stack.enter_context(_exporter(self.folder.exports(epoch, split)))
                observers.append(_export(writer, self.config.export_every))
            if self.config.plot_every > 0:
                title = f"{self.config.experiment_name}, epoch {epoch}, {split}"
                plots = _Plots(self.folder.plots(epoch, split), self.config.plot_every, title)
                stack.callback(plots.close)
                observers.append(plots)
            if self.log is not None:
                observers.append(_show(self.log, split, epoch, self.config.use_sar))
            result = evaluate(
                model,
                loader,
                self.criterion,
                self.compute,
                title=split,
                steps=len(loader),
                observers=observers,
            )
            if process_group.world_size() > 1:
                _join(meter, table, writer, plots)
                if samples is not None:
                    samples.join()
        metrics: dict[str, Any] = {"loss": result["loss"], "samples": result["samples"], **meter.summary()}
        metrics |= {"legacy": self.config.legacy, "precision": str(self.compute.dtype or "float32")}
        if samples is not None:
            metrics["bands"] = samples.bands.summary()
        if self.log is not None:
            for name, value in scalars(split, metrics).items():
                self.log.add_scalar(name, value, epoch)
        return metrics, table

    def test(self, model: Reconstructor, loader: PatchLoader, epoch: int) -> dict[str, Any]:
        """Evaluate on the test split beside the trivial baselines; write and print what came out, the report last.

        Args:
            model: a Reconstructor.
            loader: batches of the test split.
            epoch: the epoch of the weights.

        Returns:
            The metrics of `test_metrics.json`.
        """
        samples = SplitLog()
        metrics, table = self.run(model, loader, "test", epoch, baselines=True, samples=samples)
        assert table is not None
        if not process_group.is_rank_zero():
            return metrics
        path = self.folder.write_metrics("test", metrics)
        write_records(self.folder.path / SAMPLES_FILE, samples.records)
        write_json(self.folder.path / "comparison.json", table.to_json())
        with atomic_file(self.folder.path / "comparison.md") as temporary:
            temporary.write_text(table.markdown(), encoding="utf-8")
        if "discard curve SE" in metrics:
            named = {self.config.experiment_name: metrics}
            plot_discard(metrics["discard curve SE"], self.folder.path)
            plot_reliability(named, self.folder.path / "plot_test_reliability.png")
            plot_coverage(named, self.folder.path / "plot_test_coverage.png")
            title = f"{self.config.experiment_name}, test, by cloudiness of the pixel"
            plot_strata(metrics, self.folder.path / "plot_test_calibration_by_cloud.png", title)
        print(f"\n{table.markdown()}")
        shown = [name for name in HEADLINE if name in metrics]
        print(", ".join(f"{name} {metrics[name]:.4g}" for name in shown))
        print(f"metrics: {path}\ncomparison: {self.folder.path / 'comparison.md'}")
        for name, every, place in (
            ("plots", self.config.plot_every, self.folder.plots),
            ("exports", self.config.export_every, self.folder.exports),
        ):
            if every > 0:
                print(f"{name}: {place(epoch, 'test')}")
        found = (samples, metrics, table.to_json(), self.command, epoch)
        report_or_say_why(lambda: report_test(self.folder.path, self.config, model, loader, self.compute, *found))
        return metrics


def scalars(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by the names they have in TensorBoard.

    Args:
        split: "val" or "test".
        metrics: as in `SPLIT_metrics.json`.

    Returns:
        `SPLIT/FIGURE` for all pixels, and `SPLIT by cloud/FIGURE, at all dates` and so on for the strata, so that
        one figure's strata stand beside each other.
    """
    found = {f"{split}/{key}": value for key, value in metrics.items() if isinstance(value, float)}
    for stratum, figures in metrics["strata"].items():
        place = stratum.removeprefix("clouded ")
        found |= {f"{split} by cloud/{key}, {place}": v for key, v in figures.items() if isinstance(v, float)}
    return found


@contextmanager
def reporting(skipped: Callable[[], list[Skipped]]) -> Iterator[None]:
    """List at the end of the block what any process could not read; after an error, what this one could not."""
    try:
        yield
    except BaseException:
        report_skipped(skipped())
        raise
    report_skipped([entry for found in process_group.all_gather_object(skipped()) for entry in found])


def report_skipped(skipped: list[Skipped]) -> None:
    """List the patches that could not be read, each once."""
    reasons = {entry.path: entry.reason for entry in skipped}
    if reasons:
        print(f"{len(reasons)} unreadable patches were skipped:")
        for path, reason in reasons.items():
            print(f"  {path}: {reason}")


def _measure(meter: EvaluationMeter, table: ComparisonTable | None, name: str) -> Observer:
    """Measure the network, and with a table the trivial baselines beside it."""

    def observe(first: int, batch: Batch, prediction: Prediction) -> None:
        at_once = 1 if batch.x.device.type == "cpu" else batch.n  # on a CPU what is at work stays in the cache
        for start in range(0, batch.n, at_once):
            part = slice(start, start + at_once)
            reference = Reference(batch.target[part])
            masks, coverage = batch.masks[part], batch.coverage[part]
            rows = meter.add(reference, prediction.map(itemgetter(part)), masks, first + start)
            if table is None:
                continue
            table.add(name, rows, coverage)
            for baseline, mean in trivial_predictions(batch.x[part, :, -N_S2:], masks, coverage).items():
                table.add(baseline, reference.metrics(mean), coverage)

    return observe


def _exporter(folder: Path) -> ExportWriter:
    """A writer of this process's samples into a folder that is cleared of those of an earlier evaluation."""
    writer = ExportWriter(folder, alone=process_group.world_size() == 1)
    if process_group.world_size() > 1:
        if process_group.is_rank_zero():
            writer.clear()
        process_group.barrier()
    return writer


def _join(
    meter: EvaluationMeter, table: ComparisonTable | None, writer: ExportWriter | None, plots: "_Plots | None"
) -> None:
    """Let meter and table know what those of all processes took in; the first writes one manifest and one sheet."""
    meter.join(process_group.all_gather_object(meter.parts()))
    if table is not None:
        table.join(process_group.all_gather_object(table))
    if writer is not None:
        entries = process_group.all_gather_object(writer.finished())
        if process_group.is_rank_zero():
            writer.adopt({number: entry for own in entries for number, entry in own.items()})
    if plots is not None:
        plots.join()


def _export(writer: ExportWriter, every: int) -> Observer:
    def observe(first: int, batch: Batch, prediction: Prediction) -> None:
        for position in range(batch.n):
            if (first + position) % every == 0:
                item = prediction.item(position)
                info = batch.info[position].to_json() | {"coverage": batch.coverage[position].tolist()}
                writer.write(first + position, item, batch.target[position], info)

    return observe


class _Plots:
    """Pictures of every k-th sample as it comes, and of the first few on one sheet at the end."""

    MOST_ROWS = 4

    def __init__(self, folder: Path, every: int, title: str) -> None:
        self.folder, self.every, self.title = folder, every, title
        self.rows: dict[int, SampleRow] = {}  # by number of the sample

    def __call__(self, first: int, batch: Batch, prediction: Prediction) -> None:
        for position in range(batch.n):
            if (first + position) % self.every:
                continue
            item, inputs, target = prediction.item(position), batch.x[position], batch.target[position]
            plot_sample(self.folder, first + position, inputs, target, item, batch.masks[position])
            if len(self.rows) < self.MOST_ROWS:
                info = batch.info[position]
                dates = [(DATE_ORIGIN + timedelta(days=day)).isoformat() for day in info.input_days]
                images = (inputs.cpu(), target[0].cpu(), item.mean[0, 0].cpu())
                variance = None if item.total is None else item.total[0, 0].cpu()
                cover = batch.coverage[position].tolist()
                place = f"{info.roi}, patch {info.patch}"
                self.rows[first + position] = SampleRow(*images, variance, dates, cover, place)

    def join(self) -> None:
        """Bring the first few samples of all processes to the first process, which draws the sheet."""
        numbers = sorted(number for own in process_group.all_gather_object(list(self.rows)) for number in own)[
            : self.MOST_ROWS
        ]
        found = process_group.all_gather_object({number: row for number, row in self.rows.items() if number in numbers})
        self.rows = (
            {number: row for own in found for number, row in own.items()} if process_group.is_rank_zero() else {}
        )

    def close(self) -> None:
        """Draw the sheet."""
        if self.rows:
            plot_samples([self.rows[number] for number in sorted(self.rows)], self.folder / "samples.png", self.title)


def _show(log: "SummaryWriter", split: str, epoch: int, use_sar: bool) -> Observer:
    """Pictures of the first sample for TensorBoard."""

    def picture(image: torch.Tensor) -> torch.Tensor:
        return (image[..., list(RGB), :, :].float() * 3).nan_to_num().clamp(0, 1).cpu()

    def observe(first: int, batch: Batch, prediction: Prediction) -> None:
        if first:
            return
        log.add_images(f"{split}/inputs", picture(batch.x[0, :, -N_S2:]), epoch)
        if use_sar:
            log.add_images(f"{split}/radar VV", batch.x[0, :, :1].float().cpu(), epoch)
        log.add_image(f"{split}/target", picture(batch.target[0, 0]), epoch)
        log.add_image(f"{split}/prediction", picture(prediction.mean[0, 0]), epoch)
        if prediction.total is not None:
            deviation = prediction.total[0, 0].float().mean(0, keepdim=True).sqrt().cpu()
            log.add_image(f"{split}/deviation, 0 to 0.1", (deviation * 10).nan_to_num().clamp(0, 1), epoch)

    return observe
