"""What the pages of several benchmarks share: Markdown tables, averages over seeds, and sections that are replaced."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import DataError
from common.files import atomic_file


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; NaN for one value) and number of values."""
    found = list(values)
    std = statistics.stdev(found) if len(found) > 1 else math.nan
    return {"mean": statistics.fmean(found), "std": std, "n": len(found)}


def median_range(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most of what rounds have measured."""
    found = list(values)
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def header(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(titles), "|---" * len(titles) + "|"]


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def plus_minus(row: Mapping[str, float], digits: int, sign: str = "") -> str:
    """What `spread` found, as `mean ± std`; the mean alone where there is one value."""
    mean = f"{row['mean']:{sign}.{digits}f}"
    return mean if math.isnan(row["std"]) else f"{mean} ± {row['std']:.{digits}f}"


def put_section(page: str, name: str, section: str, title: str = "# Results") -> str:
    """The page with this section in place of the last one of its name, or at its end; the rest stays.

    Args:
        page: the whole text.
        name: by which the marks around the section are known.
        section: its text.
        title: of the page, where it is empty.

    Raises:
        DataError: if only one of the two marks around the section is there.
    """
    start, end = f"<!-- {name}: from here -->", f"<!-- {name}: to here -->"
    marked = f"{start}\n\n{section.strip()}\n\n{end}"
    if (start in page) != (end in page):
        raise DataError(f"the page has only one of the marks '{start}' and '{end}'; put the other back, or remove both")
    if start in page:
        before, rest = page.split(start, 1)
        return before + marked + rest.split(end, 1)[1]
    return f"{page.strip() or title}\n\n{marked}\n"


def write_section(path: Path, name: str, section: str) -> None:
    """`put_section` on a file, which need not be there yet."""
    text = put_section(path.read_text(encoding="utf-8") if path.is_file() else "", name, section)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
