"""Write a folded batch: few rows in one statement, many rows by COPY.

Inserts need no conflict clause: under the position locks the look-up of known rows is exact, and an own id contains
its Item's id, so no other partition can make the same one.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from projections.gate.check import GateResult
from projections.model import pg_copy
from projections.model.unit_of_work import UnitOfWork
from projections.store import copy_rows, rows, upsert_sql
from projections.store.gate_state import QUARANTINED_BY
from projections.store.rows import Values
from projections.store.upsert_sql import Target
from schemas.times import from_micros

ONE_STATEMENT_ROWS_MAX = 500
"""Most rows of a table in the one statement; above it COPY costs less than arrays of values."""
CHUNK_BYTES = 256 * 1024
"""Bytes that are passed to the socket at once."""

_Small = list[tuple[Target, Iterable[Values]]]
_Large = tuple[Target, Collection[Any], Callable[[Any], Values], Callable[[Any], Iterator[bytes]]]


class NewPosition(NamedTuple):
    """A partition's position after the batch. Units: `known_at` in microseconds since 1970, UTC."""

    partition: int
    position: int
    checksum: bytes
    known_at: int


async def prepare(connection: asyncpg.Connection) -> None:
    """Set up a connection for `write`."""
    await connection.execute(upsert_sql.STAGING)


async def ensure_positions(connection: asyncpg.Connection | asyncpg.Pool, partitions: int) -> None:
    """Insert the position rows that projectors lock, where they are missing."""
    await connection.execute(_POSITIONS, partitions)


async def write(
    connection: asyncpg.Connection,
    working: UnitOfWork,
    result: GateResult,
    positions: Sequence[NewPosition],
    checkpoints: Mapping[int, int],
    *,
    published: Mapping[int, int] | None = None,
) -> None:
    """Write the outcome of a batch, in the transaction that holds the position locks.

    Shape: `published` has offsets by partition; changesets below store only digest and count of their events.
    Raises: asyncpg's errors; those of its data (asyncpg.DataError and the like) concern single records.
    """
    changed = working.changed.values()
    if merged := [row.own_id for row in changed if row.is_merged]:
        # Each passed its Plaid id on, and the unique index may see the new holder's row before the old one's.
        await connection.execute(_PASSED_ON, merged)
    tables: list[_Large] = [
        (upsert_sql.NEW_TRANSACTIONS, working.new, rows.transaction_values, copy_rows.copy_transactions),
        (upsert_sql.CHANGED_TRANSACTIONS, changed, rows.transaction_values, copy_rows.copy_transactions),
        (upsert_sql.TRANSFERS, working.book.transfers, rows.transfer_values, copy_rows.copy_transfers),
        (upsert_sql.VERSIONS, working.versions, rows.version_values, copy_rows.copy_versions),
    ]
    small: _Small = []
    for target, batch, values, copy in tables:
        if len(batch) <= ONE_STATEMENT_ROWS_MAX:
            small.append((target, map(values, batch)))
            continue
        is_update = target is upsert_sql.CHANGED_TRANSACTIONS
        name = upsert_sql.CHANGED if is_update else target.table.name
        await connection.copy_to_table(name, columns=target.columns, source=_chunks(copy(batch)), format="binary")
        if is_update:
            await connection.execute(upsert_sql.UPDATE_STAGED)
    small += _small_tables(working, positions, checkpoints, published or {})
    small += _gate_tables(result)
    await _write_in_one_statement(connection, small)


def _small_tables(
    working: UnitOfWork, positions: Sequence[NewPosition], checkpoints: Mapping[int, int], published: Mapping[int, int]
) -> _Small:
    """Return the rows of the tables of which a batch writes few."""
    new_accounts = [account for account in working.book.accounts.values() if account.spec is not None]
    changesets = [
        rows.changeset_values(folded, keeps_events=folded.context.offset >= published.get(folded.context.partition, 0))
        for folded in working.folded
    ]
    # The last match of each Plaid id: one statement cannot write a row twice.
    matches = {(match.item_id, match.transaction_id): match for match in working.matches}
    new_chunks: list[Values] = []
    old_chunks: list[Values] = []
    for item in working.items.values():
        for chunk_id, (offset, value) in item.chunks.items():
            if chunk_id not in item.stored_chunks:
                new_chunks.append((item.item_id, chunk_id, offset, value))
        old_chunks += [(item.item_id, chunk_id) for chunk_id in item.stored_chunks if chunk_id not in item.chunks]
    return [
        (upsert_sql.LEDGER_ACCOUNTS, map(rows.ledger_account_values, new_accounts)),
        (upsert_sql.LEDGER_BALANCES, rows.ledger_balance_values(working)),
        (upsert_sql.ACCOUNTS, map(rows.account_values, working.changed_accounts.values())),
        (upsert_sql.ITEMS, map(rows.item_values, working.changed_items.values())),
        (upsert_sql.CHANGESETS, changesets),
        (upsert_sql.ACCOUNT_VERSIONS, map(rows.account_version_values, working.account_versions)),
        (upsert_sql.MATCHES, map(rows.match_values, matches.values())),
        (upsert_sql.REVIEWS, map(rows.review_values, working.changed_reviews.values())),
        (upsert_sql.NEW_CHUNKS, new_chunks),
        (upsert_sql.OLD_CHUNKS, old_chunks),
        (
            upsert_sql.POSITIONS,
            [(new.partition, new.position, new.checksum, from_micros(new.known_at)) for new in positions],
        ),
        (upsert_sql.CHECKPOINTS, list(checkpoints.items())),
    ]


def _gate_tables(result: GateResult) -> _Small:
    """Return the rows of withheld records and quarantines."""
    return [
        (
            upsert_sql.WITHHELD,
            [
                (record.head.item_id, record.received.partition, record.received.offset, record.received.value)
                for record in result.withheld
            ],
        ),
        (
            upsert_sql.FREED,
            [(record.head.item_id, record.received.partition, record.received.offset) for record in result.released],
        ),
        (
            upsert_sql.QUARANTINES,
            [
                (new.item_id, new.first_offset, new.partition, new.reason, QUARANTINED_BY, new.redrive)
                for new in result.quarantines
            ],
        ),
        (
            upsert_sql.ENDED,
            [(ended.item_id, ended.first_offset, QUARANTINED_BY, ended.redrive) for ended in result.ended],
        ),
    ]


async def _write_in_one_statement(connection: asyncpg.Connection, small: _Small) -> None:
    parts: list[tuple[Target, str]] = []
    arguments: list[Any] = []
    for target, values in small:
        batch = list(values)
        if len(batch) == 1:
            parts.append((target, upsert_sql.ONE))
            arguments += batch[0]
        elif batch:
            parts.append((target, upsert_sql.MANY))
            arguments += zip(*batch, strict=True)
    if parts:
        await connection.execute(upsert_sql.combined(tuple(parts)), *arguments)


async def _chunks(copied: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Gather rows into chunks: each chunk costs one call into asyncpg."""
    gathered, size = [pg_copy.SIGNATURE], 0
    for row in copied:
        gathered.append(row)
        size += len(row)
        if size >= CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    gathered.append(pg_copy.TRAILER)
    yield b"".join(gathered)


_PASSED_ON = "UPDATE transactions SET own_id_inherited = false WHERE own_id = ANY($1::bytea[]) AND own_id_inherited"

_POSITIONS = """
INSERT INTO positions (partition, position) SELECT number, 0 FROM generate_series(0, $1::int - 1) AS number
ON CONFLICT DO NOTHING"""
