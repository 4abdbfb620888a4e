"""Initialisation from the weights of another network; every weight that is not loaded is reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import DataError
from data.constants import N_S2
from model.weights import PREFIX, get_backbone, kind_of, load_checkpoint

MIN_FRACTION = 0.5  # of a checkpoint's weights that must fit


@dataclass(frozen=True)
class PretrainedReport:
    """Which weights were loaded; names without `netG.`.

    Attributes:
        source: the checkpoint.
        loaded: names of the weights that were loaded.
        partly: name -> which part was (the rows of the 13 means in the last layer).
        missing: name -> why it keeps its initialisation.
        extra: name -> why it was not used.
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
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded" + (", all of them" if self.complete else "")]
        titles = {"in part": self.partly, "start fresh": self.missing, "left in the checkpoint": self.extra}
        for title, names in titles.items():
            lines += [f"  {title}: {name} ({why})" for name, why in names.items()]
        return "\n".join(lines)


def load_pretrained(model: nn.Module, path: str | Path) -> PretrainedReport:
    """Initialise a network from a checkpoint of the same or a similar network, such as one of `--pretrain`.

    Args:
        model: the network; changed in place.
        path: the checkpoint.

    Returns:
        What was loaded. Of a last layer of another size, the rows of the 13 means are.

    Raises:
        DataError: if less than half of the weights fit (known issue 10), or the file cannot be read.
    """
    stored: dict[str, Tensor] = load_checkpoint(path)["state_dict_G"]
    net = get_backbone(model)
    expected = net.state_dict()
    fitting = {key: stored[key] for key in expected if key in stored and not _mismatch(stored[key], expected[key])}
    used, total = (sum(value.numel() for value in state.values()) for state in (fitting, stored))
    if used < MIN_FRACTION * total:  # some biases always fit
        raise DataError(
            f"{path} is of another architecture: {used:,} of its {total:,} weights fit this network; "
            "was it trained with another --model, --block_type, or other widths?"
        )
    missing = {
        key: _mismatch(stored[key], value) if key in stored else "not in the checkpoint"
        for key, value in expected.items()
        if key not in fitting
    }
    extra = {
        key: _mismatch(value, expected[key]) if key in expected else "no such weight here"
        for key, value in stored.items()
        if key not in fitting
    }
    partly = {}
    for kind in ("weight", "bias"):
        target, source = _last_layer(expected, kind), _last_layer(stored, kind)
        if target not in missing or source not in extra or kind_of(stored[source]) != kind_of(expected[target]):
            continue
        if expected[target].shape[1:] == stored[source].shape[1:]:
            rows = torch.cat([stored[source][:N_S2], expected[target][N_S2:].cpu()])
            fitting[target] = rows
            partly[target] = f"the {N_S2} rows of the means, from {source}; the other {len(rows) - N_S2} start fresh"
            del missing[target], extra[source]
    loaded = tuple(key for key in fitting if key not in partly)
    net.load_state_dict(fitting, strict=False)
    return PretrainedReport(str(path), loaded, partly, missing, extra)


def freeze(model: nn.Module, report: PretrainedReport) -> tuple[str, ...]:
    """Freeze the loaded weights, except those of the last layer, until `unfreeze`.

    Returns:
        The names of the frozen parameters, as `model.named_parameters` has them.
    """
    frozen_names = {PREFIX + name for name in report.loaded if not name.startswith("out_conv")}
    frozen = tuple(name for name, _ in model.named_parameters() if name in frozen_names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen_names)
    return frozen


def unfreeze(model: nn.Module) -> None:
    """Make every parameter trainable."""
    model.requires_grad_(True)


def _last_layer(state: Mapping[str, Tensor], kind: str) -> str:
    """The name of the layer that outputs the means, with or without separate output layers; or ""."""
    names = [key for key in state if key.startswith(("out_conv.", "out_conv_mean_1.")) and key.endswith(kind)]
    return names[-1] if names else ""


def _mismatch(stored: Tensor, expected: Tensor) -> str:
    """Why a weight does not fit; "" if it does."""
    if stored.shape != expected.shape:
        return f"another shape, {tuple(stored.shape)} instead of {tuple(expected.shape)}"
    if kind_of(stored) != kind_of(expected):
        return f"{kind_of(stored)} instead of {kind_of(expected)}"
    return ""
