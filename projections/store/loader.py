"""Load the transactions, Items and balances that a batch can touch into the unit of work."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from projections.decode import transaction
from projections.decode.changeset import FullResync
from projections.fold import opening_balances
from projections.gate.check import AcceptedRecord
from projections.ledger import user_field_values
from projections.matching import linked_items, transactions
from projections.model import pg_copy
from projections.model.book import BANK, POSTED, Posting
from projections.model.unit_of_work import ItemRow, Row, UnitOfWork
from projections.store import tables
from projections.store.gate_state import read_gate_state
from schemas.ids import own_id
from schemas.times import to_micros


async def load_rows(connection: asyncpg.Connection, working: UnitOfWork, accepted: Iterable[AcceptedRecord]) -> None:
    """Add all transactions that these records can touch to the unit of work, with their Items and transfers."""
    records = list(accepted)
    users = linked_items.users_to_load(records)
    if users:
        rows = await connection.fetch(_ITEMS, list(users))
        await _add_items(connection, working, {row["item_id"] for row in rows})
    plaid_ids: dict[str, set[str]] = {}
    own_ids: set[bytes] = set()
    undecided: set[str] = set()
    resyncs: list[tuple[ItemRow, FullResync]] = []
    for record in records:
        item, changeset = record.item, record.changeset
        if item is None:
            continue
        if changeset.edits:  # also by own ids: the transaction may belong to another Item by now
            own_ids.update(edit.own_id for edit in changeset.edits)
            plaid_ids.setdefault(item.item_id, set()).update(edit.transaction_id for edit in changeset.edits)
        if item.is_complete and not item.has_linked_items:
            continue
        if changeset.transactions:
            plaid_ids.setdefault(item.item_id, set()).update(changeset.transaction_ids())
        if changeset.full_resync is not None:
            resyncs.append((item, changeset.full_resync))
        if item.missing_rows and (changeset.full_resync is not None or changeset.decisions):
            undecided.add(item.item_id)
    if plaid_ids:
        await _load_by_plaid_ids(connection, working, plaid_ids, own_ids)
    if undecided:
        await _add(connection, working, await connection.fetch(_MISSING, list(undecided)))
    if linked := [item.item_id for item, _ in resyncs if item.has_linked_items]:
        moved = await _note_moved(connection, working, _MATCHES_OF_ITEM, linked)
        await _add(connection, working, await connection.fetch(_TRANSACTIONS, list(moved), [], []))
    for item, resync in resyncs:
        arguments = item.user, item.item_id, list(resync.account_ids), resync.since, resync.until
        await _add(connection, working, await connection.fetch(_IN_WINDOW, *arguments))
    if working.reviews or users:
        await _load_candidates(connection, working, records, linked_items.related_users(working, records, users))
    if opening := opening_balances.users_to_load(working, records):
        for row in await connection.fetch(_POSTED, list(opening)):
            working.book.account_by_id(row["account"]).stored = int(row["posted"])


async def _load_by_plaid_ids(
    connection: asyncpg.Connection, working: UnitOfWork, plaid_ids: Mapping[str, set[str]], own_ids: set[bytes]
) -> None:
    """Add the transactions with these Plaid ids of Items, and those with these own ids."""
    pairs = [(item_id, plaid_id) for item_id, ids in plaid_ids.items() for plaid_id in ids]
    item_ids, transaction_ids = [item_id for item_id, _ in pairs], [plaid_id for _, plaid_id in pairs]
    if any(working.items[item_id].has_linked_items for item_id in plaid_ids):
        own_ids |= await _note_moved(connection, working, _MATCHES_BY_ID, item_ids, transaction_ids)
    computed = [own_id(plaid_id, salt=item_id.encode()) for item_id, plaid_id in pairs]
    rows = await connection.fetch(_TRANSACTIONS, [*own_ids, *computed], item_ids, transaction_ids)
    await _add(connection, working, rows)
    item_of = {row["own_id"]: row["item_id"] for row in rows}
    for item_id, own in zip(item_ids, computed, strict=True):
        if item_of.get(own, item_id) != item_id:  # made from an id of this Item, and belongs to another one now
            working.items[item_id].own_ids.add(own)


async def _load_candidates(
    connection: asyncpg.Connection, working: UnitOfWork, records: Sequence[AcceptedRecord], users: set[int]
) -> None:
    """Add the transactions that new ones may match, and those of open reviews."""
    own_ids = {
        own for review in working.reviews.values() for own in (review.own_id, *transactions.candidate_ids(review))
    }
    if own_ids:
        await _add(connection, working, await connection.fetch(_TRANSACTIONS, list(own_ids), [], []))
    if windows := linked_items.date_windows(working, records, users):
        rows = await connection.fetch(_IN_WINDOWS, *map(list, zip(*windows, strict=True)))
        await _add(connection, working, rows)
        own_ids.update(row["own_id"] for row in rows)
    if own_ids:
        await _note_moved(connection, working, _MATCHES_BY_OWN_ID, list(own_ids))


async def _note_moved(
    connection: asyncpg.Connection, working: UnitOfWork, statement: str, *arguments: list[Any]
) -> set[bytes]:
    """Note which Plaid ids of Items are transactions of other Items, and return the own ids of these."""
    rows = await connection.fetch(statement, *arguments)
    for row in rows:
        if row["item_id"] in working.items:
            working.items[row["item_id"]].moved[row["transaction_id"]] = row["own_id"]
    return {row["own_id"] for row in rows}


async def _add(connection: asyncpg.Connection, working: UnitOfWork, rows: Collection[asyncpg.Record]) -> None:
    """Add rows that are not in the unit of work yet, with their Items and all their active transfers."""
    await _add_items(connection, working, {row["item_id"] for row in rows})
    fresh = {row["own_id"]: row for row in rows if row["own_id"] not in working.items[row["item_id"]].own_ids}
    earlier: dict[bytes, list[Posting]] = {}
    if split := [own for own, row in fresh.items() if row["active_transfers"] > 1]:
        for transfer in await connection.fetch(_EARLIER_TRANSFERS, split):
            earlier.setdefault(transfer["own_id"], []).append(_posting(transfer, working))
    for own, record in fresh.items():
        row = _transaction(record, working)
        row.postings = (*earlier.get(own, ()), *row.postings)
        working.items[row.item_id].add(row)


async def _add_items(connection: asyncpg.Connection, working: UnitOfWork, item_ids: Collection[str]) -> None:
    if missing := set(item_ids) - working.items.keys():
        state = await read_gate_state(connection, [], missing, [])
        working.items.update(state.items)
        working.reviews = {**state.reviews, **working.reviews}


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
        user_field_values.canonical(row["user_fields"]),
        row["missing_since_offset"],
        row["review"],
        False,
    )


def _posting(row: asyncpg.Record, working: UnitOfWork) -> Posting:
    """Return a stored transfer as a posting: it is reversed as it was posted, even where this code posts otherwise."""
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


# The columns of the payload are read again from `payload` where the fold needs them.
_COLUMNS = ", ".join(
    [
        *(f"t.{name}" for name in tables.column_names(tables.transactions) if name not in transaction.COLUMNS),
        *(f"l.{name}" for name in ("debit", "credit", "amount", "currency", "layer", "effective")),
    ]
)

_LAST_TRANSFER = """LEFT JOIN ledger_transfers l
         ON l.own_id = t.own_id AND l.number = t.transfers AND t.active_transfers > 0"""

_EARLIER_TRANSFERS = """
SELECT l.own_id, l.debit, l.credit, l.amount, l.currency, l.layer, l.effective
  FROM transactions t JOIN ledger_transfers l USING (own_id)
 WHERE t.own_id = ANY($1::bytea[]) AND l.number > t.transfers - t.active_transfers AND l.number < t.transfers
 ORDER BY l.own_id, l.number"""

# By the own id that is computed from Plaid's id, and for rows that inherited theirs by the partial index
# transactions_inherited.
_TRANSACTIONS = f"""
SELECT {_COLUMNS}
  FROM (SELECT own_id FROM transactions WHERE own_id = ANY($1::bytea[])
         UNION
        SELECT c.own_id FROM unnest($2::text[], $3::text[]) AS w(item_id, transaction_id)
          JOIN transactions c ON c.own_id_inherited AND c.item_id = w.item_id AND c.transaction_id = w.transaction_id
       ) AS asked
  JOIN transactions t USING (own_id) {_LAST_TRANSFER}"""

# The rows that a full resync may find missing. By the index transactions_user_date: an index by Item would cost each
# insert for a record that an Item has once in years, and a user has few other Items.
_IN_WINDOW = f"""
SELECT {_COLUMNS} FROM transactions t {_LAST_TRANSFER}
 WHERE t.user_number = $1 AND t.date >= coalesce($4::date, '-infinity') AND t.date <= coalesce($5::date, 'infinity')
   AND t.item_id = $2 AND t.account_id = ANY($3::text[]) AND t.removed_at IS NULL"""

# The rows that wait for a decision, by the partial index transactions_missing.
_MISSING = f"""
SELECT {_COLUMNS} FROM transactions t {_LAST_TRANSFER}
 WHERE t.item_id = ANY($1::text[]) AND t.missing_since_offset IS NOT NULL"""

# All accounts of a user: they are few, and only the fold finds out which ones it opens.
_POSTED = f"""
SELECT b.account, b.debits - b.credits AS posted
  FROM ledger_accounts a JOIN ledger_balances b ON b.account = a.id AND b.layer = '{POSTED}'
 WHERE a.user_number = ANY($1::bigint[]) AND a.kind = '{BANK}'"""

_ITEMS = "SELECT item_id FROM items WHERE user_number = ANY($1::bigint[])"

# The rows that still count, of users with linked Items.
_IN_WINDOWS = f"""
SELECT {_COLUMNS}
  FROM unnest($1::bigint[], $2::date[], $3::date[]) AS w(user_number, since, until)
  JOIN transactions t ON t.user_number = w.user_number AND t.date BETWEEN w.since AND w.until
   AND t.removed_at IS NULL {_LAST_TRANSFER}"""

# A match counts only while its transaction lives in another Item and is the last match of its own Item for it: that
# Item may have renamed the id before, or have taken the transaction back.
_COUNTS = f"""l.rule <> '{transactions.LEFT}' AND l.changeset = (
       SELECT max(o.changeset) FROM transaction_matches o WHERE o.own_id = l.own_id AND o.item_id = l.item_id)"""
_MATCHES = """
SELECT l.item_id, l.transaction_id, l.own_id
  FROM transaction_matches l JOIN transactions t ON t.own_id = l.own_id AND t.item_id <> l.item_id"""
_MATCHES_BY_ID = f"""{_MATCHES}
  JOIN unnest($1::text[], $2::text[]) AS w(item_id, transaction_id)
    ON w.item_id = l.item_id AND w.transaction_id = l.transaction_id
 WHERE {_COUNTS}"""
_MATCHES_BY_OWN_ID = f"{_MATCHES} WHERE l.own_id = ANY($1::bytea[]) AND {_COUNTS}"
# A full resync may leave out any of them.
_MATCHES_OF_ITEM = f"{_MATCHES} WHERE l.item_id = ANY($1::text[]) AND {_COUNTS}"
