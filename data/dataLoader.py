"""The published names of the data sets."""

from data.datasets.file_index import get_pairedS1
from data.datasets.sen12mscr import SEN12MSCR
from data.datasets.sen12mscrts import SEN12MSCRTS

__all__ = ["SEN12MSCR", "SEN12MSCRTS", "get_pairedS1"]
