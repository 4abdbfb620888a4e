"""Test a trained network: restore its run, predict the test split, and write metrics, plots and exports."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import process_group as distributed
from common.errors import UsageError, run_command
from parse_args import Config, parse, read_conf, restore


def main(argv: Sequence[str] | None = None) -> int:
    """Test as the flags say; see `--help`. Processes that torchrun started share the samples."""
    with distributed.muted():
        values, typed = parse("test", argv)
    with distributed.session():
        config, weights = settle(values, typed)
        from training.run import memory_advice

        with memory_advice(config.device, "lower --batch_size, use --precision bf16, or add --device cpu"):
            words = sys.argv[1:] if argv is None else argv
            test(config, weights, ["test_reconstruct.py", *words])
    return 0


def settle(values: dict[str, Any], typed: set[str]) -> tuple[Config, Path]:
    """The configuration of a test, and the folder of the trained run.

    Args:
        values: what was typed, filled up with defaults.
        typed: the names of the flags that were typed.
    """
    weights = Path(values["weight_folder"]) / values["experiment_name"]
    conf = Path(values["load_config"]) if values["load_config"] else weights / "conf.json"
    if not conf.is_file():
        raise UsageError(
            f"there is no configuration {conf}; --weight_folder and --experiment_name must name a trained run, "
            "or --load_config its conf.json"
        )
    config, notes = restore(read_conf(conf), values, typed, "test")
    if config.precomputed and "precomputed" not in typed and not Path(config.precomputed).exists():
        notes.append(f"the run's --precomputed {config.precomputed} is not here; masks come from the data's own store")
        config = replace(config, precomputed="")
    for text in notes:
        print(f"note: {text}")
    distributed.require_batch(config.batch_size)
    return config, weights


def test(config: Config, weights: Path, command: Sequence[str]) -> None:
    """Restore the network of the run folder `weights` and evaluate it on the test split of `config`.

    Args:
        config: the flags.
        weights: the folder of the trained run.
        command: the words of the command line, for the report.
    """
    from common.files import write_json
    from common.memory import keep_freed_memory
    from data.loaders import build_test_loader
    from evaluation.evaluate import Evaluation, reporting
    from model.build import build_loss, choose_scan
    from model.restore import restore_model
    from training.engine import Compute, count_parameters
    from training.run import RunFolder, choose_device, choose_precision, seed_everything

    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype, reason = choose_precision(config.precision, device)
    scan = choose_scan(config, device)
    distributed.connect(device)
    seed_everything(config.rdm_seed)
    source = RunFolder(weights.parent, weights.name)
    checkpoint = source.checkpoint(config.resume_at) if config.resume_at > 0 else source.best
    model, epoch = restore_model(config, checkpoint, device)
    with distributed.muted():
        loader = build_test_loader(config)
    folder = RunFolder(Path(config.res_dir), config.experiment_name)
    if distributed.is_first():
        folder.create()
        own_run = folder.conf.exists() and folder.conf.samefile(source.conf) if source.conf.exists() else False
        write_json(folder.path / "test_conf.json" if own_run else folder.conf, config.to_json())
    distributed.barrier()
    print(f"{checkpoint}, epoch {epoch}: {config.model}, head {config.head}, {count_parameters(model):,} parameters")
    shared = distributed.words(config.batch_size)
    print(f"test samples: {len(loader.patches)}; on {device}, precision {reason}{scan}{shared}")
    evaluation = Evaluation(config, folder, build_loss(config), Compute(device, dtype), None, command)
    with reporting(lambda: loader.skipped):
        evaluation.test(model, loader, epoch)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
