"""Read the gate's part of a batch: locked positions, Items with chunks and accounts, quarantines and open reviews."""

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from projections.decode.log_record import LogRecord, decode_record
from projections.gate.quarantine import QuarantineSpan
from projections.matching import transactions
from projections.model.unit_of_work import AccountKey, AccountRow, ItemRow, Review
from projections.store import tables
from projections.store.rows import decoder
from projections.store.tables import FOLD
from runtime.kafka.reader import Position, Received
from runtime.postgres.pool import transaction
from schemas.errors import TartanError
from schemas.log.gate import ItemGate
from schemas.times import to_micros
from schemas.topics import user_key

QUARANTINED_BY = "projections"
ANOTHER_VERSION = "TV001"
"""SQLSTATE that `tartan.require_version` raises."""


class VersionMismatch(TartanError):
    """The tables are not of the caller's version: versions were swapped, or this code's fold is another one."""


class LockedPosition(NamedTuple):
    """A partition's position, locked until the end of the transaction. Units: `known_at` in microseconds since 1970."""

    position: int
    known_at: int


class GateState(NamedTuple):
    """The facts that decide which records of a batch count, with the accounts and open reviews of their users."""

    positions: dict[int, LockedPosition]
    items: dict[str, ItemRow]
    quarantined: dict[str, list[QuarantineSpan]]
    known_ids: set[bytes]
    reviews: dict[bytes, Review]


@asynccontextmanager
async def lock_positions(
    connection: asyncpg.Connection, partitions: Collection[int], *, version: int | None = None
) -> AsyncIterator[None]:
    """Open a transaction that locks the position rows of partitions, in order so that two projectors never deadlock.

    Statements in it run after the lock, each with a snapshot of its own. A swap of versions waits for it.
    Raises: VersionMismatch, where the tables are not this version, or not of this code's fold.
    """
    numbers = ", ".join(str(int(number)) for number in sorted(partitions))
    required = f"SELECT tartan.require_version({FOLD}, {'NULL' if version is None else int(version)})"
    try:
        async with transaction(connection, f"{_LOCK.format(numbers=numbers)}; {required}"):
            yield
    except asyncpg.PostgresError as error:
        if error.sqlstate != ANOTHER_VERSION:
            raise
        raise VersionMismatch(str(error)) from error


