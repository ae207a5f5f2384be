"""Writes a folded batch: a small one in one statement, many rows by COPY.

Inserts need no conflict clause: under the position locks the look-up of known rows is exact, and an own id holds its
Item's id, so no other partition can make the same one.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from projections.gate.check import GateResult
from projections.model import pg_copy
from projections.model.unit_of_work import TransactionMatch, UnitOfWork
from projections.store import rows, upsert_sql
from projections.store.loader import QUARANTINED_BY
from projections.store.rows import Values
from projections.store.upsert_sql import Target
from schemas.times import from_micros

ONE_STATEMENT_ROWS_MAX = 500
"""Up to this many rows of a table go into the one statement; above it COPY costs less than arrays of values."""
CHUNK_BYTES = 256 * 1024
"""What is handed to the socket at once."""


class NewPosition(NamedTuple):
    """A partition's position behind the batch. Units: `known_at` in microseconds since 1970, UTC."""

    partition: int
    position: int
    checksum: bytes
    known_at: int


async def prepare(connection: asyncpg.Connection) -> None:
    """Set up a connection for `write`."""
    await connection.execute(upsert_sql.STAGING)


async def ensure_positions(connection: asyncpg.Connection | asyncpg.Pool, partitions: int) -> None:
    """Make the rows that projectors lock."""
    await connection.execute(_POSITIONS, partitions)


async def write(
    connection: asyncpg.Connection,
    working: UnitOfWork,
    admission: GateResult,
    advanced: Sequence[NewPosition],
    checkpoints: Mapping[int, int],
    *,
    published: Mapping[int, int] | None = None,
) -> None:
    """Write all that a batch caused, in the transaction that holds the position locks.

    Shape: `published` has offsets by partition; of changesets below, only digest and count of the events are kept.
    Raises: asyncpg's errors; those of its data (asyncpg.DataError and kin) concern single records.
    """
    small: list[tuple[Target, Iterable[Values]]] = []
    if len(working.new) > ONE_STATEMENT_ROWS_MAX:
        await _copy(connection, "transactions", rows.TRANSACTION_COLUMNS, rows.copy_transactions(working.new))
    else:
        small.append((upsert_sql.INSERT_TRANSACTIONS, map(rows.transaction_values, working.new)))
    changed = working.changed.values()
    if ended := [row.own_id for row in changed if row.is_merged]:
        # Each handed its id of Plaid's on, and the unique index may be shown the new holder first.
        await connection.execute(_HANDED_ON, ended)
    if len(changed) > ONE_STATEMENT_ROWS_MAX:
        await _copy(connection, upsert_sql.CHANGED, rows.TRANSACTION_COLUMNS, rows.copy_transactions(changed))
        await connection.execute(upsert_sql.UPDATE_STAGED)
    else:
        small.append((upsert_sql.UPDATE_TRANSACTIONS, map(rows.transaction_values, changed)))
    transfers = working.book.transfers
    if len(transfers) > ONE_STATEMENT_ROWS_MAX:
        await _copy(connection, "ledger_transfers", rows.TRANSFER_COLUMNS, rows.copy_transfers(transfers))
    else:
        small.append((upsert_sql.INSERT_TRANSFERS, map(rows.transfer_values, transfers)))
    if len(working.versions) > ONE_STATEMENT_ROWS_MAX:
        await _copy(connection, "transaction_versions", rows.VERSION_COLUMNS, rows.copy_versions(working.versions))
    else:
        small.append((upsert_sql.VERSIONS, map(rows.version_values, working.versions)))
    small += _few(working, admission, advanced, checkpoints, published or {})
    await _in_one_statement(connection, small)


