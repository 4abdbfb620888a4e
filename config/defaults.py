"""Backbone-specific defaults, and the flags that a backbone ignores."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from config.schema import Config, unset_value

UNETS = ("utae", "unet")
PYRAMIDS = {  # widths from the full resolution to the lowest, encoder and decoder
    "utae": ((64, 64, 64, 128), (64, 64, 64, 128)),
    "unet": ((64, 64, 64, 128), (64, 64, 64, 128)),
    "conv3d_mamba": ((64, 64, 96), (96, 64, 96)),
}
_ATTENTION = ("agg_mode", "n_head", "d_model", "d_k")
_IGNORED_BY_UNETS = ("block_type", "low_res_size", "use_v", "separate_out")
_IGNORED = {
    "utae": _IGNORED_BY_UNETS,
    "unet": _IGNORED_BY_UNETS,
    "conv3d_mamba": (*_IGNORED_BY_UNETS[1:], *_ATTENTION),
}
_IGNORED_FOR_ONE_DATE = (*_ATTENTION, "positional_encoding")


def apply_backbone_defaults(flags: dict[str, Any], typed: set[str], stored: Collection[str] = frozenset()) -> list[str]:
    """Set the defaults of a backbone, for flags that were neither typed nor stored.

    Args:
        flags: every flag by name, the head empty where it is to be inferred; changed in place.
        typed: names of the flags given on the command line.
        stored: names of those in the conf.json of the run.

    Returns:
        Notes for the user.
    """
    model = flags["model"]
    if model not in PYRAMIDS:
        return []
    given = {*typed, *stored}
    free = {e.name for e in fields(Config) if e.name not in given and flags[e.name] == unset_value(e)}
    notes = []
    if model == "unet" and not flags["pretrain"]:
        flags["pretrain"] = True
        advice = "; published trainings of it used --batch_size 32" if "batch_size" in free else ""
        notes.append(f"--model unet takes single images: --pretrain is switched on (SEN12MS-CR, --root3){advice}")
    chosen = []
    names = ("encoder_widths", "decoder_widths")
    for name, counterpart, published in zip(names, reversed(names), PYRAMIDS[model], strict=True):
        if name in free:
            flags[name] = published if counterpart in free else flags[counterpart]
            chosen.append(f"--{name} {list(flags[name])}")
    if model == "conv3d_mamba" and "encoder_norm" in free:
        flags["encoder_norm"] = "batch"  # trains faster than a norm per image
        chosen.append("--encoder_norm batch")
    if model in UNETS and {"loss", "head", "covmode"} <= free:
        flags["loss"] = "l2"
        chosen.append("--loss l2, which trains no uncertainty (name a --loss or --head that does)")
    if chosen:
        notes.append(f"--model {model}{', as published' if model in UNETS else ''}: {', '.join(chosen)}")
    ignored = dict.fromkeys((*_IGNORED[model], *(_IGNORED_FOR_ONE_DATE if flags["pretrain"] else ())))
    typed_in_vain = [f"--{name}" for name in ignored if name in typed]
    if typed_in_vain:
        one_date = " of one date" if flags["pretrain"] and model != "unet" else ""
        notes.append(f"--model {model}{one_date} ignores {', '.join(typed_in_vain)}")
    return notes
