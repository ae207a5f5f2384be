"""Reads from the database what a batch can touch: positions under lock, Items with their gates, rows, accounts."""

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from projections.decode.changeset import FullResync
from projections.decode.log_record import LogRecord, decode_record
from projections.fold import opening_balances
from projections.gate.check import AcceptedRecord
from projections.gate.quarantine import QuarantineSpan
from projections.ledger import override_rules
from projections.matching import linked_items, transactions
from projections.model import pg_copy
from projections.model.book import BANK, POSTED, Posting
from projections.model.unit_of_work import AccountKey, AccountRow, ItemRow, Review, Row, UnitOfWork
from projections.store.tables import FOLD
from runtime.kafka.reader import Position, Received
from runtime.postgres.pool import transaction
from schemas.errors import TartanError
from schemas.ids import own_id
from schemas.log.gate import ItemGate
from schemas.times import to_micros
from schemas.topics import user_key

QUARANTINED_BY = "projections"
ANOTHER_VERSION = "TV001"
"""What `tartan.require_version` raises."""


class VersionMismatch(TartanError):
    """The tables are not what the caller feeds: versions were swapped, or this code's fold is another one."""


class LockedPosition(NamedTuple):
    """A partition's position, locked until the end of the transaction."""

    position: int
    known_at: int


class GateState(NamedTuple):
    """What decides which records of a batch count, the accounts of its Items, and the open reviews of their users."""

    positions: dict[int, LockedPosition]
    items: dict[str, ItemRow]
    quarantined: dict[str, list[QuarantineSpan]]
    known_ids: set[bytes]
    reviews: dict[bytes, Review]


