"""The fields of a reconstruction, and the file that stores each."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.constants import REFLECTANCE_SCALE, S2_BANDS

STD_SCALE = 1e-5
"""Standard deviations are stored as uint16 times this: half the size of float32. The rounding error, 5e-6, is a
twentieth of one step of the stored reflectance; values above 0.65535 are stored as that, and mean "unknown" anyway:
reflectance lies in [0, 1]."""
MASK_NODATA = 255
LATEST = "the latest date"  # is kept in the image of a scene


@dataclass(frozen=True)
class Field:
    """The file of a field: its name, title and STAC roles, and the physical value of a stored 1 (0 for masks).

    `{kept}` in the title stands for the date whose clear pixels are kept.
    """

    file: str
    title: str
    roles: tuple[str, ...]
    scale: float = 0


def _deviation(name: str, title: str) -> Field:
    return Field(f"{name}_std.tif", f"Standard deviation, {title}", ("data", "uncertainty"), STD_SCALE)


FIELDS = {
    "reflectance": Field(
        "reflectance.tif", "Reflectance without clouds", ("data", "reflectance"), 1 / REFLECTANCE_SCALE
    ),
    "aleatoric": _deviation("aleatoric", "aleatoric: noise and clouds in the data"),
    "epistemic": _deviation("epistemic", "epistemic: what the network does not know"),
    "total": _deviation("total", "total"),
    "clouds": Field("clouds.tif", "Cloud masks of the dates: 0 clear, 1 clouded", ("cloud", "data-mask")),
    "observed": Field(
        "observed.tif",
        "1 where {kept} was clear and is kept, 0 where pixels are predicted",
        ("data-mask",),
    ),
}


def band_names(field: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The bands of a field; `labels` are the names of the dates."""
    return {"clouds": tuple(labels), "observed": ("observed",)}.get(field, S2_BANDS)
