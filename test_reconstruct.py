"""Test a trained network: restore its run, predict the test split, and write metrics, plots and exports."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parse_args import Config, parse, read_conf, restore
from util.errors import UsageError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Test as the flags say; see `--help`."""
    values, typed = parse("test", argv)
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
    from util.run import memory_advice

    with memory_advice(config.device, "lower --batch_size, use --precision bf16, or add --device cpu"):
        test(config, weights)
    return 0


def test(config: Config, weights: Path) -> None:
    """Restore the network of the run folder `weights` and evaluate it on the test split of `config`."""
    from data.loaders import build_test_loader
    from model.build import build_loss, choose_scan
    from model.engine import Compute, count_parameters
    from model.evaluation import Evaluation, report_skipped
    from model.restore import restore_model
    from util.atomic import write_json
    from util.memory import keep_freed_memory
    from util.run import RunFolder, choose_device, choose_precision, seed_everything

    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype, reason = choose_precision(config.precision, device)
    scan = choose_scan(config, device)
    seed_everything(config.rdm_seed)
    source = RunFolder(weights.parent, weights.name)
    checkpoint = source.checkpoint(config.resume_at) if config.resume_at > 0 else source.best
    model, epoch = restore_model(config, checkpoint, device)
    loader = build_test_loader(config)
    folder = RunFolder(Path(config.res_dir), config.experiment_name)
    folder.create()
    own_run = folder.conf.exists() and folder.conf.samefile(source.conf) if source.conf.exists() else False
    write_json(folder.path / "test_conf.json" if own_run else folder.conf, config.to_json())
    print(f"{checkpoint}, epoch {epoch}: {config.model}, head {config.head}, {count_parameters(model):,} parameters")
    print(f"test samples: {len(loader.patches)}; on {device}, precision {reason}{scan}")
    evaluation = Evaluation(config, folder, build_loss(config), Compute(device, dtype), None)
    try:
        evaluation.test(model, loader, epoch)
    finally:
        report_skipped(loader.skipped)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