def _few(
    working: UnitOfWork,
    admission: GateResult,
    advanced: Sequence[NewPosition],
    checkpoints: Mapping[int, int],
    published: Mapping[int, int],
) -> list[tuple[Target, Iterable[Values]]]:
    """The tables of which a batch touches few rows."""
    described = [account for account in working.book.accounts.values() if account.spec is not None]
    new_parts, old_parts = _parts(working)
    return [
        (upsert_sql.LEDGER_ACCOUNTS, map(rows.ledger_account_values, described)),
        (upsert_sql.LEDGER_BALANCES, rows.ledger_balance_values(working)),
        (upsert_sql.ACCOUNTS, map(rows.account_values, working.changed_accounts.values())),
        (upsert_sql.ITEMS, map(rows.item_values, working.changed_items.values())),
        (
            upsert_sql.CHANGESETS,
            [
                rows.changeset_values(
                    folded, keeps_events=folded.context.offset >= published.get(folded.context.partition, 0)
                )
                for folded in working.folded
            ],
        ),
        (upsert_sql.ACCOUNT_VERSIONS, map(rows.account_version_values, working.account_versions)),
        (upsert_sql.LINKS, map(rows.link_values, _last(working.matches))),
        (upsert_sql.REVIEWS, map(rows.review_values, working.changed_reviews.values())),
        (upsert_sql.NEW_CHUNKS, new_parts),
        (upsert_sql.OLD_CHUNKS, old_parts),
        (
            upsert_sql.WITHHELD,
            [
                (held.head.item_id, held.received.partition, held.received.offset, held.received.value)
                for held in admission.withheld
            ],
        ),
        (
            upsert_sql.FREED,
            [(freed.head.item_id, freed.received.partition, freed.received.offset) for freed in admission.freed],
        ),
        (
            upsert_sql.QUARANTINES,
            [
                (
                    quarantined.item_id,
                    quarantined.first_offset,
                    quarantined.partition,
                    quarantined.reason,
                    QUARANTINED_BY,
                    quarantined.redrive,
                )
                for quarantined in admission.quarantines
            ],
        ),
        (
            upsert_sql.ENDED,
            [(ended.item_id, ended.first_offset, QUARANTINED_BY, ended.redrive) for ended in admission.ended],
        ),
        (upsert_sql.POSITIONS, [(at.partition, at.position, at.checksum, from_micros(at.known_at)) for at in advanced]),
        (upsert_sql.CHECKPOINTS, list(checkpoints.items())),
    ]


def _last(links: Iterable[TransactionMatch]) -> Iterable[TransactionMatch]:
    """The last one of each Plaid id: one statement cannot write a row twice."""
    return {(one.item_id, one.transaction_id): one for one in links}.values()


def _parts(working: UnitOfWork) -> tuple[list[Values], list[Values]]:
    new: list[Values] = []
    old: list[Values] = []
    for item in working.items.values():
        for number, (offset, value) in item.chunks.items():
            if number not in item.stored_chunks:
                new.append((item.item_id, number, offset, value))
        old += [(item.item_id, number) for number in item.stored_chunks if number not in item.chunks]
    return new, old


async def _in_one_statement(connection: asyncpg.Connection, small: Iterable[tuple[Target, Iterable[Values]]]) -> None:
    parts: list[tuple[Target, str]] = []
    arguments: list[Any] = []
    for target, values in small:
        found = list(values)
        if len(found) == 1:
            parts.append((target, upsert_sql.ONE))
            arguments += found[0]
        elif found:
            parts.append((target, upsert_sql.MANY))
            arguments += zip(*found, strict=True)
    if parts:
        await connection.execute(upsert_sql.combined(tuple(parts)), *arguments)


async def _copy(connection: asyncpg.Connection, table: str, columns: Sequence[str], copied: Iterator[bytes]) -> None:
    await connection.copy_to_table(table, columns=columns, source=_chunks(copied), format="binary")


async def _chunks(copied: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Gather rows into chunks: a row by itself would cost a call into asyncpg each."""
    gathered, size = [pg_copy.SIGNATURE], 0
    for row in copied:
        gathered.append(row)
        size += len(row)
        if size >= CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    gathered.append(pg_copy.TRAILER)
    yield b"".join(gathered)


_HANDED_ON = "UPDATE transactions SET own_id_inherited = false WHERE own_id = ANY($1::bytea[]) AND own_id_inherited"

_POSITIONS = """
INSERT INTO positions (partition, position) SELECT number, 0 FROM generate_series(0, $1::int - 1) AS number
ON CONFLICT DO NOTHING"""
