"""The training of a fusion: experts found or trained, numbers fitted, the guard's verdict, and what a run writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.files import atomic_file, write_json
from common.run_folder import RunFolder
from config.experts import ExpertRun, common_held_out, read_experts
from config.resolve import resolve_config
from config.schema import Config
from data.holdout import build_fit_split, held_out_rois
from data.loaders import build_loaders
from evaluation.evaluate import Evaluation, report_skipped
from model.build import build_loss, build_model, build_optimizer, build_scheduler
from model.fusion.acceptance import Verdict
from model.fusion.experts import load_experts
from model.fusion.gate_training import GateRow
from model.fusion.network import FusionNet
from model.fusion.plots import show_gate
from model.fusion.settling import fit_and_judge
from model.reconstructor import Reconstructor
from model.registry import EXPERTS, WITH_SCAN
from model.runtime import count_parameters, seed_everything
from training.checkpoint import save_state
from training.engine import TrainState
from training.run import set_up_run, start_run_folder, tensorboard_log

EPOCH = 1  # a fusion is fitted in one go; its checkpoint counts as that of the first epoch


def train_fusion(config: Config, train_expert: Callable[[Config], None]) -> None:
    """Train a fusion as the flags say, its experts first where `--experts` names none.

    Args:
        config: the flags of the fusion.
        train_expert: trains one network as its flags say, and leaves a run folder.

    Raises:
        DataError, UsageError: if data or experts are missing or do not fit together.
    """
    setup = set_up_run(config)
    device, compute, folder = setup.device, setup.compute, setup.folder
    start_run_folder(folder, config)
    if config.experts:
        runs = read_experts(config.experts)
        config = replace(config, held_out=common_held_out(runs))
    else:
        config = replace(config, held_out=config.held_out or held_out_rois(config))
        write_json(folder.conf, config.to_json())
        runs = train_experts(config, folder, train_expert)
    seed_everything(config.rdm_seed)
    model, config = assemble(config, runs, device)
    write_json(folder.conf, config.to_json())
    split, loaders = build_fit_split(config, config.held_out), build_loaders(config)
    net = model.get_submodule("netG")
    assert isinstance(net, FusionNet)
    print(f"{config.experiment_name}: fusion {config.fusion} of {', '.join(run.name for run in runs)}, ", end="")
    scan = setup.scan if any(run.flag("model") in WITH_SCAN for run in runs) else ""
    print(f"gate of {count_parameters(net.gate):,} parameters; {replace(setup, scan=scan).description}")
    for note in split.notes:
        print(f"note: {note}")
    used = [split.fit, *([split.guard] if split.guard else [])]
    with tensorboard_log(folder.logs) as log:
        try:
            model, verdict, rows = fit_and_judge(model, split, loaders, config, compute, log)
            tell(verdict, folder)
            state = finished(model, config, rows)
            evaluation = Evaluation(config, folder, build_loss(config), compute, log)
            if loaders.val is not None:
                metrics, _ = evaluation.run(model, loaders.val, "val", EPOCH)
                state.best_loss = metrics["loss"]
                folder.write_metrics(f"val_epoch_{EPOCH}", metrics)
            write_json(folder.path / "trainlog.json", state.trainlog)
            for path in (folder.checkpoint(EPOCH), folder.best):
                save_state(path, state, config, {"guard": verdict.to_json()})
            if loaders.test is None:
                print("note: there is no test split to test on")
            else:
                evaluation.test(model, loaders.test, EPOCH)
                show_gate(model, config, folder, compute)
        finally:
            report_skipped([*loaders.skipped, *(bad for loader in used for bad in loader.skipped)])
    print(f"run folder: {folder.path}\nTensorBoard: tensorboard --logdir {folder.logs.parent}")


def train_experts(config: Config, folder: RunFolder, train_expert: Callable[[Config], None]) -> list[ExpertRun]:
    """Train each expert into `experts/NAME` below the run; those that a resumed run has done already stay.

    Args:
        config: of the fusion; `held_out` is set.
        folder: the fusion's.
        train_expert: see `train_fusion`.
    """
    runs = []
    for number, name in enumerate(EXPERTS, 1):
        expert = expert_config(config, name, folder)
        place = RunFolder(Path(expert.res_dir), name)
        done = config.resume_from and place.best.exists() and (place.epochs() or [0])[-1] >= config.epochs
        print(f"expert {number} of {len(EXPERTS)}: {name}, {'trained already' if done else place.path}")
        if not done:
            train_expert(replace(expert, resume_from=config.resume_from and place.conf.is_file()))
        runs.append(ExpertRun(name, place.path, expert.to_json()))
    return runs


def expert_config(config: Config, name: str, folder: RunFolder) -> Config:
    """The flags of an expert that is trained for a fusion: the fusion's own, but for what belongs to the network."""
    values = config.to_json() | {
        "model": name,
        "head": "gaussian" if config.legacy else "nig",
        "out_conv": [*config.out_conv[:-1], 13],
        "loss": "NIG" if config.loss == "fusion" else config.loss,
        "res_dir": str(folder.path / "experts"),
        "experiment_name": name,
        "trained_checkp": "",
        "expert_configs": [],
    }
    return resolve_config(values, {"head"})[0]


def assemble(config: Config, runs: list[ExpertRun], device: torch.device) -> tuple[Reconstructor, Config]:
    """The fusion with the experts' weights, and its flags with theirs."""
    networks, entries = load_experts(runs)
    config = replace(config, expert_configs=entries)
    model = build_model(config)
    net = model.get_submodule("netG")
    assert isinstance(net, FusionNet)
    for own, network in zip(net.experts, networks, strict=True):
        own.load_state_dict(network.state_dict())
    return model.to(device), config


def tell(verdict: Verdict, folder: RunFolder) -> None:
    """Print the guard's table, and leave it as `guard.md` and `guard.json`."""
    write_json(folder.path / "guard.json", verdict.to_json())
    with atomic_file(folder.path / "guard.md") as temporary:
        temporary.write_text(verdict.markdown() + "\n", encoding="utf-8")
    print(f"\n{verdict.markdown()}\n")


def finished(model: Reconstructor, config: Config, rows: list[GateRow]) -> TrainState:
    """What a checkpoint of the fusion holds."""
    model.requires_grad_(False).eval()
    optimizer = build_optimizer(model, config.lr)
    log: dict[str, dict[str, Any]] = {
        str(row.epoch): {"train_loss": row.train_loss, "val_loss": row.held_back_loss} for row in rows
    }
    return TrainState(model, optimizer, build_scheduler(optimizer, config.gamma), epoch=EPOCH, trainlog=log)
