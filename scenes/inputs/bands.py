"""The order of the bands in a file, by their descriptions or else by position."""

import re
from collections.abc import Sequence

from common.errors import DataError
from data.constants import N_S1, N_S2, S1_BANDS, S2_BANDS, band_index

_OPTICAL = re.compile(r"(?<![A-Za-z0-9])B(?:and)?[ _]?0?(8A|1[0-2]|[1-9])(?![A-Za-z0-9])", re.IGNORECASE)
_RADAR = re.compile(r"(?<![A-Za-z0-9])(VV|VH|HH|HV)(?![A-Za-z0-9])", re.IGNORECASE)
_CIRRUS = band_index("B10")


def optical_bands(path: str, descriptions: Sequence[str | None]) -> tuple[int, ...]:
    """Positions of the 13 bands of Sentinel-2 in a file.

    Args:
        path: for messages.
        descriptions: of each band, None where it has none; names such as B1, B01, b8a or "B4, central wavelength
            665 nm" are recognised. Without any, 13 bands are taken as B01 to B12 in order, 12 as the same without B10.

    Returns:
        13 positions from 1; 0 for B10 where the file lacks it.

    Raises:
        DataError: if other bands are missing, or a band occurs twice.
    """
    positions: dict[int, int] = {}
    for position, description in enumerate(descriptions, start=1):
        match = _OPTICAL.search(description or "")
        if match is None:
            continue
        band = band_index(f"B{match[1].upper()}")
        if band in positions:
            raise DataError(f"{path}: bands {positions[band]} and {position} are both called {S2_BANDS[band]}")
        positions[band] = position
    if not positions and len(descriptions) == N_S2:
        return tuple(range(1, N_S2 + 1))
    if not positions and len(descriptions) == N_S2 - 1:
        return (*range(1, _CIRRUS + 1), 0, *range(_CIRRUS + 1, N_S2))
    if not positions:
        raise DataError(
            f"{path}: {len(descriptions)} bands without names; expected the {N_S2} bands {S2_BANDS[0]} to "
            f"{S2_BANDS[-1]} in order, or {N_S2 - 1} without B10, or band descriptions that name them"
        )
    missing = [name for band, name in enumerate(S2_BANDS) if band not in positions and band != _CIRRUS]
    if missing:
        raise DataError(f"{path}: missing {', '.join(missing)}; expected all bands of Sentinel-2 (B10 may be missing)")
    return tuple(positions.get(band, 0) for band in range(N_S2))


def radar_bands(path: str, descriptions: Sequence[str | None]) -> tuple[int, ...]:
    """Positions of VV and VH in a file, by description (VV, Sigma0_VH_db), else two bands in this order.

    Raises:
        DataError: if a polarisation is missing.
    """
    matches = [_RADAR.search((description or "").replace("_", " ")) for description in descriptions]
    positions = {match[1].upper(): position for position, match in enumerate(matches, start=1) if match is not None}
    if not positions and len(descriptions) == N_S1:
        return tuple(range(1, N_S1 + 1))
    if not set(S1_BANDS) <= set(positions):
        names = f"bands called {', '.join(positions)}" if positions else f"{len(descriptions)} bands without names"
        raise DataError(f"{path}: {names}; expected VV and VH of Sentinel-1, backscatter in dB")
    return tuple(positions[band] for band in S1_BANDS)
