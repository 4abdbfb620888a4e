"""The published names of the data sets."""

from data.sen12mscr import SEN12MSCR
from data.sen12mscrts import SEN12MSCRTS
from data.series_index import get_pairedS1

__all__ = ["SEN12MSCR", "SEN12MSCRTS", "get_pairedS1"]
