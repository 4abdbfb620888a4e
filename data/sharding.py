"""Batches that several processes share: each takes its part of every one."""

from collections.abc import Iterable, Iterator, Sized
from typing import Protocol

from torch.utils.data import Sampler


class Order(Sized, Iterable[int], Protocol):
    """Positions in the order of an epoch."""


class Shares(Sampler[list[int]]):
    """The part of one process in every batch of an epoch.

    The batches are those of one process alone, whatever the number of processes: the first `batch_size` positions of
    the order, the next, and so on. Each is cut into pieces of consecutive positions, the first ones longer by one where
    they do not divide; the last batch may leave nothing for some processes, whose piece is empty.

    Args:
        order: positions in the order of the epoch, the same in all processes.
        batch_size: samples of all processes together.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, order: Order, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.order, self.batch_size, self.rank, self.world = order, batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for position in self.order:
            batch.append(position)
            if len(batch) == self.batch_size:
                yield self._part(batch)
                batch = []
        if batch:
            yield self._part(batch)

    def _part(self, batch: list[int]) -> list[int]:
        length, longer = divmod(len(batch), self.world)
        start = self.rank * length + min(self.rank, longer)
        return batch[start : start + length + (self.rank < longer)]
