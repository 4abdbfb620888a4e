"""Published path of the choice of dates, see `data.datasets.date_selection`."""

from data.datasets.date_selection import Selection as Selection
from data.datasets.date_selection import choose_dates as choose_dates
