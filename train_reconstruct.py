"""Train a network that reconstructs clouded images, then test its best epoch.

From the command line: flags -> run folder -> data -> model -> epochs, each validated and saved -> test of the best.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import process_group as distributed
from common.errors import DataError, UsageError, run_command
from parse_args import Config, parse, read_conf, resolve, restore

if TYPE_CHECKING:
    import torch

    from data.loaders import Loaders
    from evaluation.evaluate import Evaluation
    from training.engine import TrainState
    from training.run import RunFolder

TO_SAVE_MEMORY = (
    "lower --batch_size (--accumulate N keeps the gradient that of the larger batch), --input_t or the widths, "
    "or use --precision bf16"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say; see `--help`. Processes that torchrun started train together."""
    with distributed.muted():
        values, typed = parse("train", argv)
    with distributed.session():
        config, checkpoint = settle(values, typed)
        from training.run import memory_advice

        with memory_advice(config.device, TO_SAVE_MEMORY):
            train(config, checkpoint)
    return 0


def settle(values: dict[str, Any], typed: set[str]) -> tuple[Config, str]:
    """The configuration of a training that starts or goes on, and the checkpoint to go on from ("": the latest).

    Args:
        values: what was typed, filled up with defaults.
        typed: the names of the flags that were typed.
    """
    checkpoint = ""
    conf = Path(values["res_dir"]) / values["experiment_name"] / "conf.json"
    if values["resume_from"] and conf.is_file():
        stored = read_conf(conf)
        start_from = stored.get("trained_checkp") or ""
        if not _same_file(values["trained_checkp"], start_from):  # else: the command line of the start, typed again
            checkpoint = values["trained_checkp"]
        values["trained_checkp"] = start_from
        config, notes = restore(stored, values, typed - {"trained_checkp"}, "train")
    else:
        taken = []
        if values["model"] == "fusion_net" and values["experts"]:
            from model.fusion.experts import settle_experts

            taken = settle_experts(values, typed)
        config, notes = resolve(values, typed)
        notes = [*taken, *notes]
        if config.resume_from and not (config.root3 if config.pretrain else config.root1):
            raise UsageError(f"--resume_from: nothing to go on with, {conf} is missing; start without --resume_from")
        if config.resume_from:
            notes.append(f"{conf} is not there yet: this training starts with the flags given")
    for flag in ("root3",) if config.pretrain else ("root1", "root2"):
        if not getattr(config, flag):
            raise UsageError(
                f"--{flag} is missing: the folder of {'SEN12MS-CR' if flag == 'root3' else 'SEN12MS-CR-TS'}"
            )
    for text in notes:
        print(f"note: {text}")
    distributed.refuse(config)
    return config, checkpoint


def _same_file(one: str, other: str) -> bool:
    return bool(one and other) and Path(one).resolve() == Path(other).resolve()


def train(config: Config, checkpoint: str = "") -> None:
    """Run the whole training of `config`, going on from `checkpoint` or the latest epoch if it is to resume."""
    if config.model == "fusion_net":
        from training.fusion import train_fusion

        train_fusion(config, train)
        return
    from common.files import write_json
    from common.memory import keep_freed_memory
    from data.holdout import held_out_rois
    from data.loaders import build_loaders
    from evaluation.evaluate import Evaluation, reporting
    from model.build import build_loss, choose_scan
    from training.engine import Compute, count_parameters, profile_step
    from training.run import RunFolder, choose_device, choose_precision, seed_everything, tensorboard_log

    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype, reason = choose_precision(config.precision, device)
    scan = choose_scan(config, device)
    distributed.connect(device)
    folder = RunFolder(Path(config.res_dir), config.experiment_name)
    seed_everything(config.rdm_seed)
    with distributed.muted():
        config = replace(config, held_out=config.held_out or held_out_rois(config))
        loaders = build_loaders(config)
    state = start(config, folder, checkpoint, device)
    compute, criterion = Compute(device, dtype), build_loss(config)
    parts = {"train": loaders.train, "val": loaders.val, "test": loaders.test}
    sizes = ", ".join(f"{name} {len(part.patches) if part else 0}" for name, part in parts.items())
    print(f"{config.experiment_name}: {config.model}, head {config.head}, {count_parameters(state.model):,} parameters")
    print(f"samples: {sizes}; on {device}, precision {reason}{scan}{distributed.words(config.batch_size)}")
    if config.profile:
        for name, value in profile_step(state.model, criterion, next(iter(loaders.train)), compute).items():
            print(f"{name}: {value:,.4g}")
        return
    distributed.barrier()  # all have read the checkpoint to go on from
    if distributed.is_first():
        earlier = None if config.resume_from else folder.set_aside()
        if earlier is not None:
            print(f"note: an earlier training of this name is now in {earlier}")
        folder.create()
        folder.sweep()
        write_json(folder.conf, config.to_json())
    distributed.barrier()
    with ExitStack() as stack:
        log = None
        if distributed.is_first():
            purge = state.epoch * len(loaders.train) if state.epoch else None
            log = stack.enter_context(tensorboard_log(folder.logs, purge))
        stack.enter_context(reporting(lambda: loaders.skipped))
        evaluation = Evaluation(config, folder, criterion, compute, log)
        run_epochs(config, state, loaders, evaluation, folder)
        test_best(config, state, loaders, evaluation, folder)
    print(f"run folder: {folder.path}\nTensorBoard: tensorboard --logdir {folder.logs.parent}")


