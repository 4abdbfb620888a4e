"""Which band of a file is which, by its description or else by its place."""

import re
from collections.abc import Sequence

from common.errors import DataError
from data.constants import N_S1, N_S2, S1_BANDS, S2_BANDS, band_index

_OPTICAL = re.compile(r"(?<![A-Za-z0-9])B(?:and)?[ _]?0?(8A|1[0-2]|[1-9])(?![A-Za-z0-9])", re.IGNORECASE)
_RADAR = re.compile(r"(?<![A-Za-z0-9])(VV|VH|HH|HV)(?![A-Za-z0-9])", re.IGNORECASE)
_CIRRUS = band_index("B10")


def optical_bands(path: str, names: Sequence[str | None]) -> tuple[int, ...]:
    """Where the 13 bands of Sentinel-2 lie in a file.

    Args:
        path: for messages.
        names: each band's description, None where it has none: B1, B01, b8a, "B4, central wavelength 665 nm" are
            understood. If none is, 13 bands are taken as B01 to B12 in order, 12 as the same without B10.

    Returns:
        13 positions from 1; 0 for B10 where the file lacks it.

    Raises:
        DataError: if other bands are missing, or one is there twice.
    """
    named: dict[int, int] = {}
    for position, name in enumerate(names, start=1):
        found = _OPTICAL.search(name or "")
        if found is None:
            continue
        band = band_index(f"B{found[1].upper()}")
        if band in named:
            raise DataError(f"{path}: bands {named[band]} and {position} are both called {S2_BANDS[band]}")
        named[band] = position
    if not named and len(names) == N_S2:
        return tuple(range(1, N_S2 + 1))
    if not named and len(names) == N_S2 - 1:
        return (*range(1, _CIRRUS + 1), 0, *range(_CIRRUS + 1, N_S2))
    missing = [name for band, name in enumerate(S2_BANDS) if band not in named and band != _CIRRUS]
    if missing and not named:
        raise DataError(
            f"{path}: {len(names)} bands without names; expected the {N_S2} bands {S2_BANDS[0]} to {S2_BANDS[-1]} in "
            f"order, or {N_S2 - 1} without B10, or band descriptions that name them"
        )
    if missing:
        raise DataError(f"{path}: missing {', '.join(missing)}; expected all bands of Sentinel-2 (B10 may be missing)")
    return tuple(named.get(band, 0) for band in range(N_S2))


def radar_bands(path: str, names: Sequence[str | None]) -> tuple[int, ...]:
    """Where VV and VH lie in a file, by description (VV, Sigma0_VH_db), else two bands in order.

    Raises:
        DataError: if one is missing.
    """
    spelled = [_RADAR.search((name or "").replace("_", " ")) for name in names]
    named = {found[1].upper(): position for position, found in enumerate(spelled, start=1) if found is not None}
    if not named and len(names) == N_S1:
        return tuple(range(1, N_S1 + 1))
    missing = [band for band in S1_BANDS if band not in named]
    if missing:
        told = f"bands called {', '.join(named)}" if named else f"{len(names)} bands without names"
        raise DataError(f"{path}: {told}; expected VV and VH of Sentinel-1, backscatter in dB")
    return tuple(named[band] for band in S1_BANDS)