async def read_positions(
    connection: asyncpg.Connection | asyncpg.Pool, partitions: Collection[int]
) -> dict[int, Position]:
    """Return the committed positions of partitions."""
    rows = await connection.fetch(_POSITIONS, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


async def read_gate_state(
    connection: asyncpg.Connection, partitions: Collection[int], items: Collection[str], free_ids: Collection[bytes]
) -> GateState:
    """Read positions, Items and their quarantines, and which of the free records were accepted before."""
    rows = await connection.fetch(_GATE_STATE, list(partitions), list(items))
    known_ids = {row["id"] for row in await connection.fetch(_FREE_IDS, list(free_ids))} if free_ids else set()
    locked = (rows[0][name] or () for name in ("partitions", "positions", "times"))
    positions = {
        partition: LockedPosition(position, to_micros(known_at) or 0)
        for partition, position, known_at in zip(*locked, strict=True)
    }
    quarantined = {
        row["asked_item"]: [
            QuarantineSpan(first, redrive) for first, redrive in zip(row["first"], row["redrive"], strict=True)
        ]
        for row in rows
        if row["first"]
    }
    known_items = {
        row["asked_item"]: _item(row) for row in rows if row["item_id"] or row["chunk_ids"] or row["accounts"]
    }
    reviews = {review["id"]: _review(review) for row in rows for review in row["reviews"] or ()}
    return GateState(positions, known_items, quarantined, known_ids, reviews)


async def read_withheld(connection: asyncpg.Connection, items: Collection[str]) -> dict[str, list[LogRecord]]:
    """Return the withheld records of Items, in the order of the log."""
    withheld: dict[str, list[LogRecord]] = {}
    for item_id, partition, offset, value in await connection.fetch(_WITHHELD, list(items)):
        record = decode_record(Received(partition, offset, None, value, {}, 0))
        key = user_key(record.head.user)
        withheld.setdefault(item_id, []).append(record._replace(received=record.received._replace(key=key)))
    return withheld


_decode_account = decoder(tables.accounts, AccountRow)
_decode_review = decoder(tables.reviews, Review)
_decode_item = decoder(tables.items, ItemRow)


def _item(row: asyncpg.Record) -> ItemRow:
    if row["item_id"] is None:
        item = ItemRow(row["asked_item"], 0, 0)
    else:
        waiting_edits = json.loads(row["waiting_edits"] or "{}")
        item = _decode_item(row, schema=row["payload_schema"] or 0, waiting_edits=waiting_edits)
    chunks = (row[name] or () for name in ("chunk_ids", "chunk_offsets", "chunk_values"))
    item.chunks = {chunk_id: (offset, value) for chunk_id, offset, value in zip(*chunks, strict=True)}
    item.stored_chunks = frozenset(item.chunks)
    item.gate = ItemGate(row["head"], row["user_number"], bool(row["unlinked"]), tuple(item.chunks))
    item.is_complete = not row["transaction_rows"]
    item.accounts = {account["account_id"]: _account(account) for account in row["accounts"] or ()}
    return item


def _account(row: asyncpg.Record) -> AccountRow:
    return _decode_account(
        row,
        continues=_key(row["continues_item"], row["continues_account"]),
        continued_by=_key(row["continued_by_item"], row["continued_by_account"]),
    )


def _review(row: asyncpg.Record) -> Review:
    return _decode_review(row, candidates=transactions.canonical_candidates(row["candidates"]))


def _key(item_id: str | None, account_id: str | None) -> AccountKey | None:
    return None if item_id is None or account_id is None else (item_id, account_id)


_LOCK = "SELECT FROM positions WHERE partition IN ({numbers}) ORDER BY partition FOR UPDATE"

_POSITIONS = "SELECT partition, position, last_checksum FROM positions WHERE partition = ANY($1::int[])"

# Always at least one row, and the positions in the first one. Columns by name: with i.* a migration that adds one
# makes the prepared statement fail.
_GATE_STATE = f"""
SELECT w.asked_item, w.number, l.partitions, l.positions, l.times, i.item_id,
       i.user_number, i.partition, i.head, i.head_offset, i.unlinked, i.payload, i.payload_schema, i.history_status,
       i.transaction_rows, i.linked_at, i.unlinked_at, i.last_sync_at, i.missing_rows, i.missing_changeset_id,
       i.has_linked_items, i.waiting_edits, i.known_at,
       p.ids AS chunk_ids, p.offsets AS chunk_offsets, p.values AS chunk_values, k.first, k.redrive, a.accounts,
       r.reviews
  FROM (SELECT 1) AS always
  LEFT JOIN unnest($2::text[]) WITH ORDINALITY AS w(asked_item, number) ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(partition) AS partitions, array_agg(position) AS positions, array_agg(known_at) AS times
         FROM positions WHERE partition = ANY($1::int[])) l ON coalesce(w.number, 1) = 1
  LEFT JOIN items i ON i.item_id = w.asked_item
  LEFT JOIN LATERAL (
       SELECT array_agg(id ORDER BY source_offset) AS ids, array_agg(source_offset ORDER BY source_offset) AS offsets,
              array_agg(value ORDER BY source_offset) AS values
         FROM chunks WHERE chunks.item_id = w.asked_item) p ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(first_offset) AS first, array_agg(redrive_offset) AS redrive
         FROM tartan.quarantines WHERE quarantines.item_id = w.asked_item AND reader = '{QUARANTINED_BY}') k ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(accounts) AS accounts FROM accounts WHERE accounts.item_id = w.asked_item) a ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(reviews) AS reviews
         FROM reviews WHERE reviews.user_number = i.user_number AND state = 'open') r ON true
 ORDER BY w.number"""

_FREE_IDS = "SELECT id FROM changesets WHERE id = ANY($1::bytea[])"

_WITHHELD = """
SELECT item_id, partition, source_offset, value FROM withheld
 WHERE item_id = ANY($1::text[]) ORDER BY item_id, source_offset"""
