"""Images of samples to show, read from exports and the data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import DataError
from data.constants import N_S1, SAR_RANGE_DB
from data.raster.image_store import open_images
from evaluation.exports import exported_target, read_inputs
from evaluation.mixture import Fields, Image, PredictedImages
from evaluation.sample_records import SampleImages, SampleRecord


def exported_sample(
    label: str,
    record: SampleRecord,
    fields: Sequence[Fields],
    predictions: Mapping[str, PredictedImages],
    info: Mapping[str, Any],
    root: str,
) -> SampleImages:
    """The images of an exported sample.

    Args:
        label: why it is shown, such as "best".
        record: the sample.
        fields: as exported by each model.
        predictions: by name.
        info: of the sample, from a manifest.
        root: the data set; may be empty.
    """
    target = exported_target(fields, info, root, record.id)
    inputs, radar, reason = read_series(info, root)
    errors = {name: rmse(prediction.mean, target) for name, prediction in predictions.items()}
    return SampleImages(record, target, predictions, inputs, radar, errors, missing_inputs=reason, label=label)


def rmse(prediction: Image, target: Image) -> float:
    """Root mean squared error over pixels and bands, reflectance."""
    return float(np.sqrt(np.square(prediction - target, dtype=np.float64).mean()))


def read_series(info: Mapping[str, Any], root: str) -> tuple[Image | None, Image | None, str]:
    """Optical inputs (T,13,H,W) and VV in dB (T,H,W) of an exported sample.

    Args:
        info: of its manifest.
        root: the data set; may be empty.

    Returns:
        Both, None if they cannot be read, and the reason of missing inputs: no root, no paths in the manifest, or
        missing or damaged files.
    """
    if not root:
        return None, None, "Name the data set by --root to see the inputs."
    try:
        inputs = read_inputs(info, root)
        reason = "" if inputs is not None else "The exports do not name the files of the inputs."
        return inputs, _read_radar(info.get("sar_paths"), root), reason
    except DataError as error:
        return None, None, f"The inputs cannot be read: {error}"


def _read_radar(paths: Sequence[str] | None, root: str) -> Image | None:
    """VV in dB, (T,H,W), clipped to the range of network inputs; None without paths."""
    if not paths or any(not path or ";" in path for path in paths):
        return None
    images = open_images(root)
    return np.stack([np.clip(np.nan_to_num(images.read(path, N_S1)[0][0]), *SAR_RANGE_DB) for path in paths])
