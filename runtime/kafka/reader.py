"""The port through which agent bodies read a topic. Faust implements it (faust_app), and so does memory."""

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
    """How far a reader has come in a partition: `next` is the first offset that it has not dealt with.

    `last_id` and `last_checksum` are of the record before it, so that a truncated or re-created log is noticed.
    """

    next: int
    last_checksum: bytes | None = None


def unread(records: Sequence[Received], positions: Mapping[int, int]) -> list[Received]:
    """The records at or above their partitions' positions; those below were dealt with before.

    Raises: Halt, where one between them is missing: going on would lose it.
    """
    following = dict(positions)
    found = []
    for record in records:
        expected = following.get(record.partition, 0)
        if record.offset < expected:
            continue
        if record.offset > expected:
            raise Halt(f"partition {record.partition} continues at {record.offset}, expected {expected}: a gap")
        following[record.partition] = expected + 1
        found.append(record)
    return found


class Reader(Protocol):
    """Gives records in the order of their partitions, from the reader's own positions on."""

    async def take(self) -> Sequence[Received]:
        """Wait until a record is there, and take all that wait, up to the reader's bounds."""

    def acknowledge(self, records: Sequence[Received]) -> None:
        """Say that the effect of these records is durable."""


class GatheringReader:
    """A bounded queue between a source and an agent's body.

    While the body works on one take, the next records gather; no timer, so a lone record waits for nothing.
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
        """Put a record into the queue, waiting while it holds as much as two takes may."""
        while self._bytes > 2 * self._bytes_max or len(self._waiting) > 2 * self._records_max:
            self._room.clear()
            await self._room.wait()
        self._waiting.append((record, acknowledge))
        self._bytes += len(record.value)
        self._arrived.set()

    async def take(self) -> Sequence[Received]:
        """Wait until a record is there, and take all that wait, up to the bounds."""
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
        """Partitions of which records wait or are taken and not acknowledged."""
        return {record.partition for record, _ in self._waiting} | {partition for partition, _ in self._taken}

    def acknowledge(self, records: Sequence[Received]) -> None:
        """Say that the effect of these records is durable."""
        for record in records:
            acknowledge = self._taken.pop((record.partition, record.offset), None)
            if acknowledge is not None:
                acknowledge()
