"""Check that mark_due has read the webhooks, because an unread webhook is not a missed one. Shell."""

from collections.abc import Awaitable, Callable, Mapping

import asyncpg

from runtime.kafka.clients import LogEnds
from streams.ports import MARKER
from streams.storage.consumer_transactions import load_positions

Offsets = Callable[[], Awaitable[Mapping[int, int]]]
"""An offset a partition. Raises: Retry."""


class CaughtUp:
    """Repeated check that the records of the last successful check's ends are read by now.

    So a reader that is always a second behind passes, and one that stopped fails from the first record that it leaves.
    The first check fails: no ends are known before it.
    """

    def __init__(self, ends: Offsets, positions: Offsets) -> None:
        self._ends = ends
        self._positions = positions
        self._targets: Mapping[int, int] | None = None

    async def __call__(self) -> bool:
        """Return whether the reader has caught up. Raises: Retry."""
        # The positions first: a record appended between the two reads counts for the next check only.
        positions = await self._positions()
        ends = await self._ends()
        targets = self._targets
        is_read = targets is not None and all(positions.get(partition, 0) >= end for partition, end in targets.items())
        if targets is None or is_read:
            self._targets = ends
        return is_read


def on_webhooks(pool: asyncpg.Pool, log: LogEnds, topic: str, partitions: int) -> CaughtUp:
    """Build the check of mark_due's lag on the topic `webhooks`. `topic`: its full name."""
    numbers = range(partitions)

    async def ends() -> Mapping[int, int]:
        bounds = await log.ends(topic, numbers)
        # A partition whose records have all expired has nothing to read, whatever its reader's position.
        return {partition: bound.end if bound.end > bound.start else 0 for partition, bound in bounds.items()}

    async def positions() -> Mapping[int, int]:
        loaded = await load_positions(pool, MARKER, numbers)
        return {partition: position.next for partition, position in loaded.items()}

    return CaughtUp(ends, positions)
