"""Checkpoints of the first edition, before conv3d_mamba and fusion_net got other names: strict loading, same values.

`golden/first_edition/NAME` holds the run of a short training with that code, an input and its prediction. The optimiser
identifies parameters by position, so their order is part of the format.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import load_model
from model.build import build_model, build_optimizer
from model.weights import load_checkpoint, save_checkpoint

NAMES = ("uncrtaints", "conv3d_mamba", "utae", "unet", "fusion_net")
TRAINED = NAMES[:-1]  # the optimiser of a finished fusion has no state
RENAMED = (
    ("look.", "encoder."),
    ("look_around.", "encoder3d."),
    ("remember.", "temporal."),
    ("compare.", "refine."),
    ("mend.", "decoder."),
    ("grow.", "upsample."),
    ("shrink.", "downsample."),
    ("mosaic.", "composite."),
)
RENAMED_BUFFERS = {
    "a": "recalibration_intercept",
    "c": "recalibration_slope",
    "dof": "recalibration_dof",
    "low": "recalibration_low",
    "high": "recalibration_high",
    "correlation": "error_correlation",
    "mse": "expert_mse",
    "convex": "convex_weights",
    "tau": "variance_factor",
    "better": "better_expert",
    "choice": "variance_source",
    "gate.centre": "gate.feature_mean",
    "gate.spread": "gate.feature_std",
}


@dataclass
class Stored:
    folder: Path
    content: dict  # as written, with the old names

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights by the names that they are expected to have now."""
        return {expected_name(name): value for name, value in self.content["state_dict_G"].items()}


def expected_name(old: str) -> str:
    if old in RENAMED_BUFFERS:
        return RENAMED_BUFFERS[old]
    prefix = next((p for p in ("experts.0.netG.", "experts.1.netG.") if old.startswith(p)), "")
    name = old.removeprefix(prefix)
    return prefix + next((new + name.removeprefix(was) for was, new in RENAMED if name.startswith(was)), name)


@pytest.fixture(params=NAMES)
def stored(request, golden) -> Stored:
    folder = golden / "first_edition" / request.param
    return Stored(folder, torch.load(folder / "model.pth.tar", weights_only=True))


def test_predictions_are_the_stored_ones(stored):
    with np.load(stored.folder / "io.npz") as io:
        arrays = {key: torch.from_numpy(io[key]) for key in io}
    prediction = load_model(stored.folder)(arrays["x"].float(), arrays.get("dates"))
    for name in ("mean", "aleatoric", "epistemic", "total"):
        # bit-equal on the machine and with the two threads that wrote them; others add float32 in another order.
        # 1e-6 of each value, and of the largest for those near 0
        atol = 1e-6 * arrays[name].abs().max().item()
        torch.testing.assert_close(getattr(prediction, name), arrays[name], rtol=1e-6, atol=atol, msg=name)


def test_weights_are_the_stored_ones_in_the_same_order(stored):
    state = load_model(stored.folder).model.get_submodule("netG").state_dict()
    assert list(state) == list(stored.state)
    for name, value in stored.state.items():
        assert torch.equal(state[name], value), name


def test_only_conv3d_mamba_and_fusion_net_have_other_names(stored):
    renamed = {old for old, new in zip(stored.content["state_dict_G"], stored.state, strict=True) if old != new}
    assert bool(renamed) == (stored.folder.name in ("conv3d_mamba", "fusion_net"))
    content = load_checkpoint(stored.folder / "model.pth.tar")
    assert content["state_dict_G"].keys() == stored.state.keys()
    assert list(content["state_dict"]) == ["netG." + name for name in stored.state]


@pytest.mark.parametrize("stored", TRAINED, indirect=True)
def test_the_state_of_the_optimiser_belongs_to_the_same_parameters(stored):
    model = load_model(stored.folder).model.requires_grad_(True)
    optimizer = build_optimizer(model, 0.01)
    optimizer.load_state_dict(stored.content["optimizer_G"])
    parameters = dict(model.get_submodule("netG").named_parameters())
    old_names = [name for name in stored.content["state_dict_G"] if expected_name(name) in parameters]
    assert [expected_name(name) for name in old_names] == list(parameters)
    assert len(stored.content["optimizer_G"]["state"]) == len(parameters)
    for position, parameter in enumerate(parameters.values()):
        moments = stored.content["optimizer_G"]["state"][position]
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments["exp_avg"])
        assert moments["exp_avg_sq"].shape == parameter.shape


def test_frozen_parameters_stay_frozen(golden, tmp_path):
    content = torch.load(golden / "first_edition" / "conv3d_mamba" / "model.pth.tar", weights_only=True)
    save_checkpoint(tmp_path / "model.pth.tar", {**content, "frozen": ["netG.look.conv.norm.weight", "netG.stem.bias"]})
    frozen = load_checkpoint(tmp_path / "model.pth.tar")["frozen"]
    assert frozen == ["netG.encoder.conv.norm.weight", "netG.stem.bias"]
    model = build_model(load_model(golden / "first_edition" / "conv3d_mamba").model.config)
    assert set(frozen) <= {name for name, _ in model.named_parameters()}
