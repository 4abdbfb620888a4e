"""Which band a name means, and the order of the bands in a file: by their names or else by position."""

import re
from collections.abc import Sequence

from common.errors import DataError, list_some
from data.constants import N_S1, N_S2, S1_BANDS, S2_BANDS, band_index

_CIRRUS = band_index("B10")
_CODE = re.compile(r"b(?:and)?0?(8a|1[0-2]|[1-9])")
_NUMBER = re.compile(r"0?(8a|1[0-2]|[1-9])")
_WORD = re.compile(r"[a-z0-9]+")
_COMMON = {  # words without spaces: STAC, Earth Search, Earth Engine, FORCE, Digital Earth Africa, ESA's own
    "B01": "coastal coastalaerosol aerosol aerosols ultrablue",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1 rededge071 rededge705 re1 vre1",
    "B06": "rededge2 rededge075 rededge740 re2 vre2",
    "B07": "rededge3 rededge078 rededge783 re3 vre3",
    "B08": "nir nir1 nirbroad broadnir widenir nirwide nir842 nearinfrared",
    "B8A": "nir08 nir2 nirnarrow narrownir nir8a nira nir865 rededge4 re4 vre4",
    "B09": "nir09 watervapor watervapour nir945",
    "B10": "cirrus swircirrus cirrusswir",
    "B11": "swir16 swir1 swir1610 swir1600 nbartswir2 nbarswir2",
    "B12": "swir22 swir2 swir2190 swir2200 nbartswir3 nbarswir3",
}
_PREFIXES = ("nbart", "nbar")  # of Digital Earth Australia, which counts from swir2
_BAND_OF = {word: band_index(band) for band, words in _COMMON.items() for word in words.split()}
_SHARED = {"nir": ("B07", "B08", "B8A", "B09"), "rededge": ("B05", "B06", "B07", "B8A"), "swir": ("B10", "B11", "B12")}
_WEAK = {"aerosol", "aerosols", "watervapor", "watervapour"}  # also called so: maps of L2A, not bands
_WAVELENGTHS = {  # nm, of Sentinel-2A, 2B and 2C
    **{"B01": (442, 443, 444), "B02": (490, 492, 493, 496, 497), "B03": (559, 560, 561), "B04": (664, 665, 667)},
    **{"B05": (703, 704, 705, 707), "B06": (739, 740, 741), "B07": (779, 780, 782, 783, 785)},
    **{"B08": (832, 833, 834, 835, 842), "B8A": (864, 865, 866), "B09": (940, 943, 945, 947)},
    **{"B10": (1372, 1373, 1374, 1375, 1377), "B11": (1610, 1612, 1613, 1614), "B12": (2185, 2186, 2190, 2191, 2202)},
}
_BAND_AT = {wavelength: band_index(band) for band, values in _WAVELENGTHS.items() for wavelength in values}
_WAVELENGTH = re.compile(r"(?:(?:rho[stw]|wavelength)[ _]?(\d{3,4})(?:[ _]?nm)?|(\d{3,4})[ _]?nm)")
_NEUTRAL = re.compile(  # words that say nothing about the band
    r"(?:band|vegetation|veg|msi|s2[abcd]?|2[abcd]|l1c|l2a|toa|boa|sr|surface|reflectance|refl|"
    r"rho[stw]?|median|mean|\d+m|m|t\d{2}[a-z]{3})"
)
_NOT_A_BAND = {  # a name with one of these words is a layer about a band; sur_refl_b02 is of MODIS
    *("mask", "msk", "std", "stddev", "var", "variance", "stdev", "count", "qa", "quality", "cloud", "clouds", "ratio"),
    *("angle", "angles", "zenith", "azimuth", "detfoo", "qualit", "defect", "uncertainty", "error", "index", "diff"),
    *(
        "div",
        "minus",
        "plus",
        "over",
        "normalized",
        "phase",
        "coh",
        "coherence",
        "i",
        "q",
        "imag",
        "real",
        "aot",
        "wvp",
    ),
    *("scl", "stokes", "entropy", "alpha", "noise", "enl", "sur"),
}
_DATE = re.compile(r"(?<!\d)(?:19|20)\d{2}([-_./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?:t[\d:.]*z?)?(?!\d)")
_SENTINEL = re.compile(r"sentinel[-_ ]?2[abcd]?(?![a-z0-9])")
_ARITHMETIC = re.compile(r"[/*+^]")
_POLARISATION = re.compile(
    r"(?:sigma0?|gamma0?|beta0?|sig|gam|s1[abcd]?|iw[123]?)?(vv|vh)(?:db|lin|linear|pwr|power|amp)?"
)
_NUMBERED = re.compile(r"(.*?)0*(\d+)")
_CODE_START = re.compile(r"(?:.*[^a-z0-9])?b[ _]?")  # of B1, which is a code
_LISTED = 40  # names in a message


