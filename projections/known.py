"""Reads from the database what a batch can touch: positions under lock, Items with their gates, rows, accounts."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import asyncpg

from projections import copying
from projections.admission import Admitted, Parked
from projections.ledger import Posting
from projections.rows import microseconds
from projections.state import AccountRow, ItemRow, Row, WorkingSet
from projections.tables import SCHEMA
from runtime.reader import Position
from schemas.gate import ItemGate
from schemas.ids import own_id

PARKED_BY = "projections"


class Locked(NamedTuple):
    """A partition's position, locked until the end of the transaction."""

    position: int
    known_at: int


class Control(NamedTuple):
    """What decides which records of a batch count."""

    items: dict[str, ItemRow]
    parked: dict[str, list[Parked]]
    known_ids: set[bytes]


async def lock(connection: asyncpg.Connection, partitions: Collection[int]) -> dict[int, Locked]:
    """Lock the position rows of partitions, always in the same order, so two projectors never wait in a circle."""
    rows = await connection.fetch(_LOCK, sorted(partitions))
    return {row["partition"]: Locked(row["position"], microseconds(row["known_at"]) or 0) for row in rows}


async def positions(connection: asyncpg.Connection | asyncpg.Pool, partitions: Collection[int]) -> dict[int, Position]:
    """The positions of partitions, as they are committed."""
    rows = await connection.fetch(_POSITIONS, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


async def control(connection: asyncpg.Connection, items: Collection[str], free_ids: Collection[bytes]) -> Control:
    """Read the gates and parkings of Items, and which free records were accepted before."""
    rows = await connection.fetch(_ITEMS, list(items)) if items else []
    known_ids = {row["id"] for row in await connection.fetch(_FREE_IDS, list(free_ids))} if free_ids else set()
    parked = {
        row["wanted"]: [Parked(first, redrive) for first, redrive in zip(row["first"], row["redrive"], strict=True)]
        for row in rows
        if row["first"]
    }
    return Control({row["wanted"]: _item(row) for row in rows if row["has_row"] or row["part_ids"]}, parked, known_ids)


async def rows(connection: asyncpg.Connection, working: WorkingSet, admitted: Iterable[Admitted]) -> None:
    """Fill the working set with all transactions and accounts that these records can touch."""
    wanted: dict[str, set[str]] = {}
    reported: set[str] = set()
    for record in admitted:
        item = record.item
        if item is None:
            continue
        if record.said.balances:
            reported.add(item.item_id)
        if record.said.transactions and not item.is_complete:
            wanted.setdefault(item.item_id, set()).update(record.said.ids())
    if wanted:
        await _transactions(connection, working, wanted)
    if reported:
        for row in await connection.fetch(_ACCOUNTS, list(reported)):
            account = _account(row)
            working.items[account.item_id].accounts[account.account_id] = account


async def _transactions(connection: asyncpg.Connection, working: WorkingSet, wanted: Mapping[str, set[str]]) -> None:
    own_ids: list[bytes] = []
    item_ids: list[str] = []
    transaction_ids: list[str] = []
    for item_id, ids in wanted.items():
        salt = item_id.encode()
        own_ids += [own_id(transaction_id, salt=salt) for transaction_id in ids]
        item_ids += [item_id] * len(ids)
        transaction_ids += ids
    for row in await connection.fetch(_TRANSACTIONS, own_ids, item_ids, transaction_ids):
        working.items[row["item_id"]].add(_transaction(row, working))


def _item(row: asyncpg.Record) -> ItemRow:
    parts = dict(zip(row["part_ids"] or (), zip(row["part_offsets"] or (), row["part_values"] or (), strict=True),
                     strict=True))  # fmt: skip
    item = ItemRow(row["wanted"], row["user_number"] or 0, row["partition"] or 0)
    item.parts, item.parts_stored = parts, frozenset(parts)
    item.gate = ItemGate(row["head"], row["user_number"], bool(row["unlinked"]), tuple(parts))
    item.is_complete = not row["transaction_rows"]
    if row["has_row"]:
        item.head_offset, item.words, item.schema = row["head_offset"], row["words"], row["words_schema"] or 0
        item.history_status, item.transaction_rows = row["history_status"], row["transaction_rows"]
        item.linked_at, item.unlinked_at = microseconds(row["linked_at"]), microseconds(row["unlinked_at"])
        item.last_sync_at, item.known_at = microseconds(row["last_sync_at"]), microseconds(row["known_at"]) or 0
    return item


def _account(row: asyncpg.Record) -> AccountRow:
    return AccountRow(
        row["account_id"], row["item_id"], row["user_number"], row["cached_words"], row["cached_schema"],
        microseconds(row["cached_at"]), row["realtime_words"], row["realtime_schema"],
        microseconds(row["realtime_at"]), row["source"], row["version"], row["last_changeset"],
        microseconds(row["known_at"]) or 0,
    )  # fmt: skip


def _transaction(row: asyncpg.Record, working: WorkingSet) -> Row:
    posting = None
    if row["debit"] is not None:
        # What was posted is taken back as it was posted, whatever today's code would make of the words.
        amount = int(row["amount"])
        posting = Posting(
            working.book.known(row["debit"]), working.book.known(row["credit"]), amount, copying.numeric(amount),
            row["currency"], row["layer"], copying.date(row["effective"].isoformat()),
        )  # fmt: skip
    return Row(
        row["own_id"], row["item_id"], row["user_number"], row["transaction_id"], row["chained"], row["words"],
        row["words_schema"], None, posting, row["first_changeset"], row["last_changeset"],
        microseconds(row["known_at"]) or 0, microseconds(row["enriched_at"]), microseconds(row["removed_at"]),
        row["version"], row["transfers"], row["user_fields"], False,
    )  # fmt: skip


_LOCK = f"""
SELECT partition, position, known_at FROM {SCHEMA}.positions WHERE partition = ANY($1::int[])
 ORDER BY partition FOR UPDATE"""

_POSITIONS = f"SELECT partition, position, last_checksum FROM {SCHEMA}.positions WHERE partition = ANY($1::int[])"

_ITEMS = f"""
SELECT wanted, i.*, i.item_id IS NOT NULL AS has_row,
       p.ids AS part_ids, p.offsets AS part_offsets, p.values AS part_values, k.first, k.redrive
  FROM unnest($1::text[]) AS wanted
  LEFT JOIN {SCHEMA}.items i ON i.item_id = wanted
  LEFT JOIN LATERAL (
       SELECT array_agg(id ORDER BY source_offset) AS ids, array_agg(source_offset ORDER BY source_offset) AS offsets,
              array_agg(value ORDER BY source_offset) AS values
         FROM {SCHEMA}.parts WHERE parts.item_id = wanted) p ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(first_offset) AS first, array_agg(redrive_offset) AS redrive
         FROM tartan.parkings WHERE parkings.item_id = wanted AND reader = '{PARKED_BY}') k ON true"""

_FREE_IDS = f"SELECT id FROM {SCHEMA}.changesets WHERE id = ANY($1::bytea[])"

_ACCOUNTS = f"SELECT * FROM {SCHEMA}.accounts WHERE item_id = ANY($1::text[])"

# An own id is computed from the id that the bank names, save for the chained rows, which their own small index finds.
_TRANSACTIONS = f"""
SELECT t.own_id, t.item_id, t.user_number, t.transaction_id, t.chained, t.version, t.transfers, t.first_changeset,
       t.last_changeset, t.known_at, t.enriched_at, t.removed_at, t.words, t.words_schema, t.user_fields,
       l.debit, l.credit, l.amount, l.currency, l.layer, l.effective
  FROM (SELECT own_id FROM {SCHEMA}.transactions WHERE own_id = ANY($1::bytea[])
         UNION
        SELECT c.own_id FROM unnest($2::text[], $3::text[]) AS w(item_id, transaction_id)
          JOIN {SCHEMA}.transactions c ON c.chained AND c.item_id = w.item_id AND c.transaction_id = w.transaction_id
       ) AS found
  JOIN {SCHEMA}.transactions t USING (own_id)
  LEFT JOIN {SCHEMA}.ledger_transfers l
         ON l.own_id = t.own_id AND l.number = t.transfers AND t.removed_at IS NULL"""