@asynccontextmanager
async def lock_positions(
    connection: asyncpg.Connection, partitions: Collection[int], *, version: int | None = None
) -> AsyncIterator[None]:
    """A transaction that holds the position rows of partitions, in order, so two projectors never wait in a circle.

    Whatever is read in it is read after the lock, by a snapshot of its own. A swap of versions waits for it.
    Raises: VersionMismatch, where the tables are not this version, or none of this code's fold.
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
    """The positions of partitions, as they are committed."""
    rows = await connection.fetch(_POSITIONS, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


async def read_gate_state(
    connection: asyncpg.Connection, partitions: Collection[int], items: Collection[str], free_ids: Collection[bytes]
) -> GateState:
    """Read positions, the gates, quarantines and accounts of Items, and which free records were accepted before."""
    found = await connection.fetch(_CONTROL, list(partitions), list(items))
    known_ids = {row["id"] for row in await connection.fetch(_FREE_IDS, list(free_ids))} if free_ids else set()
    first = found[0]
    positions = {
        number: LockedPosition(position, to_micros(known_at) or 0)
        for number, position, known_at in zip(
            first["partitions"] or (), first["positions"] or (), first["moments"] or (), strict=True
        )
    }
    quarantined = {
        row["wanted"]: [
            QuarantineSpan(start, redrive) for start, redrive in zip(row["first"], row["redrive"], strict=True)
        ]
        for row in found
        if row["first"]
    }
    known_items = {row["wanted"]: _item(row) for row in found if row["has_row"] or row["part_ids"] or row["accounts"]}
    reviews = {review["id"]: _review(review) for row in found for review in row["reviews"] or ()}
    return GateState(positions, known_items, quarantined, known_ids, reviews)


async def read_withheld(connection: asyncpg.Connection, items: Collection[str]) -> dict[str, list[LogRecord]]:
    """What is withheld of Items, in the order of the log."""
    found: dict[str, list[LogRecord]] = {}
    for item_id, partition, offset, value in await connection.fetch(_WITHHELD, list(items)):
        record = decode_record(Received(partition, offset, None, value, {}, 0))
        key = user_key(record.head.user)
        found.setdefault(item_id, []).append(record._replace(received=record.received._replace(key=key)))
    return found


async def load_rows(connection: asyncpg.Connection, working: UnitOfWork, admitted: Iterable[AcceptedRecord]) -> None:
    """Fill the working set with all transactions that these records can touch."""
    wanted: dict[str, set[str]] = {}
    own_ids: set[bytes] = set()
    waiting: set[str] = set()
    histories: list[tuple[ItemRow, FullResync]] = []
    records = list(admitted)
    if users := linked_items.users_to_load(records):
        await _items(connection, working, users)
    for record in records:
        item, changeset = record.item, record.changeset
        if item is None:
            continue
        if changeset.edits:  # named by their own ids too: a transaction may live on under another Item by now
            own_ids.update(edit.own_id for edit in changeset.edits)
            wanted.setdefault(item.item_id, set()).update(edit.transaction_id for edit in changeset.edits)
        if item.is_complete and not item.has_linked_items:
            continue
        if changeset.transactions:
            wanted.setdefault(item.item_id, set()).update(changeset.transaction_ids())
        if changeset.full_resync is not None:
            histories.append((item, changeset.full_resync))
        if item.missing_rows and (changeset.full_resync is not None or changeset.decisions):
            waiting.add(item.item_id)
    if any(working.items[item_id].has_linked_items for item_id in wanted):
        own_ids |= await _moved(connection, working, _LINKS_BY_ID, *_listed(wanted))
    if wanted:
        await _transactions(connection, working, wanted, own_ids)
    if waiting:
        await _add(connection, working, await connection.fetch(_MISSING, list(waiting)))
    if elsewhere := [item.item_id for item, _ in histories if item.has_linked_items]:
        own_ids = await _moved(connection, working, _LINKS_OF_ITEM, elsewhere)
        await _add(connection, working, await connection.fetch(_TRANSACTIONS, list(own_ids), [], []))
    for item, history in histories:
        await _add(
            connection,
            working,
            await connection.fetch(
                _IN_WINDOW, item.user, item.item_id, list(history.account_ids), history.since, history.until
            ),
        )
    if working.reviews or users:
        await _candidates(connection, working, records, linked_items.related_users(working, records, users))
    if opening := opening_balances.users_to_load(working, records):
        for row in await connection.fetch(_POSTED, list(opening)):
            working.book.account_by_id(row["account"]).stored = int(row["posted"])


async def _transactions(
    connection: asyncpg.Connection, working: UnitOfWork, wanted: Mapping[str, set[str]], named: Iterable[bytes]
) -> None:
    item_ids, transaction_ids = _listed(wanted)
    computed = [own_id(name, salt=item_id.encode()) for item_id, name in zip(item_ids, transaction_ids, strict=True)]
    own_ids = [*named, *computed]
    found = await connection.fetch(_TRANSACTIONS, own_ids, item_ids, transaction_ids)
    await _add(connection, working, found)
    elsewhere = {row["own_id"]: row["item_id"] for row in found}
    for item_id, own in zip(item_ids, computed, strict=True):
        if elsewhere.get(own, item_id) != item_id:  # made of an id of this Item, and lives on under another one
            working.items[item_id].own_ids.add(own)


def _listed(wanted: Mapping[str, set[str]]) -> tuple[list[str], list[str]]:
    pairs = [(item_id, name) for item_id, ids in wanted.items() for name in ids]
    return [item_id for item_id, _ in pairs], [name for _, name in pairs]


async def _items(connection: asyncpg.Connection, working: UnitOfWork, users: Collection[int]) -> None:
    """Add all Items of some users."""
    await _add_items(connection, working, {row["item_id"] for row in await connection.fetch(_ITEMS, list(users))})


async def _add_items(connection: asyncpg.Connection, working: UnitOfWork, item_ids: Collection[str]) -> None:
    strangers = set(item_ids) - working.items.keys()
    if strangers:
        found = await read_gate_state(connection, [], strangers, [])
        working.items.update(found.items)
        working.reviews = {**found.reviews, **working.reviews}


async def _candidates(
    connection: asyncpg.Connection, working: UnitOfWork, records: Sequence[AcceptedRecord], users: set[int]
) -> None:
    """Add what new transactions may turn out to be, and what open reviews are about."""
    reviewed = {
        own for review in working.reviews.values() for own in (review.own_id, *transactions.candidate_ids(review))
    }
    if reviewed:
        await _add(connection, working, await connection.fetch(_TRANSACTIONS, list(reviewed), [], []))
    own_ids = set(reviewed)
    if windows := linked_items.date_windows(working, records, users):
        found = await connection.fetch(_IN_WINDOWS, *map(list, zip(*windows, strict=True)))
        await _add(connection, working, found)
        own_ids.update(row["own_id"] for row in found)
    if own_ids:
        await _moved(connection, working, _LINKS_BY_OWN, list(own_ids))


async def _moved(connection: asyncpg.Connection, working: UnitOfWork, statement: str, *named: list[Any]) -> set[bytes]:
    """Note which ids of Items are transactions that live on elsewhere, and give the own ids of these."""
    found = await connection.fetch(statement, *named)
    for row in found:
        if row["item_id"] in working.items:
            working.items[row["item_id"]].moved[row["transaction_id"]] = row["own_id"]
    return {row["own_id"] for row in found}


async def _add(connection: asyncpg.Connection, working: UnitOfWork, found: Collection[asyncpg.Record]) -> None:
    """Add rows that are not in the working set yet, with all their active_transfers and the Items that they belong to."""
    await _add_items(connection, working, {row["item_id"] for row in found})
    fresh = {row["own_id"]: row for row in found if row["own_id"] not in working.items[row["item_id"]].own_ids}
    earlier: dict[bytes, list[Posting]] = {}
    split = [own for own, row in fresh.items() if row["active_transfers"] > 1]
    if split:
        for leg in await connection.fetch(_EARLIER_LEGS, split):
            earlier.setdefault(leg["own_id"], []).append(_posting(leg, working))
    for own, record in fresh.items():
        row = _transaction(record, working)
        row.postings = (*earlier.get(own, ()), *row.postings)
        working.items[row.item_id].add(row)


def _item(row: asyncpg.Record) -> ItemRow:
    parts = dict(
        zip(row["part_ids"] or (), zip(row["part_offsets"] or (), row["part_values"] or (), strict=True), strict=True)
    )
    item = ItemRow(row["wanted"], row["user_number"] or 0, row["partition"] or 0)
    item.chunks, item.stored_chunks = parts, frozenset(parts)
    item.gate = ItemGate(row["head"], row["user_number"], bool(row["unlinked"]), tuple(parts))
    item.is_complete = not row["transaction_rows"]
    item.accounts = {account["account_id"]: _account(account) for account in row["accounts"] or ()}
    if row["has_row"]:
        item.head_offset, item.payload, item.schema = row["head_offset"], row["payload"], row["payload_schema"] or 0
        item.history_status, item.transaction_rows = row["history_status"], row["transaction_rows"]
        item.linked_at, item.unlinked_at = to_micros(row["linked_at"]), to_micros(row["unlinked_at"])
        item.last_sync_at, item.known_at = to_micros(row["last_sync_at"]), to_micros(row["known_at"]) or 0
        item.missing_rows, item.missing_changeset_id = row["missing_rows"], row["missing_changeset_id"]
        item.has_linked_items, item.waiting_edits = row["has_linked_items"], json.loads(row["waiting_edits"] or "{}")
    return item


def _account(row: asyncpg.Record) -> AccountRow:
    return AccountRow(
        row["account_id"],
        row["item_id"],
        row["user_number"],
        row["cached_payload"],
        row["cached_payload_schema"],
        to_micros(row["cached_at"]),
        row["realtime_payload"],
        row["realtime_payload_schema"],
        to_micros(row["realtime_at"]),
        row["source"],
        row["version"],
        row["last_changeset"],
        to_micros(row["known_at"]) or 0,
        row["opened"],
        row["opening_transfers"],
        _key(row["continues_item"], row["continues_account"]),
        _key(row["continued_by_item"], row["continued_by_account"]),
    )


def _review(row: asyncpg.Record) -> Review:
    return Review(
        row["id"],
        row["user_number"],
        row["item_id"],
        row["own_id"],
        transactions.canonical_candidates(row["candidates"]),
        row["reason"],
        row["changeset"],
        to_micros(row["known_at"]) or 0,
        row["state"],
    )


def _key(item_id: str | None, account_id: str | None) -> AccountKey | None:
    return None if item_id is None or account_id is None else (item_id, account_id)


def _transaction(row: asyncpg.Record, working: UnitOfWork) -> Row:
    postings = () if row["debit"] is None else (_posting(row, working),)
    return Row(
        row["own_id"],
        row["item_id"],
        row["user_number"],
        row["transaction_id"],
        row["own_id_inherited"],
        row["payload"],
        row["payload_schema"],
        None,
        postings,
        row["first_changeset"],
        row["last_changeset"],
        to_micros(row["known_at"]) or 0,
        to_micros(row["enriched_at"]),
        to_micros(row["removed_at"]),
        row["version"],
        row["transfers"],
        override_rules.canonical(row["user_fields"]),
        row["missing_since_offset"],
        row["review"],
        False,
    )


def _posting(row: asyncpg.Record, working: UnitOfWork) -> Posting:
    """What was posted, as it was posted, whatever today's code would make of the payload: so it is taken back."""
    amount = int(row["amount"])
    return Posting(
        working.book.account_by_id(row["debit"]),
        working.book.account_by_id(row["credit"]),
        amount,
        pg_copy.numeric(amount),
        row["currency"],
        row["layer"],
        pg_copy.date(row["effective"].isoformat()),
    )