def band_of(name: str | None) -> int | None:
    """The optical band that a name means.

    Codes (`B1`, `B01_60m`, `b8a`, `Band 4`, `S2-L2A-B01`, `B4, central wavelength 665 nm`,
    `T33UUU_20170216T102101_B02`), common names (`coastal`, `rededge1`, `rededge071`, `Red Edge 1`, `nir` for B08,
    `nir08` for B8A, `nir09`, `cirrus`, `swir16`, `SWIR 1`) and wavelengths (`rhos_443`, `443 nm`) are understood.
    `rededge`, which is three bands, is not; nor are ratios, masks and angles that have a band in their names, or a
    code with the common name of another band.

    Returns:
        The index among the 13 bands, or None.
    """
    text, words = _words(name)
    codes, others = _split_codes(words)
    if len(codes) > 1:
        return None
    rest = "".join(word for word in others if not _NEUTRAL.fullmatch(word))
    common = _BAND_OF.get(rest, _BAND_OF.get("".join(word for word in words if word not in _PREFIXES)))
    if not codes:
        return _band_at(text) if common is None else common
    code = next(iter(codes))
    agrees = S2_BANDS[code] in _SHARED[rest] if rest in _SHARED else common in (None, code)
    return code if agrees else None


def polarisation_of(name: str | None) -> int | None:
    """The polarisation that the name of a radar band means: 0 for VV, 1 for VH, None for others, ratios and angles.

    `VV`, `vh`, `Sigma0_VH_db`, `gamma0_vv`, `Intensity_VV`, `VV_ASC`, `s1a-iw-grd-vv-20180618t…` are understood.
    """
    matches = {match[1] for match in map(_POLARISATION.fullmatch, _words(name)[1]) if match is not None}
    return S1_BANDS.index(matches.pop().upper()) if len(matches) == 1 else None


def are_named(descriptions: Sequence[str | None]) -> bool:
    """Whether bands have names: not none at all, nor "Band 1" to "Band 13" in order, nor the same one for all."""
    names = [(description or "").strip().lower() for description in descriptions]
    if not any(names):
        return False
    if len(names) > 1 and len(set(names)) == 1:
        return band_of(names[0]) is not None or polarisation_of(names[0]) is not None
    parts = [match.groups() if match else ("", "0") for match in map(_NUMBERED.fullmatch, names)]
    prefix, numbers = parts[0][0], [int(number) for _, number in parts]
    in_order = numbers == list(range(1, len(names) + 1)) and {own for own, _ in parts} == {prefix}
    return not in_order or _CODE_START.fullmatch(prefix) is not None


