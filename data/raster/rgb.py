"""True-colour pictures of 13-band images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.files import atomic_file
from data.constants import N_S1, N_S2, RGB

# Reflectance shown as black and as white in B04, B03, B02: the air alone gives the first, bright soil and thin cloud
# stay below the second. The exponent lifts forest and water out of the dark.
_BLACK, _WHITE = np.array((0.025, 0.045, 0.07)), np.array((0.29, 0.28, 0.29))
_EXPONENT = 1 / 1.6


def to_rgb(image: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """True colour by a fixed stretch.

    Args:
        image: (13,H,W), or (15,H,W) with radar first, reflectance; NaN is shown black. Leading dimensions of 1 are
            dropped.

    Returns:
        (H,W,3) in [0, 1]: red, green, blue.
    """
    bands = np.asarray(image, dtype=np.float32)
    bands = bands.reshape(bands.shape[-3:])  # (C,H,W)
    optical = bands[N_S1:] if len(bands) == N_S1 + N_S2 else bands
    colours = (np.moveaxis(np.nan_to_num(optical[list(RGB)]), 0, -1) - _BLACK) / (_WHITE - _BLACK)  # (H,W,3)
    return (colours.clip(0, 1) ** _EXPONENT).astype(np.float32)


def save_pixels(path: Path, image: npt.NDArray[np.float32]) -> None:
    """Write an image (H,W,3), or (H,W,4) with opacity, in [0, 1], as a PNG of the same pixels; atomic."""
    from matplotlib.image import imsave  # deferred: heavy, and most commands draw nothing

    with atomic_file(path) as temporary:
        imsave(temporary, image)
