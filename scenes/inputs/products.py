"""Products as readers find them: where each band lies and what the product declares about its values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

from data.clouds.product_classes import CLASS_BANDS
from data.constants import N_S2
from scenes.inputs.rasters.raster import Raster
from scenes.options import SceneInputs

SENSORS = ("optical", "radar")
_CLASS_NAMES = {
    **{
        "scl": "scl",
        "scene_classification": "scl",
        "scene_classification_map": "scl",
        "quality_scene_classification": "scl",
    },
    "qa60": "qa60",
}


@dataclass(frozen=True)
class Band:
    """One band of a raster.

    Attributes:
        raster: in which it lies.
        position: in the raster, from 1.
        scale: the value is the stored one times this, plus `offset`, as the product declares: reflectance, or what
            the units of radar say. None where it declares nothing.
        offset: see `scale`.
        nodata: stored value of missing pixels; None where none is declared.
    """

    raster: Raster
    position: int
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


@dataclass(frozen=True)
class ClassBand:
    """A classification of clouds that comes with a product.

    Attributes:
        band: its values are classes.
        kind: "scl" (scene classification of L2A), "qa60" (bits 10 and 11) or "classi" (MSK_CLASSI: opaque, cirrus,
            snow in this order of bands, the first being `band`).
    """

    band: Band
    kind: str

    @property
    def positions(self) -> tuple[int, ...]:
        """Of all its bands in the raster."""
        return tuple(range(self.band.position, self.band.position + CLASS_BANDS[self.kind]))


def find_class_band(raster: Raster, names: Sequence[str | None], positions: Sequence[int]) -> ClassBand | None:
    """The classification among bands of a raster, by their names: SCL before QA60; None if there is none.

    Args:
        raster: of the bands.
        names: of the bands.
        positions: of the bands in the raster, from 1.
    """
    at = {(name or "").strip().lower(): position for name, position in zip(names, positions, strict=True)}
    for name, kind in _CLASS_NAMES.items():
        if name in at:
            return ClassBand(Band(raster, at[name]), kind)
    return None


@dataclass(frozen=True)
class OpticalProduct:
    """One Sentinel-2 image of one day.

    Attributes:
        path: the value of the flag that named it.
        name: for messages, such as the name of its granule.
        bands: the 13 bands; None for B10 where the product has none.
        day: of acquisition; None where nothing says it.
        declared_by: what declares scales and offsets, for notes: "MTD_MSIL1C.xml"; empty where nothing does.
        level: "L1C", "L2A", or empty where nothing says it.
        overpass: the same for parts of one overpass (datatake or sensing time); empty where nothing says it.
        classes: its own classification of clouds, if any.
        offset: in stored units, as the user gives it for this image; None leaves it to `SceneInputs.offset`.
        notes: on how it is read.
        scale: reflectance for each stored unit, as the user gives it for this image, likewise.
        by_position: whether its bands have no names and are taken in the order of the file; values may contradict it.
    """

    path: str
    name: str
    bands: tuple[Band | None, ...]
    day: date | None = None
    declared_by: str = ""
    level: str = ""
    overpass: str = ""
    classes: ClassBand | None = None
    offset: float | None = None
    notes: tuple[str, ...] = ()
    scale: float | None = None
    by_position: bool = False

    def __post_init__(self) -> None:
        assert len(self.bands) == N_S2


@dataclass(frozen=True)
class RadarProduct:
    """One Sentinel-1 image of one day.

    Attributes:
        path: the value of the flag that named it.
        name: for messages.
        bands: VV and VH.
        day: of acquisition; None where nothing says it.
        units: "db", "power" or "amplitude" where the product declares them, else empty.
        notes: on how it is read.
        by_position: whether its bands have no names and are taken as VV, VH, which values may contradict.
    """

    path: str
    name: str
    bands: tuple[Band, Band]
    day: date | None = None
    units: str = ""
    notes: tuple[str, ...] = ()
    by_position: bool = False


@dataclass(frozen=True)
class Products:
    """What a reader finds: optical and radar images in the order of their files, and notes on all of them."""

    optical: tuple[OpticalProduct, ...] = ()
    radar: tuple[RadarProduct, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A kind of input.

    Attributes:
        name: "GeoTIFF", "Sentinel-2 product (.SAFE)".
        recognises: whether a path, local or remote, is of this kind: by its content, never by its ending, and fast.
        read: from all paths of this kind that one flag names, the flag's sensor ("optical" or "radar") and the options
            to what they hold; reads no pixels. Raises a `DataError` that names the file.
    """

    name: str
    recognises: Callable[[str], bool]
    read: Callable[[Sequence[str], str, SceneInputs], Products] = field(repr=False)