def optical_bands(path: str, descriptions: Sequence[str | None]) -> tuple[int, ...]:
    """Positions of the 13 bands of Sentinel-2 in a file.

    Args:
        path: for messages.
        descriptions: of each band, None where it has none, see `band_of`. Without any (see `are_named`), 13 bands are
            taken as B01 to B12 in order, 12 as the same without B10; whether the values agree with this is left to
            `scenes.inputs.layout`.

    Returns:
        13 positions from 1; 0 for B10 where the file lacks it.

    Raises:
        DataError: if other bands are missing, or a band occurs twice.
    """
    if not are_named(descriptions):
        return _by_position(path, len(descriptions))
    positions: dict[int, int] = {}
    for weak in (False, True):
        for position, description in enumerate(descriptions, start=1):
            band = band_of(description)
            if band is None or ("".join(_WORD.findall((description or "").lower())) in _WEAK) != weak:
                continue
            if band not in positions:
                positions[band] = position
            elif not weak:
                raise DataError(
                    f"{path}: bands {positions[band]} and {position} are both called {S2_BANDS[band]} "
                    f"({_list([descriptions[positions[band] - 1], description])}); expected one image for each date"
                )
    missing = [name for band, name in enumerate(S2_BANDS) if band not in positions and band != _CIRRUS]
    if missing:
        raise DataError(
            f"{path}: missing {', '.join(missing)}; expected all bands of Sentinel-2 (B10 may be missing), by "
            f"names such as B05, rededge1, nir08; found bands called {_list(descriptions)}"
        )
    return tuple(positions.get(band, 0) for band in range(N_S2))


def radar_bands(path: str, descriptions: Sequence[str | None]) -> tuple[int, ...]:
    """Positions of VV and VH in a file, by name (see `polarisation_of`), else two bands in this order.

    Raises:
        DataError: if a polarisation is missing or occurs twice.
    """
    if not are_named(descriptions):
        if len(descriptions) == N_S1:
            return tuple(range(1, N_S1 + 1))
        raise DataError(
            f"{path}: {len(descriptions)} bands without names; expected VV and VH of Sentinel-1, backscatter in dB"
        )
    positions: dict[int, int] = {}
    for position, description in enumerate(descriptions, start=1):
        band = polarisation_of(description)
        if band in positions:
            raise DataError(
                f"{path}: bands {positions[band]} and {position} are both {S1_BANDS[band]}; expected one image for "
                f"each orbit and date (gdal_translate -b {positions[band]} ...), found bands called "
                f"{_list(descriptions)}"
            )
        if band is not None:
            positions[band] = position
    if len(positions) < N_S1:
        raise DataError(
            f"{path}: bands called {_list(descriptions)}; expected VV and VH of Sentinel-1, backscatter in dB"
        )
    return tuple(positions[band] for band in range(N_S1))


def _by_position(path: str, count: int) -> tuple[int, ...]:
    if count == N_S2:
        return tuple(range(1, N_S2 + 1))
    if count == N_S2 - 1:
        return (*range(1, _CIRRUS + 1), 0, *range(_CIRRUS + 1, N_S2))
    raise DataError(
        f"{path}: {count} bands without names; expected the {N_S2} bands {S2_BANDS[0]} to "
        f"{S2_BANDS[-1]} in order, or {N_S2 - 1} without B10, or band descriptions that name them"
    )


def _words(name: str | None) -> tuple[str, list[str]]:
    """The lower case name without dates, and its words; empty if it is a layer about a band."""
    text = _DATE.sub(" ", _SENTINEL.sub(" ", (name or "").lower()))
    words = _WORD.findall(text)
    return ("", []) if _ARITHMETIC.search(text) or set(words) & _NOT_A_BAND else (text, words)


def _split_codes(words: Sequence[str]) -> tuple[set[int], list[str]]:
    """The bands whose codes are among the words of a name, and the other words."""
    codes, others = set(), []
    index = 0
    while index < len(words):
        word, following = words[index], words[index + 1] if index + 1 < len(words) else ""
        match = _CODE.fullmatch(word)
        if match is None and word in ("b", "band"):
            match = _NUMBER.fullmatch(following)
            index += match is not None
        if match is None:
            others.append(word)
        else:
            codes.add(band_index(f"B{match[1].upper()}"))
        index += 1
    return codes, others


def _band_at(text: str) -> int | None:
    """The band of the one wavelength in a name."""
    wavelengths = {int(match[1] or match[2]) for match in _WAVELENGTH.finditer(text)}
    return _BAND_AT.get(wavelengths.pop()) if len(wavelengths) == 1 else None


def _list(names: Sequence[str | None]) -> str:
    return list_some([name or "(none)" for name in names], _LISTED)
