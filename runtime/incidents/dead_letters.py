"""Dead letters: what could not be processed, its sealed original, where it stood and why.

A letter is written in the transaction that sets its record aside, so both are there or neither. What follows (a topic
that others read, a list that operators see, the rate that stops a broken deploy) works on the table.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from runtime import logs, metrics
from runtime.kafka.clients import Appender, Outgoing
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import borrowed
from runtime.settings import Settings
from runtime.version import code_version
from schemas import topics
from schemas.encoding import codec
from schemas.errors import Quarantine, Retry
from schemas.log.records import DeadLetter

LETTERS_MAX = 10
"""Letters that one transaction publishes: at 4 MiB each 40 MiB of memory, and a lock held for seconds."""
EVERY_S = 5.0
"""How often unpublished letters are looked for: nobody waits for one, and an empty look is one index probe."""
RETRY_S = 5.0
LIST_MAX = 500

_log = logs.logger(__name__)


class NewDeadLetter(NamedTuple):
    """What is set aside. `source_offset` None: an update of which no record could be made.

    Only sealed bytes are in `value`, and `reason` says nothing that the bank said.
    """

    stage: str
    topic: str
    partition: int
    source_offset: int | None
    item_id: str | None
    reason: str
    key: bytes | None = None
    value: bytes | None = None
    attempts: int = 1


class StoredDeadLetter(NamedTuple):
    """A letter as operators see it; its original is only told by size."""

    number: int
    stage: str
    topic: str
    partition: int
    source_offset: int | None
    item_id: str | None
    reason: str
    attempts: int
    code_version: str
    quarantined_at: datetime
    published_at: datetime | None
    redriven_at: datetime | None
    value_bytes: int
    is_quarantined: bool


async def write(connection: asyncpg.Connection, letters: Sequence[NewDeadLetter]) -> None:
    """Write letters.

    Idempotence: a record has one letter, however often it is read; an Item has one open letter of a stage without a
    record, which counts attempts and tells the last reason.
    """
    placed = [one for one in letters if one.source_offset is not None]
    if placed:
        columns = list(zip(*(_values(one) for one in placed), strict=True))
        await connection.execute(_PUT, *columns)
    for one in letters:
        if one.source_offset is None:
            await connection.execute(_PUT_UNPLACED, *_values(one))


async def mark_redriven(connection: asyncpg.Connection, stage: str, offsets: Mapping[str, int]) -> None:
    """Note that a stage's letters of Items were dealt with: those of records below each Item's redrive."""
    if offsets:
        await connection.execute(_REDRIVEN, stage, list(offsets), list(offsets.values()))


async def count_quarantined(connection: asyncpg.Connection, reader: str, window_s: float) -> int:
    """How many Items a reader set aside within the last so many seconds, those of this transaction too.

    A redrive that failed is not counted: its Item was set aside before.
    """
    return int(await connection.fetchval(_RATE, reader, window_s))


async def list_letters(
    connection: asyncpg.Connection,
    *,
    item_id: str | None = None,
    stage: str | None = None,
    open_only: bool = False,
    before: int | None = None,
    limit: int = 100,
) -> list[StoredDeadLetter]:
    """Letters, newest first; `before` a number, `open_only` those that no redrive dealt with."""
    rows = await connection.fetch(_LIST, item_id, stage, open_only, before, min(limit, LIST_MAX))
    return [StoredDeadLetter(*row.values()) for row in rows]


async def find(
    connection: asyncpg.Connection, number: int
) -> tuple[StoredDeadLetter, bytes | None, bytes | None] | None:
    """One letter with the key and value of its sealed original; None where there is none."""
    row = await connection.fetchrow(_LETTER, number)
    if row is None:
        return None
    *kept, key, value = row.values()
    return StoredDeadLetter(*kept), key, value


async def purge(
    connection: asyncpg.Connection, before: datetime | None, *, number: int | None = None, dry_run: bool = False
) -> list[int]:
    """Delete letters that are older than `before`, or the one with this number. Gives their numbers.

    A letter whose Item is still quarantined stays, unless it is named by its number.
    """
    rows = await connection.fetch(_TO_PURGE if dry_run else _PURGE, before, number)
    return sorted(row["dead_letter"] for row in rows)


async def run(pool: asyncpg.Pool, appender: Appender, settings: Settings) -> None:
    """Publish letters for ever, and close the incident of too many once a window passed without one.

    Several processes may run at once. Raises: whatever is an error of this code.
    """
    topic = topics.full_name(topics.DEAD_LETTERS, settings.topic_prefix)
    while True:
        wait_s = EVERY_S
        try:
            if await publish(pool, appender, topic) == LETTERS_MAX:
                wait_s = 0.0
            else:
                await pool.execute(_CALM, settings.dead_letters_window_s)
        except (Retry, *POSTGRES_ERRORS) as error:
            metrics.RETRIES.labels("dead_letters", "publish").inc()
            _log.warning("dead letters are not published", reason=type(error).__name__)
            wait_s = RETRY_S
        await asyncio.sleep(wait_s)


async def publish(pool: asyncpg.Pool, appender: Appender, topic: str) -> int:
    """Append the oldest unpublished letters to their topic and mark them. Gives how many.

    A crash between both publishes them again: readers know a letter by its topic, partition and offset.
    Raises: Retry, asyncpg's errors.
    """
    async with borrowed(pool) as connection, connection.transaction():
        rows = await connection.fetch(_UNPUBLISHED, LETTERS_MAX)
        for row in rows:
            await _append(appender, topic, row)
        if rows:
            await connection.execute(_PUBLISHED, [row["dead_letter"] for row in rows])
    return len(rows)


async def _append(appender: Appender, topic: str, row: asyncpg.Record) -> None:
    try:
        await appender.append(topic, Outgoing(row["key"], codec.encode(_record(row, row["value"]))))
    except Quarantine:
        # The letter says all but the original, which stays in the table: it must not hold up those behind it.
        _log.exception("a dead letter is too large for its topic", letter=row["dead_letter"])
        await appender.append(topic, Outgoing(row["key"], codec.encode(_record(row, None))))


def _record(row: asyncpg.Record, value: bytes | None) -> DeadLetter:
    return DeadLetter(
        row["stage"],
        row["topic"],
        row["partition"],
        row["source_offset"],
        row["item_id"],
        row["reason"],
        row["attempts"],
        row["code_version"],
        row["at"],
        row["key"],
        value,
    )


def _values(one: NewDeadLetter) -> tuple[object, ...]:
    return (
        one.stage,
        one.topic,
        one.partition,
        one.source_offset,
        one.item_id,
        one.key,
        one.value,
        one.reason,
        one.attempts,
        code_version(),
    )


_COLUMNS = "stage, topic, partition, source_offset, item_id, key, value, reason, attempts, code_version"

_PUT = f"""
INSERT INTO tartan.dead_letters ({_COLUMNS}, quarantined_at)
SELECT *, tartan.clock()
  FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[], $6::bytea[], $7::bytea[], $8::text[],
              $9::int[], $10::text[])
