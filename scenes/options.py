"""Every flag of a reconstruction, with its default, choices and help text, and the checks of their combinations."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from common.errors import UsageError
from common.files import require_utf8
from common.parallel import AUTO, worker_count
from common.ranges import LARGEST_FLOAT, Range
from data.constants import DETECTORS
from scenes.output_images import PERIODS

RESAMPLING = ("bilinear", "nearest")
LARGEST_TILE = 8192  # pixels: a network needs 60 GB for it
UINT16_MAX = 2**16 - 1
MAX_WORKERS = 8  # of workers="auto": each needs about 1.5 GB


def flag(group: str, default: Any, text: str, *, name: str = "", allowed: Range | None = None, **options: Any) -> Any:
    """A dataclass field that is a command line flag.

    Args:
        group: group in the help.
        default: value of an absent flag.
        text: help text.
        name: of the flag, if not that of the field.
        allowed: range of a number.
        options: further arguments of `argparse.ArgumentParser.add_argument`.
    """
    metadata = {"group": group, "text": text, "name": name, "options": options, "range": allowed}
    return field(default=default, metadata=metadata)


def check_ranges(options: Any) -> None:
    """Raise a `UsageError` for the first number of a dataclass of flags that is out of range."""
    for entry in fields(options):
        allowed = entry.metadata.get("range")
        for value in _listed(getattr(options, entry.name)):
            if allowed is not None and isinstance(value, int | float) and (violation := allowed.violation(value)):
                raise UsageError(f"--{entry.metadata['name'] or entry.name} {violation}")


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]


def _one_or_each(values: list[Any]) -> Any:
    """The one value for all images, or a tuple of one for each."""
    return values[0] if len(values) == 1 else tuple(values)


def _offset(value: str | float) -> str | float:
    if not isinstance(value, str) or value in ("auto", "none"):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise UsageError(f"--offset takes auto, none or a number such as -1000, not {value[:40]!r}") from error


# fmt: off
@dataclass(frozen=True)
class SceneInputs:
    """The images of a scene: `optical` and `radar`, or a `manifest`, or a `folder`; the flags say what each means.

    Raises:
        UsageError: if they contradict each other.
    """

    optical: Sequence[str] = flag("inputs", (), "Sentinel-2 images: products (.SAFE, zipped or not), band files or their folders, STAC items, GeoTIFFs, Earth Engine stacks, netCDF and Zarr cubes", nargs="+", metavar="IMAGE")
    radar: Sequence[str] = flag("inputs", (), "Sentinel-1 images of VV and VH, terrain-corrected; each date takes the nearest in time", name="sar", nargs="+", metavar="IMAGE")
    dates: Sequence[str] = flag("inputs", (), "of the images of --optical, like 2018-06-21 (default: from metadata or names); of --folder the dates to take", nargs="+", metavar="DAY")
    radar_dates: Sequence[str] = flag("inputs", (), "of the images of --sar", name="sar_dates", nargs="+", metavar="DAY")
    manifest: str = flag("inputs", "", "CSV or JSON with a row for each date: optical, radar, date, radar_date, offset, scale", name="list", metavar="FILE")
    stac: Sequence[str] = flag("inputs", (), "STAC items, item collections, search results, catalogues or collections, of Sentinel-2 and maybe of terrain-corrected Sentinel-1; files or addresses", nargs="+", metavar="FILE")
    date_range: str = flag("inputs", "", "of STAC items: first and last day, like 2018-06-01/2018-07-01 (default: all)", metavar="FIRST/LAST")
    max_cloud: float | None = flag("inputs", None, "of STAC items of Sentinel-2: largest cloud cover in percent (default: all)", type=float, metavar="PERCENT", allowed=Range(0, 100))
    allow_vrt: bool = flag("inputs", False, "accept VRT files, mosaics or stacks of images in their own folder", action="store_true")
    folder: str = flag("inputs", "", "a region of SEN12MS-CR-TS, ROOT/ROIs1868/73", metavar="DIR")
    numbers: Sequence[int] = flag("inputs", (), "which of the 30 dates of --folder (default: all)", type=int, nargs="+", metavar="N")
    offset: str | float | Sequence[str | float] = flag("inputs", "auto", "added to stored optical values: auto (as the product declares, or by its values), none, or a number like -1000; one, or one for each image of --optical", nargs="+", metavar="OFFSET", allowed=Range(-UINT16_MAX, UINT16_MAX))
    scale: float | None | Sequence[float] = flag("inputs", None, "reflectance for each stored optical unit, one or one for each image (default: as declared, else 0.0001)", type=float, nargs="+", metavar="SCALE", allowed=Range(0, LARGEST_FLOAT, open=True))
    aoi: str = flag("area", "", "GeoJSON with polygons, in longitude and latitude or in its crs member; maps are nodata outside", metavar="FILE")
    bbox: Sequence[float] = flag("area", (), "edges in longitude and latitude: west, south, east, north", type=float, nargs=4, metavar=("W", "S", "E", "N"))
    crs: str = flag("area", "", "coordinate system of the maps, like EPSG:32633 (default: of the images, which then must agree)", metavar="CRS")
    resolution: float | None = flag("area", None, "pixel size of the maps in metres (default: of the images)", type=float, metavar="M", allowed=Range(0, 100_000, open=True))
    resampling: str = flag("area", RESAMPLING[0], f"of images and bands on other grids (default: {RESAMPLING[0]})", choices=RESAMPLING)
    radar_units: str = flag("inputs", "auto", "of --sar: dB, linear power or amplitude (default: auto, by the values)", name="sar_units", choices=("auto", "db", "power", "amplitude"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", _one_or_each([_offset(value) for value in _listed(self.offset)]))
        object.__setattr__(self, "scale", _one_or_each(_listed(self.scale)))
        check_ranges(self)
        sources = {"--optical": self.optical, "--stac": self.stac, "--list": self.manifest, "--folder": self.folder}
        given = [flag for flag, value in sources.items() if value]
        if len(given) != 1:
            names = " and ".join(given) or "none of them"
            raise UsageError(f"name the scene by one of --optical, --stac, --list and --folder; got {names}")
        if not (self.optical or self.stac) and (self.radar or self.radar_dates or (self.dates and self.manifest)):
            raise UsageError("--sar, --dates and --sar_dates go with --optical; a list or a folder names its own")
        if self.folder and (self.date_range or self.max_cloud is not None):
            raise UsageError("--date_range and --max_cloud choose STAC items; --folder takes --numbers or --dates")
        if self.numbers and not self.folder:
            raise UsageError("--numbers chooses among the 30 dates of --folder; there is none")
        if self.folder and (self.aoi or self.bbox or self.crs or self.resolution):
            raise UsageError("--aoi, --bbox, --crs and --resolution go with images; --folder is taken as it is")
        if self.aoi and self.bbox:
            raise UsageError("give one of --aoi and --bbox")


@dataclass(frozen=True)
class SceneOptions:
    """What is reconstructed and how; the flags say what each option means.

    Raises:
        UsageError: if they contradict each other.
    """

    inputs: SceneInputs
    weights: str = flag("inputs", "", "a trained run: its folder, or a .pth.tar beside its conf.json", metavar="RUN")
    out: str = flag("outputs", "", "folder of the maps", metavar="DIR")
    where_clear: str = flag("outputs", "predict", "clear pixels of the latest date, in a series of each image's own: predict them too (default), or keep the observation", choices=("predict", "keep"))
    detector: str = flag("outputs", "auto", f"of clouds, for the masks and for keep: scl and product take the classification that comes with the images; none makes no masks (default: auto, scl for Level-2A that has it, else {DETECTORS[0]})", choices=("auto", *DETECTORS, "scl", "product", "none"))
    every_date: bool = flag("series", False, "an image for each date, from the --window dates nearest to it, itself among them", action="store_true")
    composite: str = flag("series", "", "an image for each month or season (DJF, MAM, JJA, SON) that has a date, from the --window dates nearest to its middle, its own first", choices=PERIODS)
    window: int | None = flag("series", None, "dates from which each image is made (default: as many as in training)", type=int, metavar="T", allowed=Range(1, 1000))
    zarr: bool = flag("series", False, "write the images into one Zarr store as well, DIR/series.zarr", action="store_true")
    overwrite: bool = flag("outputs", False, "replace what an earlier command with other settings left in --out", action="store_true")
    dry_run: bool = flag("plan", False, "print how the images are read, and the disk and time that the maps take, without making any; needs neither --weights nor --out", action="store_true")
    json: bool = flag("plan", False, "with --dry_run: print one JSON object, see docs/inputs.md", action="store_true")
    tile: int = flag("computation", 256, "pixels along a side of the tiles that the network sees; best as in training (default: 256)", type=int, metavar="PX", allowed=Range(16, LARGEST_TILE))
    overlap: int | None = flag("computation", None, "pixels that neighbouring tiles share (default: a quarter of --tile)", type=int, metavar="PX", allowed=Range(0, LARGEST_TILE // 2))
    batch_size: int | None = flag("computation", None, "tiles predicted together (default: 1 on a CPU, 8 on a GPU)", type=int, metavar="N", allowed=Range(1, 4096))
    workers: int | str = flag("computation", AUTO, f"processes, one core and about 1.5 GB each; auto: a core each, up to {MAX_WORKERS} (default: auto)", type=worker_count, metavar="N")
    scheduler: str = flag("computation", "", "of a running Dask cluster that predicts the tiles; its workers must share the folder --out", metavar="ADDRESS")
    device: str = flag("computation", "auto", "auto, cpu, cuda or cuda:1 (default: auto, a GPU if there is one)")
    precision: str = flag("computation", "fp32", "of the network; auto takes bf16 where the device supports it (default: fp32)", choices=("auto", "fp32", "bf16", "fp16"))

    @property
    def is_series(self) -> bool:
        """Whether many images are made."""
        return self.every_date or bool(self.composite)

    def __post_init__(self) -> None:
        check_ranges(self)
        missing = [name for name, value in (("--weights", self.weights), ("--out", self.out)) if not value]
        if missing and not self.dry_run:
            raise UsageError(f"{' and '.join(missing)} missing; only --dry_run does without")
        if self.json and not self.dry_run:
            raise UsageError("--json goes with --dry_run")
        require_utf8(self.out, "--out")
        if self.every_date and self.composite:
            raise UsageError("give one of --every_date and --composite; each into an --out of its own")
        if not self.is_series and (self.window is not None or self.zarr):
            raise UsageError("--window and --zarr go with a series: add --every_date or --composite")
        if self.where_clear == "keep" and self.detector == "none":
            raise UsageError("--where_clear keep needs to detect clear pixels: give a --detector other than none")
        if self.workers in (AUTO, 0, 1):
            return
        if self.scheduler:
            raise UsageError("--scheduler has workers of its own; leave --workers out")
        if self.device not in ("auto", "cpu"):
            raise UsageError(f"--workers shares the cores of a CPU; one process feeds {self.device}: leave --workers out")
