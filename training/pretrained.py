"""Weights of one network as the start of another: what fits is loaded, and the rest is told, never passed over."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import DataError
from data.constants import N_S2
from model.weights import PREFIX, get_backbone, load_checkpoint

LEAST_SHARE = 0.5  # of a checkpoint's weights that must fit


@dataclass(frozen=True)
class PretrainedReport:
    """What became of every weight; names without `netG.`.

    Attributes:
        source: the checkpoint.
        loaded: taken over whole.
        partly: name -> which part (the rows of the 13 means in the last layer).
        missing: name -> why it starts fresh.
        extra: name -> why it was left in the checkpoint.
    """

    source: str
    loaded: tuple[str, ...]
    partly: Mapping[str, str]
    missing: Mapping[str, str]
    extra: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether the two networks have the same weights."""
        return not (self.partly or self.missing or self.extra)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded" + (", all there are" if self.complete else "")]
        titles = {"in part": self.partly, "start fresh": self.missing, "left in the checkpoint": self.extra}
        for title, names in titles.items():
            lines += [f"  {title}: {name} ({why})" for name, why in names.items()]
        return "\n".join(lines)


def load_pretrained(model: nn.Module, path: str | Path) -> PretrainedReport:
    """Start a network from a checkpoint of it or of a relative, such as the mono network of `--pretrain`.

    Args:
        model: has the backbone as `netG`; changed in place.
        path: the checkpoint.

    Returns:
        What was loaded and what was not. Of a last layer of another size, the rows of the 13 means are loaded.

    Raises:
        DataError: if less than half of the weights fit (known issue 10), or the file cannot be read.
    """
    given: dict[str, Tensor] = load_checkpoint(path)["state_dict_G"]
    net = get_backbone(model)
    wanted = net.state_dict()
    fitting = {key: given[key] for key in wanted if key in given and given[key].shape == wanted[key].shape}
    used, held = (sum(value.numel() for value in state.values()) for state in (fitting, given))
    if used < LEAST_SHARE * held:  # a bias here and there always fits
        raise DataError(
            f"{path} is of another architecture: {used:,} of its {held:,} weights fit this network; "
            "is it of another --model, --block_type, or of other widths?"
        )
    missing = {key: _why_missing(key, given, wanted) for key in wanted if key not in fitting}
    extra = {
        key: "no such weight here" if key not in wanted else f"another shape, {tuple(value.shape)}"
        for key, value in given.items()
        if key not in fitting
    }
    partly = {}
    for kind in ("weight", "bias"):
        here, there = _last_layer(wanted, kind), _last_layer(given, kind)
        if here in missing and there in extra and wanted[here].shape[1:] == given[there].shape[1:]:
            rows = torch.cat([given[there][:N_S2], wanted[here][N_S2:].cpu()])
            fitting[here] = rows
            partly[here] = f"the {N_S2} rows of the means, from {there}; the other {len(rows) - N_S2} start fresh"
            del missing[here], extra[there]
    loaded = tuple(key for key in fitting if key not in partly)
    net.load_state_dict(fitting, strict=False)
    return PretrainedReport(str(path), loaded, partly, missing, extra)


def freeze(model: nn.Module, report: PretrainedReport) -> tuple[str, ...]:
    """Keep loaded weights from training until `unfreeze`, all but those of the last layer.

    Returns:
        The names of the frozen parameters, as `model.named_parameters` has them.
    """
    keep = {PREFIX + name for name in report.loaded if not name.startswith("out_conv")}
    frozen = tuple(name for name, _ in model.named_parameters() if name in keep)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in keep)
    return frozen


def unfreeze(model: nn.Module) -> None:
    """Let every parameter train."""
    model.requires_grad_(True)


def _last_layer(state: Mapping[str, Tensor], kind: str) -> str:
    """The name of the layer that gives the means, with or without a layer of its own for the variances; or ''."""
    names = [key for key in state if key.startswith(("out_conv.", "out_conv_mean_1.")) and key.endswith(kind)]
    return names[-1] if names else ""


def _why_missing(key: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if key in given:
        return f"another shape, {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
    return "not in the checkpoint"
