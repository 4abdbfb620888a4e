"""The story of a training: from a configuration to the test of its best weights."""

import math
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common import process_group
from common.errors import DataError
from common.files import atomic_file, write_json
from common.memory import memory_advice
from common.run_folder import RunFolder
from config.schema import Config
from data.holdout import held_out_rois
from data.loaders import Loaders, PatchLoader, build_loaders
from evaluation.charts import plot_training
from evaluation.evaluate import Evaluation
from model.build import build_loss, build_model, build_optimizer, build_scheduler
from model.registry import FUSION
from model.runtime import count_parameters
from training.checkpoint import checkpoint_epoch, is_validated, load_weights, resume, save_state, set_rates
from training.distributed import convert_sync_batchnorm
from training.engine import TrainState, profile_step, train_one_epoch
from training.fusion import train_fusion
from training.pretrained import freeze, load_pretrained, unfreeze
from training.run import (
    RunSetup,
    lock_run_folder,
    print_skipped_at_exit,
    refuse_fewer_epochs,
    seed_rank,
    set_up_run,
    start_run_folder,
    tensorboard_log,
)
from training.tester import evaluate_and_report

MEMORY_FLAGS = (
    "lower --batch_size (--accumulate N keeps the gradient that of the larger batch), --input_t or the widths, "
    "or use --precision bf16"
)


def fit(config: Config, checkpoint: str = "") -> None:
    """Train as the flags say, and test the weights that were best on validation.

    Args:
        config: the flags.
        checkpoint: the file to resume from; "" for that of the latest epoch.

    Raises:
        DataError: if data or checkpoints cannot be used, a loss is not finite, or memory runs out.
        UsageError: if a flag cannot be followed on this machine.
    """
    with lock_run_folder(config), memory_advice(config.device, MEMORY_FLAGS):
        if config.model == FUSION:
            train_fusion(config, fit)
        else:
            _fit(config, checkpoint)


def _fit(config: Config, checkpoint: str) -> None:
    setup = set_up_run(config)
    with process_group.rank_zero_only():
        config = replace(config, held_out=config.held_out or held_out_rois(config))
        loaders = build_loaders(config)
    state = initial_state(config, setup, checkpoint)
    criterion = build_loss(config)
    describe(config, setup, state, loaders)
    if config.profile:
        for name, value in profile_step(state.model, criterion, next(iter(loaders.train)), setup.compute).items():
            print(f"{name}: {value:,.4g}")
        return
    process_group.barrier()  # all have read the checkpoint to resume from
    if process_group.is_rank_zero():
        if config.resume_from:
            return_to_epoch(setup.folder, state)
        start_run_folder(setup.folder, config, state.epoch)
    process_group.barrier()
    with ExitStack() as stack:
        log = None
        if process_group.is_rank_zero():
            first_step = state.completed_steps(len(loaders.train))
            log = stack.enter_context(tensorboard_log(setup.folder.logs, first_step))
        stack.enter_context(print_skipped_at_exit(lambda: loaders.skipped))
        evaluation = Evaluation(config, setup.folder, criterion, setup.compute, log)
        run_epochs(config, state, loaders, evaluation)
        test_best(config, state, loaders, evaluation)
    print(f"run folder: {setup.folder.path}\nTensorBoard: tensorboard --logdir {setup.folder.logs.parent}")


def initial_state(config: Config, setup: RunSetup, checkpoint: str) -> TrainState:
    """A new state, initialised from given weights, or resumed from a checkpoint."""
    model = build_model(config).to(setup.device)
    convert_sync_batchnorm(model)
    optimizer = build_optimizer(model, config.lr)
    state = TrainState(model, optimizer, build_scheduler(optimizer, config.gamma))
    if config.resume_from:
        epochs = setup.folder.epochs()
        if checkpoint or config.resume_at or epochs:
            path = Path(checkpoint) if checkpoint else setup.folder.checkpoint(config.resume_at or epochs[-1])
            resume(path, state)
            print(f"resuming after epoch {state.epoch}, from {path}")
            refuse_fewer_epochs(config, state.epoch)
            if set_rates(state, config.lr, config.gamma):
                print(f"learning rate {config.lr:g} from epoch {state.epoch + 1} on")
            return state
        print(f"note: no epoch is complete yet in {setup.folder.path}; starting from the first")
    if config.trained_checkp:
        report = load_pretrained(model, Path(config.trained_checkp))
        print(report)
        state.frozen = freeze(model, report) if config.unfreeze_after > 0 else ()
    return state


