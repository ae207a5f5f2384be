"""Verification of the log: chains, positions, published events and archive against the stored state. Shell.

It may run while the stages do: Postgres is read first, in one snapshot, and the log is compared up to there.
"""

from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import NamedTuple

import asyncpg

from projections.verify import positions as stored_positions
from projections.verify.chains import ChainHead, Chains, differing_heads
from projections.verify.positions import PROJECTIONS, TOPIC_OF, Stored
from projections.verify.verify_tables import ROWS_AT_ONCE, Finding
from projections.verify.verify_topics import verify_topics
from runtime.archive import store, verify
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import Ahead, looking, records
from runtime.kafka.clients import Ends, LogEnds
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Received
from runtime.postgres.pool import snapshot
from runtime.scheduler.leases import FOLLOWER
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.log import changesets, gate
from schemas.log.gate import Verdict
from schemas.topics import CHANGESETS, PUBLIC, full_name

PARENTS_AT_ONCE = 10_000

WHOLE = "the_log_is_read_from_its_beginning"
POSITIONS = "positions_lie_within_the_log"
CHECKSUMS = "positions_name_the_record_before_them"
SETTLED = "positions_are_at_the_end_of_the_log"
ROWS = "changesets_match_the_log"
PARENTS = "parents_are_in_the_log"
HEADS = "heads_match_the_log"
ITEMS = "items_match_the_log"
ARCHIVE = "archive_matches_its_manifests_and_the_topics"


class _Log(NamedTuple):
    """The log after the stored state was read: its ends by topic and partition."""

    settings: Settings
    source: LogEnds
    ends: Mapping[str, Mapping[int, Ends]]

    def span(self, reader: str, partition: int) -> Ends:
        return self.ends[TOPIC_OF[reader].name].get(partition, Ends(0, 0))


class _Readers(NamedTuple):
    """The two readers that apply the gate, each up to its positions."""

    followed: Chains
    folded: Chains


async def verify_log(
    settings: Settings, connection: asyncpg.Connection, *, is_settled: bool = False
) -> dict[str, Finding]:
    """Check every invariant between log and tables. `is_settled`: no work is under way, so all must be at the end.

    Raises: Retry, where Kafka does not answer.
    """
    async with looking(LogEnds(settings)) as source, snapshot(connection):
        stored = await stored_positions.load(connection)
        # The public topics first: whatever is published by then is of a changeset that lies below the log's end.
        ends = {
            topic.name: await source.ends(full_name(topic, settings.topic_prefix), range(settings.partitions))
            for topic in dict.fromkeys((*PUBLIC, *TOPIC_OF.values()))
        }
        log = _Log(settings, source, ends)
        return {
            **await _check_positions(stored, log, is_settled=is_settled),
            **await _check_chains(connection, stored, log),
            **await verify_topics(settings, connection, stored, ends),
            **await _check_archive(settings),
        }


async def _check_archive(settings: Settings) -> dict[str, Finding]:
    """Compare the archive with its seals and the topics; no finding where there is no archive."""
    if not store.configured(settings):
        return {}
    finding = Finding()
    async for part in verify.verify(settings, store.connect(settings)):
        finding.checked += part.records
        for fault in part.faults:
            finding.count(str(fault), holds=False)
    return {ARCHIVE: finding}


async def _check_positions(stored: Stored, log: _Log, *, is_settled: bool) -> dict[str, Finding]:
    """Check that positions are within the log, name the record before them, and that checkpoints are not above them."""
    within, checksums, settled = Finding(), Finding(), Finding()
    for reader, positions in stored.positions.items():
        topic = TOPIC_OF[reader]
        for number, position in positions.items():
            span, name = log.span(reader, number), f"{reader}, {topic.name} {number}"
            holds = span.start <= position.next <= span.end
            within.count(f"{name}: position {position.next}, the log is {span.start} to {span.end}", holds=holds)
            if position.last_checksum is not None and span.start < position.next <= span.end:
                topic_name = full_name(topic, log.settings.topic_prefix)
                value = await log.source.record(topic_name, number, position.next - 1)
                holds = value is not None and checksum(value) == position.last_checksum
                checksums.count(f"{name}.{position.next - 1} is another record", holds=holds)
    folded = stored.offsets(PROJECTIONS)
    for number, checkpoint in stored.checkpoints.items():
        holds = checkpoint <= folded.get(number, 0)
        within.count(f"checkpoint of {number}: {checkpoint} above the position", holds=holds)
    if not is_settled:
        return {POSITIONS: within, CHECKSUMS: checksums}
    for reader, topic in TOPIC_OF.items():
        offsets = stored.offsets(reader)
        for number, span in log.ends[topic.name].items():
            offset = offsets.get(number, 0)
            settled.count(f"{reader}, {topic.name} {number}: {offset} of {span.end}", holds=offset == span.end)
    return {POSITIONS: within, CHECKSUMS: checksums, SETTLED: settled}


