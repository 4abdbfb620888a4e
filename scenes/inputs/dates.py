"""When an image was taken: told by the user, by the file's tags, or by its name."""

import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import PurePath

from common.errors import DataError
from data.constants import DATE_ORIGIN

# TIFF's own tag comes last, after the name: it says when the file was made, which may be years later.
_TAGS = (
    *("ACQUISITION_DATE", "ACQUISITIONDATE", "SENSING_TIME", "DATATAKE_SENSING_START", "PRODUCT_START_TIME"),
    *("START_DATETIME", "DATETIME", "DATE"),
)
_FILE_TAG = "TIFFTAG_DATETIME"
_PRODUCT = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})T\d{6}(?!\d)")  # sensing time comes first in products' names
_SPELLED = re.compile(r"(?<!\d)(\d{4})([-_]?)(\d{2})\2(\d{2})(?!\d)")
_TEXT = re.compile(r"\s*(\d{4})([-:/]?)(\d{2})\2(\d{2})(?!\d)")
_YEARS = range(2014, 2100)


def find_date(path: str, tags: Mapping[str, str]) -> date:
    """The day on which an image was taken.

    Args:
        path: of the file; product names (`S2A_MSIL1C_20180621T103021_…`), 2018-06-21 and 20180621 are understood.
        tags: the data set's, in which ACQUISITION_DATE, DATETIME and their like go before the name, and
            TIFFTAG_DATETIME, which says when a file was made, after it.

    Raises:
        DataError: if neither tells.
    """
    spelled = {key.upper(): value for key, value in tags.items()}
    for tag in _TAGS:
        found = _TEXT.match(spelled.get(tag, ""))
        if found is not None:
            return _day(found[1], found[3], found[4], f"tag {tag} of {path}")
    name = PurePath(path).name
    product = _PRODUCT.search(name)
    if product is not None:
        return _day(product[1], product[2], product[3], f"name of {path}")
    for found in _SPELLED.finditer(name):
        if int(found[1]) in _YEARS and (found[2] or int(found[3]) in range(1, 13)):
            return _day(found[1], found[3], found[4], f"name of {path}")
    found = _TEXT.match(spelled.get(_FILE_TAG, ""))
    if found is not None:
        return _day(found[1], found[3], found[4], f"tag {_FILE_TAG} of {path}")
    raise DataError(
        f"no date for {path}: neither its tags (ACQUISITION_DATE) nor its name (2018-06-21, 20180621) tell one; "
        "rename it, or give --dates or a list with dates"
    )


def parse_date(text: str, where: str) -> date:
    """A day as a user spells it: 2018-06-21, 20180621, or with a time after it.

    Raises:
        DataError: if it is none.
    """
    found = _TEXT.match(text)
    if found is None:
        raise DataError(f"{where}: expected a date like 2018-06-21, found {text!r}")
    return _day(found[1], found[3], found[4], where)


def labels_of(days: Sequence[int]) -> tuple[str, ...]:
    """A name for each date, in ISO; the second image of a day is "2018-06-21 (2)"."""
    names: list[str] = []
    for position, day in enumerate(days):
        turn = days[:position].count(day) + 1
        name = (DATE_ORIGIN + timedelta(days=day)).isoformat()
        names.append(name if turn == 1 else f"{name} ({turn})")
    return tuple(names)


def _day(year: str, month: str, day: str, where: str) -> date:
    try:
        return date(int(year), int(month), int(day))
    except ValueError as error:
        raise DataError(f"impossible date {year}-{month}-{day} in the {where}") from error
