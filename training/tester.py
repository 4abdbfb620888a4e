"""The test of a trained run."""

from collections.abc import Sequence
from pathlib import Path

from common import process_group
from common.files import write_json
from common.memory import memory_advice
from common.run_folder import RunFolder
from config.schema import Config
from data.loaders import build_test_loader
from evaluation.evaluate import Evaluation, reporting
from model.build import build_loss
from model.restore import restore_model
from model.runtime import count_parameters
from training.run import set_up_run

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
    with memory_advice(config.device, MEMORY_FLAGS):
        setup = set_up_run(config)
        source = RunFolder(weights.parent, weights.name)
        checkpoint = source.checkpoint(config.resume_at) if config.resume_at > 0 else source.best
        model, epoch = restore_model(config, checkpoint, setup.device)
        with process_group.rank_zero_only():
            loader = build_test_loader(config)
        folder = setup.folder
        if process_group.is_rank_zero():
            folder.create()
            same_run = folder.conf.exists() and source.conf.exists() and folder.conf.samefile(source.conf)
            write_json(folder.path / "test_conf.json" if same_run else folder.conf, config.to_json())
        process_group.barrier()
        print(
            f"{checkpoint}, epoch {epoch}: {config.model}, head {config.head}, {count_parameters(model):,} parameters"
        )
        shared = process_group.describe_processes(config.batch_size)
        print(f"test samples: {len(loader.patches)}; {setup.description}{shared}")
        evaluation = Evaluation(config, folder, build_loss(config), setup.compute, None, command)
        with reporting(lambda: loader.skipped):
            evaluation.test(model, loader, epoch)
