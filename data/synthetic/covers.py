"""Parameters of simulated land: reflectance and backscatter by land cover, crops, climates.

Reflectances are top-of-atmosphere x 10000, in the order of `data.constants.S2_BANDS`. They are medians over covers
(grouped by NDVI, radar brightness and k-means) of six Sentinel-2 patches of SEN12MS-CR (Ebel et al. 2020): autumn in
eastern China (ROIs1970_fall 139), winter season in western Europe (ROIs2017_winter 112), summer in West Africa
(ROIs1868_summer 19); backscatter is the median of their Sentinel-1 twins. B09 and B10 are not used: they are computed
from B8A and the water vapour of the date.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

WATER, FIELD, GRASS, FOREST, TOWN, ROAD, DRYLAND = range(7)
COVER_NAMES = ("water", "field", "grass", "forest", "town", "road", "dryland")


def _levels(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


# B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12
# Light scattered by the atmosphere: below the 0.1 % quantile of every band of the darkest patch.
PATH_RADIANCE = _levels(1280, 890, 560, 350, 290, 220, 190, 160, 130, 60, 7, 40, 25)
# One unit of haze (aerosol), strongest at short wavelengths.
HAZE = _levels(110, 100, 85, 70, 60, 50, 45, 42, 38, 10, 0, 20, 15)
# Subtracted from levels of the autumn patch, which is hazier than the others (minimum of B01 1476 instead of 1343).
AUTUMN_HAZE = 1.2 * HAZE

CROP_TEMPERATE = _levels(1421, 1117, 997, 726, 1290, 2759, 3344, 3301, 3750, 862, 13, 2037, 1001)
# The West African patch lies between clouds: CROP_TROPICAL (NDVI 0.55 to 0.6) is corrected by 70 to 170 for stray
# light, FOREST_LEAF (its darker cluster) by 20 to 70.
CROP_TROPICAL = _levels(1433, 1134, 1111, 814, 1257, 2880, 3560, 3330, 3960, 433, 10, 2150, 950)
PASTURE = _levels(1437, 1149, 979, 844, 1216, 1949, 2268, 2233, 2578, 655, 13, 1910, 1067)
SOIL_RED = _levels(1651, 1525, 1476, 1765, 1990, 2287, 2514, 2665, 2868, 1437, 36, 2713, 1941) - AUTUMN_HAZE
SOIL_BROWN = _levels(1573, 1263, 1080, 1033, 1184, 1352, 1451, 1430, 1555, 855, 27, 1439, 1040) - AUTUMN_HAZE
STUBBLE = _levels(1514, 1341, 1265, 1320, 1751, 2445, 2828, 2843, 3288, 802, 14, 3128, 1874)
FOREST_LEAF = _levels(1449, 1182, 1089, 868, 1077, 2026, 2456, 2204, 2650, 316, 9, 1534, 762)
FOREST_BARE = _levels(1380, 1042, 764, 610, 773, 1088, 1249, 1211, 1422, 426, 11, 1093, 626)
WATER_TURBID = _levels(1606, 1417, 1339, 1208, 1131, 838, 829, 707, 714, 571, 23, 481, 325) - AUTUMN_HAZE
# The patches have no deep water: their darkest red and infrared values, lowered towards the path radiance.
WATER_CLEAR = _levels(1480, 1130, 800, 520, 470, 400, 380, 340, 330, 120, 12, 160, 110)
ROOF_DARK = _levels(1443, 1131, 886, 755, 921, 1152, 1257, 1155, 1323, 387, 10, 1146, 759)
ROOF_GREY = _levels(1672, 1454, 1270, 1300, 1410, 1574, 1682, 1656, 1790, 1085, 32, 1778, 1506) - AUTUMN_HAZE
ROOF_BRIGHT = _levels(1729, 1608, 1492, 1642, 1735, 1998, 2161, 2246, 2373, 1316, 36, 2293, 1894) - AUTUMN_HAZE
ASPHALT = _levels(1596, 1333, 1176, 1180, 1266, 1370, 1448, 1372, 1526, 899, 29, 1547, 1258) - AUTUMN_HAZE

# An optically thick cloud of liquid water: the brightest 0.5 % of the clouded patches, scaled to a reflectance of one
# in the limit (theirs is about 0.72). B09 and B10 are computed in data/synthetic/clouds.py.
CLOUD = _levels(6700, 6850, 6850, 7350, 7250, 8200, 9000, 8200, 9500, 1400, 25, 7900, 6000)
ICE = CLOUD * _levels(1, 1, 1, 1, 1, 1, 0.98, 0.98, 0.96, 1, 1, 0.62, 0.58)  # ice absorbs in B11 and B12

# Pixel-to-pixel noise of the sensor, from the median absolute 3 x 3 residual over the flattest parts of the patches.
SENSOR_NOISE = _levels(3, 7, 8, 9, 9, 11, 12, 14, 13, 5, 1, 10, 8)

# dB of VV and VH: (bare or leafless, in full leaf).
BACKSCATTER: dict[int, tuple[tuple[float, float], tuple[float, float]]] = {
    WATER: ((-19.0, -25.5), (-19.0, -25.5)),
    FIELD: ((-11.8, -19.2), (-10.2, -15.9)),
    GRASS: ((-11.8, -18.6), (-10.8, -17.0)),
    FOREST: ((-9.6, -15.6), (-8.6, -14.2)),
    TOWN: ((-4.5, -13.5), (-4.5, -13.2)),
    ROAD: ((-13.5, -20.5), (-13.5, -20.3)),
    DRYLAND: ((-12.8, -19.8), (-11.4, -17.6)),
}
MOISTURE_DB: dict[int, float] = {WATER: 0.0, FIELD: 1.0, GRASS: 0.7, FOREST: 0.25, TOWN: 0.15, ROAD: 0.3, DRYLAND: 1.0}
SPECKLE_LOOKS = 5  # homogeneous forest savanna has a standard deviation of 2.0 dB in both polarisations
SPECKLE_CORRELATION_PX = 1.38  # and correlations of 0.77, 0.38, 0.17 at one, two, three pixels

# Static texture: standard deviation relative to the ground's reflectance.
TEXTURE: dict[int, float] = {
    WATER: 0.03, FIELD: 0.045, GRASS: 0.06, FOREST: 0.11, TOWN: 0.10, ROAD: 0.04, DRYLAND: 0.07,
}  # fmt: skip


@dataclass(frozen=True)
class Pulse:
    """A growing period: greenness rises and falls.

    Attributes:
        start: day of the year at half rise.
        end: day of the year at half fall; above 365 if it lies in the next year.
        height: increase of greenness, of 1.
        ramp_days: duration of rise and fall (scale of a logistic curve).
    """

    start: float
    end: float
    height: float
    ramp_days: float = 12.0


# Northern calendar; a climate shifts it. Leaf-on times follow common crop calendars, not the patches.
CROPS: dict[str, tuple[float, tuple[Pulse, ...]]] = {
    "winter cereal": (0.08, (Pulse(300, 450, 0.35, 20), Pulse(88, 186, 0.85, 12))),
    "summer crop": (0.05, (Pulse(155, 268, 0.95, 12),)),
    "early summer crop": (0.08, (Pulse(120, 225, 0.85, 12),)),
    "double crop": (0.06, (Pulse(80, 165, 0.8, 10), Pulse(205, 290, 0.9, 10))),
    "meadow": (0.45, (Pulse(85, 300, 0.4, 20),)),
    "rain-fed crop": (0.06, (Pulse(185, 300, 0.85, 14),)),
    "irrigated": (0.1, (Pulse(60, 140, 0.75, 12), Pulse(170, 260, 0.8, 12))),
    "plantation": (0.75, (Pulse(160, 320, 0.2, 25),)),
    "fallow": (0.08, (Pulse(110, 290, 0.2, 25),)),
}
FOREST_CYCLES: dict[str, tuple[float, tuple[Pulse, ...]]] = {
    "deciduous": (0.08, (Pulse(112, 302, 0.9, 9),)),
    "mixed": (0.35, (Pulse(112, 302, 0.5, 9),)),
    "conifer": (0.28, (Pulse(120, 290, 0.1, 20),)),
    "evergreen": (0.85, (Pulse(150, 330, 0.12, 30),)),
    "dry forest": (0.3, (Pulse(165, 325, 0.5, 16),)),
}


@dataclass(frozen=True)
class Climate:
    """Parameters of landscapes in one climate; each region of interest varies them.

    Attributes:
        crops: names in `CROPS`.
        forests: names in `FOREST_CYCLES`.
        shares: area fractions of water, forest, town and dryland; the rest is fields and grass.
        crop: reflectance of a crop in full leaf.
        soils: two reflectances between which that of a field's soil lies.
        soil_gain: brightness of soils relative to `soils`.
        vapour: reflectance of B09 relative to B8A: high in dry air.
        vapour_swing: relative seasonal amplitude of `vapour`.
        cloudy_day: day of the year in the middle of the cloudy season.
        clear_share: fraction of dates without clouds.
        wet_day: day of the year when soils are wettest.
        shift_days: shift of the vegetation calendar (182: southern hemisphere).
    """

    crops: tuple[str, ...]
    forests: tuple[str, ...]
    shares: tuple[float, float, float, float]
    crop: FloatArray
    soils: tuple[FloatArray, FloatArray]
    soil_gain: float
    vapour: float
    vapour_swing: float
    cloudy_day: float
    clear_share: float
    wet_day: float
    shift_days: float = 0.0


CLIMATES: dict[str, Climate] = {
    "oceanic": Climate(
        ("winter cereal", "summer crop", "early summer crop", "meadow"), ("deciduous", "mixed", "conifer"),
        (0.05, 0.22, 0.06, 0.0), CROP_TEMPERATE, (SOIL_BROWN, STUBBLE), 1.0, 0.22, 0.2, 10, 0.27, 20,
    ),
    "continental": Climate(
        ("winter cereal", "summer crop", "early summer crop", "fallow"), ("deciduous", "mixed", "conifer"),
        (0.06, 0.25, 0.04, 0.02), CROP_TEMPERATE, (SOIL_BROWN, SOIL_RED), 0.95, 0.23, 0.3, 345, 0.3, 90,
    ),
    "mediterranean": Climate(
        ("winter cereal", "irrigated", "plantation", "fallow"), ("evergreen", "dry forest", "conifer"),
        (0.04, 0.15, 0.06, 0.12), CROP_TEMPERATE, (SOIL_RED, STUBBLE), 1.08, 0.28, 0.2, 15, 0.4, 15, -30,
    ),
    "monsoon": Climate(
        ("double crop", "summer crop", "rain-fed crop", "plantation"), ("evergreen", "dry forest"),
        (0.09, 0.16, 0.08, 0.0), CROP_TROPICAL, (SOIL_BROWN, SOIL_RED), 1.0, 0.2, 0.45, 200, 0.27, 205,
    ),
    "savanna": Climate(
        ("rain-fed crop", "rain-fed crop", "fallow", "plantation"), ("dry forest", "dry forest", "evergreen"),
        (0.03, 0.2, 0.03, 0.22), CROP_TROPICAL, (SOIL_RED, STUBBLE), 1.05, 0.18, 0.4, 220, 0.3, 225,
    ),
    "steppe": Climate(
        ("irrigated", "winter cereal", "fallow"), ("dry forest", "conifer"),
        (0.03, 0.05, 0.05, 0.35), CROP_TEMPERATE, (SOIL_RED, SOIL_RED), 1.12, 0.36, 0.2, 30, 0.4, 70,
    ),
    "southern": Climate(
        ("summer crop", "early summer crop", "winter cereal", "meadow"), ("evergreen", "mixed"),
        (0.05, 0.2, 0.04, 0.08), CROP_TROPICAL, (SOIL_RED, SOIL_BROWN), 1.0, 0.24, 0.3, 15, 0.33, 10, 182,
    ),
}  # fmt: skip
REGION_CLIMATES: dict[str, tuple[str, ...]] = {
    "africa": ("savanna", "southern", "mediterranean"),
    "america": ("continental", "southern", "savanna"),
    "asiaEast": ("monsoon", "continental"),
    "asiaWest": ("steppe", "monsoon", "mediterranean"),
    "europa": ("oceanic", "continental", "mediterranean"),
}