_LOCK = "SELECT FROM positions WHERE partition IN ({numbers}) ORDER BY partition FOR UPDATE"

_POSITIONS = "SELECT partition, position, last_checksum FROM positions WHERE partition = ANY($1::int[])"

# Always at least one row, and the positions in the first one. Columns by name: with i.* a migration that adds one
# makes the prepared statement fail.
_CONTROL = f"""
SELECT w.wanted, w.place, at.partitions, at.positions, at.moments, i.item_id IS NOT NULL AS has_row,
       i.user_number, i.partition, i.head, i.head_offset, i.unlinked, i.payload, i.payload_schema, i.history_status,
       i.transaction_rows, i.linked_at, i.unlinked_at, i.last_sync_at, i.missing_rows, i.missing_changeset_id, i.has_linked_items,
       i.waiting_edits, i.known_at,
       p.ids AS part_ids, p.offsets AS part_offsets, p.values AS part_values, k.first, k.redrive, a.accounts,
       r.reviews
  FROM (SELECT 1) AS always
  LEFT JOIN unnest($2::text[]) WITH ORDINALITY AS w(wanted, place) ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(partition) AS partitions, array_agg(position) AS positions, array_agg(known_at) AS moments
         FROM positions WHERE partition = ANY($1::int[])) at ON coalesce(w.place, 1) = 1
  LEFT JOIN items i ON i.item_id = w.wanted
  LEFT JOIN LATERAL (
       SELECT array_agg(id ORDER BY source_offset) AS ids, array_agg(source_offset ORDER BY source_offset) AS offsets,
              array_agg(value ORDER BY source_offset) AS values
         FROM chunks WHERE chunks.item_id = w.wanted) p ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(first_offset) AS first, array_agg(redrive_offset) AS redrive
         FROM tartan.quarantines WHERE quarantines.item_id = w.wanted AND reader = '{QUARANTINED_BY}') k ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(accounts) AS accounts FROM accounts WHERE accounts.item_id = w.wanted) a ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(reviews) AS reviews
         FROM reviews WHERE reviews.user_number = i.user_number AND state = 'open') r ON true
 ORDER BY w.place"""

