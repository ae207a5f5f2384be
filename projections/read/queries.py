"""Queries over the views of schema `reads`, with values that are ready for JSON.

Shape: ids are hex text, dates and times ISO 8601 text (times in UTC), amounts plain decimal text in major units;
positive leaves the account. A page has at most `PAGE_MAX` rows.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg

from projections.ledger import user_field_values
from runtime.postgres import pool
from schemas import money
from schemas.encoding import codec
from schemas.ids import opening_id
from schemas.log.records import Account, Transaction

PAGE_MAX = 500
"""Most rows in one answer: at about 600 bytes a transaction an answer stays below 300 kB."""

SHOWN, REMOVED, IN_REVIEW = "shown", "removed", "in_review"

Row = dict[str, Any]
"""A row for readers."""
StoredRow = asyncpg.Record | Mapping[str, Any]
"""A row as the database returned it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionFilter:
    """Choose transactions. None matches any; `since` and `until` are inclusive; `in_review`: a review withholds it."""

    item_id: str | None = None
    account_id: str | None = None
    since: datetime.date | None = None
    until: datetime.date | None = None
    pending: bool | None = None
    removed: bool | None = False
    in_review: bool | None = False


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, newest first, and the `after` of the next page: None after the last one."""

    rows: list[Row]
    next: tuple[datetime.date, bytes] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Items, accounts and a page of transactions, read at one moment.

    `position` is the first offset of the user's partition whose events the snapshot does not contain.
    """

    partition: int
    position: int
    known_at: str | None
    items: list[Row]
    accounts: list[Row]
    transactions: Page


@dataclass(frozen=True, slots=True)
class Applied:
    """The head of an Item's chain that readers see."""

    head: str | None
    head_offset: int | None
    unlinked: bool
    last_sync_at: str | None


class Newest(NamedTuple):
    """The offset of a user's last visible record, and the epoch of the tables."""

    epoch: str | None
    offset: int


ANY_TRANSACTION = TransactionFilter()


async def items(connection: asyncpg.Connection, user: int) -> list[Row]:
    """Return all Items of a user, unlinked ones too, in the order of their ids."""
    return [to_json(row) for row in await connection.fetch(_ITEMS, user)]


async def item(connection: asyncpg.Connection, user: int, item_id: str) -> Row | None:
    """Return one Item of a user."""
    row = await connection.fetchrow(_ITEM, user, item_id)
    return to_json(row) if row else None


async def accounts(connection: asyncpg.Connection, user: int, *, item_id: str | None = None) -> list[Row]:
    """Return the accounts of a user, or of one Item of the user, with their balances."""
    return [_account(row) for row in await connection.fetch(_ACCOUNTS, user, item_id)]


async def transactions(
    connection: asyncpg.Connection,
    user: int,
    which: TransactionFilter = ANY_TRANSACTION,
    *,
    limit: int = 100,
    after: tuple[datetime.date, bytes] | None = None,
) -> Page:
    """Return a page of a user's transactions, newest first; `after` is the `next` of the page before."""
    limit = min(limit, PAGE_MAX)
    rows = await connection.fetch(
        _TRANSACTIONS,
        user,
        which.item_id,
        which.account_id,
        which.since,
        which.until,
        which.pending,
        which.removed,
        *(after or (None, None)),
        limit + 1,
        which.in_review,
    )
    page = rows[:limit]
    following = (page[-1]["date"], page[-1]["own_id"]) if len(rows) > limit else None
    return Page([_transaction(row) for row in page], following)


async def transaction(connection: asyncpg.Connection, user: int, own_id: bytes) -> Row | None:
    """Return one transaction of a user, whatever its status: shown, removed or in review."""
    row = await connection.fetchrow(_TRANSACTION, user, own_id)
    return _transaction(row) if row else None


async def ledger_balances(connection: asyncpg.Connection, user: int) -> list[Row]:
    """Return debits, credits and balance of each ledger account and layer of a user."""
    return [to_json(row) for row in await connection.fetch(_LEDGER_BALANCES, user)]


async def opening_ids(connection: asyncpg.Connection, user: int) -> list[bytes]:
    """Return the own ids of the opening balances of a user's accounts: the second parameter of OF_USER."""
    accounts = await connection.fetch(_ACCOUNT_KEYS, user)
    return [opening_id(user, account["item_id"], account["account_id"]) for account in accounts]


