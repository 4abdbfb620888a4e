"""Which tiles cover a scene, in which order, and which rows are final after which tiles; nothing is read here."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from common.errors import UsageError
from scenes.inputs.grid import Window

BLOCK = 512  # pixels across of what is written at once: whole blocks of the GeoTIFFs


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of a scene.

    The last tile is shifted inwards, so that it ends with the scene; where the scene is smaller than a tile there is
    one, of the scene's size.

    Attributes:
        size: pixels of the scene.
        tile: pixels of a tile.
        overlap: pixels that neighbouring tiles share, or more at the end.
    """

    size: int
    tile: int
    overlap: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first pixel of each tile, rising."""
        stride, last = self.tile - self.overlap, max(0, self.size - self.tile)
        return (*range(0, last, stride), last)

    @property
    def length(self) -> int:
        """Pixels of each tile inside the scene."""
        return min(self.tile, self.size)

    @cached_property
    def borders(self) -> tuple[int, ...]:
        """Where the tiles' own shares of the scene begin, in the middle of what two of them cover; the end comes last.

        Every share keeps half of `overlap` from the border of its tile, but for the scene's own border.
        """
        inner = [later + (sooner + self.length - later) // 2 for sooner, later in self._neighbours()]
        return (0, *inner, self.size)

    def covering(self, begin: int, end: int) -> range:
        """The tiles that hold any of the pixels `begin` to `end` (exclusive)."""
        there = [i for i, start in enumerate(self.starts) if start < end and start + self.length > begin]
        return range(there[0], there[-1] + 1)

    def _neighbours(self) -> Iterator[tuple[int, int]]:
        yield from zip(self.starts, self.starts[1:], strict=False)


@dataclass(frozen=True)
class Tile:
    """One tile.

    Attributes:
        row, column: its place among the tiles.
        window: what it covers.
        cell: its own share of the scene, inside the window; shares are disjoint and cover the scene.
    """

    row: int
    column: int
    window: Window
    cell: Window


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a scene, row by row.

    Attributes:
        height, width: of the scene.
        tile: pixels across of a tile, as the network sees it.
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
        """A tile by its number, row by row."""
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        return self.at(*divmod(number, len(self.across.starts)))

    def at(self, row: int, column: int) -> Tile:
        """A tile by its place."""
        down, across = self.down, self.across
        window = Window(down.starts[row], across.starts[column], down.length, across.length)
        (top, bottom), (left, right) = down.borders[row : row + 2], across.borders[column : column + 2]
        return Tile(row, column, window, Window(top, left, bottom - top, right - left))

    def covering(self, window: Window) -> Iterator[Tile]:
        """The tiles that hold any pixel of a window, row by row."""
        for row in self.down.covering(window.top, window.bottom):
            for column in self.across.covering(window.left, window.right):
                yield self.at(row, column)

    def block_rows(self, block: int = BLOCK) -> list["BlockRow"]:
        """What is written when: rows of blocks, top to bottom, with the rows of tiles that they are made of."""
        found = []
        for top in range(0, self.height, block):
            height = min(block, self.height - top)
            windows = tuple(
                Window(top, left, height, min(block, self.width - left)) for left in range(0, self.width, block)
            )
            tiles = self.down.covering(top, top + height)
            found.append(BlockRow(windows, tiles.start, tiles.stop))
        return found

    def batches(self, size: int) -> list[range]:
        """Numbers of the tiles that are predicted together, always the same ones."""
        return [range(first, min(first + size, len(self))) for first in range(0, len(self), size)]


@dataclass(frozen=True)
class BlockRow:
    """Blocks side by side.

    Attributes:
        windows: the blocks, left to right.
        first: the first row of tiles that they need.
        end: the row of tiles after the last that they need.
    """

    windows: tuple[Window, ...]
    first: int
    end: int