_FREE_IDS = "SELECT id FROM changesets WHERE id = ANY($1::bytea[])"

_COLUMNS = """t.own_id, t.item_id, t.user_number, t.transaction_id, t.own_id_inherited, t.version, t.transfers,
       t.first_changeset, t.last_changeset, t.known_at, t.enriched_at, t.removed_at, t.payload, t.payload_schema,
       t.user_fields, t.missing_since_offset, t.active_transfers, t.review, l.debit, l.credit, l.amount, l.currency, l.layer,
       l.effective"""

_LAST_TRANSFER = """LEFT JOIN ledger_transfers l
         ON l.own_id = t.own_id AND l.number = t.transfers AND t.active_transfers > 0"""

_EARLIER_LEGS = """
SELECT l.own_id, l.debit, l.credit, l.amount, l.currency, l.layer, l.effective
  FROM transactions t JOIN ledger_transfers l USING (own_id)
 WHERE t.own_id = ANY($1::bytea[]) AND l.number > t.transfers - t.active_transfers AND l.number < t.transfers
 ORDER BY l.own_id, l.number"""

# An own id is computed from the id that the bank names, save for the rows that inherited theirs, which their own small index finds.
_TRANSACTIONS = f"""
SELECT {_COLUMNS}
  FROM (SELECT own_id FROM transactions WHERE own_id = ANY($1::bytea[])
         UNION
        SELECT c.own_id FROM unnest($2::text[], $3::text[]) AS w(item_id, transaction_id)
          JOIN transactions c ON c.own_id_inherited AND c.item_id = w.item_id AND c.transaction_id = w.transaction_id
       ) AS found
  JOIN transactions t USING (own_id) {_LAST_TRANSFER}"""

