"""Public topics against the fold: what a reader keeps of each partition is what the tables say was published. Shell."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta

import asyncpg
import zstandard

from projections.publish import kafka_records
from projections.publish.kafka_records import Destination
from projections.publish.outbox import changeset_events
from projections.verify.positions import PROJECTIONS, Kept
from projections.verify.published import BEGINNING, Position, compared, equals_digest, is_repeat, position
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
"""Kafka deletes by its own clock, and what is nearly as old as its retention may be gone."""

Fold = Mapping[str, list[Outgoing]]
"""What a changeset has published, by topic."""


def name_of(topic: Topic) -> str:
    """The invariant of a public topic."""
    return f"published_{topic.name}_are_the_folds"


async def published(
    settings: Settings, connection: asyncpg.Connection, kept: Kept, ends: Mapping[str, Mapping[int, Ends]]
) -> dict[str, Finding]:
    """Compare each public topic, partition by partition.

    `ends` by topic and partition, read after `kept`. Memory: some fetches, and the events of one changeset.
    """
    found = {name_of(topic): Finding() for topic in PUBLIC}
    async with AsyncExitStack() as stack:
        readers = [(topic, await stack.enter_async_context(looking(LogReader(settings, topic)))) for topic in PUBLIC]
        for number in range(settings.partitions):
            folded = kept.ends(PROJECTIONS).get(number, 0)
            lanes = []
            for topic, reader in readers:
                end = ends[topic.name][number].end
                start = min((await reader.completeness([number]))[number].kept.start, end)
                place, finding = Destination(topic, number), found[name_of(topic)]
                lanes.append(_Lane(connection, reader, place, finding, Ends(start, end), folded=folded))
            async for row in connection.cursor(_EVENTS, number, prefetch=EVENTS_AT_ONCE):
                await _changeset(row, lanes, kept)
            for lane in lanes:
                await lane.rest(ends[CHANGESETS.name][number].end)
    return found


async def _changeset(row: asyncpg.Record, lanes: list["_Lane"], kept: Kept) -> None:
    """Compare what one changeset has published, on each topic."""
    found = {lane: await lane.at(row["source_offset"]) for lane in lanes}
    fold = _fold(row)
    if fold is None:
        _by_digest(row, found, kept)
        return
    for lane, said in found.items():
        is_young = row["known_at"] > kept.at - _kept_for(lane.lane.topic)
        begins = BEGINNING if lane.is_whole or is_young else lane.begins
        wanted = fold.get(lane.lane.topic.name, [])
        if said or wanted:
            wrong = compared(said, wanted, begins=begins, is_acknowledged=_is_acknowledged(row, lane, kept))
            lane.finding.count(f"{lane.where}: {wrong}", holds=wrong is None)


def _by_digest(row: asyncpg.Record, found: Mapping["_Lane", list[Received]], kept: Kept) -> None:
    """Compare what is published of a changeset of whose events only the digest is kept, where it is all there."""
    said = [record for there in found.values() for record in there]
    is_due = all(
        row["known_at"] > kept.at - _kept_for(lane.lane.topic) and _is_acknowledged(row, lane, kept) for lane in found
    )
    where = f"changeset {row['partition']}.{row['source_offset']}"
    for lane, there in found.items():
        if len(said) == row["net_events"]:
            # By our own numbers or those of a registry. An id that none has is of a registry that was never asked.
            holds = {equals_digest(said, row["digest"], ids) for ids in (subjects.own_ids(), *kept.registered)}
            told = f"{lane.where}: {where} is not what its digest says"
            lane.finding.count(told, holds=True in holds or False not in holds)
        elif len(said) > row["net_events"] or is_due:
            told = f"{lane.where}: {where} has {len(said)} events, the fold {row['net_events']}"
            lane.finding.count(told, holds=False)
        elif there:
            lane.finding.count("", holds=True)


def _is_acknowledged(row: asyncpg.Record, lane: "_Lane", kept: Kept) -> bool:
    """Whether all that a changeset has published was taken by its topic. One that is being filled again has not yet."""
    held = (lane.lane.topic.name, lane.lane.partition) in kept.held
    return not held and row["source_offset"] < kept.checkpoints.get(row["partition"], 0)


class _Lane:
    """One partition of one public topic as a reader sees it: what is not above the last position is dropped."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        reader: LogReader,
        lane: Destination,
        finding: Finding,
        span: Ends,
        *,
        folded: int,
    ) -> None:
        self.lane = lane
        self.finding = finding
        self.where = f"{lane.topic.name} {lane.partition}"
        self.is_whole = span.start == 0
        self._connection = connection
        self._source = log_scan.records(reader, lane.partition, span.start, span.end)
        self._folded = folded
        self._ahead = Ahead(self._kept())
        self._first: Position | None = None
        self._asked: tuple[int, Fold | None] | None = None

    async def at(self, offset: int) -> list[Received]:
        """What the topic has of the changeset at this offset; what it has between it and the one before is too much."""
        async for _, record in self._ahead.until(lambda one: one[0][0] >= offset):
            self._too_much(record)
        return [record async for _, record in self._ahead.until(lambda one: one[0][0] > offset)]

    @property
    def begins(self) -> Position:
        """The first position that is still there: what retention has deleted lies below. Asked after `at`."""
        return self._first or (sys.maxsize, 0)

    async def rest(self, end: int) -> None:
        """What follows behind the last changeset with net events: published since the tables were read, or wrong."""
        async for (offset, _), record in self._ahead.rest():
            if offset < self._folded or offset >= end:
                self._too_much(record)

    async def _kept(self) -> AsyncIterator[tuple[Position, Received]]:
        last: Position = (-1, -1)
        async for record in self._source:
            at = position(record)
            if at is None:
                self._count(record, "has no position")
            elif at > last:
                last = at
                self._first = self._first or at
                yield at, record
            elif not await self._is_repeat(record, at):
                self._too_much(record)

    async def _is_repeat(self, record: Received, at: Position) -> bool:
        """Whether a publisher that was stopped has sent this again: it was published before, at this position."""
        if at[0] >= self._folded:
            return True  # published since the tables were read
        if self._asked is None or self._asked[0] != at[0]:
            row = await self._connection.fetchrow(_ONE, record.partition, at[0])
            self._asked = at[0], {} if row is None else _fold(row)
        fold = self._asked[1]
        return fold is None or is_repeat(record, fold.get(self.lane.topic.name, []))

    def _too_much(self, record: Received) -> None:
        self._count(record, "is no event of the fold")

    def _count(self, record: Received, wrong: str) -> None:
        self.finding.count(f"{self.where}: record {record.partition}.{record.offset} {wrong}", holds=False)


def _fold(row: asyncpg.Record) -> Fold | None:
    """What a changeset has published; None where its events are not kept, or not readable, which is told elsewhere."""
    if row["events"] is None:
        return None
    try:
        said = changeset_events(row)
    except (zstandard.ZstdError, Quarantine, IndexError, ValueError):
        return None
    return {lane.topic.name: outgoing for lane, outgoing in kafka_records.build_records([said]).items()}


def _kept_for(topic: Topic) -> timedelta:
    """How long a topic surely has what was published."""
    assert topic.retention_ms is not None, "public topics end with their retention"
    return timedelta(milliseconds=topic.retention_ms) - MARGIN


_EVENT_COLUMNS = "partition, source_offset, id, type, user_number, item_id, known_at, net_events, digest, events"

# What was withheld and redriven is published at the redrive's offset.
_EVENTS = f"""
SELECT {_EVENT_COLUMNS} FROM changesets
 WHERE partition = $1 AND net_events > 0 AND redriven_by IS NULL ORDER BY source_offset"""

_ONE = f"""
SELECT {_EVENT_COLUMNS} FROM changesets WHERE partition = $1 AND source_offset = $2 AND redriven_by IS NULL"""
