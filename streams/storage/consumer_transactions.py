"""Transactions of mark_due and follow_heads: the effects of a batch and the reader's position, both or neither. Shell.

Each is four round trips: begin and lock, read, write, commit. Positions are locked before anything is read, and the
last write moves them.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import asyncpg
import msgspec

from runtime.incidents import dead_letters
from runtime.kafka.reader import Position
from runtime.postgres.pool import transaction
from runtime.scheduler import enqueue, leases
from runtime.scheduler.leases import FOLLOWER, QUARANTINED_BY
from runtime.scheduler.types import Hint, Mark
from streams.heads import HeadChanges, ItemHead
from streams.ports import MARKER
from streams.storage.session import session


async def load_positions(pool: asyncpg.Pool, reader: str, partitions: Collection[int]) -> dict[int, Position]:
    """Load a reader's positions. Raises: Retry."""
    async with session(pool) as connection:
        rows = await connection.fetch(_POSITIONS, reader, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


class _ReaderTransaction:
    """A transaction that has locked its reader's positions, and moves them with its last write."""

    positions: Mapping[int, Position]
    """The reader's positions, known after the transaction's first read."""

    def __init__(self, connection: asyncpg.Connection, reader: str, partitions: Collection[int]) -> None:
        self._connection = connection
        self._reader = reader
        self._partitions = list(partitions)
        self._moved: Mapping[int, Position] = {}

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions, with the next write, at the latest before the commit."""
        self._moved = positions

    async def finish(self) -> None:
        """Write the positions that no other statement has written."""
        if self._moved:
            await self._connection.execute(_ADVANCE, self._reader, *_columns(self._take_moved()))

    def _take_moved(self) -> Mapping[int, Position]:
        moved, self._moved = self._moved, {}
        return moved

    def _read_positions(self, row: asyncpg.Record) -> None:
        self.positions = {
            partition: Position(position, checksum)
            for partition, position, checksum in zip(row["partitions"], row["positions"], row["checksums"], strict=True)
        }


Begun = TypeVar("Begun", bound=_ReaderTransaction)


class MarkingTransaction(_ReaderTransaction):
    """One transaction of mark_due."""

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Store repeat keys and return those that were new. Reads the positions."""
        row = await self._connection.fetchrow(_STORE_KEYS, self._reader, self._partitions, list(keys))
        assert row is not None
        self._read_positions(row)
        return set(row["new_keys"] or ())

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due and return their number."""
        if not marks and not hints:
            return 0
        moved = self._take_moved()
        return await enqueue.mark_webhooks(self._connection, marks, hints, reader=self._reader, positions=moved)


class FollowingTransaction(_ReaderTransaction):
    """One transaction of follow_heads."""

    def __init__(self, connection: asyncpg.Connection, reader: str, partitions: Collection[int]) -> None:
        super().__init__(connection, reader, partitions)
        self._is_erased: dict[int, bool] = {}

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """Return the heads that are known. Reads the positions, and which of the heads' users are erased."""
        rows = await self._connection.fetch(_HEADS, self._reader, self._partitions, list(items))
        self._read_positions(rows[0])
        rows = [row for row in rows if row["item_id"] is not None]
        self._is_erased = {row["user_number"]: row["erased"] for row in rows}
        return {
            row["item_id"]: ItemHead(row["user_number"], row["partition"], leases.known_head(row), row["hints_until"])
            for row in rows
        }

    async def erased(self, users: Collection[int]) -> set[int]:
        """Return the users whose key is destroyed."""
        unknown = [user for user in users if user not in self._is_erased]
        if unknown:
            rows = await self._connection.fetch(_ERASED, unknown)
            self._is_erased |= dict.fromkeys(unknown, False) | {row["user_number"]: True for row in rows}
        return {user for user in users if self._is_erased[user]}

    async def apply(self, changes: HeadChanges) -> None:
        """Write heads and incomplete histories, make Items due again that were skipped or redriven, erase users."""
        connection, redriven, histories = self._connection, changes.redriven, changes.histories
        if redriven:
            await connection.execute(_REDRIVEN, list(redriven), list(redriven.values()))
            await dead_letters.mark_redriven(connection, QUARANTINED_BY, redriven)
        if changes.again or redriven:
            await enqueue.mark_again(connection, list(changes.again), redriven=list(redriven))
        if histories:
            await connection.execute(_HISTORIES, list(histories), list(histories.values()))
        if changes.heads:
            rows = [_head_row(item_id, item) for item_id, item in sorted(changes.heads.items())]
            columns = [list(column) for column in zip(*rows, strict=True)]
            await connection.execute(_PUT_HEADS, self._reader, *_columns(self._take_moved()), *columns)
        for user in changes.erased:
            for statement in _ERASE:
                await connection.execute(statement, user)


@asynccontextmanager
async def _begin(
    kind: Callable[[asyncpg.Connection, str, Collection[int]], Begun],
    reader: str,
    pool: asyncpg.Pool,
    partitions: Collection[int],
) -> AsyncIterator[Begun]:
    """Begin a transaction that locks a reader's positions, in order, so that of two processes one waits for the other.

    Each statement after the lock reads by a snapshot of its own. Raises: Retry.
    """
    numbers = ", ".join(str(int(number)) for number in sorted(partitions))
    lock = _LOCK.format(reader=reader, numbers=numbers)
    async with session(pool) as connection, transaction(connection, f"{_UNFLUSHED}; {lock}") as answer:
        if answer != f"SELECT {len(partitions)}":  # some positions have no row yet
            await connection.execute(_FIRST_POSITIONS, reader, list(partitions))
            await connection.execute(lock)
        begun = kind(connection, reader, partitions)
        yield begun
        await begun.finish()


marking = partial(_begin, MarkingTransaction, MARKER)
"""Begin a transaction of mark_due: `marking(pool, partitions)`."""
following = partial(_begin, FollowingTransaction, FOLLOWER)
"""Begin a transaction of follow_heads: `following(pool, partitions)`."""


def _head_row(item_id: str, item: ItemHead) -> tuple[object, ...]:
    head = item.head
    fingerprints = {account: value.hex() for account, value in head.fingerprints.items()}
    return (
        *(item_id, item.user, item.partition, head.id, head.offset, head.at, head.unlinked, head.cursor, head.state),
        *(head.code, head.history_status, msgspec.json.encode(fingerprints).decode(), item.hints_until),
    )


def _columns(positions: Mapping[int, Position]) -> tuple[list[int], list[int], list[bytes | None]]:
    values = list(positions.values())
    return list(positions), [position.next for position in values], [position.last_checksum for position in values]


_POSITIONS = """
    SELECT partition, position, last_checksum FROM tartan.positions WHERE reader = $1 AND partition = ANY($2::int[])"""

# The commit need not reach the disk: a crash of Postgres takes marks, heads and position back together.
_UNFLUSHED = "SET LOCAL synchronous_commit = off"

_LOCK = """
    SELECT FROM tartan.positions WHERE reader = '{reader}' AND partition IN ({numbers}) ORDER BY partition FOR UPDATE"""

_FIRST_POSITIONS = """
    INSERT INTO tartan.positions (reader, partition, position) SELECT $1, unnest($2::int[]), 0 ON CONFLICT DO NOTHING"""

_ADVANCE = """
    UPDATE tartan.positions p SET position = n.position, last_checksum = n.checksum
    FROM unnest($2::int[], $3::bigint[], $4::bytea[]) AS n (partition, position, checksum)
    WHERE p.reader = $1 AND p.partition = n.partition"""

_AT = """
    SELECT array_agg(partition) AS partitions, array_agg(position) AS positions, array_agg(last_checksum) AS checksums
    FROM tartan.positions WHERE reader = $1 AND partition = ANY($2::int[])"""

# A key of a batch that is read again is stored already.
_STORE_KEYS = f"""
    WITH stored AS (
        INSERT INTO tartan.repeats (key, observed_at) SELECT unnest($3::bytea[]), tartan.clock()
        ON CONFLICT (key) DO NOTHING RETURNING key)
    SELECT p.partitions, p.positions, p.checksums, (SELECT array_agg(key) FROM stored) AS new_keys FROM ({_AT}) p"""

# At least one row, with the positions in each.
_HEADS = f"""
    SELECT p.partitions, p.positions, p.checksums, h.item_id, h.user_number, h.partition, h.head, h.head_offset,
        h.head_at, h.unlinked, h.cursor, h.state, h.code, h.history_status, h.fingerprints, h.hints_until,
        coalesce(k.state = 'destroyed', false) AS erased
    FROM ({_AT}) p LEFT JOIN tartan.heads h ON h.item_id = ANY($3::text[])
    LEFT JOIN tartan.user_keys k ON k.user_number = h.user_number"""

_ERASED = "SELECT user_number FROM tartan.user_keys WHERE user_number = ANY($1::bigint[]) AND state = 'destroyed'"

# The hints that a record has dealt with are deleted with it, whichever sync run read them.
_PUT_HEADS = f"""
    WITH batch AS (
        SELECT * FROM unnest($5::text[], $6::bigint[], $7::int[], $8::bytea[], $9::bigint[], $10::timestamptz[],
            $11::bool[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::bigint[])
            AS f (item_id, user_number, partition, head, head_offset, head_at, unlinked, cursor, state, code,
                history_status, fingerprints, hints_until)
    ), dealt_with AS (
        DELETE FROM tartan.hints h USING batch f WHERE h.item_id = f.item_id AND h.webhook_offset <= f.hints_until
    ), put AS (
        INSERT INTO tartan.heads (item_id, user_number, partition, head, head_offset, head_at, unlinked, cursor, state,
            code, history_status, fingerprints, hints_until)
        SELECT item_id, user_number, partition, head, head_offset, head_at, unlinked, cursor, state, code,
            history_status, fingerprints::jsonb, hints_until
        FROM batch
        ON CONFLICT (item_id) DO UPDATE
        SET (head, head_offset, head_at, unlinked, cursor, state, code, history_status, fingerprints, hints_until)
            = (excluded.head, excluded.head_offset, excluded.head_at, excluded.unlinked, excluded.cursor,
               excluded.state, excluded.code, excluded.history_status, excluded.fingerprints, excluded.hints_until)
    ){_ADVANCE}"""

# A history that lacked an account concludes no removals, so the next one has to.
_HISTORIES = """
    WITH read AS (
        SELECT item_id, h.incomplete FROM tartan.sync_state s
        JOIN unnest($1::text[], $2::bool[]) AS h (item_id, incomplete) USING (item_id)
        ORDER BY item_id FOR UPDATE OF s
    )
    UPDATE tartan.sync_state s SET history_incomplete = read.incomplete FROM read WHERE s.item_id = read.item_id"""

# A redrive ends the quarantines of streams; the projections end theirs.
_REDRIVEN = f"""
    UPDATE tartan.quarantines p SET redrive_offset = r.redrive_offset
    FROM unnest($1::text[], $2::bigint[]) AS r (item_id, redrive_offset)
    WHERE p.item_id = r.item_id AND p.reader = '{QUARANTINED_BY}' AND p.redrive_offset IS NULL"""

# The key first: without it nothing that it sealed opens, whatever else may fail. Its row stays as a tombstone.
_ERASE = (
    """UPDATE tartan.user_keys SET wrapped = NULL, state = 'destroyed', destroyed_at = clock_timestamp()
       WHERE user_number = $1 AND state = 'active'""",
    "DELETE FROM tartan.credentials WHERE user_number = $1",
    "DELETE FROM tartan.hints WHERE item_id IN (SELECT item_id FROM tartan.sync_state WHERE user_number = $1)",
    "DELETE FROM tartan.sync_state WHERE user_number = $1",
    "DELETE FROM tartan.heads WHERE user_number = $1",
    "DELETE FROM tartan.reconciliations WHERE user_number = $1",
    "DELETE FROM tartan.discrepancies WHERE user_number = $1",
    "DELETE FROM tartan.users WHERE user_number = $1",
)
