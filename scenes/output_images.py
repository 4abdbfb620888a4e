"""The images that a reconstruction makes: one of the scene, one of each date of a long series, or one of each period.

Each is predicted from a few dates of the series, exactly as a reconstruction of these dates alone.
"""

from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from data.constants import DATE_ORIGIN

MONTH, SEASON = "month", "season"
PERIODS = (MONTH, SEASON)
_SEASONS = ("DJF", "MAM", "JJA", "SON")  # by month: December belongs to the year of the January that follows


@dataclass(frozen=True)
class OutputImage:
    """An image to reconstruct; indices are those of the dates of the series.

    Attributes:
        name: of its folder; empty for the only image of a scene.
        dates: from which it is predicted, ascending.
        kept: the date whose clear pixels `--where_clear keep` keeps, one of `dates`.
        first_day, last_day: the time that it stands for, days since 2014-04-03.
    """

    name: str
    dates: tuple[int, ...]
    kept: int
    first_day: int
    last_day: int

    @property
    def kept_position(self) -> int:
        """The place of the kept date in `dates`."""
        return self.dates.index(self.kept)

    @property
    def middle(self) -> float:
        """The middle of its time, days since 2014-04-03."""
        return (self.first_day + self.last_day) / 2


def image_of_all(days: Sequence[int]) -> OutputImage:
    """The image of a scene, predicted from all dates; the latest one is kept.

    Args:
        days: of the series, since 2014-04-03, ascending.
    """
    return OutputImage("", tuple(range(len(days))), len(days) - 1, min(days), max(days))


def images_of_dates(days: Sequence[int], labels: Sequence[str], count: int) -> tuple[OutputImage, ...]:
    """An image for each date, predicted from the `count` dates nearest in time, itself among them.

    Of two equally near dates the earlier one is taken. Fewer dates than `count` are all taken.

    Args:
        days: of the series, since 2014-04-03, ascending.
        labels: names of the dates.
        count: dates of each image.
    """
    images = []
    for own, (day, label) in enumerate(zip(days, labels, strict=True)):
        nearest = sorted(range(len(days)), key=lambda i: (abs(days[i] - day), i != own, i))  # noqa: B023
        name = label.replace(" (", "_").removesuffix(")")  # the second image of a day is "2018-06-21 (2)"
        images.append(OutputImage(name, tuple(sorted(nearest[:count])), own, day, day))
    return tuple(images)


def images_of_periods(days: Sequence[int], period: str, count: int) -> tuple[OutputImage, ...]:
    """An image for each month or season with any date, predicted from the dates nearest to its middle.

    Dates of the period come first; where it has fewer than `count`, the nearest ones of its neighbours fill up. The
    kept date is that of the period nearest to its middle.

    Args:
        days: of the series, since 2014-04-03, ascending.
        period: of `PERIODS`; seasons are December to February (DJF), March to May (MAM), and so on.
        count: dates of each image.
    """
    spans = {span[0]: span for span in (_month(day) if period == MONTH else _season(day) for day in days)}
    images = []
    for name, first, last in spans.values():
        middle = (first + last) / 2
        order = sorted(range(len(days)), key=lambda i: (not first <= days[i] <= last, abs(days[i] - middle), i))  # noqa: B023
        images.append(OutputImage(name, tuple(sorted(order[:count])), order[0], first, last))
    return tuple(images)


def _month(day: int) -> tuple[str, int, int]:
    """Name, first and last day of the month of a day."""
    at = DATE_ORIGIN + timedelta(days=day)
    first = day - at.day + 1
    return f"{at:%Y-%m}", first, first + monthrange(at.year, at.month)[1] - 1


def _season(day: int) -> tuple[str, int, int]:
    """Name, first and last day of the season of a day."""
    at = DATE_ORIGIN + timedelta(days=day)
    year, quarter = at.year + at.month // 12, at.month % 12 // 3
    first = date(year - 1, 12, 1) if quarter == 0 else date(year, 3 * quarter, 1)
    last = date(year, 3 * quarter + 3, 1) - timedelta(days=1)
    return f"{year}-{_SEASONS[quarter]}", (first - DATE_ORIGIN).days, (last - DATE_ORIGIN).days
