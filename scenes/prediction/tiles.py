"""The tiles that cover a scene, their order, and the rows of output blocks that they complete; geometry only."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from common.errors import UsageError
from scenes.inputs.rasters.grid import Window


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of a scene.

    The last tile is shifted inwards to end with the scene; a scene smaller than a tile has one, of the scene's size.

    Attributes:
        size: pixels of the scene.
        tile: pixels of a tile.
        overlap: pixels that neighbouring tiles share; the last two may share more.
    """

    size: int
    tile: int
    overlap: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first pixel of each tile, ascending."""
        last = max(0, self.size - self.tile)
        return (*range(0, last, self.tile - self.overlap), last)

    @property
    def length(self) -> int:
        """Pixels of each tile within the scene."""
        return min(self.tile, self.size)

    @cached_property
    def borders(self) -> tuple[int, ...]:
        """Borders of the tiles' cells, in the middle of each overlap, between 0 and the scene's size.

        A cell keeps half of `overlap` from the border of its tile, except at the scene's own border.
        """
        inner = [second + (first + self.length - second) // 2 for first, second in pairwise(self.starts)]
        return (0, *inner, self.size)

    def covering(self, begin: int, end: int) -> range:
        """The tiles that hold any of the pixels `begin` to `end` (exclusive)."""
        tiles = [i for i, start in enumerate(self.starts) if start < end and start + self.length > begin]
        return range(tiles[0], tiles[-1] + 1)


@dataclass(frozen=True)
class Tile:
    """One tile.

    Attributes:
        row, column: its place among the tiles.
        window: the pixels that the network sees.
        cell: the part of the window that belongs to this tile alone; cells are disjoint and cover the scene.
    """

    row: int
    column: int
    window: Window
    cell: Window


@dataclass(frozen=True)
class BlockRow:
    """Output blocks side by side.

    Attributes:
        windows: the blocks, left to right.
        tile_rows: the rows of tiles that they need.
    """

    windows: tuple[Window, ...]
    tile_rows: range


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a scene, numbered row by row.

    Attributes:
        height, width: of the scene.
        tile: pixels along a side of a tile.
        overlap: pixels that neighbours share, at most half a tile.

    Raises:
        UsageError: if tile and overlap do not fit together.
    """

    height: int
    width: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if self.tile < 16:
            raise UsageError(f"--tile {self.tile} is too small for the networks; expected 16 pixels or more")
        if not 0 <= self.overlap <= self.tile // 2:
            raise UsageError(f"--overlap {self.overlap}: expected 0 to half of --tile, which is {self.tile // 2}")

    @property
    def window(self) -> Window:
        """The window of the full scene."""
        return Window(0, 0, self.height, self.width)

    @cached_property
    def down(self) -> Axis:
        """Rows of tiles."""
        return Axis(self.height, self.tile, self.overlap)

    @cached_property
    def across(self) -> Axis:
        """Columns of tiles."""
        return Axis(self.width, self.tile, self.overlap)

    def __len__(self) -> int:
        return len(self.down.starts) * len(self.across.starts)

    def __getitem__(self, number: int) -> Tile:
        """A tile by its number."""
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        return self.at(*divmod(number, len(self.across.starts)))

    def at(self, row: int, column: int) -> Tile:
        """A tile by row and column."""
        down, across = self.down, self.across
        window = Window(down.starts[row], across.starts[column], down.length, across.length)
        (top, bottom), (left, right) = down.borders[row : row + 2], across.borders[column : column + 2]
        return Tile(row, column, window, Window.from_edges(top, left, bottom, right))

    def numbers(self, rows: range) -> range:
        """The numbers of the tiles in some rows."""
        columns = len(self.across.starts)
        return range(rows.start * columns, rows.stop * columns)

    def covering(self, window: Window) -> Iterator[Tile]:
        """The tiles that hold any pixel of a window, in the order of their numbers."""
        for row in self.down.covering(window.top, window.bottom):
            for column in self.across.covering(window.left, window.right):
                yield self.at(row, column)

    def batches(self, size: int) -> list[range]:
        """Numbers of the tiles that are predicted together; they depend on nothing but `size`."""
        return [range(first, min(first + size, len(self))) for first in range(0, len(self), size)]

    def block_rows(self, block: int, written: frozenset[Window] = frozenset()) -> list[BlockRow]:
        """Rows of output blocks of `block` x `block` pixels, top to bottom, without those in `written`."""
        rows = []
        for top in range(0, self.height, block):
            height = min(block, self.height - top)
            blocks = (Window(top, x, height, min(block, self.width - x)) for x in range(0, self.width, block))
            windows = tuple(window for window in blocks if window not in written)
            if windows:
                rows.append(BlockRow(windows, self.down.covering(top, top + height)))
        return rows
