"""Where a scene lies, and windows of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from affine import Affine
from rasterio.windows import Window as GdalWindow


@dataclass(frozen=True)
class Grid:
    """The pixels of a scene on the ground; picklable.

    Attributes:
        height: rows.
        width: columns.
        transform: from (column, row) to the coordinate system.
        crs: `rasterio.crs.CRS`, or None where the files name none.
    """

    height: int
    width: int
    transform: Affine
    crs: Any

    @property
    def whole(self) -> "Window":
        """All of it."""
        return Window(0, 0, self.height, self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the coordinate system, of all four corners."""
        xs, ys = zip(*(self.place(column, row) for column, row in self.corners), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def place(self, column: float, row: float) -> tuple[float, float]:
        """(x, y) in the coordinate system; whole numbers are the upper left corners of pixels."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        return a * column + b * row + c, d * column + e * row + f

    @property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """(column, row) of the four corners, round about."""
        return (0, 0), (self.width, 0), (self.width, self.height), (0, self.height)

    def rows(self, height: int) -> Iterator["Window"]:
        """Windows of full width, `height` rows each but for the last, top to bottom."""
        for top in range(0, self.height, height):
            yield Window(top, 0, min(height, self.height - top), self.width)


@dataclass(frozen=True, order=True)
class Window:
    """Rows and columns of a scene, half-open, always inside it.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.left + self.width

    @property
    def gdal(self) -> GdalWindow:
        """The same as rasterio spells it."""
        return GdalWindow(self.left, self.top, self.width, self.height)

    @property
    def slices(self) -> tuple[slice, slice]:
        """The same as indices into the last two dimensions of a whole scene's array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def inside(self, grid: Grid) -> bool:
        """Whether it is not empty and does not reach over the scene's edges."""
        top_left = self.top >= 0 and self.left >= 0 and self.height > 0 and self.width > 0
        return top_left and self.bottom <= grid.height and self.right <= grid.width
