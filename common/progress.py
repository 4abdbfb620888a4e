"""Progress bars over batches."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from common import process_group

Item = TypeVar("Item")


def progress_bar(batches: Iterable[Item], steps: int | None, title: str) -> "tqdm[Item]":
    """A progress bar over batches, shown by the first process; `steps` is their number."""
    hidden = not process_group.is_rank_zero()
    return tqdm(batches, total=steps, desc=title, unit="batch", dynamic_ncols=True, disable=hidden)
