"""The products of a scene: written block by block, converted to Cloud-Optimised GeoTIFFs at the end."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import transform as window_transform

from common.errors import DataError
from common.files import atomic_file
from data.raster.geotiff import open_image
from scenes.inputs.rasters.dataset_pool import gdal_settings
from scenes.inputs.rasters.grid import Window
from scenes.inputs.series import SceneSeries
from scenes.output_images import OutputImage
from scenes.outputs.cog import BLOCK, Layer, write_cog, write_vrt
from scenes.outputs.fields import FIELDS, LATEST, MASK_NODATA, band_names
from scenes.outputs.ndvi import NdviSums, add_sums, block_sums
from scenes.outputs.quicklook import write_quicklook
from scenes.outputs.stac import SOFTWARE, VERSION, ItemDetails, write_item
from scenes.resume import WORK

DEFAULT_FIELDS = tuple(field for field in FIELDS if field != "observed")
_UINT16_MAX = np.iinfo(np.uint16).max
_NDVI = "NDVI"  # tag of a block
_BLOCK_NAME = re.compile(r"r(\d+)_c(\d+)_(\d+)x(\d+)\.tif")


class SceneProducts:
    """The products of one output image in a folder; opened again after an interruption, it resumes.

    Blocks are written to a folder of unfinished files, atomically, a file each; memory holds one.

    Args:
        folder: where to; created if missing.
        series: the inputs. Their nodata value is kept if uint16 can hold it, otherwise replaced by 0; without one none
            is declared, and missing pixels are 0.
        fields: the products to make, of `FIELDS`.
        image: of a series; None for the only image of a scene.
        work: the folder of unfinished files, on the same disk; by default FOLDER/.work.
    """

    def __init__(
        self,
        folder: str | Path,
        series: SceneSeries,
        fields: Sequence[str] = DEFAULT_FIELDS,
        image: OutputImage | None = None,
        work: Path | None = None,
    ) -> None:
        if not {"reflectance"} <= set(fields) <= set(FIELDS):
            raise ValueError(f"fields must be reflectance and any of {tuple(FIELDS)}, not {tuple(fields)}")
        self.folder, self.series, self.grid = Path(folder), series, series.grid
        self.nodata = stored_nodata(series.nodata)
        self.bands = {field: band_names(field, series.labels) for field in FIELDS if field in fields}
        self._image = image
        self._kept = LATEST if image is None else series.labels[image.kept_position]
        self._work = work or self.folder / WORK
        self._blocks = self._work / "windows"

    def written(self) -> frozenset[Window]:
        """The windows of the blocks that are written."""
        names = os.listdir(self._blocks) if self._blocks.is_dir() else []
        matches = (_BLOCK_NAME.fullmatch(name) for name in names)
        return frozenset(Window(*map(int, match.groups())) for match in matches if match)

    def write(self, window: Window, fields: Mapping[str, np.ndarray]) -> None:
        """Write a block, atomically; an existing one is replaced.

        Args:
            window: blocks must not overlap, and cover the scene in the end.
            fields: one entry for each field: `reflectance` (13,h,w); `aleatoric`, `epistemic`, `total`,
                standard deviations (13,h,w), float32 in units of reflectance; `clouds` (T,h,w) uint8, 0 clear,
                1 clouded, 255 missing; `observed` (h,w) bool. And `valid` (h,w) bool: elsewhere, and where a value is
                NaN, all products are nodata. Of an image of a series also `ndvi` (T,h,w), see `scenes.outputs.ndvi`.

        Raises:
            ValueError: if a field is missing or has another shape, or the window leaves the scene.
            DataError: if the disk is full.
        """
        if not window.inside(self.grid):
            raise ValueError(f"{window} does not lie within {self.grid.height} x {self.grid.width} pixels")
        valid = np.asarray(fields["valid"], np.bool_)
        for field, bands in self.bands.items():
            shape = (*((len(bands),) if field != "observed" else ()), window.height, window.width)
            if field not in fields or np.shape(fields[field]) != shape:
                raise ValueError(f"{field} must be {shape}, not {np.shape(fields.get(field, ()))}")
            if FIELDS[field].scale:
                valid = valid & ~np.isnan(fields[field]).any(axis=0)
        stored = [self._encode(field, np.asarray(fields[field]), valid) for field in self.bands]
        profile = {"driver": "GTiff", "dtype": "uint16", "count": sum(map(len, stored)), "interleave": "band"}
        profile |= {"height": window.height, "width": window.width, "compress": "deflate", "zlevel": 1, "predictor": 2}
        profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "crs": self.grid.crs}
        profile["transform"] = window_transform(window.rasterio, self.grid.transform)
        with gdal_settings(), atomic_file(self._path(window)) as temporary:
            try:
                with rasterio.open(temporary, "w", **profile) as target:
                    target.write(np.concatenate(stored))
                    if self._image is not None:
                        sums = block_sums({**fields, "valid": valid}, window, self.grid)
                        target.update_tags(**{_NDVI: json.dumps(sums.to_json())})
            except RasterioError as error:
                raise DataError(f"cannot write to {self._blocks}: {error}; check the disk's free space") from error

    def ndvi_sums(self) -> NdviSums:
        """The sums of the NDVI over all blocks, which `finish` deletes."""
        parts = []
        for window in sorted(self.written()):
            with open_image(str(self._path(window))) as block:
                parts.append(NdviSums.from_json(json.loads(block.tags()[_NDVI])))
        return add_sums(parts)

    def finish(
        self, *, network: str, notes: Sequence[str] = (), tags: Mapping[str, str] | None = None
    ) -> dict[str, Path]:
        """Make the products from the blocks, a quick-look and a STAC item, and delete the blocks.

        Args:
            network: its name and where its weights are, for the files' tags.
            notes: how the inputs were read, `SceneSeries.notes`.
            tags: further metadata of the files.

        Returns:
            The files by field, `quicklook` and `item`.

        Raises:
            ValueError: if blocks are missing.
            DataError: if the disk is full.
        """
        windows = sorted(self.written())
        area = sum(window.size for window in windows)
        if area != self.grid.window.size:
            raise ValueError(f"windows cover {area} of {self.grid.window.size} pixels")
        common = {"TIFFTAG_SOFTWARE": f"{SOFTWARE} {VERSION}", "NETWORK": network}
        common["DATES"] = ",".join(self.series.labels)
        common |= {"PROCESSING_NOTES": "; ".join(notes)} if notes else {}
        common |= dict(tags or {})
        blocks = {self._path(window).name: window for window in windows}
        files: dict[str, Path] = {}
        first = 1
        with gdal_settings():
            for field, bands in self.bands.items():
                scale, layer_tags = (
                    FIELDS[field].scale,
                    {**common, "TITLE": FIELDS[field].title.format(kept=self._kept)},
                )
                layer_tags |= {"UNITS": f"reflectance = stored value x {scale:g}"} if scale else {}
                layer = Layer(bands, first, self.nodata if scale else MASK_NODATA, scale, layer_tags)
                vrt, files[field] = self._blocks / f"{field}.vrt", self.folder / FIELDS[field].file
                write_vrt(vrt, self.grid, layer, blocks)
                write_cog(vrt, files[field], self._work, average=scale > 0)
                first += len(bands)
            files["quicklook"] = self.folder / "quicklook.png"
            write_quicklook(files["reflectance"], files["quicklook"])
        item = self.folder / "item.json"
        details = ItemDetails(self.nodata, network, notes, self._image, self._kept)
        write_item(item, self.series, files, details)
        shutil.rmtree(self._blocks)
        if not any(self._work.iterdir()):
            self._work.rmdir()
        return files | {"item": item}

    def _path(self, window: Window) -> Path:
        return self._blocks / f"r{window.top:06d}_c{window.left:06d}_{window.height}x{window.width}.tif"

    def _encode(self, field: str, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The stored values of a field, uint16 (C,h,w)."""
        scale = FIELDS[field].scale
        if not scale:
            return np.where(valid, values.reshape(-1, *valid.shape), MASK_NODATA).astype(np.uint16)
        fill = self.nodata or 0
        stored = (
            np.rint(np.nan_to_num(values, posinf=1.0) * np.float32(1 / scale)).clip(0, _UINT16_MAX).astype(np.uint16)
        )
        if self.nodata is not None:  # valid values must differ from nodata
            stored[stored == fill] = fill + 1 if fill == 0 else fill - 1
        return np.where(valid, stored, np.uint16(fill))


def stored_nodata(nodata: float | None) -> int | None:
    """The nodata value of maps whose inputs declare one: theirs if uint16 can hold it, else 0; None without one."""
    if nodata is None:
        return None
    return int(nodata) if np.isfinite(nodata) and nodata == int(nodata) and 0 <= nodata <= _UINT16_MAX else 0
