"""Read single patches and rescale them to the ranges that networks take."""

import os
import warnings
from collections.abc import Callable

import numpy as np

from common.errors import DataError
from data.constants import N_S1, N_S2
from data.raster.geotiff import Bounds
from data.raster.image_store import open_images
from data.raster.rescaling import RawImage, optical_to_unit, sar_to_unit


class PatchReader:
    """Reads the patches of one data set, which all have the same size.

    Args:
        root: folder that paths are relative to.
        method: "default" or "resnet", see `data.raster.rescaling`.
        first_size: returns height and width of the first patch; called once.

    Attributes:
        nan_values: number of NaN values read so far, in this process.
    """

    def __init__(self, root: str, method: str, first_size: Callable[[], tuple[int, int]]) -> None:
        self.root, self.method = root, method
        self.nan_values = 0
        self._first_size = first_size
        self._size: tuple[int, int] | None = None

    def optical(self, path: str, target: bool = False) -> tuple[np.ndarray, Bounds]:
        """An optical patch as stored, (13, H, W), and its bounds.

        Raises:
            DataError: if it cannot be used; also if it is a target and blank.
        """
        raw, bounds = self._read(path, N_S2)
        if target and not raw.any():
            raise DataError(f"{os.path.join(self.root, path)}: every value is 0, there is no image to be a target")
        return raw, bounds

    def radar(self, path: str) -> np.ndarray:
        """A radar patch in dB, float32 (2, H, W)."""
        return self._read(path, N_S1)[0]

    def rescale(self, path: str, raw: np.ndarray, as_raw_image: bool = False) -> np.ndarray | RawImage:
        """Rescale an image, now or later; NaN values are counted, with a warning at the first.

        Args:
            path: of the image, for the warning.
            raw: optical (13, H, W) or radar (2, H, W), as stored.
            as_raw_image: return a `RawImage`, to be rescaled when it is collated.

        Returns:
            float32 of the same shape, or the `RawImage`.
        """
        if raw.dtype.kind == "f":
            n_nan = int(np.isnan(raw).sum())
            if n_nan and not self.nan_values:
                warnings.warn(
                    f"{os.path.join(self.root, path)}: {n_nan} of {raw.size} values are NaN and become 0; "
                    "further files with NaN are not reported",
                    stacklevel=2,
                )
            self.nan_values += n_nan
        image = RawImage(raw, optical_to_unit if len(raw) == N_S2 else sar_to_unit, self.method)
        return image if as_raw_image else image.to_unit()

    def _read(self, path: str, bands: int) -> tuple[np.ndarray, Bounds]:
        if self._size is None:
            self._size = self._first_size()
        return open_images(self.root).read(path, bands, self._size)
