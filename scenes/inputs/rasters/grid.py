"""The pixel grid of a scene, and windows of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform_geom
from rasterio.windows import Window as RasterioWindow

from common.errors import DataError

LONGITUDE_LATITUDE = "EPSG:4326"
_EDGE_POINTS = 16  # along each edge: straight in the scene's projection is curved in longitude and latitude
_TRAINING_METRES, _TRAINING_DEGREES = 10.0, 8.983e-5
_SIMILAR = 0.2  # relative difference in the size of pixels that is not mentioned
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
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

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

    def outline(self) -> list[tuple[float, float]]:
        """Points (x, y) along the edges, clockwise in the image."""
        points = []
        corners = self.corners
        for (column, row), (next_column, next_row) in zip(corners, (*corners[1:], corners[0]), strict=True):
            for part in np.arange(_EDGE_POINTS) / _EDGE_POINTS:
                points.append(self.xy(column + part * (next_column - column), row + part * (next_row - row)))
        return points

    def crop(self, window: "Window") -> "Grid":
        """The grid of a window, which may reach beyond this grid."""
        origin = Affine.translation(window.left, window.top)
        return Grid(window.height, window.width, self.transform @ origin, self.crs)

    def pixel_note(self) -> str:
        """How the size of its pixels differs from that of the training data, 10 m; empty if it does not."""
        a, b, _, d, e, _ = tuple(self.transform)[:6]
        sizes = np.hypot([a, b], [d, e])
        if self.crs is None:
            return ""
        if self.crs.is_geographic:
            # SEN12MS-CR-TS has pixels of as many degrees, of 10 m from south to north and at the equator
            if np.allclose(sizes, _TRAINING_DEGREES, rtol=_SIMILAR):
                return ""
            latitude = self.xy(self.width / 2, self.height / 2)[1]
            metres = sizes / _TRAINING_DEGREES * _TRAINING_METRES * [np.cos(np.radians(latitude)), 1]
            size = f"{sizes[0]:.6g} x {sizes[1]:.6g} degrees, about {metres[0]:.3g} x {metres[1]:.3g} m"
        else:
            metres = sizes * (self.crs.linear_units_factor[1] if self.crs.is_projected else 1)
            if np.allclose(metres, _TRAINING_METRES, rtol=_SIMILAR):
                return ""
            size = f"{metres[0]:.4g} x {metres[1]:.4g} m"
        return (
            f"pixels are {size}; networks were trained on {_TRAINING_METRES:g} m: give images on such a grid, or "
            "--resolution 10 with the --crs of its UTM zone"
        )

    def footprint(self) -> tuple[dict[str, Any] | None, list[float] | None]:
        """The outline as GeoJSON in longitude and latitude, and west, south, east, north; None without a CRS.

        Across the 180th meridian it is two polygons, and west exceeds east, as in GeoJSON.
        """
        if self.crs is None:
            return None, None
        ring = self.outline()
        outline = {"type": "Polygon", "coordinates": [[*reversed(ring), ring[-1]]]}  # outer rings run anticlockwise
        geometry: dict[str, Any] = transform_geom(
            self.crs, LONGITUDE_LATITUDE, outline, antimeridian_cutting=True, precision=7
        )
        crosses = geometry["type"] == "MultiPolygon"
        rings = [polygon[0] for polygon in geometry["coordinates"]] if crosses else geometry["coordinates"][:1]
        xs, ys = zip(*((float(point[0]), float(point[1])) for outer in rings for point in outer), strict=True)
        west, east = (min(x for x in xs if x > 0), max(x for x in xs if x <= 0)) if crosses else (min(xs), max(xs))
        return geometry, [west, min(ys), east, max(ys)]

    def check_transform(self, path: str) -> None:
        """Raise a `DataError` that names a file unless its transform can be inverted."""
        if not (np.isfinite(tuple(self.transform)).all() and self.transform.determinant):
            raise DataError(
                f"{path}: its transform {tuple(self.transform)[:6]} gives pixels no position; assign a georeference "
                "(gdal_edit.py -a_ullr)"
            )

    def check_location(self, path: str) -> None:
        """Raise a `DataError` that names a file unless the grid has a place on Earth, or no CRS at all."""
        self.check_transform(path)
        try:
            self.footprint()
        except (RasterioError, CPLE_BaseError, ValueError) as error:  # rasterio does not convert all of GDAL's errors
            reason = str(error).partition("{")[0][:100].strip()
            raise DataError(
                f"{path}: its coordinate system, {self.crs_name}, does not place it in longitude and latitude "
                f"({reason}); assign the right one (gdal_edit.py -a_srs EPSG:...)"
            ) from error

    def place_in(self, other: "Grid") -> tuple[int, int] | None:
        """The row and column of the upper left corner in another grid; None unless pixels coincide.

        Pixels coincide if they do to a hundredth of a pixel everywhere.
        """
        if self.crs != other.crs:
            return None
        pixel = min(abs(other.transform.a) + abs(other.transform.b), abs(other.transform.d) + abs(other.transform.e))
        if not pixel:
            return None
        column, row = ~other.transform @ self.xy(0, 0)
        left, top = round(column), round(row)
        for own in self.corners:
            shift = np.subtract(self.xy(*own), other.xy(own[0] + left, own[1] + top))
            if np.abs(shift).max() > _TOLERANCE * pixel:
                return None
        return top, left

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
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

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
