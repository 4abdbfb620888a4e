"""Tests of trained networks, and their reports."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from common import process_group
from common.files import write_json
from common.memory import memory_advice
from common.run_folder import RunFolder
from config.schema import Config
from data.loaders import PatchLoader, build_test_loader
from evaluation.evaluate import Evaluation, SplitResult
from evaluation.sample_records import SampleImages
from model.build import build_loss
from model.reconstructor import Reconstructor
from model.restore import restore_model
from model.runtime import count_parameters
from report.cards import Placeholders
from report.page import report_or_note
from report.test_page import TestReport, write_test_page
from training.run import lock_run_folder, print_skipped_at_exit, set_up_run

MEMORY_FLAGS = "lower --batch_size, use --precision bf16, or add --device cpu"


def test_run(config: Config, weights: Path, command: Sequence[str]) -> None:
    """Restore the network of a run and evaluate it on the test split.

    Args:
        config: the flags.
        weights: the folder of the trained run.
        command: the words of the command line, for the report.

    Raises:
        DataError: if data or checkpoint cannot be used, or memory runs out.
    """
    with lock_run_folder(config), memory_advice(config.device, MEMORY_FLAGS):
        setup = set_up_run(config)
        source = RunFolder(weights.parent, weights.name)
        checkpoint = source.checkpoint(config.resume_at) if config.resume_at > 0 else source.best
        model, epoch = restore_model(config, checkpoint, setup.device)
        with process_group.rank_zero_only():
            loader = build_test_loader(config)
        folder = setup.folder
        if process_group.is_rank_zero():
            folder.create()
            folder.sweep()
            same_run = folder.conf.exists() and source.conf.exists() and folder.conf.samefile(source.conf)
            write_json(folder.path / "test_conf.json" if same_run else folder.conf, config.to_json())
        process_group.barrier()
        print(
            f"{checkpoint}, epoch {epoch}: {config.model}, head {config.head}, {count_parameters(model):,} parameters"
        )
        shared = process_group.describe_processes(config.batch_size)
        print(f"test samples: {len(loader.patches)}; {setup.description}{shared}")
        evaluation = Evaluation(config, folder, build_loss(config), setup.compute, None)
        with print_skipped_at_exit(lambda: loader.skipped):
            evaluate_and_report(evaluation, model, loader, epoch, command)


def evaluate_and_report(
    evaluation: Evaluation,
    model: Reconstructor,
    loader: PatchLoader,
    epoch: int,
    command: Sequence[str] = (),
    step: int = 0,
) -> None:
    """Evaluate a network on the test split, then write `report.html`; a failing report is a note.

    Args:
        evaluation: of the run.
        model: the network.
        loader: of the test split.
        epoch: of the weights.
        command: the words of the command line; empty for the test at the end of a training.
        step: in TensorBoard.
    """
    result = evaluation.test(model, loader, epoch, step=step)
    if not process_group.is_rank_zero():
        return

    def write() -> Path:
        samples = evaluation.predict_samples(model, loader, result.records)
        return write_test_page(evaluation.folder.path, test_report(evaluation.config, result, samples, command))

    report_or_note(write)


def test_report(
    config: Config, result: SplitResult, samples: Sequence[SampleImages], command: Sequence[str]
) -> TestReport:
    """The content of the page of a test; see `evaluate_and_report`."""
    root = config.root3 if config.pretrain else config.root2
    series = "single dates" if config.pretrain else f"series of {config.input_t} dates"
    return TestReport(
        kicker="Test report",
        title=config.experiment_name,
        facts=[
            ("model", f"{config.model}, head {config.head}, epoch {result.epoch}"),
            ("data", f"{root}, test split, {series}, {'with' if config.use_sar else 'without'} radar"),
            ("samples", f"{result.metrics['images']:,}"),
        ],
        metrics=result.metrics,
        comparison=result.comparison,
        networks=[config.model],
        samples=samples,
        command=shlex.join(["python", *(command or _test_command(config))]),
        command_note="The command line of this test:"
        if command
        else "This test ended a training. The same test by itself:",
        configuration=config.to_json(),
        placeholders=Placeholders(radar="No radar: this network takes optical images only (--use_sar was not given)."),
        methods_note="The other rows need no training: the input with the least cloud, the mean of the inputs, and the "
        "mean of their clear pixels.",
    )


def _test_command(config: Config) -> list[str]:
    """The words of the test script for a run that was just trained."""
    flags = {
        "--experiment_name": config.experiment_name,
        "--root1": config.root1,
        "--root2": config.root2,
        "--root3": config.root3,
        "--weight_folder": config.res_dir,
        "--device": config.device,
    }
    return ["test_reconstruct.py", *(word for flag in flags.items() for word in flag)]
