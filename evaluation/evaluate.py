"""Evaluation of a network on a split: loss, metrics, calibration, baselines, plots, exports, logs."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common import process_group
from common.errors import DataError
from common.files import write_json, write_text
from common.progress import progress_bar
from common.run_folder import RunFolder
from config.schema import Config
from data.batch import Batch, Collate, Indexed
from data.constants import N_S2, RGB
from data.loaders import PatchLoader, Subset
from evaluation.accumulator import Accumulator, EvaluatedBatch
from evaluation.bands import BandMeter
from evaluation.baselines import ComparisonTable, comparison_markdown, trivial_predictions
from evaluation.charts import metrics_by_stratum, plot_calibration, plot_coverage, plot_discard, plot_reliability
from evaluation.exports import ExportWriter
from evaluation.images import SamplePlots
from evaluation.sample_records import FILE, SampleImages, SampleRecord, SampleRecorder, choose_samples, write_records
from evaluation.split_metrics import SplitMetrics
from model.losses import LossFunction
from model.reconstructor import Reconstructor
from model.runtime import Compute

if TYPE_CHECKING:  # importing tensorboard takes a second
    from torch.utils.tensorboard import SummaryWriter

HEADLINE = ("RMSE", "MAE", "PSNR", "SAM", "SSIM", "NLL", "ENCE", "UCE SE", "AUCE SE")


@torch.inference_mode()
def evaluate(
    model: Reconstructor,
    loader: Iterable[Batch],
    criterion: LossFunction | None,
    compute: Compute,
    accumulators: Sequence[Accumulator] = (),
    *,
    title: str,
    steps: int | None = None,
) -> dict[str, float]:
    """Predict every sample of `loader`, update the accumulators with each batch, and average the loss.

    Of several processes each predicts its share of every batch; sample ids are those of a single process. At the end
    accumulators, loss and number of samples are those of all processes.

    Args:
        model: the network, put into eval mode.
        loader: batches on the CPU.
        criterion: the loss; None for none.
        compute: device and precision.
        accumulators: updated with each batch, and merged at the end; the same kinds in all processes.
        title: of the progress bar.
        steps: number of batches, for the progress bar.

    Returns:
        `loss` (mean over samples, NaN without a criterion), `samples`, `epoch_time` (s).

    Raises:
        DataError: if no sample could be read.
    """
    model.eval()
    total, n_own, n_all = torch.zeros((), device=compute.device), 0, 0
    started = time.perf_counter()
    with progress_bar(loader, steps, title) as bar:
        for cpu_batch in bar:
            counts = process_group.all_gather_int(cpu_batch.n)
            first = n_all + sum(counts[: process_group.rank()])
            n_own, n_all = n_own + cpu_batch.n, n_all + sum(counts)
            if not cpu_batch.n:
                continue
            batch = cpu_batch.to(compute.device, non_blocking=True)
            prediction = compute.predict(model, batch)
            if criterion is not None:
                total = total + criterion(prediction, batch.target * model.scale_by, batch.valid) * batch.n
            evaluated = EvaluatedBatch.from_batch(batch, prediction.unscaled(model.scale_by), first)
            for accumulator in accumulators:
                accumulator.update(evaluated)
            del evaluated  # its cached intermediates would add to the memory of the next forward pass
    if not n_all:
        raise DataError(f"no sample of the {title} split could be read; see the list of unreadable patches")
    states = process_group.all_gather_object([accumulator.state() for accumulator in accumulators])
    for accumulator, of_all in zip(accumulators, zip(*states, strict=True), strict=True):  # same kinds in each process
        accumulator.merge(of_all)
    loss = process_group.all_reduce_mean(total.item(), n_own) if criterion is not None else math.nan
    return {"loss": loss, "samples": n_all, "epoch_time": time.perf_counter() - started}


@dataclass(frozen=True)
class SplitResult:
    """The result of an evaluation.

    Attributes:
        epoch: of the weights.
        metrics: as in `SPLIT_metrics.json`.
        comparison: as in `comparison.json`; empty unless detailed.
        records: of every sample; empty unless detailed.
    """

    epoch: int
    metrics: dict[str, Any]
    comparison: dict[str, Any]
    records: list[SampleRecord]


@dataclass(frozen=True)
class Evaluation:
    """Evaluates networks on splits, and writes plots, exports and logs of the run.

    Several processes share the samples; each exports and plots its own, all get the metrics, and the first writes
    the files about all samples.

    Attributes:
        config: the flags of the run.
        folder: the run folder.
        criterion: the loss.
        compute: device and precision.
        log: TensorBoard, in the first process; else None.
    """

    config: Config
    folder: RunFolder
    criterion: LossFunction
    compute: Compute
    log: "SummaryWriter | None"

    def run(
        self,
        model: Reconstructor,
        loader: PatchLoader,
        split: str,
        epoch: int,
        *,
        detailed: bool = False,
        step: int = 0,
    ) -> SplitResult:
        """Evaluate a network.

        Args:
            model: the network.
            loader: of the split.
            split: "val" or "test", for names.
            epoch: the epoch of the weights, for names.
            detailed: also by band and by sample, and in comparison with the trivial baselines.
            step: in TensorBoard: the number of training batches before.
        """
        config = self.config
        accumulators: list[Accumulator] = [SplitMetrics()]
        if detailed:
            accumulators += [ComparisonTable(config.model), BandMeter(), SampleRecorder()]
        with ExitStack() as stack:
            if config.export_every > 0:
                folder, shared = self.folder.exports(epoch, split), process_group.world_size() > 1
                accumulators.append(stack.enter_context(ExportWriter(folder, config.export_every, shared)))
            if config.plot_every > 0:
                title = f"{config.experiment_name}, epoch {epoch}, {split}"
                folder = self.folder.plots(epoch, split)
                accumulators.append(SamplePlots(folder, config.plot_every, config.model, title))
            accumulators.append(FirstSampleLog(self.log, split, step, config.use_sar))
            steps = len(loader)
            loss = evaluate(model, loader, self.criterion, self.compute, accumulators, title=split, steps=steps)
        results = {type(accumulator): accumulator.compute() for accumulator in accumulators}
        metrics: dict[str, Any] = {"loss": loss["loss"], "samples": loss["samples"], **results[SplitMetrics]}
        metrics |= {"legacy": config.legacy, "precision": str(self.compute.dtype or "float32")}
        if detailed:
            metrics["bands"] = results[BandMeter]
        if self.log is not None:
            for name, value in tensorboard_scalars(split, metrics).items():
                self.log.add_scalar(name, value, step)
        return SplitResult(epoch, metrics, results.get(ComparisonTable, {}), results.get(SampleRecorder, []))

    def test(self, model: Reconstructor, loader: PatchLoader, epoch: int, step: int = 0) -> SplitResult:
        """Evaluate weights of an epoch in detail on the test split, and write and print the result."""
        result = self.run(model, loader, "test", epoch, detailed=True, step=step)
        if not process_group.is_rank_zero():
            return result
        path, name, metrics = self.folder.path, self.config.experiment_name, result.metrics
        table = comparison_markdown(result.comparison)
        metrics_path = self.folder.write_metrics("test", metrics)
        write_records(path / FILE, result.records)
        write_json(path / "comparison.json", result.comparison)
        write_text(path / "comparison.md", table)
        if "discard curve SE" in metrics:
            plot_discard(metrics["discard curve SE"], path)
            plot_reliability({name: metrics}, path / "plot_test_reliability.png")
            plot_coverage({name: metrics}, path / "plot_test_coverage.png")
            title = f"{name}, test, by cloudiness of the pixel"
            plot_calibration(metrics_by_stratum(metrics), path / "plot_test_calibration_by_cloud.png", title)
        print(f"\n{table}")
        print(", ".join(f"{figure} {metrics[figure]:.4g}" for figure in HEADLINE if figure in metrics))
        print(f"metrics: {metrics_path}\ncomparison: {path / 'comparison.md'}")
        if self.config.plot_every > 0:
            print(f"plots: {self.folder.plots(epoch, 'test')}")
        if self.config.export_every > 0:
            print(f"exports: {self.folder.exports(epoch, 'test')}")
        return result

    @torch.inference_mode()
    def predict_samples(
        self, model: Reconstructor, loader: PatchLoader, records: Sequence[SampleRecord]
    ) -> list[SampleImages]:
        """The images of the best, the median and the worst sample by RMSE.

        They are read and predicted again, because keeping the images of all samples would take too much memory.

        Raises:
            DataError: if a sample cannot be read again.
        """
        name, use_sar, samples = self.config.model, self.config.use_sar, []
        for label, record in choose_samples(records):
            item = Subset(loader.patches.dataset, [record.index], use_sar)[0]
            if not isinstance(item, Indexed):
                raise DataError(item.reason)
            batch = Collate(use_sar)([item]).to(self.compute.device)
            prediction = self.compute.predict(model, batch).unscaled(model.scale_by)
            evaluated = EvaluatedBatch.from_batch(batch, prediction, record.id)
            reference = evaluated.parts[0].reference
            baselines = {
                baseline: reference.metrics(image)[0]["RMSE"]
                for baseline, image in trivial_predictions(batch.x[:, :, -N_S2:], batch.masks, batch.coverage).items()
            }
            best = min(baselines.items(), key=lambda entry: entry[1])
            options = {"rmse": {name: record.rmse}, "baseline": best, "label": label}
            samples.append(SampleImages.from_batch(record, evaluated, 0, name, **options))
        return samples


class FirstSampleLog(Accumulator):
    """Images of the first sample of a split in TensorBoard, if there is a log."""

    def __init__(self, log: "SummaryWriter | None", split: str, step: int, use_sar: bool) -> None:
        self.log, self.split, self.step, self.use_sar = log, split, step, use_sar

    def update(self, batch: EvaluatedBatch) -> None:
        """Log the first sample of the first batch."""
        if self.log is None or batch.first or batch.inputs is None:
            return
        inputs, total = batch.inputs[0], batch.prediction.total
        self.log.add_images(f"{self.split}/inputs", _bright(inputs[:, -N_S2:]), self.step)
        if self.use_sar:
            self.log.add_images(f"{self.split}/radar VV", inputs[:, :1].float().cpu(), self.step)
        self.log.add_image(f"{self.split}/target", _bright(batch.target[0, 0]), self.step)
        self.log.add_image(f"{self.split}/prediction", _bright(batch.prediction.mean[0, 0]), self.step)
        if total is not None:
            deviation = total[0, 0].float().mean(0, keepdim=True).sqrt().cpu()
            scaled = (deviation * 10).nan_to_num().clamp(0, 1)
            self.log.add_image(f"{self.split}/deviation, 0 to 0.1", scaled, self.step)


def tensorboard_scalars(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by their names in TensorBoard.

    Args:
        split: "val" or "test".
        metrics: as in `SPLIT_metrics.json`.

    Returns:
        `SPLIT/FIGURE` for all pixels, and `SPLIT by cloud/FIGURE, at all dates` and so on for the strata, so that
        the strata of a figure are next to each other.
    """
    values = {f"{split}/{key}": value for key, value in metrics.items() if isinstance(value, float)}
    for name, stratum in metrics["strata"].items():
        dates = name.removeprefix("clouded ")
        values |= {f"{split} by cloud/{key}, {dates}": v for key, v in stratum.items() if isinstance(v, float)}
    return values


def _bright(image: Tensor) -> Tensor:
    """Red, green and blue of (...,13,H,W), reflectance 0 to 1/3 scaled to [0, 1]."""
    return (image[..., list(RGB), :, :].float() * 3).nan_to_num().clamp(0, 1).cpu()
