"""Training of a fusion: its experts, the fit and its acceptance test, joint training, and the run folder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.cli import print_notes
from common.files import write_json, write_text
from common.run_folder import RunFolder
from config.experts import ExpertRun, common_held_out, read_experts
from config.resolve import resolve_config
from config.schema import Config
from config.stored import write_conf
from data.holdout import FitSplit, build_fit_split, held_out_rois
from data.loaders import Loaders, PatchLoader, build_loader, build_loaders, rois_of
from evaluation.calibration import CalibrationMeter, calibration_figures
from evaluation.evaluate import Evaluation
from evaluation.images import plot_gate
from model.build import build_loss, build_model, build_optimizer, build_scheduler
from model.containers import select_pixels
from model.fusion.acceptance import AcceptanceResult, FusionEvaluator, choose_clusters, clustered_gain
from model.fusion.fit import fit_with_acceptance_test
from model.fusion.gate import FitSettings, GateEpoch
from model.fusion.network import FusionReconstructor
from model.losses.fusion import fusion_loss
from model.predictions import NIG, Prediction
from model.registry import EXPERTS, WITH_SCAN
from model.restore import load_model
from model.runtime import Compute, autocast, count_parameters, seed_everything
from training.checkpoint import save_state
from training.engine import ScalarLog, TrainState, train_one_epoch
from training.run import (
    RunSetup,
    print_skipped_at_exit,
    refuse_fewer_epochs,
    set_up_run,
    start_run_folder,
    tensorboard_log,
)
from training.tester import evaluate_and_report

EPOCH = 1  # the fit counts as one epoch
JOINT_LR_DIVISOR = 10  # of --lr, because the experts are trained already
MAX_GATE_PLOTS = 3  # samples, each of another region


def train_fusion(config: Config, train_expert: Callable[[Config], None]) -> None:
    """Train a fusion, its experts first if `--experts` names none, and test it.

    Args:
        config: the flags of the fusion.
        train_expert: trains one network into its run folder.

    Raises:
        DataError, UsageError: if data or experts are missing or do not fit together.
    """
    setup = set_up_run(config)
    folder, compute = setup.folder, setup.compute
    start_run_folder(folder, config)
    if config.experts:
        runs = read_experts(config.experts)
        config = replace(config, held_out=common_held_out(runs))
    else:
        config = replace(config, held_out=config.held_out or held_out_rois(config))
        write_conf(folder.conf, config)
        runs = train_experts(config, folder, train_expert)
    seed_everything(config.rdm_seed)
    model, config = build_from_experts(config, runs, compute.device)
    write_conf(folder.conf, config)
    split, loaders = build_fit_split(config, config.held_out), build_loaders(config)
    describe(config, setup, runs, model, split)
    sources: list[Loaders | PatchLoader] = [loaders, split.fit, *([split.guard] if split.guard else [])]
    with (
        tensorboard_log(folder.logs) as log,
        print_skipped_at_exit(lambda: [sample for source in sources for sample in source.skipped]),
    ):
        model, result, rows = fit_fusion(model, split, loaders, config, compute, log)
        write_acceptance(result, folder)
        model.requires_grad_(False).eval()
        optimizer = build_optimizer(model, config.lr)
        trainlog = {str(row.epoch): {"train_loss": row.train_loss, "val_loss": row.val_loss} for row in rows}
        scheduler = build_scheduler(optimizer, config.gamma)
        state = TrainState(model, optimizer, scheduler, epoch=EPOCH, trainlog=trainlog)
        evaluation = Evaluation(config, folder, build_loss(config), compute, log)
        if loaders.val is not None:
            metrics = evaluation.run(model, loaders.val, "val", EPOCH, step=EPOCH).metrics
            state.best_loss = metrics["loss"]
            folder.write_metrics(f"val_epoch_{EPOCH}", metrics)
        write_json(folder.trainlog, trainlog)
        for path in (folder.checkpoint(EPOCH), folder.best):
            save_state(path, state, config, {"guard": result.to_json()})
        if loaders.test is None:
            print("note: there is no test split to test on")
        else:
            evaluate_and_report(evaluation, model, loaders.test, EPOCH, step=EPOCH)
            plot_gates(model, config, folder, compute)
    print(f"run folder: {folder.path}\nTensorBoard: tensorboard --logdir {folder.logs.parent}")


def train_experts(config: Config, folder: RunFolder, train_expert: Callable[[Config], None]) -> list[ExpertRun]:
    """Train each expert into `experts/NAME` of the run folder; a resumed run keeps those that are complete.

    Args:
        config: of the fusion; `held_out` is set.
        folder: of the fusion.
        train_expert: see `train_fusion`.
    """
    runs = []
    for number, name in enumerate(EXPERTS, 1):
        expert = expert_config(config, name, folder)
        expert_folder = RunFolder(Path(expert.res_dir), name)
        epochs = expert_folder.epochs() or [0]
        if config.resume_from:
            refuse_fewer_epochs(expert, epochs[-1])
        complete = config.resume_from and expert_folder.best.exists() and epochs[-1] >= config.epochs
        print(f"expert {number} of {len(EXPERTS)}: {name}, {'already trained' if complete else expert_folder.path}")
        if not complete:
            train_expert(replace(expert, resume_from=config.resume_from and expert_folder.conf.is_file()))
        runs.append(ExpertRun(name, expert_folder.path, expert.to_json()))
    return runs


def expert_config(config: Config, name: str, folder: RunFolder) -> Config:
    """The flags of an expert that is trained for a fusion: those of the fusion, except those of the network."""
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


def build_from_experts(
    config: Config, runs: Sequence[ExpertRun], device: torch.device
) -> tuple[FusionReconstructor, Config]:
    """The fusion with the experts' weights, and its flags with theirs, from which it is rebuilt.

    Raises:
        DataError: if weights are missing or do not fit; the keys are listed.
    """
    networks = [load_model(run.path).model for run in runs]
    entries = [
        {"name": run.name, "run": str(run.path), "flags": network.config.to_json()}
        for run, network in zip(runs, networks, strict=True)
    ]
    config = replace(config, expert_configs=tuple(entries))
    model = build_model(config)
    assert isinstance(model, FusionReconstructor)
    for expert, network in zip(model.fusion.experts, networks, strict=True):
        expert.load_state_dict(network.state_dict())
    return model.to(device), config


def describe(
    config: Config, setup: RunSetup, runs: Sequence[ExpertRun], model: FusionReconstructor, split: FitSplit
) -> None:
    """Print what is fused, and where it is fitted."""
    scan = setup.scan if any(run.flag("model") in WITH_SCAN for run in runs) else ""
    print(
        f"{config.experiment_name}: fusion {config.fusion} of {', '.join(run.name for run in runs)}, "
        f"gate of {count_parameters(model.fusion.gate):,} parameters; {replace(setup, scan=scan).description}"
    )
    print_notes(split.notes)


def fit_fusion(
    model: FusionReconstructor,
    split: FitSplit,
    loaders: Loaders,
    config: Config,
    compute: Compute,
    log: ScalarLog | None,
) -> tuple[FusionReconstructor, AcceptanceResult, list[GateEpoch]]:
    """Fit the fusion of frozen experts; with `--loss fusion` also train all jointly, and keep the better of both.

    Returns:
        The network that was kept, its acceptance decision, and the epochs of its gate.
    """
    evaluator, result, rows = _fit_and_evaluate(model, split, config, compute)
    if log is not None:
        for row in rows:
            log.add_scalar("fusion/gate, training", row.train_loss, row.epoch)
            log.add_scalar("fusion/gate, held back", row.val_loss, row.epoch)
    if config.loss != "fusion":
        return model, result, rows
    joint = train_jointly(model, loaders, config, compute, log)
    joint_evaluator, joint_result, joint_rows = _fit_and_evaluate(joint, split, config, compute)
    accepted, note = accept_joint(evaluator, joint_evaluator)
    if accepted:
        model, result, rows = joint, joint_result, joint_rows
    return model, replace(result, notes=(*result.notes, note)), rows


def _fit_and_evaluate(
    model: FusionReconstructor, split: FitSplit, config: Config, compute: Compute
) -> tuple[FusionEvaluator, AcceptanceResult, list[GateEpoch]]:
    names = [entry["name"] for entry in config.expert_configs]
    n_images = len(split.fit.patches) + (len(split.guard.patches) if split.guard else 0)
    evaluator = FusionEvaluator(model.fusion, names, CalibrationMeter, calibration_figures, n_images)
    settings = FitSettings(config.fusion_epochs, config.fusion_lr, config.rdm_seed)
    result, rows = fit_with_acceptance_test(model.fusion, split, evaluator, settings, compute)
    return evaluator, result, rows


def train_jointly(
    model: FusionReconstructor, loaders: Loaders, config: Config, compute: Compute, log: ScalarLog | None
) -> FusionReconstructor:
    """Train experts and gate of a fitted fusion jointly.

    Args:
        model: the fusion of frozen experts, left unchanged.
        loaders: `train` is used.
        config: `joint_epochs`, `lr`, `lambda1` (of conv3d_mamba), `lambda2` (of uncrtaints; other experts have 1).
        compute: device and precision.
        log: TensorBoard, or None.

    Returns:
        The trained copy; its experts are frozen again.

    Raises:
        DataError: if the loss is not finite.
    """
    joint = copy.deepcopy(model)
    net = joint.fusion
    lambdas = {"conv3d_mamba": config.lambda1, "uncrtaints": config.lambda2}
    weights = [lambdas.get(entry["flags"]["model"], 1.0) for entry in config.expert_configs]
    scales = [float(entry["flags"]["scale_by"]) for entry in config.expert_configs]

    def criterion(prediction: Prediction, target: Tensor, valid: Tensor | None = None) -> Tensor:
        assert isinstance(prediction, NIG)
        experts = net.expert_predictions
        if valid is not None:
            select = partial(select_pixels, valid=valid)
            prediction, experts, target = prediction.map(select), [e.map(select) for e in experts], select(target)
        terms = (scales, weights, target, joint.scale_by, config.weight_reg, config.evidence_reg)
        return fusion_loss(prediction, experts, *terms)

    net.joint = True
    net.experts.requires_grad_(True)
    net.gate.requires_grad_(True)
    optimizer = build_optimizer(joint, config.lr / JOINT_LR_DIVISOR)
    state = TrainState(joint, optimizer, build_scheduler(optimizer, config.gamma))
    for epoch in range(1, config.joint_epochs + 1):
        loaders.set_epoch(epoch)
        train_one_epoch(
            state,
            loaders.train,
            criterion,
            compute,
            steps=len(loaders.train),
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            display_step=config.display_step,
            log=log,
        )
        state.scheduler.step()
        state.epoch = epoch
    net.joint, net.expert_predictions = False, []
    joint.requires_grad_(False)
    return joint.eval()


def accept_joint(frozen: FusionEvaluator, joint: FusionEvaluator) -> tuple[bool, str]:
    """Whether joint training improves the prediction, by the acceptance test.

    Args:
        frozen: of the fusion of frozen experts, after its decision.
        joint: of the jointly trained one, on the same images.

    Returns:
        The decision, and a sentence with the gain.
    """
    if not frozen.rois:
        return False, "joint training is not kept: there are no images to test it on"
    clusters, _, _ = choose_clusters(frozen.rois, frozen.patches)
    gain = clustered_gain(frozen.decided_rmse(), joint.decided_rmse(), clusters)
    kept = "kept" if gain.accepted else "not kept"
    change = f"it changes the RMSE by {-gain.mean:+.6f}, standard error {gain.error:.6f}"
    return gain.accepted, f"joint training is {kept}: {change}"


def write_acceptance(result: AcceptanceResult, folder: RunFolder) -> None:
    """Print the table of the acceptance test, and write it as `guard.md` and `guard.json`."""
    write_json(folder.path / "guard.json", result.to_json())
    write_text(folder.path / "guard.md", result.markdown() + "\n")
    print(f"\n{result.markdown()}\n")


@torch.no_grad()
def plot_gates(model: FusionReconstructor, config: Config, folder: RunFolder, compute: Compute) -> None:
    """Plot the weights of the rule and the errors of two experts for the first test regions, as `plot_gate_N.png`.

    Args:
        model: a fusion; nothing is plotted for more than two experts.
        config: its flags.
        folder: the run folder.
        compute: device and precision.
    """
    net = model.fusion
    names = [entry["name"] for entry in config.expert_configs]
    if len(names) != 2:
        return
    rois = rois_of(config, "test", "all")
    chosen = {rois.index(roi) for roi in list(dict.fromkeys(rois))[:MAX_GATE_PLOTS]}
    number = 0
    for cpu_batch in build_loader(config, "test", lambda index, _: index in chosen, "all"):
        batch = cpu_batch.to(compute.device)
        with autocast(compute.device, compute.dtype):
            predictions = net.predict_experts(batch.x, batch.dates)
        fused = net.apply_rule(net.rule, predictions)
        for item, info in enumerate(batch.info):
            number += 1
            plot_gate(
                folder.path / f"plot_gate_{number}.png",
                batch.target[item],
                {name: predictions.mean[index, item] for index, name in enumerate(names)},
                fused.prediction.delta[item],
                fused.weights[0, item],
                f"{config.experiment_name}, rule {net.rule}: {info.roi}, patch {info.patch}",
            )
