"""From an evaluated split to its report: what is remembered of each sample, and the few that are predicted again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import process_group
from common.errors import DataError
from config.schema import Config
from data.batch import Batch, Collate, Indexed
from data.constants import N_S1, N_S2
from data.loaders import PatchLoader, Subset
from evaluation.bands import BandMeter
from evaluation.baselines import trivial_predictions
from evaluation.metrics import EvaluationMeter, batch_metrics
from evaluation.sample_records import SampleRecord, choose, record_of
from model.predictions import Prediction
from model.reconstructor import Reconstructor
from model.runtime import Compute
from report.cards import Missing
from report.samples import Case, Output, decibels
from report.test_page import Tested, write_report

Observer = Any


class SplitLog:
    """What a report needs of a whole split, without its pixels: a record of each sample, sums of each band."""

    def __init__(self) -> None:
        self.records: list[SampleRecord] = []
        self.bands = BandMeter()

    def watch(self, meter: EvaluationMeter) -> Observer:
        """An observer of batches that stands behind the one by which `meter` measures them."""

        def observe(first: int, batch: Batch, prediction: Prediction) -> None:
            self.bands.add(batch.target, prediction.mean, prediction.total)
            rows = meter.per_image[-batch.n :]
            for position, (info, row) in enumerate(zip(batch.info, rows, strict=True)):
                told = info.to_json() | {"coverage": batch.coverage[position].tolist()}
                self.records.append(record_of(first + position, told, row))

        return observe

    def join(self) -> None:
        """Take in what other processes have seen; all of them call this."""
        self.records = sorted(
            (record for own in process_group.all_gather_object(self.records) for record in own),
            key=lambda record: record.id,
        )
        self.bands.join(process_group.all_gather_object(self.bands.parts()))


def report_test(
    folder: Path,
    config: Config,
    model: Reconstructor,
    loader: PatchLoader,
    compute: Compute,
    log: SplitLog,
    metrics: Mapping[str, Any],
    comparison: Mapping[str, Any],
    command: Sequence[str],
    epoch: int,
) -> Path:
    """Write the report of a test; one process does, alone.

    Args:
        folder: of the run.
        config: its flags.
        model: the network.
        loader: of the split.
        compute: device and precision.
        log: of all samples.
        metrics: as in `test_metrics.json`.
        comparison: as in `comparison.json`.
        command: the words of the command line; empty for the test that ends a training.
        epoch: of the weights.

    Returns:
        The path of the report.

    Raises:
        DataError: if it cannot be written, or a sample cannot be read again.
    """
    cases = [_case(label, record, config, model, loader, compute) for label, record in choose(log.records)]
    typed = shlex.join(["python", *command]) if command else ""
    samples = metrics["images"]
    root = config.root3 if config.pretrain else config.root2
    series = "single dates" if config.pretrain else f"series of {config.input_t} dates"
    tested = Tested(
        kicker="Test report",
        title=config.experiment_name,
        facts=[
            ("model", f"{config.model}, head {config.head}, epoch {epoch}"),
            ("data", f"{root}, test split, {series}, {'with' if config.use_sar else 'without'} radar"),
            ("samples", f"{samples:,}"),
        ],
        metrics=metrics,
        comparison=comparison,
        networks=[config.model],
        cases=cases,
        command=typed or _own_command(config),
        command_words="The command line of this test:"
        if typed
        else "This test ended a training. The same test by itself:",
        configuration=config.to_json(),
        missing=Missing(radar="No radar: this network takes optical images only (--use_sar was not given)."),
        methods_note="The other rows need no training: " + _BASELINE_WORDS,
    )
    return write_report(folder, tested)


_BASELINE_WORDS = "the input with the least cloud, the mean of the inputs, and the mean of their clear pixels."


def _own_command(config: Config) -> str:
    names = {
        "--experiment_name": config.experiment_name,
        "--root1": config.root1,
        "--root2": config.root2,
        "--root3": config.root3,
        "--weight_folder": config.res_dir,
        "--device": config.device,
    }
    return shlex.join(["python", "test_reconstruct.py", *(word for pair in names.items() for word in pair)])


@torch.inference_mode()
def _case(
    label: str,
    record: SampleRecord,
    config: Config,
    model: Reconstructor,
    loader: PatchLoader,
    compute: Compute,
) -> Case:
    """A sample, read and predicted again: keeping all until the best and the worst are known takes too much memory."""
    item = Subset(loader.patches.whole, [record.index], config.use_sar)[0]
    if not isinstance(item, Indexed):
        raise DataError(item.reason)
    batch = Collate(config.use_sar)([item]).to(compute.device)
    prediction = compute.predict(model, batch).unscaled(model.scale_by)
    baselines = {
        name: batch_metrics(batch.target, image)[0]["RMSE"]
        for name, image in trivial_predictions(batch.x[:, :, -N_S2:], batch.masks, batch.coverage).items()
    }
    best = min(baselines, key=lambda name: baselines[name])
    x = _array(batch.x[0])  # (T,C,H,W)
    return Case(
        label,
        record,
        target=_array(batch.target[0, 0]),
        inputs=x[:, -N_S2:],
        radar=decibels(x[:, 0]) if x.shape[1] == N_S1 + N_S2 else None,
        outputs={config.model: _output(prediction)},
        rmse={config.model: record.rmse},
        baseline=(best, baselines[best]),
    )


def _output(prediction: Prediction) -> Output:
    parts = (prediction.aleatoric, prediction.epistemic, prediction.total)
    return Output(_array(prediction.mean[0, 0]), *(None if part is None else _array(part[0, 0]) for part in parts))


def _array(image: Tensor) -> np.ndarray:
    return image.float().cpu().numpy()
