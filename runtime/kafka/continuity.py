"""Log continuity: read the record before a reader's position again, to detect a truncated, re-created or restored log.

aiokafka has no topic ids (FAUST.md), so the record itself is compared.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Protocol

from runtime import logs, metrics
from runtime.kafka.clients import Ends
from runtime.kafka.reader import Position
from schemas.errors import Halt, Retry

CHECK_INTERVAL_S = 60.0
"""Longest time for which a reader goes on above another log."""
TRIES = 5
WAIT_S = 1.0

Load = Callable[[Collection[int]], Awaitable[Mapping[int, Position]]]
"""Returns the reader's stored positions of partitions; a partition without one is absent."""

_log = logs.logger(__name__)


class Log(Protocol):
    """Port of the log: runtime.kafka.clients.LogEnds, or the simulation's."""

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, Ends]:
        """Return the first and the next offset of each partition. Raises: Retry."""

    async def record(self, topic: str, partition: int, offset: int) -> bytes | None:
        """Return the value of the record at an offset; None where there is none. Raises: Retry."""


def checksum(value: bytes) -> bytes:
    """Return the checksum that a position has of the record before it."""
    return hashlib.sha256(value).digest()


class LogContinuity:
    """Compares a reader's stored positions with the log."""

    def __init__(self, log: Log, *, topic: str, reader: str, load: Load) -> None:
        self._log = log
        self._topic = topic
        self._reader = reader
        self._load = load

    async def starts(self, partitions: Collection[int]) -> dict[int, int]:
        """Return the offset at which to begin in each partition, after a check; 0 without a stored position.

        Raises: Halt, where the log is not the one that was read, or no longer has its beginning; Retry.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                known = await self.check(partitions)
            except Retry:
                if not tries_left:
                    raise
                metrics.RETRIES.labels(self._reader, "continuity").inc()
                await asyncio.sleep(WAIT_S)
            else:
                return {number: known[number].next if number in known else 0 for number in partitions}
        raise AssertionError("unreachable")

    async def check(self, partitions: Collection[int]) -> Mapping[int, Position]:
        """Compare stored positions with the log, and return them.

        Raises: Halt, where the log is not the one that was read; Retry, where Kafka does not answer.
        """
        known, _ = await self._checked(partitions)
        return known

    async def watch(
        self, assigned: Callable[[], Collection[int]], *, unacknowledged: Callable[[], Collection[int]]
    ) -> None:
        """Check the assigned partitions every minute, for ever.

        `unacknowledged`: partitions with records in the reader's queue. Where the log goes on, the position has not
        moved between two checks and the queue is empty, the source delivers no more. This happened after a broker and
        Postgres had died one after the other; it reports nothing by itself, and a new start reads on.
        Raises: Halt.
        """
        before: dict[int, int] = {}
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                known, ends = await self._checked(assigned())
            except Retry as error:
                _log.warning("log not checked", reader=self._reader, reason=str(error))
                before = {}
                continue
            positions = {number: known.get(number, Position(0)).next for number in ends}
            behind = {number: position for number, position in positions.items() if position < ends[number].end}
            still = sorted(number for number, position in behind.items() if before.get(number) == position)
            silent = [number for number in still if number not in unacknowledged()]
            if silent:
                raise Halt(f"{self._reader} is not given what follows in {self._topic}, partitions {silent}")
            before = behind

    async def _checked(self, partitions: Collection[int]) -> tuple[Mapping[int, Position], dict[int, Ends]]:
        known = await self._load(partitions)
        ends = await self._log.ends(self._topic, partitions)
        for number in partitions:
            await self._compare(number, known.get(number, Position(0)), ends[number])
        return known, ends

    async def _compare(self, partition: int, position: Position, ends: Ends) -> None:
        place = f"{self._topic} {partition}"
        if position.next > ends.end:
            raise Halt(f"{self._reader} has read {place} up to {position.next}, the log ends at {ends.end}: truncated")
        if position.next < ends.start:
            raise Halt(
                f"{self._reader} continues {place} at {position.next}, the log begins at {ends.start}: incomplete"
            )
        if not position.next or position.last_checksum is None or position.next == ends.start:
            return
        value = await self._log.record(self._topic, partition, position.next - 1)
        if value is None or checksum(value) != position.last_checksum:
            raise Halt(f"{place} at {position.next - 1} is not the record that {self._reader} has read: another log")