async def changesets(
    connection: asyncpg.Connection, user: int, item_id: str, *, limit: int = 50, before: int | None = None
) -> list[Row]:
    """Return the accepted records of an Item below the offset `before`, newest first: its sync history."""
    rows = await connection.fetch(_CHANGESETS, user, item_id, before, min(limit, PAGE_MAX))
    return [{**to_json(row), "cause": json.loads(row["cause"]), "counts": json.loads(row["counts"])} for row in rows]


async def applied(connection: asyncpg.Connection, item_id: str) -> Applied | None:
    """Return how much of an Item's chain readers see; None where nothing is visible yet."""
    row = await connection.fetchrow(_APPLIED, item_id)
    if row is None:
        return None
    return Applied(_value(row["head"]), row["head_offset"], row["unlinked"], _value(row["last_sync_at"]))


async def is_applied(connection: asyncpg.Connection, changeset: bytes) -> bool:
    """Check that the record with this id was accepted and that readers see its outcome."""
    return bool(await connection.fetchval(_IS_APPLIED, changeset))


async def position(connection: asyncpg.Connection, partition: int) -> int:
    """Return the first offset of a partition that readers do not see yet."""
    return int(await connection.fetchval(_POSITION, partition) or 0)


async def newest(connection: asyncpg.Connection, user: int) -> Newest | None:
    """Return a user's last visible record: while it is the same, all that readers see of the user is the same."""
    row = await connection.fetchrow(_NEWEST, user)
    return None if row is None or row["source_offset"] is None else Newest(row["epoch"], row["source_offset"])


async def epoch(connection: asyncpg.Connection) -> str | None:
    """Return the epoch, which changes when readers get another version of the tables with other content."""
    value: str | None = await connection.fetchval(_EPOCH)
    return value


async def missing(connection: asyncpg.Connection, item_id: str, *, limit: int = PAGE_MAX) -> list[Row]:
    """Return the transactions of an Item whose removal waits for a decision, newest first."""
    rows = await connection.fetch(_MISSING, item_id, min(limit, PAGE_MAX))
    return [_transaction(row) for row in rows]


async def snapshot(
    connection: asyncpg.Connection,
    user: int,
    partition: int,
    *,
    limit: int = 100,
    which: TransactionFilter = ANY_TRANSACTION,
) -> Snapshot:
    """Return the first content of a browser, read at one moment, with the position where its stream continues."""
    async with pool.snapshot(connection):
        row = await connection.fetchrow(_POSITION, partition)
        return Snapshot(
            partition=partition,
            position=row["position"] if row else 0,
            known_at=_value(row["known_at"]) if row else None,
            items=await items(connection, user),
            accounts=await accounts(connection, user),
            transactions=await transactions(connection, user, which, limit=limit),
        )