def return_to_epoch(folder: RunFolder, state: TrainState) -> None:
    """Leave in the folder of a resumed training what it had after `state.epoch`; what is later is set aside.

    The best weights of an epoch that was interrupted before its checkpoint are dropped: the epoch is repeated.

    Raises:
        DataError: if the checkpoint of the best epoch up to there is missing.
    """
    best_epoch = checkpoint_epoch(folder.best) if folder.best.exists() else 0
    losses = {int(epoch): row["val_loss"] for epoch, row in state.trainlog.items() if "val_loss" in row}
    lowest = min((loss for loss in losses.values() if not math.isnan(loss)), default=None)
    source = None if lowest is None else folder.checkpoint(max(e for e, loss in losses.items() if loss == lowest))
    replaced = best_epoch > state.epoch or (source is not None and not folder.best.exists())
    if replaced and source is not None and not source.exists():
        raise DataError(
            f"{source} is missing, which has the best weights up to epoch {state.epoch}; restore it, or resume from "
            "another epoch with --resume_at"
        )
    interrupted = best_epoch == state.epoch + 1 and not folder.metrics("test").exists()
    if any(epoch > state.epoch for epoch in folder.epochs()) or (best_epoch > state.epoch and not interrupted):
        print(f"note: what came after epoch {state.epoch} is now in {folder.set_aside_after(state.epoch)}")
        write_json(folder.trainlog, state.trainlog)
    if replaced and source is not None:
        with atomic_file(folder.best) as temporary:
            shutil.copyfile(source, temporary)
    elif replaced:
        folder.best.unlink()


def describe(config: Config, setup: RunSetup, state: TrainState, loaders: Loaders) -> None:
    """Print what is trained on what."""
    splits = {"train": loaders.train, "val": loaders.val, "test": loaders.test}
    sizes = ", ".join(f"{name} {len(loader.patches) if loader else 0}" for name, loader in splits.items())
    print(f"{config.experiment_name}: {config.model}, head {config.head}, {count_parameters(state.model):,} parameters")
    print(f"samples: {sizes}; {setup.description}{process_group.describe_processes(config.batch_size)}")


def run_epochs(config: Config, state: TrainState, loaders: Loaders, evaluation: Evaluation) -> None:
    """Train the remaining epochs; validate and save each, and keep the best."""
    folder = evaluation.folder
    while state.epoch < config.epochs:
        epoch = state.epoch + 1
        if state.frozen and epoch > config.unfreeze_after:
            print(f"epoch {epoch}: {len(state.frozen)} frozen weights train from now on")
            unfreeze(state.model)
            state.frozen = ()
        loaders.set_epoch(epoch)
        seed_rank(config.rdm_seed, epoch)
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
            last_step = state.completed_steps(len(loaders.train)) - 1
            row |= validate(config, state, loaders.val, evaluation, last_step)
        if process_group.is_rank_zero():
            write_json(folder.trainlog, state.trainlog)
            plot_training(state.trainlog, folder.path / "plot_training.png")
            save_state(folder.checkpoint(epoch), state, config)
        process_group.barrier()
        if math.isnan(row.get("val_loss", 0.0)):
            raise DataError(
                f"the validation loss is NaN after epoch {epoch}, whose weights are in {folder.checkpoint(epoch)}; "
                "try a lower --lr, --clip_grad 1, or --precision fp32"
            )


def validate(
    config: Config, state: TrainState, loader: PatchLoader, evaluation: Evaluation, step: int
) -> dict[str, float]:
    """Validate the current weights, and save them if they are the best so far; the figures for the training log."""
    epoch, folder = state.epoch, evaluation.folder
    metrics = evaluation.run(state.model, loader, "val", epoch, step=step).metrics
    if process_group.is_rank_zero():
        folder.write_metrics(f"val_epoch_{epoch}", metrics)
    best = metrics["loss"] <= state.best_loss
    rank = "the best so far" if best else f"best so far {state.best_loss:.4f}"
    print(f"epoch {epoch}: val loss {metrics['loss']:.4f} ({rank}), PSNR {metrics['PSNR']:.2f} dB", flush=True)
    if best:  # before the checkpoint of the epoch, so that a kill in between repeats this epoch
        state.best_loss = metrics["loss"]
        if process_group.is_rank_zero():
            save_state(folder.best, state, config)
    return {"val_loss": metrics["loss"], "val_RMSE": metrics["RMSE"], "val_PSNR": metrics["PSNR"]}


def test_best(config: Config, state: TrainState, loaders: Loaders, evaluation: Evaluation) -> None:
    """Test the weights that were best on validation, or the last ones where no epoch was validated."""
    best = evaluation.folder.best
    if process_group.is_rank_zero() and not (best.exists() and is_validated(best, state)):
        print("note: no epoch was validated; the last one is tested")
        save_state(best, state, config)
    process_group.barrier()
    epoch = load_weights(best, state.model)
    if loaders.test is None:
        print("note: there is no test split to test on")
    else:
        step = state.completed_steps(len(loaders.train))  # so that a later part of the training replaces it
        evaluate_and_report(evaluation, state.model, loaders.test, epoch, step=step)
