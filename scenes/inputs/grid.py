"""The pixel grid of a scene, and windows of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window as RasterioWindow

_TOLERANCE = 0.01  # of a pixel: grids that differ by less are the same


@dataclass(frozen=True)
class Grid:
    """The georeferenced pixel grid of a scene; picklable.

    Attributes:
        height: rows.
        width: columns.
        transform: from (column, row) to the coordinate system.
        crs: `rasterio.crs.CRS`, or None where the files declare none.
    """

    height: int
    width: int
    transform: Affine
    crs: Any

    @property
    def window(self) -> "Window":
        """The window of the full scene."""
        return Window(0, 0, self.height, self.width)

    @property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """(column, row) of the four corners, clockwise in the image."""
        return (0, 0), (self.width, 0), (self.width, self.height), (0, self.height)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the coordinate system; a rotated grid lies within them."""
        xs, ys = zip(*(self.xy(column, row) for column, row in self.corners), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def crs_name(self) -> str:
        """EPSG code, start of the WKT, or "none"."""
        if self.crs is None:
            return "none"
        code = self.crs.to_epsg()
        return f"EPSG:{code}" if code else str(self.crs.to_wkt())[:60]

    def xy(self, column: float, row: float) -> tuple[float, float]:
        """(x, y) in the coordinate system; integers are the upper left corners of pixels."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        return a * column + b * row + c, d * column + e * row + f

    def difference(self, other: "Grid") -> str:
        """How two grids differ; empty if they are the same to a hundredth of a pixel."""
        if self.crs != other.crs:
            return f"coordinate systems {self.crs_name} and {other.crs_name}"
        if (self.height, self.width) != (other.height, other.width):
            return f"sizes {self.height} x {self.width} and {other.height} x {other.width}"
        own, its = self.transform, other.transform
        pixel = min(abs(own.a) + abs(own.b), abs(own.d) + abs(own.e))
        shifts = [np.subtract(self.xy(*corner), other.xy(*corner)) for corner in self.corners]
        if np.abs(shifts).max() <= _TOLERANCE * pixel:
            return ""
        sizes = [f"{transform.a:.6g} x {transform.e:.6g}" for transform in (own, its)]
        if sizes[0] != sizes[1]:
            return f"pixel sizes {sizes[0]} and {sizes[1]}"
        return f"upper left corners ({own.c:.10g}, {own.f:.10g}) and ({its.c:.10g}, {its.f:.10g})"


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels, half-open.

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

    @classmethod
    def from_edges(cls, top: int, left: int, bottom: int, right: int) -> "Window":
        """The window between edges; empty if they cross."""
        return cls(top, left, max(0, bottom - top), max(0, right - left))

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.left + self.width

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def rasterio(self) -> RasterioWindow:
        """The same as rasterio's class."""
        return RasterioWindow(self.left, self.top, self.width, self.height)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Indices into the last two dimensions of an array of the full scene."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def inside(self, grid: Grid) -> bool:
        """Whether it is not empty and lies within the scene."""
        return self.size > 0 and self.intersection(grid.window) == self

    def intersection(self, other: "Window") -> "Window":
        """The pixels that both hold."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Window.from_edges(top, left, min(self.bottom, other.bottom), min(self.right, other.right))

    def hull(self, other: "Window") -> "Window":
        """The smallest window that contains both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        return Window.from_edges(top, left, max(self.bottom, other.bottom), max(self.right, other.right))

    def padded(self, margin: int) -> "Window":
        """The window with a margin on all sides; it may leave the scene."""
        return Window(self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin)

    def relative_to(self, origin: "Window") -> "Window":
        """The same pixels, counted from the upper left corner of `origin`."""
        return Window(self.top - origin.top, self.left - origin.left, self.height, self.width)