ON CONFLICT DO NOTHING"""

# No unique index can hold this: the Item's row in sync_state is leased to the one writer, so there is no race.
_PUT_UNPLACED = f"""
WITH again AS (
    UPDATE tartan.dead_letters
       SET attempts = attempts + $9::int, reason = $8::text, code_version = $10::text, published_at = NULL
     WHERE stage = $1::text AND topic = $2::text AND partition = $3::int AND item_id = $5::text
       AND source_offset IS NULL AND redriven_at IS NULL RETURNING 1)
INSERT INTO tartan.dead_letters ({_COLUMNS}, quarantined_at)
SELECT $1, $2, $3, $4::bigint, $5, $6::bytea, $7::bytea, $8, $9, $10, tartan.clock()
 WHERE NOT EXISTS (SELECT FROM again)"""

_REDRIVEN = """
UPDATE tartan.dead_letters d SET redriven_at = tartan.clock()
  FROM unnest($2::text[], $3::bigint[]) AS r (item_id, redrive)
 WHERE d.item_id = r.item_id AND d.stage = $1 AND d.redriven_at IS NULL
   AND (d.source_offset IS NULL OR d.source_offset < r.redrive)"""

# The quarantines, not the letters: a purge of letters must not let a broken deploy go on. They are few, and are counted
# only by a batch that quarantines.
_RATE = """
SELECT count(*) FROM tartan.quarantines k
 WHERE k.reader = $1 AND k.quarantined_at > tartan.clock() - make_interval(secs => $2)
   AND k.reason NOT LIKE 'operator: %'
   AND NOT EXISTS (SELECT FROM tartan.quarantines before
                    WHERE before.item_id = k.item_id AND before.redrive_offset = k.first_offset)"""

_IS_QUARANTINED = (
    """EXISTS (SELECT FROM tartan.quarantines k WHERE k.item_id = d.item_id AND k.redrive_offset IS NULL)"""
)

_KEPT = f"""
SELECT d.dead_letter, d.stage, d.topic, d.partition, d.source_offset, d.item_id, d.reason, d.attempts, d.code_version,
       d.quarantined_at, d.published_at, d.redriven_at, coalesce(octet_length(d.value), 0), {_IS_QUARANTINED}"""

_LIST = f"""{_KEPT}
  FROM tartan.dead_letters d
 WHERE ($1::text IS NULL OR d.item_id = $1) AND ($2::text IS NULL OR d.stage = $2)
   AND (NOT $3::boolean OR d.redriven_at IS NULL) AND ($4::bigint IS NULL OR d.dead_letter < $4)
 ORDER BY d.dead_letter DESC LIMIT $5"""

_LETTER = f"{_KEPT}, d.key, d.value FROM tartan.dead_letters d WHERE d.dead_letter = $1"

_PURGED = f"(d.dead_letter = $2::bigint OR ($2::bigint IS NULL AND d.quarantined_at < $1::timestamptz AND NOT {_IS_QUARANTINED}))"

_PURGE = f"DELETE FROM tartan.dead_letters d WHERE {_PURGED} RETURNING d.dead_letter"

_TO_PURGE = f"SELECT d.dead_letter FROM tartan.dead_letters d WHERE {_PURGED}"

# Locked rows are being published by another process.
_UNPUBLISHED = """
SELECT dead_letter, stage, topic, partition, source_offset, item_id, reason, attempts, code_version, key, value,
       (extract(epoch FROM quarantined_at) * 1000000)::bigint AS at
  FROM tartan.dead_letters WHERE published_at IS NULL ORDER BY dead_letter LIMIT $1 FOR UPDATE SKIP LOCKED"""

_PUBLISHED = "UPDATE tartan.dead_letters SET published_at = tartan.clock() WHERE dead_letter = ANY($1::bigint[])"

# It ends by time alone: while a reader stops and starts again, each stop is seen within the window.
_CALM = """
UPDATE tartan.incidents SET closed_at = tartan.clock()
 WHERE kind = 'dead_letters' AND closed_at IS NULL AND last_at < tartan.clock() - make_interval(secs => $1)"""
