"""Constants of both data sets: bands, value ranges, dates, sizes."""

from datetime import date

S1_BANDS = ("VV", "VH")
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
N_S1, N_S2 = len(S1_BANDS), len(S2_BANDS)
N_DATES = 30  # of each region in SEN12MS-CR-TS
PATCH_SIZE = 256  # pixels of 10 m, of the published patches

REFLECTANCE_SCALE = 10000.0  # digital numbers per unit of reflectance; also the upper clip
SAR_RANGE_DB = (-25.0, 0.0)  # both polarisations, rescale_method "default"
SAR_RANGE_DB_RESNET = ((-25.0, 0.0), (-32.5, 0.0))  # VV, VH, rescale_method "resnet"

DATE_ORIGIN = date(2014, 4, 3)  # launch of Sentinel-1A, the origin of days
CLEAR_COVERAGE = 1e-3  # dates with less cloud cover may be targets

DETECTORS = ("s2cloudless_mask", "s2cloudless_map", "cloud_cloudshadow_mask")
REGIONS = ("all", "africa", "america", "asiaEast", "asiaWest", "europa")
SPLITS = ("train", "val", "test", "all")


def band_index(name: str) -> int:
    """Index of an optical band, `band_index("B08") == 7`; `B8` is accepted for `B08`."""
    padded = f"B0{name[1:]}" if len(name) == 2 else name
    if padded not in S2_BANDS:
        raise ValueError(f"unknown band {name!r}; choose from {', '.join(S2_BANDS)}")
    return S2_BANDS.index(padded)


RGB = tuple(band_index(name) for name in ("B04", "B03", "B02"))
