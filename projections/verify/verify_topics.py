"""Verification of the public topics: compare the records of each partition with the fold's net events. Shell."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta

import asyncpg
import zstandard

from projections.publish import kafka_records
from projections.publish.outbox import changeset_events
from projections.verify.positions import PROJECTIONS, Stored
from projections.verify.published import BEGINNING, EventPosition, difference, equals_digest, is_event, position_of
from projections.verify.verify_tables import EVENTS_AT_ONCE, Finding
from runtime.archive import log_scan
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import Ahead, looking
from runtime.kafka.clients import Ends, Outgoing
from runtime.kafka.reader import Received
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.errors import Quarantine
from schemas.topics import CHANGESETS, PUBLIC, Topic

MARGIN = timedelta(hours=1)
"""Kafka deletes by its own clock: records nearly as old as the retention may be gone."""

EventsByTopic = Mapping[str, list[Outgoing]]


def invariant_name(topic: Topic) -> str:
    """Return the name of a public topic's invariant."""
    return f"published_{topic.name}_are_the_folds"


async def verify_topics(
    settings: Settings, connection: asyncpg.Connection, stored: Stored, ends: Mapping[str, Mapping[int, Ends]]
) -> dict[str, Finding]:
    """Compare each public topic with the fold, partition by partition.

    `ends` by topic and partition, read after `stored`. Memory: some fetches, and the events of one changeset.
    """
    findings = {invariant_name(topic): Finding() for topic in PUBLIC}
    async with AsyncExitStack() as stack:
        readers = [(topic, await stack.enter_async_context(looking(LogReader(settings, topic)))) for topic in PUBLIC]
        for number in range(settings.partitions):
            folded = stored.offsets(PROJECTIONS).get(number, 0)
            partitions = []
            for topic, reader in readers:
                end = ends[topic.name][number].end
                start = min((await reader.completeness([number]))[number].topic_ends.start, end)
                finding = findings[invariant_name(topic)]
                partitions.append(_Partition(connection, reader, topic, number, finding, Ends(start, end), folded))
            async for row in connection.cursor(_EVENTS, number, prefetch=EVENTS_AT_ONCE):
                await _compare_changeset(row, partitions, stored)
            for partition in partitions:
                await partition.finish(ends[CHANGESETS.name][number].end)
    return findings


async def _compare_changeset(row: asyncpg.Record, partitions: list["_Partition"], stored: Stored) -> None:
    """Compare the records of one changeset, on each topic, with its events, or with their digest."""
    published = {partition: await partition.records_of(row["source_offset"]) for partition in partitions}
    events = _events_by_topic(row)
    if events is None:
        _compare_digest(row, published, stored)
        return
    for partition, records in published.items():
        begins = BEGINNING if partition.is_whole or partition.has_retained(row, stored) else partition.begins
        expected = events.get(partition.topic.name, [])
        if records or expected:
            is_acknowledged = partition.has_acknowledged(row, stored)
            wrong = difference(records, expected, begins=begins, is_acknowledged=is_acknowledged)
            partition.finding.count(f"{partition.name}: {wrong}", holds=wrong is None)


def _compare_digest(row: asyncpg.Record, published: Mapping["_Partition", list[Received]], stored: Stored) -> None:
    """Compare the records of a changeset with the digest of its events, where all of them are there."""
    total = [record for records in published.values() for record in records]
    is_due = all(
        partition.has_retained(row, stored) and partition.has_acknowledged(row, stored) for partition in published
    )
    changeset = f"changeset {row['partition']}.{row['source_offset']}"
    for partition, records in published.items():
        if len(total) == row["net_events"]:
            # By our own numbers or those of a registry. An id that none has is of a registry that was never asked.
            results = {equals_digest(total, row["digest"], ids) for ids in (subjects.own_ids(), *stored.registered)}
            subject = f"{partition.name}: {changeset} is not what its digest says"
            partition.finding.count(subject, holds=True in results or False not in results)
        elif len(total) > row["net_events"] or is_due:
            subject = f"{partition.name}: {changeset} has {len(total)} events, the fold {row['net_events']}"
            partition.finding.count(subject, holds=False)
        elif records:
            partition.finding.count("", holds=True)