def decimal_text(value: int | None, scale: int | None) -> str | None:
    """Write value and scale as plain decimal text, as in the bank's payload."""
    if value is None or scale is None:
        return None
    if not scale:
        return str(value)
    digits = str(abs(value)).rjust(scale + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


def status(row: StoredRow) -> str:
    """Return a transaction's status: `shown`, `removed` by the bank, or `in_review` until a person's decision."""
    if row["removed_at"] is not None:
        return REMOVED
    return SHOWN if row["review"] is None else IN_REVIEW


def to_json(row: StoredRow) -> Row:
    """Return a row with its values as JSON has them."""
    return {name: _value(value) for name, value in row.items()}


def _account(row: asyncpg.Record) -> Row:
    shown = to_json(row)
    del shown["payload"], shown["payload_schema"]
    for name in ("continues", "continued_by"):
        item_id, account_id = shown.pop(f"{name}_item"), shown.pop(f"{name}_account")
        shown[name] = None if item_id is None else {"item_id": item_id, "account_id": account_id}
    updated = None
    if row["payload"] is not None:
        account: Account = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
        updated = account.last_updated_datetime
    return {**shown, "last_updated_datetime": updated}


def _transaction(row: asyncpg.Record) -> Row:
    shown = {name: _value(value) for name, value in row.items() if name not in _NOT_SHOWN}
    amount = decimal_text(shown.pop("amount_value"), shown.pop("amount_scale"))
    payload: Transaction = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
    effective = user_field_values.effective(payload, user_field_values.values(row["user_fields"]))
    return {"id": shown.pop("own_id"), "amount": amount, **shown, **effective, "status": status(row)}


def _value(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case datetime.datetime():
            return value.astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case datetime.date():
            return value.isoformat()
        case None | str() | bool() | int():
            return value
        case _:
            return money.decimal_text(value)


_ITEM_COLUMNS = """item_id, institution_id, institution_name, state, code, reason, effective_at, history_status,
    unlinked, transaction_rows, linked_at, unlinked_at, last_sync_at, missing_rows, missing_changeset_id, known_at"""

_ITEMS = f"SELECT {_ITEM_COLUMNS} FROM reads.items WHERE user_number = $1 ORDER BY item_id"

_ITEM = f"SELECT {_ITEM_COLUMNS} FROM reads.items WHERE user_number = $1 AND item_id = $2"

_ACCOUNTS = """
SELECT item_id, account_id, persistent_account_id, name, official_name, mask, type, subtype, currency,
       current, available, "limit", source, cached_at, realtime_at, version, known_at,
       continues_item, continues_account, continued_by_item, continued_by_account,
       CASE source WHEN 'cached' THEN cached_payload ELSE realtime_payload END AS payload,
       CASE source WHEN 'cached' THEN cached_payload_schema ELSE realtime_payload_schema END AS payload_schema
  FROM reads.accounts WHERE user_number = $1 AND ($2::text IS NULL OR item_id = $2) ORDER BY item_id, account_id"""

_TRANSACTION_COLUMNS = """own_id, item_id, account_id, transaction_id, amount_value, amount_scale,
    currency, pending, date, datetime, authorized_date, name, merchant_name, merchant_entity_id, logo_url,
    category_primary AS category, category_detailed, category_confidence, enriched_at, version, removed_at, known_at,
    payload, payload_schema, user_fields, review"""

_NOT_SHOWN = frozenset({"payload", "payload_schema", "user_fields", "review"})
"""Columns from which other fields are computed."""

# coalesce keeps the bounds usable by the index transactions_user_date in a generic plan.
_TRANSACTIONS = f"""
SELECT {_TRANSACTION_COLUMNS} FROM reads.transactions
 WHERE user_number = $1
   AND ($2::text IS NULL OR item_id = $2) AND ($3::text IS NULL OR account_id = $3)
   AND date >= coalesce($4::date, '-infinity') AND date <= coalesce($5::date, 'infinity')
   AND ($6::boolean IS NULL OR pending = $6) AND ($7::boolean IS NULL OR (removed_at IS NOT NULL) = $7)
   AND ($11::boolean IS NULL OR (review IS NOT NULL) = $11)
   AND date <= coalesce($8::date, 'infinity') AND ($8::date IS NULL OR date < $8 OR own_id < $9::bytea)
 ORDER BY date DESC, own_id DESC LIMIT $10"""

_TRANSACTION = f"SELECT {_TRANSACTION_COLUMNS} FROM reads.transactions WHERE user_number = $1 AND own_id = $2"

# By the partial index transactions_missing.
_MISSING = f"""
SELECT {_TRANSACTION_COLUMNS} FROM reads.transactions
 WHERE item_id = $1 AND missing_since_offset IS NOT NULL ORDER BY date DESC, own_id DESC LIMIT $2"""

# All own ids of a user that have transfers, for look-ups by the primary key of transfers: an index by user would cost
# each insert into the largest table.
OF_USER = """(
       SELECT own_id FROM reads.transactions WHERE user_number = $1 UNION ALL SELECT unnest($2::bytea[])) AS of_user"""

_ACCOUNT_KEYS = "SELECT item_id, account_id FROM reads.accounts WHERE user_number = $1"

LEDGER_BALANCE = "SELECT account, kind, reference, currency, layer, debits, credits, balance FROM reads.ledger_balances"

_LEDGER_BALANCES = f"{LEDGER_BALANCE} WHERE user_number = $1 ORDER BY kind, reference, currency, layer"

_CHANGESETS = """
SELECT id, type, cause, counts, net_events, partition, source_offset, redriven_by, produced_at, known_at
  FROM reads.changesets
 WHERE user_number = $1 AND item_id = $2 AND source_offset < coalesce($3, 9223372036854775807)
 ORDER BY source_offset DESC LIMIT $4"""

_APPLIED = "SELECT head, head_offset, unlinked, last_sync_at FROM reads.items WHERE item_id = $1"

_IS_APPLIED = "SELECT EXISTS (SELECT FROM reads.changesets WHERE id = $1)"

_EPOCH = f"SELECT value::text FROM tartan.facts WHERE name = '{pool.EPOCH}'"

# From the end of the index changesets_user.
_NEWEST = f"""
SELECT (SELECT max(source_offset) FROM reads.changesets WHERE user_number = $1) AS source_offset, ({_EPOCH}) AS epoch"""

_POSITION = "SELECT position, known_at FROM reads.positions WHERE partition = $1"
