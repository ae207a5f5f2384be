"""Port through which agents read a topic; Faust implements it (faust_app), and so does the simulation."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.errors import Halt


class Received(NamedTuple):
    """A record as read from a partition of one topic. `timestamp_ms` is Kafka's."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    timestamp_ms: int


class Position(NamedTuple):
    """A reader's position in a partition: the next offset to read.

    `last_checksum` is of the record before it, so that a truncated or re-created log is detected.
    """

    next: int
    last_checksum: bytes | None = None


def unread(records: Sequence[Received], positions: Mapping[int, int]) -> list[Received]:
    """Return the records at or above their partitions' positions.

    Raises: Halt, where an offset between them is missing: going on would lose its record.
    """
    following = dict(positions)
    new = []
    for record in records:
        expected = following.get(record.partition, 0)
        if record.offset < expected:
            continue
        if record.offset > expected:
            raise Halt(f"partition {record.partition} continues at {record.offset}, expected {expected}: a gap")
        following[record.partition] = expected + 1
        new.append(record)
    return new


class Reader(Protocol):
    """Source of records in the order of their partitions, from the reader's positions on."""

    async def take(self) -> Sequence[Received]:
        """Wait for a record, and take all that wait, up to the reader's bounds."""

    def acknowledge(self, records: Sequence[Received]) -> None:
        """Acknowledge records whose effect is durable."""


class GatheringReader:
    """A bounded queue between a source and an agent.

    While the agent works on one batch, the next records gather; no timer, so a lone record waits for nothing.
    """

    def __init__(self, *, records_max: int, bytes_max: int) -> None:
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[Received, Callable[[], object]]] = deque()
        self._taken: dict[tuple[int, int], Callable[[], object]] = {}
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def offer(self, record: Received, acknowledge: Callable[[], object]) -> None:
        """Put a record into the queue; wait while it has as much as two batches."""
        while self._bytes > 2 * self._bytes_max or len(self._waiting) > 2 * self._records_max:
            self._room.clear()
            await self._room.wait()
        self._waiting.append((record, acknowledge))
        self._bytes += len(record.value)
        self._arrived.set()

    async def take(self) -> Sequence[Received]:
        """Wait for a record, and take all that wait, up to the bounds."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        records: list[Received] = []
        size = 0
        while self._waiting and len(records) < self._records_max and size < self._bytes_max:
            record, acknowledge = self._waiting.popleft()
            self._taken[record.partition, record.offset] = acknowledge
            records.append(record)
            size += len(record.value)
        self._bytes -= size
        self._room.set()
        return records

    def unacknowledged(self) -> set[int]:
        """Return the partitions with records that wait, or are taken and not acknowledged."""
        return {record.partition for record, _ in self._waiting} | {partition for partition, _ in self._taken}

    def acknowledge(self, records: Sequence[Received]) -> None:
        """Acknowledge records whose effect is durable."""
        for record in records:
            acknowledge = self._taken.pop((record.partition, record.offset), None)
            if acknowledge is not None:
                acknowledge()