class _Partition:
    """One partition of one public topic as a reader sees it: records not above the last position are dropped."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        reader: LogReader,
        topic: Topic,
        number: int,
        finding: Finding,
        span: Ends,
        folded: int,
    ) -> None:
        self.topic = topic
        self.finding = finding
        self.name = f"{topic.name} {number}"
        self.is_whole = span.start == 0
        self._number = number
        self._connection = connection
        self._source = log_scan.records(reader, number, span.start, span.end)
        self._folded = folded
        self._ahead = Ahead(self._records())
        self._first: EventPosition | None = None
        self._cached: tuple[int, EventsByTopic | None] | None = None

    async def records_of(self, offset: int) -> list[Received]:
        """Return the records of the changeset at this offset; those between it and the one before are violations."""
        async for _, record in self._ahead.until(lambda entry: entry[0][0] >= offset):
            self._count(record, "is no event of the fold")
        return [record async for _, record in self._ahead.until(lambda entry: entry[0][0] > offset)]

    @property
    def begins(self) -> EventPosition:
        """Return the first position that retention has not deleted, as far as `records_of` has read."""
        return self._first or (sys.maxsize, 0)

    def has_retained(self, row: asyncpg.Record, stored: Stored) -> bool:
        """Return True where a changeset is too young for the topic's retention to have deleted its events."""
        assert self.topic.retention_ms is not None, "public topics end with their retention"
        retained = timedelta(milliseconds=self.topic.retention_ms) - MARGIN
        return bool(row["known_at"] > stored.loaded_at - retained)

    def has_acknowledged(self, row: asyncpg.Record, stored: Stored) -> bool:
        """Return True where the topic has all events of a changeset; one that is being filled again has not yet."""
        is_held = (self.topic.name, self._number) in stored.held
        return not is_held and row["source_offset"] < stored.checkpoints.get(row["partition"], 0)

    async def finish(self, end: int) -> None:
        """Read what follows the last changeset with net events: published since the tables were read, or wrong."""
        async for (offset, _), record in self._ahead.rest():
            if offset < self._folded or offset >= end:
                self._count(record, "is no event of the fold")

    async def _records(self) -> AsyncIterator[tuple[EventPosition, Received]]:
        last: EventPosition = (-1, -1)
        async for record in self._source:
            position = position_of(record.headers)
            if position is None:
                self._count(record, "has no position")
            elif position > last:
                last = position
                self._first = self._first or position
                yield position, record
            elif not await self._is_repeat(record, position):
                self._count(record, "is no event of the fold")

    async def _is_repeat(self, record: Received, position: EventPosition) -> bool:
        """Return True where a publisher that was stopped has sent an event of the fold again."""
        offset = position[0]
        if offset >= self._folded:
            return True  # published since the tables were read
        if self._cached is None or self._cached[0] != offset:
            row = await self._connection.fetchrow(_CHANGESET, record.partition, offset)
            self._cached = offset, {} if row is None else _events_by_topic(row)
        events = self._cached[1]
        return events is None or any(is_event(record, event) for event in events.get(self.topic.name, []))

    def _count(self, record: Received, wrong: str) -> None:
        self.finding.count(f"{self.name}: record {record.partition}.{record.offset} {wrong}", holds=False)


def _events_by_topic(row: asyncpg.Record) -> EventsByTopic | None:
    """Return a changeset's events as records; None where deleted or unreadable (verify_tables counts those)."""
    if row["events"] is None:
        return None
    try:
        changeset = changeset_events(row)
    except (zstandard.ZstdError, Quarantine, IndexError, ValueError):
        return None
    return {
        destination.topic.name: outgoing for destination, outgoing in kafka_records.build_records([changeset]).items()
    }


_EVENT_COLUMNS = "partition, source_offset, id, type, user_number, item_id, known_at, net_events, digest, events"

# Withheld changesets are published at the redrive's offset.
_EVENTS = f"""
SELECT {_EVENT_COLUMNS} FROM changesets
 WHERE partition = $1 AND net_events > 0 AND redriven_by IS NULL ORDER BY source_offset"""

_CHANGESET = f"""
SELECT {_EVENT_COLUMNS} FROM changesets WHERE partition = $1 AND source_offset = $2 AND redriven_by IS NULL"""
