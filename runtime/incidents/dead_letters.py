"""Dead letters: records that could not be processed, with the sealed original, its place in the log and the reason.

A letter is written in the transaction that quarantines its Item, so both exist or neither. The topic, the operators'
list and the rate that stops a broken release all read the table.
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
"""Pause between two reads of unpublished letters: nobody waits for one, and an empty read is one index probe."""
RETRY_S = 5.0
LIST_MAX = 500

_log = logs.logger(__name__)


class NewDeadLetter(NamedTuple):
    """A dead letter to write, in the order of _COLUMNS. `source_offset` None: an update of which no record exists.

    `value` is sealed; `reason` contains nothing of the bank's data.
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
    """A dead letter as operators see it, with the size of its original only."""

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
    record, which counts attempts and has the last reason.
    """
    version = code_version()
    rows = [(*letter, version) for letter in letters if letter.source_offset is not None]
    if rows:
        await connection.execute(_WRITE, *zip(*rows, strict=True))
    for letter in letters:
        if letter.source_offset is None:
            await connection.execute(_WRITE_WITHOUT_OFFSET, *letter, version)


async def mark_redriven(connection: asyncpg.Connection, stage: str, offsets: Mapping[str, int]) -> None:
    """Mark a stage's letters of Items as redriven: those of records below each Item's redrive."""
    if offsets:
        await connection.execute(_MARK_REDRIVEN, stage, list(offsets), list(offsets.values()))


async def count_quarantined(connection: asyncpg.Connection, reader: str, window_s: float) -> int:
    """Count the Items that a reader quarantined within the last `window_s`, those of this transaction included.

    A redrive that failed is not counted: its Item was quarantined before.
    """
    return int(await connection.fetchval(_COUNT_QUARANTINED, reader, window_s))


async def list_letters(
    connection: asyncpg.Connection,
    *,
    item_id: str | None = None,
    stage: str | None = None,
    open_only: bool = False,
    before: int | None = None,
    limit: int = 100,
) -> list[StoredDeadLetter]:
    """Return letters, newest first: below number `before`; `open_only` without those that a redrive closed."""
    rows = await connection.fetch(_LIST, item_id, stage, open_only, before, min(limit, LIST_MAX))
    return [StoredDeadLetter(*row.values()) for row in rows]


async def find(
    connection: asyncpg.Connection, number: int
) -> tuple[StoredDeadLetter, bytes | None, bytes | None] | None:
    """Return a letter with the key and value of its sealed original; None where there is none."""
    row = await connection.fetchrow(_FIND, number)
    if row is None:
        return None
    *fields, key, value = row.values()
    return StoredDeadLetter(*fields), key, value


async def purge(
    connection: asyncpg.Connection, before: datetime | None, *, number: int | None = None, dry_run: bool = False
) -> list[int]:
    """Delete letters that are older than `before`, or the one with this number; return their numbers.

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
                await pool.execute(_CLOSE_INCIDENT, settings.dead_letters_window_s)
        except (Retry, *POSTGRES_ERRORS) as error:
            metrics.RETRIES.labels("dead_letters", "publish").inc()
            _log.warning("dead letters are not published", reason=type(error).__name__)
            wait_s = RETRY_S
        await asyncio.sleep(wait_s)


async def publish(pool: asyncpg.Pool, appender: Appender, topic: str) -> int:
    """Append the oldest unpublished letters to their topic and mark them; return their number.

    A crash between both publishes them again: readers know a letter by its topic, partition and offset.
    Raises: Retry, asyncpg's errors.
    """
    async with borrowed(pool) as connection, connection.transaction():
        rows = await connection.fetch(_UNPUBLISHED, LETTERS_MAX)
        for row in rows:
            await _append(appender, topic, row)
        if rows:
            await connection.execute(_MARK_PUBLISHED, [row["dead_letter"] for row in rows])
    return len(rows)


async def _append(appender: Appender, topic: str, row: asyncpg.Record) -> None:
    number, *fields = row.values()
    try:
        await appender.append(topic, Outgoing(row["key"], codec.encode(DeadLetter(*fields))))
    except Quarantine:
        # Without the original, which stays in the table: it must not hold up the letters behind it.
        _log.exception("a dead letter is too large for its topic", letter=number)
        await appender.append(topic, Outgoing(row["key"], codec.encode(DeadLetter(*fields[:-1]))))


_COLUMNS = "stage, topic, partition, source_offset, item_id, reason, key, value, attempts, code_version"

