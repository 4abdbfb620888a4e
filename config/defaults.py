"""What a backbone makes of flags that nobody typed, and of those that it cannot follow; imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from common.errors import UsageError

UNETS = ("utae", "unet")
RULES = ("gated", "convex", "ivw", "ivw_rho", "average", "monig", "best")  # of --fusion
PYRAMIDS = {  # widths from the full resolution to the lowest, encoder and decoder
    "utae": ((64, 64, 64, 128), (64, 64, 64, 128)),
    "unet": ((64, 64, 64, 128), (64, 64, 64, 128)),
    "conv3d_mamba": ((64, 64, 96), (96, 64, 96)),
}
EXPERTS = ("uncrtaints", "conv3d_mamba")  # of a fusion that trains its own
WITH_SCAN = ("conv3d_mamba", "fusion_net")  # those that --ssm_backend acts on
DATE_GROUPS = 4  # groups of channels that conv3d_mamba weighs over dates
ATTENTION = ("agg_mode", "n_head", "d_model", "d_k")
UNREAD_BY_UNETS = ("block_type", "low_res_size", "use_v", "separate_out")
UNREAD = {
    "utae": UNREAD_BY_UNETS,
    "unet": UNREAD_BY_UNETS,
    "conv3d_mamba": (*UNREAD_BY_UNETS[1:], *ATTENTION),
}
UNREAD_WITHOUT_TIME = (*ATTENTION, "positional_encoding")


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
    if model not in PYRAMIDS:
        return []
    free = {name for name, given in value.items() if name not in typed and given == defaults[name]}
    notes = []
    if model == "unet" and not value["pretrain"]:
        value["pretrain"] = True
        advice = "; published trainings of it took --batch_size 32" if "batch_size" in free else ""
        notes.append(f"--model unet sees single images: --pretrain is switched on (SEN12MS-CR, --root3){advice}")
    chosen = []
    names = ("encoder_widths", "decoder_widths")
    for name, twin, published in zip(names, reversed(names), PYRAMIDS[model], strict=True):
        if name in free:
            value[name] = published if twin in free else value[twin]
            chosen.append(f"--{name} {list(value[name])}")
    if model == "conv3d_mamba" and "encoder_norm" in free:
        value["encoder_norm"] = "batch"  # learns faster than a norm of each image
        chosen.append("--encoder_norm batch")
    if model in UNETS and {"loss", "head", "covmode"} <= free:
        value["loss"] = "l2"
        chosen.append("--loss l2, which trains no uncertainty (name a --loss or --head that does)")
    if chosen:
        notes.append(f"--model {model}{', as published' if model in UNETS else ''}: {', '.join(chosen)}")
    unread = dict.fromkeys((*UNREAD[model], *(UNREAD_WITHOUT_TIME if value["pretrain"] else ())))
    ignored = [f"--{name}" for name in unread if name in typed]
    if ignored:
        one_date = " of one date" if value["pretrain"] and model != "unet" else ""
        notes.append(f"--model {model}{one_date} does not look at {', '.join(ignored)}")
    return notes


def check_network(config: Any) -> None:
    """Refuse widths and heads that do not fit together.

    Args:
        config: has the attributes of `config.schema.ModelConfig`.

    Raises:
        UsageError: naming the flags.
    """
    if config.model == "fusion_net":  # its experts are checked each by itself
        return
    encoder, decoder = list(config.encoder_widths), list(config.decoder_widths)
    if config.model in PYRAMIDS and (len(encoder) != len(decoder) or encoder[-1] != decoder[-1]):
        raise UsageError(
            f"--encoder_widths {encoder} and --decoder_widths {decoder} of --model {config.model} go from the full "
            "resolution to the lowest: expected as many of both and the same last one, as "
            f"{list(PYRAMIDS[config.model][0])} and {list(PYRAMIDS[config.model][1])}"
        )
    if config.model == "conv3d_mamba":
        for width in encoder:
            if width % DATE_GROUPS:
                raise UsageError(f"--encoder_widths of conv3d_mamba must be multiples of {DATE_GROUPS}, got {width}")
        return
    if config.model in UNETS:
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
