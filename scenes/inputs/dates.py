"""Acquisition dates of images, and the radar date that belongs to each optical one."""

import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import PurePath

from common.errors import DataError
from data.constants import DATE_ORIGIN

_TAGS = (
    *("ACQUISITION_DATE", "ACQUISITIONDATE", "SENSING_TIME", "DATATAKE_SENSING_START", "PRODUCT_START_TIME"),
    *("START_DATETIME", "DATETIME", "DATE"),
)
_FILE_TAG = "TIFFTAG_DATETIME"  # when the file was written, maybe years later: tried after the name
_DAY = r"(?P<year>\d{4})(?P<mark>%s)(?P<month>\d{2})(?P=mark)(?P<day>\d{2})"
_IN_PRODUCT = re.compile(r"(?<!\d)" + _DAY % "" + r"T\d{6}(?!\d)")  # product names begin with the sensing time
_IN_NAME = re.compile(r"(?<!\d)" + _DAY % "[-_]?" + r"(?!\d)")
_IN_TEXT = re.compile(r"\s*" + _DAY % "[-:/]?" + r"(?!\d)")
_YEARS, _MONTHS = range(2014, 2100), range(1, 13)
FAR_DAYS = 14  # a larger gap between a radar image and its optical one is reported


def find_date(path: str, tags: Mapping[str, str]) -> date | None:
    """The acquisition date of an image; None if neither its tags nor its name hold one.

    Args:
        path: of the file; product names (`S2A_MSIL1C_20180621T103021_…`), 2018-06-21 and 20180621 are recognised.
        tags: of the file. ACQUISITION_DATE, DATETIME and similar ones precede the name; TIFFTAG_DATETIME, the time when
            the file was written, follows it.

    Raises:
        DataError: if a date is impossible.
    """
    values = {key.upper(): value for key, value in tags.items()}
    for tag in _TAGS:
        match = _IN_TEXT.match(values.get(tag, ""))
        if match is not None:
            return _to_date(match, f"tag {tag} of {path}")
    name = PurePath(path).name
    match = _IN_PRODUCT.search(name)
    if match is not None:
        return _to_date(match, f"name of {path}")
    for match in _IN_NAME.finditer(name):
        if int(match["year"]) in _YEARS and (match["mark"] or int(match["month"]) in _MONTHS):
            return _to_date(match, f"name of {path}")
    match = _IN_TEXT.match(values.get(_FILE_TAG, ""))
    if match is not None:
        return _to_date(match, f"tag {_FILE_TAG} of {path}")
    return None


def parse_date(text: str, where: str) -> date:
    """The date that a user wrote: 2018-06-21, 20180621, or either followed by a time.

    Raises:
        DataError: if `text` is no date.
    """
    match = _IN_TEXT.match(text)
    if match is None:
        raise DataError(f"{where}: expected a date like 2018-06-21, found {text!r}")
    return _to_date(match, where)


def date_labels(days: Sequence[int]) -> tuple[str, ...]:
    """A unique name for each date, ISO format; the second image of a day is "2018-06-21 (2)".

    Args:
        days: since 2014-04-03.
    """
    labels: list[str] = []
    for position, day in enumerate(days):
        repetition = days[:position].count(day) + 1
        label = (DATE_ORIGIN + timedelta(days=day)).isoformat()
        labels.append(label if repetition == 1 else f"{label} ({repetition})")
    return tuple(labels)


def pair_nearest(days: Sequence[int], radar_days: Sequence[int]) -> tuple[int, ...]:
    """For each optical date the index of the radar image nearest in time; of two equally near the earlier one."""
    order = sorted(range(len(radar_days)), key=radar_days.__getitem__)
    return tuple(min(order, key=lambda index: abs(radar_days[index] - day)) for day in days)


def describe_pairs(days: Sequence[int], radar_days: Sequence[int]) -> list[str]:
    """Which radar date belongs to which optical one, and which pairs lie more than `FAR_DAYS` apart.

    Args:
        days: of the optical images, since 2014-04-03.
        radar_days: of the radar that belongs to each.
    """
    labels = date_labels(days)
    radar_labels = [date_labels([day])[0] for day in radar_days]
    pairs = [f"{label} with {radar_label}" for label, radar_label in zip(labels, radar_labels, strict=True)]
    notes = [f"radar goes with optical dates thus: {'; '.join(pairs)}"]
    for label, radar_label, day, radar_day in zip(labels, radar_labels, days, radar_days, strict=True):
        if abs(radar_day - day) > FAR_DAYS:
            notes.append(f"radar of {radar_label} lies {abs(radar_day - day)} days from the optical image of {label}")
    return notes


def _to_date(match: re.Match[str], where: str) -> date:
    year, month, day = match["year"], match["month"], match["day"]
    try:
        return date(int(year), int(month), int(day))
    except ValueError as error:
        raise DataError(f"impossible date {year}-{month}-{day} in the {where}") from error
