"""`tartan verify`, the log's side: chains, positions and published events against what the tables keep. Shell.

It may run while the stages do: what Postgres keeps is read first, in one snapshot, and the log is compared up to there.
"""

from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import NamedTuple

import asyncpg

from projections.verify import positions as log_kept
from projections.verify import verify_topics
from projections.verify.chains import Chains, Standing, unlike
from projections.verify.positions import PROJECTIONS, TOPIC_OF, Kept
from projections.verify.verify_tables import Finding
from runtime.archive import store, verify
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import Ahead, looking, records
from runtime.kafka.clients import Ends, LogEnds
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position, Received
from runtime.postgres.pool import snapshot
from runtime.scheduler.leases import FOLLOWER
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.log import changesets, gate
from schemas.log.gate import Verdict
from schemas.topics import CHANGESETS, PUBLIC, full_name

ROWS_AT_ONCE = 1_000
PARENTS_AT_ONCE = 10_000

WHOLE = "the_log_is_read_from_its_beginning"
POSITIONS = "positions_lie_within_the_log"
CHECKSUMS = "positions_name_the_record_before_them"
SETTLED = "positions_are_the_logs_ends"
ROWS = "changesets_are_what_the_log_has_accepted"
PARENTS = "parents_are_in_the_log"
HEADS = "heads_are_where_the_chains_stand"
ITEMS = "items_are_where_the_chains_stand"
ARCHIVE = "archive_is_what_was_sealed_and_what_topics_have"


class _Log(NamedTuple):
    """The log as it was found, after what Postgres keeps was read: ends by topic and partition."""

    settings: Settings
    look: LogEnds
    ends: Mapping[str, Mapping[int, Ends]]


class _Readers(NamedTuple):
    """The two that apply the gate, each as far as it has come."""

    followed: Chains
    folded: Chains


class _Part(NamedTuple):
    """A partition, and how far it is read."""

    number: int
    end: int


async def verify_log(
    settings: Settings, connection: asyncpg.Connection, *, is_settled: bool = False
) -> dict[str, Finding]:
    """Check every invariant between log and tables. `is_settled`: nothing is under way, so all must be at the end.

    Raises: Retry, where Kafka does not answer.
    """
    async with looking(LogEnds(settings)) as look, snapshot(connection):
        kept = await log_kept.load(connection)
        # The public topics first: whatever is published by then is of a changeset that lies below the log's end.
        ends = {
            topic.name: await look.ends(full_name(topic, settings.topic_prefix), range(settings.partitions))
            for topic in (*PUBLIC, *log_kept.topics_read())
        }
        log = _Log(settings, look, ends)
        return {
            POSITIONS: _positions(kept, log),
            CHECKSUMS: await _checksums(kept, log),
            **({SETTLED: _settled(kept, log)} if is_settled else {}),
            **await _chains(connection, kept, log),
            **await verify_topics.published(settings, connection, kept, ends),
            **await _archive(settings),
        }


async def _archive(settings: Settings) -> dict[str, Finding]:
    """What is archived is what the topics have, and what was sealed; nothing where there is no archive."""
    if not store.configured(settings):
        return {}
    found = Finding()
    async for part in verify.verify(settings, store.connect(settings)):
        found.checked += part.records
        for fault in part.faults:
            found.count(str(fault), holds=False)
    return {ARCHIVE: found}


def _positions(kept: Kept, log: _Log) -> Finding:
    """No reader has read what is not in the log, and nothing is published that was not folded."""
    found = Finding()
    for reader, positions in kept.positions.items():
        for number, at in positions.items():
            span = _span(log, reader, number)
            where = f"{reader}, {TOPIC_OF[reader].name} {number}: position {at.next}"
            found.count(f"{where}, the log is {span.start} to {span.end}", holds=span.start <= at.next <= span.end)
    folded = kept.ends(PROJECTIONS)
    for number, checkpoint in kept.checkpoints.items():
        found.count(
            f"checkpoint of {number}: {checkpoint} above the position", holds=checkpoint <= folded.get(number, 0)
        )
    return found


def _settled(kept: Kept, log: _Log) -> Finding:
    found = Finding()
    for reader, topic in TOPIC_OF.items():
        at = kept.ends(reader)
        for number, span in log.ends[topic.name].items():
            stands = at.get(number, 0)
            found.count(f"{reader}, {topic.name} {number}: {stands} of {span.end}", holds=stands == span.end)
    return found


async def _checksums(kept: Kept, log: _Log) -> Finding:
    """The record before each position is the one that the reader has read."""
    found = Finding()
    for reader, positions in kept.positions.items():
        topic = full_name(TOPIC_OF[reader], log.settings.topic_prefix)
        for number, at in positions.items():
            if _is_named(at, _span(log, reader, number)):
                value = await log.look.record(topic, number, at.next - 1)
                holds = value is not None and checksum(value) == at.last_checksum
                found.count(f"{reader}, {TOPIC_OF[reader].name} {number}.{at.next - 1} is another record", holds=holds)
    return found


