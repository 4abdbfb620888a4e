"""The samples that a page shows, with their pixels: from a network that is at hand, or from exports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from data.constants import N_S1, SAR_RANGE_DB
from evaluation.ensemble import read_inputs
from evaluation.exports import NIG_FIELDS
from evaluation.sample_records import SampleRecord

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """What one network says about a sample, (13,H,W): reflectance, and variances in reflectance squared."""

    mean: Image
    aleatoric: Image | None = None
    epistemic: Image | None = None
    total: Image | None = None


@dataclass(frozen=True)
class Case:
    """One sample to be shown.

    Attributes:
        label: why it is shown, such as "best".
        record: what it is.
        target: (13,H,W), reflectance.
        inputs: (T,13,H,W), reflectance; None where they are not at hand.
        radar: VV of each date, dB, (T,H,W); None where the network uses none, or it is not at hand.
        outputs: by the name of the network.
        rmse: of each output on this sample, for captions.
        baseline: the best trivial reconstruction of this sample and its RMSE, if known.
        no_inputs: why there are no inputs, if that is known.
    """

    label: str
    record: SampleRecord
    target: Image
    inputs: Image | None
    radar: Image | None
    outputs: Mapping[str, Output]
    rmse: Mapping[str, float]
    baseline: tuple[str, float] | None = None
    no_inputs: str = ""


def decibels(radar: Image) -> Image:
    """Radar as networks take it, in [0, 1], in dB."""
    low, high = SAR_RANGE_DB
    return (low + (high - low) * radar).astype(np.float32)


def output_of(fields: Mapping[str, Image]) -> Output:
    """An output from the exported fields of one sample; NIG parameters tell the two kinds of variance apart."""
    mean, total = np.array(fields["pred"]), fields.get("var")
    if not all(name in fields for name in NIG_FIELDS):
        variance = None if total is None else np.array(total)
        return Output(mean, variance, None, variance)
    gamma, alpha, beta = (np.asarray(fields[name]) for name in NIG_FIELDS)
    aleatoric = beta / (alpha - 1)
    epistemic = aleatoric / gamma
    return Output(mean, aleatoric, epistemic, aleatoric + epistemic if total is None else np.array(total))


def read_series(info: Mapping[str, Any], root: str) -> tuple[Image | None, Image | None, str]:
    """Optical inputs (T,13,H,W) and VV in dB (T,H,W) of an exported sample.

    Args:
        info: of its manifest.
        root: the data set; empty if it is not at hand.

    Returns:
        Both, None for what cannot be read, and why the inputs cannot be: no root, no paths in the manifest, files that
        are missing or broken. A page does without them.
    """
    if not root:
        return None, None, "Name the data set by --root to see the inputs."
    try:
        inputs = read_inputs(info, root)
        reason = "" if inputs is not None else "The exports do not tell which files the inputs are."
        return inputs, read_radar(info.get("sar_paths"), root), reason
    except DataError as error:
        return None, None, f"The inputs cannot be read: {error}"


def read_radar(paths: Sequence[str] | None, root: str) -> Image | None:
    """VV in dB, (T,H,W), within the range that networks are given; None without a root or paths."""
    from data.raster.image_store import open_images

    if not root or not paths or any(not path or ";" in path for path in paths):
        return None
    images = open_images(root)
    low, high = SAR_RANGE_DB
    return np.stack([np.clip(np.nan_to_num(images.read(path, N_S1)[0][0]), low, high) for path in paths])
