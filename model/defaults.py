"""What a backbone makes of flags that nobody typed, and of those that it cannot follow; imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from util.errors import UsageError

UNETS = ("utae", "unet")
UNET_WIDTHS = (64, 64, 64, 128)
UNREAD_BY_UNETS = ("block_type", "low_res_size", "use_v", "separate_out")
UNREAD_WITHOUT_TIME = ("agg_mode", "n_head", "d_model", "d_k", "positional_encoding")


def settle_network(value: dict[str, Any], typed: set[str], defaults: Mapping[str, Any]) -> list[str]:
    """Fill in what follows from `model`, never over what was typed or comes from a stored run.

    Args:
        value: every flag by name, the head empty where it is still to be chosen; changed in place.
        typed: names of the flags that were given by hand.
        defaults: of all flags.

    Returns:
        Notes for the user.
    """
    model = value["model"]
    if model not in UNETS:
        return []
    free = {name for name, given in value.items() if name not in typed and given == defaults[name]}
    notes = []
    if model == "unet" and not value["pretrain"]:
        value["pretrain"] = True
        advice = "; published trainings of it took --batch_size 32" if "batch_size" in free else ""
        notes.append(f"--model unet sees single images: --pretrain is switched on (SEN12MS-CR, --root3){advice}")
    chosen = []
    for name, twin in (("encoder_widths", "decoder_widths"), ("decoder_widths", "encoder_widths")):
        if name in free:
            value[name] = UNET_WIDTHS if twin in free else value[twin]
            chosen.append(f"--{name} {list(value[name])}")
    if {"loss", "head", "covmode"} <= free:
        value["loss"] = "l2"
        chosen.append("--loss l2, which trains no uncertainty (name a --loss or --head that does)")
    if chosen:
        notes.append(f"--model {model}, as published: {', '.join(chosen)}")
    unread = UNREAD_BY_UNETS + (UNREAD_WITHOUT_TIME if value["pretrain"] else ())
    ignored = [f"--{name}" for name in unread if name in typed]
    if ignored:
        one_date = " of one date" if value["pretrain"] and model == "utae" else ""
        notes.append(f"--model {model}{one_date} does not look at {', '.join(ignored)}")
    return notes


def check_network(config: Any) -> None:
    """Refuse widths and heads that do not fit together.

    Args:
        config: has the attributes of `model.config.ModelConfig`.

    Raises:
        UsageError: naming the flags.
    """
    encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
    if config.model in UNETS:
        if len(encoder) != len(decoder) or encoder[-1] != decoder[-1]:
            raise UsageError(
                f"--encoder_widths {encoder} and --decoder_widths {decoder} of --model {config.model} go from the full "
                f"resolution to the lowest: expected as many of both and the same last one, as {list(UNET_WIDTHS)}"
            )
        without_time = config.pretrain or config.model == "unet"
        by_heads = [] if without_time else encoder if config.agg_mode == "att_group" else encoder[-1:]
    else:
        if encoder[-1] != decoder[-1] and config.model == "uncrtaints":
            raise UsageError(
                f"--encoder_widths ends in {encoder[-1]}, --decoder_widths in {decoder[-1]}; "
                "uncrtaints needs them equal"
            )
        by_heads = [] if config.pretrain else encoder[:1]
    for width in by_heads:
        if width % config.n_head:
            raise UsageError(f"--n_head {config.n_head} must divide --encoder_widths {width}")
    if config.d_model % config.n_head:
        raise UsageError(f"--n_head {config.n_head} must divide --d_model {config.d_model}")