_WRITE = f"""
INSERT INTO tartan.dead_letters ({_COLUMNS}, quarantined_at)
SELECT *, tartan.clock()
  FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::bytea[], $8::bytea[],
              $9::int[], $10::text[])
ON CONFLICT DO NOTHING"""

# No unique index covers this: the Item's row in sync_state is leased to the one writer, so there is no race.
_WRITE_WITHOUT_OFFSET = f"""
WITH again AS (
    UPDATE tartan.dead_letters
       SET attempts = attempts + $9::int, reason = $6::text, code_version = $10::text, published_at = NULL
     WHERE stage = $1::text AND topic = $2::text AND partition = $3::int AND item_id = $5::text
       AND source_offset IS NULL AND redriven_at IS NULL RETURNING 1)
INSERT INTO tartan.dead_letters ({_COLUMNS}, quarantined_at)
SELECT $1, $2, $3, $4::bigint, $5, $6, $7::bytea, $8::bytea, $9, $10, tartan.clock()
 WHERE NOT EXISTS (SELECT FROM again)"""

_MARK_REDRIVEN = """
UPDATE tartan.dead_letters d SET redriven_at = tartan.clock()
  FROM unnest($2::text[], $3::bigint[]) AS r (item_id, redrive)
 WHERE d.item_id = r.item_id AND d.stage = $1 AND d.redriven_at IS NULL
   AND (d.source_offset IS NULL OR d.source_offset < r.redrive)"""

# Quarantines, not letters: a purge of letters must not let a broken release go on. They are few, and only a batch that
# quarantines counts them.
_COUNT_QUARANTINED = """
SELECT count(*) FROM tartan.quarantines k
 WHERE k.reader = $1 AND k.quarantined_at > tartan.clock() - make_interval(secs => $2)
   AND k.reason NOT LIKE 'operator: %'
   AND NOT EXISTS (SELECT FROM tartan.quarantines before
                    WHERE before.item_id = k.item_id AND before.redrive_offset = k.first_offset)"""

_IS_QUARANTINED = (
    """EXISTS (SELECT FROM tartan.quarantines k WHERE k.item_id = d.item_id AND k.redrive_offset IS NULL)"""
)

_STORED = f"""
SELECT d.dead_letter, d.stage, d.topic, d.partition, d.source_offset, d.item_id, d.reason, d.attempts, d.code_version,
       d.quarantined_at, d.published_at, d.redriven_at, coalesce(octet_length(d.value), 0), {_IS_QUARANTINED}"""

_LIST = f"""{_STORED}
  FROM tartan.dead_letters d
 WHERE ($1::text IS NULL OR d.item_id = $1) AND ($2::text IS NULL OR d.stage = $2)
   AND (NOT $3::boolean OR d.redriven_at IS NULL) AND ($4::bigint IS NULL OR d.dead_letter < $4)
 ORDER BY d.dead_letter DESC LIMIT $5"""

_FIND = f"{_STORED}, d.key, d.value FROM tartan.dead_letters d WHERE d.dead_letter = $1"

_PURGED = f"""(d.dead_letter = $2::bigint
    OR ($2::bigint IS NULL AND d.quarantined_at < $1::timestamptz AND NOT {_IS_QUARANTINED}))"""

_PURGE = f"DELETE FROM tartan.dead_letters d WHERE {_PURGED} RETURNING d.dead_letter"

_TO_PURGE = f"SELECT d.dead_letter FROM tartan.dead_letters d WHERE {_PURGED}"

# Locked rows are being published by another process.
_UNPUBLISHED = """
SELECT dead_letter, stage, topic, partition, source_offset, item_id, reason, attempts, code_version,
       (extract(epoch FROM quarantined_at) * 1000000)::bigint AS at, key, value
  FROM tartan.dead_letters WHERE published_at IS NULL ORDER BY dead_letter LIMIT $1 FOR UPDATE SKIP LOCKED"""

_MARK_PUBLISHED = "UPDATE tartan.dead_letters SET published_at = tartan.clock() WHERE dead_letter = ANY($1::bigint[])"

# It ends by time alone: while a reader stops and starts again, each stop is reported within the window.
_CLOSE_INCIDENT = """
UPDATE tartan.incidents SET closed_at = tartan.clock()
 WHERE kind = 'dead_letters' AND closed_at IS NULL AND last_at < tartan.clock() - make_interval(secs => $1)"""