async def _chains(connection: asyncpg.Connection, kept: Kept, log: _Log) -> dict[str, Finding]:
    """Apply the gate to the whole log, as far as the follower and the projections have come."""
    found = {name: Finding() for name in (WHOLE, ROWS, PARENTS, HEADS, ITEMS)}
    readers = _Readers(Chains(kept.ends(FOLLOWER), erased=kept.erased), Chains(kept.ends(PROJECTIONS)))
    unread = set()
    async with looking(LogReader(log.settings, CHANGESETS)) as reader:
        for number, span in log.ends[CHANGESETS.name].items():
            end = min(span.end, max(kept.ends(name).get(number, 0) for name in (FOLLOWER, PROJECTIONS)))
            try:
                await _whole(reader, number)
                await _partition(connection, reader, kept, _Part(number, end), readers, found)
            except Halt as error:
                # What cannot be read leads to nothing: the tables of its Items are not compared with half a chain.
                found[WHOLE].count(str(error), holds=False)
                unread.add(number)
    await _parents(connection, kept, readers.folded, found[PARENTS])
    _stand(readers.followed, kept.heads, found[HEADS], without=frozenset(), unread=unread)
    _stand(readers.folded, kept.items, found[ITEMS], without=kept.waiting, unread=unread)
    return found


async def _whole(reader: LogReader, number: int) -> None:
    """Raises: Halt, where archive and topic together have no beginning, or are not one log."""
    missing = (await reader.completeness([number]))[number].missing()
    if missing is not None:
        raise Halt(f"changesets {number}: neither topic nor archive has the offsets {missing[0]} to {missing[1]}")


async def _partition(
    connection: asyncpg.Connection,
    reader: LogReader,
    kept: Kept,
    part: _Part,
    readers: _Readers,
    found: Mapping[str, Finding],
) -> None:
    """Read one partition from its beginning, beside the rows that were made of it. Raises: Halt, Retry."""
    rows = Ahead(connection.cursor(_ROWS, part.number, prefetch=ROWS_AT_ONCE).__aiter__())
    async with aclosing(records(reader, part.number, 0, part.end)) as whole:
        async for record in whole:
            head = changesets.read(record.value).head
            readers.followed.follow(part.number, record.offset, head)
            verdict = readers.folded.follow(part.number, record.offset, head)
            is_due = verdict is Verdict.ACCEPTED and head.kind == gate.CHAINED and head.item_id not in kept.waiting
            await _row(rows, record, head.id, found[ROWS], is_due=is_due)
            found[WHOLE].count("", holds=True)
    async for row in rows.rest():
        found[ROWS].count(f"changeset {part.number}.{row['source_offset']} is not in the log", holds=False)


async def _row(rows: Ahead[asyncpg.Record], record: Received, head: bytes, found: Finding, *, is_due: bool) -> None:
    """Compare a record with the row at its offset, and pass over rows at offsets that the log does not have."""
    where = f"changeset {record.partition}.{record.offset}"
    async for row in rows.until(lambda row: row["source_offset"] >= record.offset):
        found.count(f"changeset {record.partition}.{row['source_offset']} is not in the log", holds=False)
    at = [row["id"] async for row in rows.until(lambda row: row["source_offset"] > record.offset)]
    if at:
        found.count(f"{where} is another one in the log", holds=at == [head])
    elif is_due:
        found.count(f"{where} was accepted and has no row", holds=False)


async def _parents(connection: asyncpg.Connection, kept: Kept, folded: Chains, found: Finding) -> None:
    """Each record that was passed over names a parent that the log has, accepted or passed over itself."""
    for partition, offset, item_id in folded.rootless:
        found.count(f"changeset {partition}.{offset} of item {item_id} has no parent", holds=False)
    orphans = [one for one in folded.orphans() if one.item_id not in kept.waiting]
    for start in range(0, len(orphans), PARENTS_AT_ONCE):
        some = orphans[start : start + PARENTS_AT_ONCE]
        there = {row["id"] for row in await connection.fetch(_IDS, [one.parent for one in some])}
        for one in some:
            where = f"changeset {one.partition}.{one.offset} of item {one.item_id}"
            found.count(f"{where}: its parent {one.parent.hex()[:12]} is not in the log", holds=one.parent in there)


def _stand(
    chains: Chains, table: Mapping[str, Standing], found: Finding, *, without: Collection[str], unread: Collection[int]
) -> None:
    """Each Item stands in a table where the log's chain does."""

    def judged(one: Mapping[str, Standing]) -> dict[str, Standing]:
        return {item: at for item, at in one.items() if item not in without and at.partition not in unread}

    log, kept = judged(chains.standings), judged(table)
    wrong = unlike(log, kept)
    for item_id in log.keys() | kept.keys():
        found.count(wrong.get(item_id, ""), holds=item_id not in wrong)


def _is_named(at: Position, span: Ends) -> bool:
    """Whether the record before a position can be asked for."""
    return at.last_checksum is not None and span.start < at.next <= span.end


def _span(log: _Log, reader: str, partition: int) -> Ends:
    return log.ends[TOPIC_OF[reader].name].get(partition, Ends(0, 0))


_ROWS = "SELECT source_offset, id FROM changesets WHERE partition = $1 ORDER BY source_offset"

_IDS = "SELECT id FROM changesets WHERE id = ANY($1::bytea[])"
