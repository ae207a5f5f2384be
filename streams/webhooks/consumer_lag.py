"""Whether a reader has read what lay in the log a while ago: what it has not read is not missing. Shell."""

from collections.abc import Awaitable, Callable, Mapping

import asyncpg

from runtime.kafka.clients import LogEnds
from streams.ports import MARKER
from streams.storage.consumer_transactions import load_positions

Offsets = Callable[[], Awaitable[Mapping[int, int]]]
"""An offset a partition. Raises: Retry."""


class CaughtUp:
    """Asked again and again, says whether what was in the log when it last said yes is read by now.

    So a reader that is always a second behind is no hindrance, and one that stands still is one from the first record
    that it leaves. The first answer is no: nothing is known of before.
    """

    def __init__(self, ends: Offsets, positions: Offsets) -> None:
        self._ends = ends
        self._positions = positions
        self._wanted: Mapping[int, int] | None = None

    async def __call__(self) -> bool:
        """Look. Raises: Retry."""
        # The positions first: what is appended between the two looks is wanted the next time only.
        positions = await self._positions()
        ends = await self._ends()
        wanted, is_first = (ends, True) if self._wanted is None else (self._wanted, False)
        is_read = all(positions.get(partition, 0) >= end for partition, end in wanted.items())
        if is_first or is_read:
            self._wanted = ends
        return is_read and not is_first


def on_webhooks(pool: asyncpg.Pool, log: LogEnds, topic: str, partitions: int) -> CaughtUp:
    """Whether mark_due has read the webhooks. `topic`: its full name."""
    numbers = range(partitions)

    async def ends() -> Mapping[int, int]:
        found = await log.ends(topic, numbers)
        # A partition whose records all expired has nothing to be read, wherever its reader stands.
        return {partition: one.end if one.end > one.start else 0 for partition, one in found.items()}

    async def positions() -> Mapping[int, int]:
        return {partition: one.next for partition, one in (await load_positions(pool, MARKER, numbers)).items()}

    return CaughtUp(ends, positions)