def start(config: Config, folder: "RunFolder", checkpoint: str, device: "torch.device") -> "TrainState":
    """A fresh state, one that starts from given weights, or one that goes on where a checkpoint stopped."""
    from model.build import build_model, build_optimizer, build_scheduler
    from training.checkpoint import resume
    from training.distributed import share_norms
    from training.engine import TrainState
    from training.pretrained import freeze, load_pretrained

    model = build_model(config).to(device)
    share_norms(model)
    optimizer = build_optimizer(model, config)
    state = TrainState(model, optimizer, build_scheduler(optimizer, config))
    if config.resume_from:
        epochs = folder.epochs()
        if not checkpoint and not config.resume_at and not epochs:
            print(f"note: no epoch is done yet in {folder.path}; starting from the first")
        else:
            path = Path(checkpoint) if checkpoint else folder.checkpoint(config.resume_at or epochs[-1])
            resume(path, state)
            print(f"going on after epoch {state.epoch}, from {path}")
            return state
    if config.trained_checkp:
        report = load_pretrained(model, Path(config.trained_checkp))
        print(report)
        state.frozen = freeze(model, report) if config.unfreeze_after > 0 else ()
    return state


def run_epochs(
    config: Config, state: "TrainState", loaders: "Loaders", evaluation: "Evaluation", folder: "RunFolder"
) -> None:
    """Train every epoch that is left; after each validate, keep the best, and save all that is needed to go on."""
    from common.files import write_json
    from evaluation.charts import plot_training
    from training.checkpoint import save_state
    from training.engine import train_one_epoch
    from training.pretrained import unfreeze
    from training.run import seed_others

    while state.epoch < config.epochs:
        epoch = state.epoch + 1
        if state.frozen and epoch > config.unfreeze_after:
            print(f"epoch {epoch}: {len(state.frozen)} frozen weights train from here on")
            unfreeze(state.model)
            state.frozen = ()
        loaders.set_epoch(epoch)
        seed_others(config.rdm_seed, epoch)
        row = train_one_epoch(
            state,
            loaders.train,
            evaluation.criterion,
            evaluation.compute,
            steps=len(loaders.train),
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            display_step=config.display_step,
            log=evaluation.log,
            rescue=folder.path,
        )
        state.scheduler.step()
        state.epoch = epoch
        state.trainlog[str(epoch)] = row
        if loaders.val is not None and epoch % config.val_every == 0 and epoch > config.val_after:
            metrics, _ = evaluation.run(state.model, loaders.val, "val", epoch)
            row |= {"val_loss": metrics["loss"], "val_RMSE": metrics["RMSE"], "val_PSNR": metrics["PSNR"]}
            if distributed.is_first():
                folder.write_metrics(f"val_epoch_{epoch}", metrics)
            best = metrics["loss"] <= state.best_loss
            words = "the best so far" if best else f"best so far {state.best_loss:.4f}"
            print(f"epoch {epoch}: val loss {metrics['loss']:.4f} ({words}), PSNR {metrics['PSNR']:.2f} dB", flush=True)
            if best:  # before the epoch's own checkpoint, so that a kill in between repeats this epoch
                state.best_loss = metrics["loss"]
                if distributed.is_first():
                    save_state(folder.best, state, config)
        if distributed.is_first():
            write_json(folder.path / "trainlog.json", state.trainlog)
            plot_training(state.trainlog, folder.path / "plot_training.png")
            save_state(folder.checkpoint(epoch), state, config)
        distributed.barrier()
        if math.isnan(row.get("val_loss", 0.0)):
            raise DataError(
                f"the validation loss is NaN after epoch {epoch}, whose weights are in {folder.checkpoint(epoch)}; "
                "try a lower --lr, --clip_grad 1, or --precision fp32"
            )


def test_best(
    config: Config, state: "TrainState", loaders: "Loaders", evaluation: "Evaluation", folder: "RunFolder"
) -> None:
    """Test the weights that were best on validation, or the last ones where no epoch was validated."""
    from training.checkpoint import load_weights, save_state

    if distributed.is_first() and not folder.best.exists():
        print("note: no epoch was validated; the last one is tested")
        save_state(folder.best, state, config)
    distributed.barrier()
    epoch = load_weights(folder.best, state.model)
    if loaders.test is None:
        print("note: there is no test split to test on")
    else:
        evaluation.test(state.model, loaders.test, epoch)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
