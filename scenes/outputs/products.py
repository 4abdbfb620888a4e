"""What is made of a scene: written window by window, turned into Cloud-Optimised GeoTIFFs at the end."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import transform as window_transform

from common.errors import DataError
from common.files import whole_file, write_json
from data.constants import DATE_ORIGIN, REFLECTANCE_SCALE, S2_BANDS
from scenes.inputs.dataset_pool import gdal_settings
from scenes.inputs.grid import Grid, Window
from scenes.outputs.cog import BLOCK, Layer, Spooled, write_cog, write_vrt
from scenes.outputs.quicklook import write_quicklook
from scenes.outputs.stac import ItemFacts, write_item

SOFTWARE, VERSION = "cloudless-uncertainty", "0.1.0"
FIELDS = ("reflectance", "aleatoric", "epistemic", "total", "clouds")
STD_SCALE = 1e-5
"""Standard deviations are stored as uint16 times this: half the size of float32. The rounding, 5e-6, is a twentieth of
one step of the stored reflectance; what exceeds 0.65535 is stored as that, and says "unknown" anyway: reflectance lies
in [0, 1]."""
MASK_NODATA = 255
_OPTIONAL = ("observed",)
_MOST = np.iinfo(np.uint16).max
_NAME = re.compile(r"r(\d+)_c(\d+)_(\d+)x(\d+)\.tif")


@dataclass(frozen=True)
class _Kind:
    """How a field is stored: file, what a stored 1 is worth (0 for masks), and words about it."""

    file: str
    scale: float
    title: str


_KINDS = {
    "reflectance": _Kind("reflectance.tif", 1 / REFLECTANCE_SCALE, "Reflectance without clouds"),
    "aleatoric": _Kind("aleatoric_std.tif", STD_SCALE, "Standard deviation, aleatoric: noise and clouds in the data"),
    "epistemic": _Kind("epistemic_std.tif", STD_SCALE, "Standard deviation, epistemic: what the network does not know"),
    "total": _Kind("total_std.tif", STD_SCALE, "Standard deviation, total"),
    "clouds": _Kind("clouds.tif", 0, "Cloud masks of the dates: 0 clear, 1 clouded"),
    "observed": _Kind("observed.tif", 0, "1 where the latest date was clear and is kept, 0 where pixels are predicted"),
}


class SceneProducts:
    """A folder of products under way. Opened again after a kill, it goes on where it was.

    What is written lies under FOLDER/.work/windows, a file for each window, whole or not at all; memory holds one.

    Args:
        folder: where to; made if missing.
        grid: of the scene.
        labels: a name for each date, `SceneSeries.labels`.
        days: of each date, since 2014-04-03.
        nodata: of the optical images. Kept where uint16 can hold it, otherwise 0 takes its place; None declares none,
            and missing pixels are 0.
        fields: which products are made, of `FIELDS` and "observed".
        settings: what else the result depends on, JSON.

    Raises:
        DataError: if the folder cannot be made, or holds what was begun with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        grid: Grid,
        *,
        labels: Sequence[str],
        days: Sequence[int],
        nodata: float | None,
        fields: Sequence[str] = FIELDS,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        unknown = sorted(set(fields) - {*FIELDS, *_OPTIONAL})
        if unknown or "reflectance" not in fields:
            raise ValueError(f"fields must be reflectance and any of {FIELDS + _OPTIONAL}, not {tuple(fields)}")
        self.folder = Path(folder)
        self.grid, self.labels, self.days = grid, tuple(labels), tuple(days)
        self.nodata = _stored_nodata(nodata)
        self.fields = tuple(field for field in FIELDS + _OPTIONAL if field in fields)
        self._work = self.folder / ".work"
        self._spool = self._work / "windows"
        self._begin(dict(settings or {}))

    def written(self) -> frozenset[Window]:
        """The windows that are there."""
        found = (_NAME.fullmatch(entry.name) for entry in os.scandir(self._spool)) if self._spool.is_dir() else ()
        return frozenset(Window(*map(int, match.groups())) for match in found if match)

    def write(self, window: Window, fields: Mapping[str, np.ndarray]) -> None:
        """Add a window, whole or not at all; one that is there is replaced.

        Args:
            window: windows must not overlap, and cover the scene in the end.
            fields: all that `fields` of the class names: `reflectance` (13,h,w), `aleatoric`, `epistemic`, `total`
                standard deviations (13,h,w), float32 in units of reflectance; `clouds` (T,h,w) uint8, 0 clear,
                1 clouded, 255 missing; `observed` (h,w) bool. And `valid` (h,w) bool: elsewhere, and where a value is
                NaN, all products are nodata.

        Raises:
            ValueError: if a field is missing or has another shape, or the window leaves the scene.
            DataError: if the disk is full.
        """
        if not window.inside(self.grid):
            raise ValueError(f"{window} does not lie within {self.grid.height} x {self.grid.width} pixels")
        valid = np.asarray(fields["valid"], np.bool_)
        for field in self.fields:
            wanted = ((self._bands(field),) if field != "observed" else ()) + (window.height, window.width)
            if field not in fields or np.shape(fields[field]) != wanted:
                raise ValueError(f"{field} must be {wanted}, not {np.shape(fields.get(field, ()))}")
            if _KINDS[field].scale:
                valid = valid & ~np.isnan(fields[field]).any(axis=0)
        stored = [self._encode(field, np.asarray(fields[field]), valid) for field in self.fields]
        profile = {"driver": "GTiff", "dtype": "uint16", "count": sum(map(len, stored)), "interleave": "band"}
        profile |= {"height": window.height, "width": window.width, "compress": "deflate", "zlevel": 1, "predictor": 2}
        profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "crs": self.grid.crs}
        profile["transform"] = window_transform(window.gdal, self.grid.transform)
        with gdal_settings(), whole_file(self._path(window)) as temporary:
            try:
                with rasterio.open(temporary, "w", **profile) as target:
                    target.write(np.concatenate(stored))
            except RasterioError as error:
                raise DataError(f"cannot write to {self._spool}: {error}; check the disk's free space") from error

    def finish(
        self, *, network: str, notes: Sequence[str] = (), tags: Mapping[str, str] | None = None
    ) -> dict[str, Path]:
        """Make the products of the windows, a quick-look and a STAC item, and remove the windows.

        Args:
            network: which network it was, for tags.
            notes: what was done to the inputs, `SceneSeries.notes`.
            tags: more for the files' metadata.

        Returns:
            The files by field, `quicklook` and `item`.

        Raises:
            ValueError: if windows are missing.
            DataError: if the disk is full.
        """
        windows = sorted(self.written())
        area = sum(window.height * window.width for window in windows)
        if area != self.grid.height * self.grid.width:
            raise ValueError(f"windows cover {area} of {self.grid.height * self.grid.width} pixels")
        common = {"TIFFTAG_SOFTWARE": f"{SOFTWARE} {VERSION}", "NETWORK": network, "DATES": ",".join(self.labels)}
        common |= {"PROCESSING_NOTES": "; ".join(notes)} if notes else {}
        common |= dict(tags or {})
        made: dict[str, Path] = {}
        first = 1
        with gdal_settings():
            for field in self.fields:
                layer = self._layer(field, first, common)
                first += self._bands(field)
                vrt = self._spool / f"{field}.vrt"
                sources = [Spooled(self._path(window).name, window) for window in windows]
                write_vrt(vrt, self.grid, layer, sources)
                made[field] = self.folder / _KINDS[field].file
                write_cog(vrt, made[field], self._work, average=_KINDS[field].scale > 0)
            made["quicklook"] = self.folder / "quicklook.png"
            write_quicklook(made["reflectance"], made["quicklook"])
        made["item"] = self.folder / "item.json"
        write_item(made["item"], self._facts(network, notes), {name: made[name] for name in made if name != "item"})
        shutil.rmtree(self._spool)
        (self._work / "products.json").unlink()
        if not any(self._work.iterdir()):
            self._work.rmdir()
        return made

    def _begin(self, settings: dict[str, Any]) -> None:
        try:
            self._spool.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}; check --out") from error
        plan = {
            "grid": [self.grid.height, self.grid.width, *self.grid.transform, _wkt(self.grid)],
            "dates": list(self.labels),
            "nodata": self.nodata,
            "fields": list(self.fields),
            "settings": settings,
        }
        place = self._work / "products.json"
        plan = json.loads(json.dumps(plan))
        try:
            begun = json.loads(place.read_text(encoding="utf-8")) if place.exists() else None
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {place}: {error}; remove {self._work} to begin anew") from error
        if begun is None:
            write_json(place, plan)
        elif begun != plan:
            differ = next(key for key in plan if begun.get(key) != plan[key])
            raise DataError(
                f"{self.folder} holds an unfinished scene with another {differ}; give the same inputs and flags to go "
                f"on with it, or remove {self._work} to begin anew"
            )

    def _path(self, window: Window) -> Path:
        return self._spool / f"r{window.top:06d}_c{window.left:06d}_{window.height}x{window.width}.tif"

    def _bands(self, field: str) -> int:
        return {"clouds": len(self.labels), "observed": 1}.get(field, len(S2_BANDS))

    def _encode(self, field: str, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """uint16 (C,h,w)."""
        scale = _KINDS[field].scale
        if not scale:
            return np.where(valid, values.reshape(-1, *valid.shape), MASK_NODATA).astype(np.uint16)
        fill = self.nodata or 0
        stored = np.rint(np.nan_to_num(values, posinf=1.0) * np.float32(1 / scale)).clip(0, _MOST).astype(np.uint16)
        if self.nodata is not None:  # what there is must not look as if it were missing
            stored[stored == fill] = fill + 1 if fill == 0 else fill - 1
        return np.where(valid, stored, np.uint16(fill))

    def _layer(self, field: str, first: int, common: Mapping[str, str]) -> Layer:
        kind = _KINDS[field]
        if not kind.scale:
            names = self.labels if field == "clouds" else ("observed",)
            return Layer(names, first, "Byte", MASK_NODATA, None, "", {**common, "TITLE": kind.title})
        units = f"reflectance = stored value x {kind.scale:g}"
        tags = {**common, "TITLE": kind.title, "UNITS": units}
        return Layer(S2_BANDS, first, "UInt16", self.nodata, kind.scale, "reflectance", tags)

    def _facts(self, network: str, notes: Sequence[str]) -> ItemFacts:
        return ItemFacts(
            name=self.folder.resolve().name,
            grid=self.grid,
            first=DATE_ORIGIN + timedelta(days=min(self.days)),
            last=DATE_ORIGIN + timedelta(days=max(self.days)),
            labels=self.labels,
            nodata=self.nodata,
            scales={field: _KINDS[field].scale for field in self.fields},
            titles={field: _KINDS[field].title for field in self.fields},
            network=network,
            notes=tuple(notes),
            software={SOFTWARE: VERSION},
        )


def _stored_nodata(nodata: float | None) -> int | None:
    if nodata is None:
        return None
    return int(nodata) if np.isfinite(nodata) and nodata == int(nodata) and 0 <= nodata <= _MOST else 0


def _wkt(grid: Grid) -> str:
    return "" if grid.crs is None else str(grid.crs.to_wkt())
