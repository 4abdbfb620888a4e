"""A small series of five dates with radar, and the comparison of two of its reconstructions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import xarray as xr

from tests.support.scene_cases import maps_in, write_scene

DAYS = ("2018-04-29", "2018-06-01", "2018-06-11", "2018-06-21", "2018-07-16")
WINDOWS = ((0, 1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3), (2, 3, 4))  # the three dates nearest to each
SMALL = ["--device", "cpu", "--workers", "1", "--tile", "32", "--overlap", "8", "--batch_size", "4"]


@dataclass(frozen=True)
class SeriesFiles:
    """The GeoTIFFs of a series."""

    optical: list[Path]
    radar: list[Path]

    def line(self, run: Path, out: Path, *more) -> list:
        """The command line of a series in small tiles, by default with everything."""
        words = ["--weights", run, "--optical", *self.optical, "--sar", *self.radar, "--out", out, *SMALL]
        return [*words, *(more or ("--every_date", "--zarr"))]


def write_series_files(folder: Path) -> SeriesFiles:
    """Five dates of 64 x 70 pixels, and radar of three other days; a part of the third date is missing."""
    files = write_scene(folder, 64, 70, nodata=0, days=DAYS)
    with rasterio.open(files.optical[2], "r+") as image:
        pixels = image.read()
        pixels[:, 10:30, 20:50] = 0
        image.write(pixels)
    for path, day in zip(files.radar[::2], ("2018-05-05", "2018-06-12", "2018-07-01"), strict=True):
        path.rename(path.with_name(f"s1_{day}.tif"))
    for path in files.radar[1::2]:
        path.unlink()
    return SeriesFiles(files.optical, sorted(folder.glob("s1_*.tif")))


def assert_same_series(left: Path, right: Path) -> None:
    for day in DAYS:
        first, second = maps_in(left / day), maps_in(right / day)
        assert set(first) == set(second)
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name], err_msg=f"{day} {name}")
    stores = [xr.open_zarr(out / "series.zarr").load() for out in (left, right)]
    xr.testing.assert_identical(*stores)
    assert (left / "ndvi.csv").read_bytes() == (right / "ndvi.csv").read_bytes()