# What a restated history may find missing. By the user's index on dates: an index by Item would cost each insert for
# the sake of a record that an Item has once in years, and a user's other Items are few.
_IN_WINDOW = f"""
SELECT {_COLUMNS} FROM transactions t {_LAST_TRANSFER}
 WHERE t.user_number = $1 AND t.date >= coalesce($4::date, '-infinity') AND t.date <= coalesce($5::date, 'infinity')
   AND t.item_id = $2 AND t.account_id = ANY($3::text[]) AND t.removed_at IS NULL"""

# What waits for a decision: their own partial index has them and nothing else.
_MISSING = f"""
SELECT {_COLUMNS} FROM transactions t {_LAST_TRANSFER}
 WHERE t.item_id = ANY($1::text[]) AND t.missing_since_offset IS NOT NULL"""

# A user has few accounts: all of them cost no more than those in question, which only the fold can tell.
_POSTED = f"""
SELECT b.account, b.debits - b.credits AS posted
  FROM ledger_accounts a JOIN ledger_balances b ON b.account = a.id AND b.layer = '{POSTED}'
 WHERE a.user_number = ANY($1::bigint[]) AND a.kind = '{BANK}'"""

_ITEMS = "SELECT item_id FROM items WHERE user_number = ANY($1::bigint[])"

# What still counts, of users whose banks tell of one account under several ids.
_IN_WINDOWS = f"""
SELECT {_COLUMNS}
  FROM unnest($1::bigint[], $2::date[], $3::date[]) AS w(user_number, since, until)
  JOIN transactions t ON t.user_number = w.user_number AND t.date BETWEEN w.since AND w.until
   AND t.removed_at IS NULL {_LAST_TRANSFER}"""

# An id leads elsewhere only while its transaction does live in another Item, and while it is the last one that its own
# Item had for it: that Item may have renamed it before, or have taken it back.
_LEADS = f"""l.rule <> '{transactions.LEFT}' AND l.changeset = (
       SELECT max(o.changeset) FROM transaction_matches o WHERE o.own_id = l.own_id AND o.item_id = l.item_id)"""
_LINKS_BY_ID = f"""
SELECT l.item_id, l.transaction_id, l.own_id
  FROM unnest($1::text[], $2::text[]) AS w(item_id, transaction_id)
  JOIN transaction_matches l USING (item_id, transaction_id)
  JOIN transactions t ON t.own_id = l.own_id AND t.item_id <> l.item_id
 WHERE {_LEADS}"""
_LINKS_BY_OWN = f"""
SELECT l.item_id, l.transaction_id, l.own_id
  FROM unnest($1::bytea[]) AS w(own_id)
  JOIN transaction_matches l USING (own_id)
  JOIN transactions t ON t.own_id = l.own_id AND t.item_id <> l.item_id
 WHERE {_LEADS}"""
# A restated history may leave out any of them.
_LINKS_OF_ITEM = f"""
SELECT l.item_id, l.transaction_id, l.own_id
  FROM transaction_matches l JOIN transactions t ON t.own_id = l.own_id AND t.item_id <> l.item_id
 WHERE l.item_id = ANY($1::text[]) AND {_LEADS}"""

_WITHHELD = """
SELECT item_id, partition, source_offset, value FROM withheld
 WHERE item_id = ANY($1::text[]) ORDER BY item_id, source_offset"""
