"""The grid of a scene and the area that is reconstructed, from the grids of its images and the flags of a user."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.features import geometry_mask
from rasterio.warp import transform as transform_points
from shapely.geometry import box, shape

from common.errors import DataError, UsageError
from common.json_files import Schema, read_json
from scenes.inputs.rasters.grid import LONGITUDE_LATITUDE, Grid, Window
from scenes.options import SceneInputs

_SNAP = 0.01  # of a pixel: edges that exceed a pixel by less end with it
_LEAST_COVERED = 0.1  # of the grid that images span together: with less they lie apart by mistake
_EDGE_DEGREES, _EDGE_METRES = 0.01, 1000.0  # straight edges are curved in another coordinate system: they are divided
_ROWS = 512  # of which masks are made together
_GEOJSON: Schema = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}}
_ADVICE = "expected GeoJSON with polygons (ogr2ogr -f GeoJSON -t_srs EPSG:4326 writes it)"


@dataclass(frozen=True)
class Area:
    """Polygons outside of which maps are nodata; picklable.

    Attributes:
        polygons: a geometry of shapely in the coordinate system of the grid.
        grid: of the scene.
    """

    polygons: Any
    grid: Grid

    def inside(self, window: Window) -> np.ndarray:
        """The pixels of a window whose centres lie within the polygons, bool (h,w)."""
        mask: np.ndarray = geometry_mask(
            [self.polygons], window.shape, self.grid.crop(window).transform, invert=True, all_touched=False
        )
        return mask


@dataclass(frozen=True)
class Place:
    """Where a scene lies.

    Attributes:
        grid: of the scene.
        area: polygons that limit it further; None if it is all of the grid.
        windows: of each image in the grid; empty (size 0) if it lies outside.
        notes: on how the grid comes from those of the images.
    """

    grid: Grid
    area: Area | None
    windows: tuple[Window, ...]
    notes: tuple[str, ...]


def choose_place(grids: Sequence[Grid], names: Sequence[str], inputs: SceneInputs) -> Place:
    """The grid of a scene: that of its images, their union if they are parts of one, or another as flags demand.

    Without --crs and --resolution all images must be parts of one grid, so that they are read without interpolation.
    With them, the grid of images that have this coordinate system and pixel size is kept; without any such image it
    starts at multiples of the pixel size. --bbox and --aoi choose pixels of that grid.

    Args:
        grids: of the images.
        names: of the images, for messages.
        inputs: flags.

    Raises:
        DataError: if grids do not fit together, or the area does not overlap them.
        UsageError: if a flag has an invalid value.
    """
    lattice = _choose_lattice(grids, names, inputs)
    windows = [_window_in(grid, lattice, name) for grid, name in zip(grids, names, strict=True)]
    union = windows[0]
    for window in windows[1:]:
        union = union.hull(window)
    notes = []
    if any(grid.place_in(lattice) is None for grid in grids):
        of = lattice.crs_name
        notes.append(
            f"images are brought onto one grid of {of} with pixels of {_pixel_text(lattice)}, {inputs.resampling}"
        )
    elif any(window != union for window in windows):
        notes.append("images hold different parts of one grid; the scene is the rectangle that contains all")
    polygons = None
    scene = union
    if inputs.bbox:
        scene, part = _crop(union, lattice, _bbox_polygon(inputs.bbox), "--bbox")
        notes += part
    elif inputs.aoi:
        polygons = reproject(*read_polygons(inputs.aoi), lattice, f"--aoi {inputs.aoi}")
        scene, part = _crop(union, lattice, polygons, f"--aoi {inputs.aoi}", transformed=True)
        notes += part
    else:
        covered = sum(window.size for window in windows) / union.size
        if covered < _LEAST_COVERED:
            raise DataError(
                f"{names[0]} and others lie far apart: together they span {union.height} x {union.width} pixels and "
                f"cover {100 * covered:.1f} % of them; choose a part with --bbox or --aoi, or give each place its own "
                "command"
            )
    grid = grids[0] if scene == windows[0] and grids[0].place_in(lattice) == (0, 0) else lattice.crop(scene)
    area = None if polygons is None else Area(polygons, grid)
    if area is not None and not _has_pixels(area):
        raise DataError(f"{inputs.aoi}: no pixel has its centre within these polygons; draw larger ones")
    own = tuple(window.intersection(scene).relative_to(scene) for window in windows)
    return Place(grid, area, own, tuple(notes))


def read_polygons(path: str) -> tuple[Any, Any]:
    """The polygons of a GeoJSON file as one geometry of shapely, and their coordinate system.

    The coordinate system is longitude and latitude (RFC 7946), unless a `crs` member, of GeoJSON before it, names
    another one.

    Raises:
        DataError: if it holds no polygons, or invalid ones.
    """
    content = read_json(path, _GEOJSON, _ADVICE)
    crs = _declared_crs(path, content.get("crs"))
    polygons: list[Any] = []
    for geometry in _geometries(path, content):
        try:
            parts = shapely.get_parts(shapely.force_2d(shape(geometry)))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
            raise DataError(f"{path}: a geometry is malformed ({error}); {_ADVICE}") from error
        polygons += [part for part in parts if not part.is_empty]
    if not polygons:
        raise DataError(f"{path}: it holds no polygon; {_ADVICE}")
    for polygon in polygons:
        if not np.isfinite(polygon.bounds).all():
            raise DataError(f"{path}: coordinates are not finite; {_ADVICE}")
        if not polygon.is_valid:
            raise DataError(
                f"{path}: invalid polygon, {shapely.is_valid_reason(polygon)}; repair it (ogr2ogr -makevalid)"
            )
    merged = shapely.union_all(polygons)
    if crs.is_geographic:
        _check_degrees(path, polygons, merged)
    return merged, crs


def _geometries(path: str, content: Any) -> list[Any]:
    """The geometries of a GeoJSON object."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind in ("Polygon", "MultiPolygon"):
        return [content]
    if kind == "Feature":
        return [] if content.get("geometry") is None else _geometries(path, content["geometry"])
    members = content.get({"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(str(kind), ""))
    if not isinstance(members, list):
        raise DataError(f"{path}: found {str(kind)[:40]}; {_ADVICE}")
    if kind == "FeatureCollection" and any(
        not isinstance(member, dict) or member.get("type") != "Feature" for member in members
    ):
        raise DataError(f"{path}: its features are malformed; {_ADVICE}")
    return [geometry for member in members for geometry in _geometries(path, member)]


def _declared_crs(path: str, member: Any) -> Any:
    if member is None:
        return CRS.from_string(LONGITUDE_LATITUDE)
    try:
        return CRS.from_user_input(str(member["properties"]["name"]))
    except (KeyError, TypeError, IndexError, CRSError, ValueError) as error:
        raise DataError(f"{path}: its crs member {str(member)[:80]} is not understood; expected a name") from error


def _check_degrees(path: str, polygons: Sequence[Any], merged: Any) -> None:
    west, south, east, north = merged.bounds
    if west < -360 or east > 360 or south < -90 or north > 90:
        raise DataError(
            f"{path}: coordinates from ({west:.10g}, {south:.10g}) to ({east:.10g}, {north:.10g}) are no longitude and "
            "latitude; add a crs member that names their coordinate system"
        )
    steps = [np.abs(np.diff(shapely.get_coordinates(polygon)[:, 0])).max() for polygon in polygons]
    if west < -180 or east > 180 or max(steps) > 180 or east - west > 180:
        raise DataError(f"{path}: its polygons cross the 180th meridian; give those of one side")


def _bbox_polygon(bbox: Sequence[float]) -> Any:
    west, south, east, north = bbox
    if not (np.isfinite(bbox).all() and max(abs(west), abs(east)) <= 180 and max(abs(south), abs(north)) <= 90):
        text = " ".join(f"{value:g}" for value in bbox)
        raise UsageError(f"--bbox takes longitude and latitude in degrees: west, south, east, north; got {text}")
    if south >= north:
        raise UsageError(f"--bbox is empty: south {south:g}, north {north:g}; the order is west, south, east, north")
    if west >= east:
        raise UsageError(
            f"--bbox is empty or crosses the 180th meridian: west {west:g}, east {east:g}; the order is west, south, "
            "east, north"
        )
    return box(west, south, east, north)


def reproject(polygons: Any, crs: Any, lattice: Grid, name: str) -> Any:
    """A geometry of shapely in the coordinate system of a grid.

    Args:
        polygons: the geometry.
        crs: its coordinate system.
        lattice: the grid.
        name: of the geometry, for messages.
    """
    if crs == lattice.crs:
        return polygons
    if lattice.crs is None:
        raise DataError(f"{name}: the images have no coordinate system; assign one (gdal_edit.py -a_srs EPSG:...)")
    dense = shapely.segmentize(polygons, _EDGE_DEGREES if crs.is_geographic else _EDGE_METRES)

    def transform(points: np.ndarray) -> np.ndarray:
        return np.stack(transform_points(crs, lattice.crs, points[:, 0], points[:, 1])[:2], axis=1)

    try:
        result = shapely.transform(dense, transform)
    except (RasterioError, CPLE_BaseError) as error:  # rasterio does not convert all of GDAL's errors
        raise _no_overlap(name, lattice) from error
    if not np.isfinite(shapely.get_coordinates(result)).all():
        raise _no_overlap(name, lattice)
    return result


def _crop(
    union: Window, lattice: Grid, polygons: Any, name: str, transformed: bool = False
) -> tuple[Window, list[str]]:
    """The part of a window of a grid that holds a geometry, and notes."""
    if not transformed:
        polygons = reproject(polygons, CRS.from_string(LONGITUDE_LATITUDE), lattice, name)
    images = lattice.crop(union)
    outline = shapely.Polygon([images.xy(*corner) for corner in images.corners])
    shared = shapely.intersection(polygons if polygons.is_valid else shapely.make_valid(polygons), outline)
    scene = _hull(shapely.get_coordinates(shared), lattice).intersection(union) if shared.area else Window(0, 0, 0, 0)
    if not scene.size:
        raise _no_overlap(name, images)
    if scene != _hull(shapely.get_coordinates(polygons), lattice):
        return scene, [f"images hold only a part of {name.partition(' ')[0]}; the scene is that part"]
    return scene, []


def _no_overlap(name: str, grid: Grid) -> DataError:
    _, bounds = grid.footprint()
    where = ", ".join(f"{value:.6g}" for value in bounds or ())
    return DataError(f"{name} does not overlap the images, which lie at (west, south, east, north) {where}")


def _has_pixels(area: Area) -> bool:
    height, width = area.grid.shape
    return any(area.inside(Window(top, 0, min(_ROWS, height - top), width)).any() for top in range(0, height, _ROWS))


def _hull(points: np.ndarray, lattice: Grid) -> Window:
    """The pixels of a grid that contain points (N,2) in its coordinate system."""
    columns, rows = ~lattice.transform @ (points[:, 0], points[:, 1])
    left, top = np.floor([columns.min() + _SNAP, rows.min() + _SNAP]).astype(int)
    right, bottom = np.ceil([columns.max() - _SNAP, rows.max() - _SNAP]).astype(int)
    return Window.from_edges(int(top), int(left), int(bottom), int(right))


def _window_in(grid: Grid, lattice: Grid, name: str) -> Window:
    """The pixels of a grid that another one covers."""
    place = grid.place_in(lattice)
    if place is not None:
        return Window(*place, *grid.shape)
    return _hull(_project(grid, grid.outline(), lattice.crs, name), lattice)


def _project(grid: Grid, points: Sequence[tuple[float, float]], crs: Any, name: str) -> np.ndarray:
    """Points (N,2) of a grid in a coordinate system."""
    if grid.crs is None:
        raise DataError(f"{name} has no coordinate system; assign one (gdal_edit.py -a_srs EPSG:...)")
    try:
        coordinates = transform_points(grid.crs, crs, *map(list, zip(*points, strict=True)))[:2]
    except (RasterioError, CPLE_BaseError) as error:  # rasterio does not convert all of GDAL's errors
        raise DataError(f"{name}: no transformation from {grid.crs_name} to --crs {crs}") from error
    result = np.stack(coordinates, axis=1)
    if not np.isfinite(result).all():
        raise DataError(f"{name} lies outside of --crs {crs}; choose one of its place")
    return result


def _choose_lattice(grids: Sequence[Grid], names: Sequence[str], inputs: SceneInputs) -> Grid:
    """The grid whose pixels the scene has; its size does not matter."""
    if not (inputs.crs or inputs.resolution):
        stranger = next((grid for grid in grids if grid.place_in(grids[0]) is None), None)
        if stranger is not None:
            raise _different(grids, names, stranger)
        return grids[0]
    for grid, name in zip(grids, names, strict=True):
        if grid.crs is None:
            raise DataError(f"{name} has no coordinate system; assign one (gdal_edit.py -a_srs EPSG:...)")
    crs = _given_crs(inputs.crs) if inputs.crs else grids[0].crs
    own = [grid for grid in grids if grid.crs == crs]
    if not inputs.crs and len(own) < len(grids):
        raise _different(grids, names, next(grid for grid in grids if grid.crs != crs))
    size = _given_size(inputs.resolution, crs)
    if size is None and own:
        size = min(max(_pixel_size(grid)) for grid in own)
    if size is None:
        size = _rounded(min(_projected_size(grid, crs, name) for grid, name in zip(grids, names, strict=True)))
    with_size = (grid for grid in own if np.allclose(_pixel_size(grid), size, rtol=1e-6))
    return next(with_size, None) or _tap(grids[0], crs, size, names[0])


def _different(grids: Sequence[Grid], names: Sequence[str], grid: Grid) -> DataError:
    name = names[list(grids).index(grid)]
    flag = f"--resolution {_pixel_size(grids[0])[0]:g}" if grid.crs == grids[0].crs else f"--crs {grids[0].crs_name}"
    return DataError(
        f"{names[0]} and {name} have different {grids[0].difference(grid)}; all optical images must lie on one grid "
        f"({flag} brings them there)"
    )


def _given_crs(text: str) -> Any:
    try:
        crs = CRS.from_user_input(text)
    except (CRSError, ValueError) as error:
        raise UsageError(f"--crs: expected a coordinate system like EPSG:32633, got {text[:80]!r}") from error
    if not (crs.is_projected or crs.is_geographic):
        raise UsageError(f"--crs: expected a projected coordinate system like EPSG:32633, got {text[:80]!r}")
    return crs


def _given_size(resolution: float | None, crs: Any) -> float | None:
    """--resolution in units of a coordinate system."""
    if resolution is None:
        return None
    if not crs.is_projected:
        raise UsageError(
            "--resolution is in metres, and the maps would be in degrees: add --crs with a projected coordinate system "
            "such as the UTM zone, EPSG:326.. or EPSG:327.."
        )
    return resolution / float(crs.linear_units_factor[1])


def _pixel_size(grid: Grid) -> tuple[float, float]:
    transform = grid.transform
    return float(np.hypot(transform.a, transform.d)), float(np.hypot(transform.b, transform.e))


def _projected_size(grid: Grid, crs: Any, name: str) -> float:
    """The larger side of the middle pixel of a grid in a coordinate system."""
    column, row = grid.width // 2, grid.height // 2
    points = [grid.xy(column, row), grid.xy(column + 1, row), grid.xy(column, row + 1)]
    corner, right, below = _project(grid, points, crs, name)
    return float(max(np.hypot(*(right - corner)), np.hypot(*(below - corner))))


def _rounded(size: float) -> float:
    """A pixel size without the distortion of a projection: whole units, below 2 three digits."""
    return float(round(size)) if size >= 2 else float(f"{size:.3g}")


def _tap(grid: Grid, crs: Any, size: float, name: str) -> Grid:
    """A grid near another one whose pixels start at multiples of their size."""
    x, y = _project(grid, [grid.xy(0, 0)], crs, name)[0]
    origin = Affine(size, 0, np.floor(x / size) * size, 0, -size, np.ceil(y / size) * size)
    return Grid(1, 1, origin, crs)


def _pixel_text(grid: Grid) -> str:
    width, height = _pixel_size(grid)
    unit = " degrees" if grid.crs.is_geographic else f" {grid.crs.linear_units}"
    return f"{width:.6g} x {height:.6g}{unit}"
