"""Markdown of the benchmark pages: tables, and sections that are replaced in place."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import DataError
from common.files import write_text


def header(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(titles), "|---" * len(titles) + "|"]


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def plus_minus(row: Mapping[str, float], digits: int, sign: str = "") -> str:
    """The result of `measure.spread` as `mean ± std`; only the mean of a single value."""
    mean = f"{row['mean']:{sign}.{digits}f}"
    return mean if math.isnan(row["std"]) else f"{mean} ± {row['std']:.{digits}f}"


def put_section(page: str, name: str, section: str, title: str = "# Results") -> str:
    """The page with a section in place of the previous one of that name, or appended; other text is unchanged.

    Args:
        page: the text of the page.
        name: identifies the marks around the section.
        section: its text.
        title: of the page, where it is empty.

    Raises:
        DataError: if only one of the two marks is present.
    """
    start, end = f"<!-- {name}: from here -->", f"<!-- {name}: to here -->"
    marked = f"{start}\n\n{section.strip()}\n\n{end}"
    if (start in page) != (end in page):
        raise DataError(f"the page has only one of the marks '{start}' and '{end}'; restore the other, or remove both")
    if start in page:
        before, rest = page.split(start, 1)
        return before + marked + rest.split(end, 1)[1]
    return f"{page.strip() or title}\n\n{marked}\n"


def write_section(path: Path, name: str, section: str) -> None:
    """`put_section` on a file, which may be missing."""
    write_text(path, put_section(path.read_text(encoding="utf-8") if path.is_file() else "", name, section))