async def _check_chains(connection: asyncpg.Connection, stored: Stored, log: _Log) -> dict[str, Finding]:
    """Apply the gate to the whole log, up to the positions of the follower and the projections."""
    findings = {name: Finding() for name in (WHOLE, ROWS, PARENTS, HEADS, ITEMS)}
    followed, folded = stored.offsets(FOLLOWER), stored.offsets(PROJECTIONS)
    readers = _Readers(Chains(followed, erased=stored.erased), Chains(folded))
    unread = set()
    async with looking(LogReader(log.settings, CHANGESETS)) as reader:
        for number, span in log.ends[CHANGESETS.name].items():
            end = min(span.end, max(followed.get(number, 0), folded.get(number, 0)))
            try:
                await _check_partition(connection, reader, stored, number, end, readers, findings)
            except Halt as error:
                # The Items of an unreadable partition are not compared with half a chain.
                findings[WHOLE].count(str(error), holds=False)
                unread.add(number)
    await _check_parents(connection, stored, readers.folded, findings[PARENTS])
    _compare_heads(readers.followed, stored.heads, findings[HEADS], without=frozenset(), unread=unread)
    _compare_heads(readers.folded, stored.items, findings[ITEMS], without=stored.quarantined, unread=unread)
    return findings


async def _check_partition(
    connection: asyncpg.Connection,
    reader: LogReader,
    stored: Stored,
    number: int,
    end: int,
    readers: _Readers,
    findings: Mapping[str, Finding],
) -> None:
    """Read one partition from its beginning, beside the rows of its changesets. Raises: Halt, Retry."""
    missing = (await reader.completeness([number]))[number].missing()
    if missing is not None:
        raise Halt(f"changesets {number}: neither topic nor archive has the offsets {missing[0]} to {missing[1]}")
    rows = Ahead(connection.cursor(_ROWS, number, prefetch=ROWS_AT_ONCE).__aiter__())
    async with aclosing(records(reader, number, 0, end)) as whole:
        async for record in whole:
            head = changesets.read(record.value).head
            readers.followed.follow(number, record.offset, head)
            verdict = readers.folded.follow(number, record.offset, head)
            is_due = (
                verdict is Verdict.ACCEPTED and head.kind == gate.CHAINED and head.item_id not in stored.quarantined
            )
            await _compare_row(rows, record, head.id, findings[ROWS], is_due=is_due)
            findings[WHOLE].count("", holds=True)
    async for row in rows.rest():
        findings[ROWS].count(f"changeset {number}.{row['source_offset']} is not in the log", holds=False)


async def _compare_row(
    rows: Ahead[asyncpg.Record], record: Received, changeset_id: bytes, finding: Finding, *, is_due: bool
) -> None:
    """Compare a record with the row at its offset; rows at offsets that the log does not have are violations."""
    subject = f"changeset {record.partition}.{record.offset}"
    async for row in rows.until(lambda row: row["source_offset"] >= record.offset):
        finding.count(f"changeset {record.partition}.{row['source_offset']} is not in the log", holds=False)
    ids = [row["id"] async for row in rows.until(lambda row: row["source_offset"] > record.offset)]
    if ids:
        finding.count(f"{subject} is another one in the log", holds=ids == [changeset_id])
    elif is_due:
        finding.count(f"{subject} was accepted and has no row", holds=False)


async def _check_parents(connection: asyncpg.Connection, stored: Stored, folded: Chains, finding: Finding) -> None:
    """Check that the log has the parent of each skipped record, accepted or skipped itself."""
    for partition, offset, item_id in folded.rootless:
        finding.count(f"changeset {partition}.{offset} of item {item_id} has no parent", holds=False)
    orphans = [orphan for orphan in folded.orphans() if orphan.item_id not in stored.quarantined]
    for start in range(0, len(orphans), PARENTS_AT_ONCE):
        batch = orphans[start : start + PARENTS_AT_ONCE]
        parents = {row["id"] for row in await connection.fetch(_IDS, [orphan.parent for orphan in batch])}
        for partition, offset, item_id, parent in batch:
            subject = f"changeset {partition}.{offset} of item {item_id}"
            finding.count(f"{subject}: its parent {parent.hex()[:12]} is not in the log", holds=parent in parents)


def _compare_heads(
    chains: Chains,
    table: Mapping[str, ChainHead],
    finding: Finding,
    *,
    without: Collection[str],
    unread: Collection[int],
) -> None:
    """Compare each Item's head in a table with the log's chain."""

    def comparable(heads: Mapping[str, ChainHead]) -> dict[str, ChainHead]:
        return {item: head for item, head in heads.items() if item not in without and head.partition not in unread}

    log, stored = comparable(chains.heads), comparable(table)
    wrong = differing_heads(log, stored)
    for item_id in log.keys() | stored.keys():
        finding.count(wrong.get(item_id, ""), holds=item_id not in wrong)


_ROWS = "SELECT source_offset, id FROM changesets WHERE partition = $1 ORDER BY source_offset"

_IDS = "SELECT id FROM changesets WHERE id = ANY($1::bytea[])"
