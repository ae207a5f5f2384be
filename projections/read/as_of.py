"""Return data as readers saw it at an earlier time; equal to a replay of the log that is cut there.

`known_at` is inclusive. Several records of a partition may share one: the last of them counts. `effective_at` leaves
out transactions and transfers with a later date.

Shape: as in projections.read.queries.
"""

import datetime
import heapq

import asyncpg

from projections.ledger import user_field_values
from projections.read.queries import (
    ANY_TRANSACTION,
    OF_USER,
    PAGE_MAX,
    Page,
    Row,
    StoredRow,
    TransactionFilter,
    opening_ids,
    status,
    to_json,
)
from runtime.postgres.pool import snapshot
from schemas.encoding import codec
from schemas.log.records import Account, Transaction

After = tuple[datetime.date, bytes]
"""Date and own id of the last row before a page."""

FETCHED = 500
"""Rows of one round trip: about 300 kB."""


async def transactions(
    connection: asyncpg.Connection,
    user: int,
    known_at: datetime.datetime,
    effective_at: datetime.date | None = None,
    which: TransactionFilter = ANY_TRANSACTION,
    *,
    limit: int = 100,
    after: After | None = None,
) -> Page:
    """Return a page of a user's transactions as they were known at a time, newest first.

    Rows that are unchanged since then come from an index in order. Rows that changed since then have their old date
    only in the payload, so all of them are read through a cursor, and only the newest are kept in memory.
    """
    limit = min(limit, PAGE_MAX)
    until = min((date for date in (which.until, effective_at) if date is not None), default=None)
    filters = (which.item_id, which.removed, which.in_review)
    async with snapshot(connection):
        unchanged = await connection.fetch(
            _UNCHANGED_SINCE,
            user,
            known_at,
            *filters,
            which.account_id,
            which.pending,
            which.since,
            until,
            *(after or (None, None)),
            limit + 1,
        )
        rows = [(row["date"], row["own_id"], row) for row in unchanged]
        async for row in connection.cursor(_CHANGED_SINCE, user, known_at, *filters, prefetch=FETCHED):
            payload = _payload(row)
            date = datetime.date.fromisoformat(payload.date)
            if (
                (which.since or datetime.date.min) <= date <= (until or datetime.date.max)
                and (after is None or (date, row["own_id"]) < after)
                and which.account_id in (None, payload.account_id)
                and which.pending in (None, payload.pending)
            ):
                rows.append((date, row["own_id"], row))
            if len(rows) > 2 * PAGE_MAX:
                rows = _newest(rows, limit + 1)
    rows = _newest(rows, limit + 1)
    page = rows[:limit]
    return Page([transaction(row) for *_, row in page], page[-1][:2] if len(rows) > limit else None)


async def accounts(connection: asyncpg.Connection, user: int, known_at: datetime.datetime) -> list[Row]:
    """Return the accounts of a user with the reports that were known at a time, by Item and account."""
    reports: dict[tuple[str, str], list[asyncpg.Record]] = {}
    for row in await connection.fetch(_REPORTED, user, known_at):
        reports.setdefault((row["item_id"], row["account_id"]), []).append(row)
    return [_account(of_account) for of_account in reports.values()]


async def ledger_balances(
    connection: asyncpg.Connection, user: int, known_at: datetime.datetime, effective_at: datetime.date | None = None
) -> list[Row]:
    """Return debits, credits and balance of each ledger account and layer, from the transfers known at a time.

    Accounts and layers without a transfer until then are left out.
    """
    own_ids = await opening_ids(connection, user)
    return [to_json(row) for row in await connection.fetch(_LEDGER, user, own_ids, known_at, effective_at)]


def transaction(row: StoredRow) -> Row:
    """Return a version of a transaction for readers: the bank's payload with the user's fields over it."""
    payload = _payload(row)
    return {
        "id": row["own_id"].hex(),
        "item_id": row["item_id"],
        "transaction_id": row["transaction_id"],
        "version": row["version"],
        **{name: getattr(payload, name) for name in _TRANSACTION_FIELDS},
        **user_field_values.effective(payload, user_field_values.values(row["user_fields"])),
        "status": status(row),
        **to_json({name: row[name] for name in ("removed_at", "known_at")}),
    }


def _newest(
    rows: list[tuple[datetime.date, bytes, asyncpg.Record]], count: int
) -> list[tuple[datetime.date, bytes, asyncpg.Record]]:
    return heapq.nlargest(count, rows, key=lambda row: row[:2])


def _payload(row: StoredRow) -> Transaction:
    payload: Transaction = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
    return payload


def _account(reports: list[asyncpg.Record]) -> Row:
    """Return an account from its last report of each source: the later of them gives the fields, as in `accounts`."""
    last = max(reports, key=lambda report: report["version"])
    payload: Account = codec.decoder(last["payload_schema"])(last["payload"], 0)[0]
    times = {"cached_at": None, "realtime_at": None, "known_at": last["known_at"]}
    times |= {f"{report['source']}_at": report["known_at"] for report in reports}
    return {
        **{name: last[name] for name in ("item_id", "account_id", "source", "version")},
        **{name: getattr(payload, name) for name in _ACCOUNT_FIELDS},
        **to_json(times),
    }


_TRANSACTION_FIELDS = (
    "amount",
    "account_id",
    "currency",
    "pending",
    "date",
    "datetime",
    "authorized_date",
    "merchant_name",
    "merchant_entity_id",
    "logo_url",
    "category_detailed",
    "category_confidence",
)

_ACCOUNT_FIELDS = (
    "persistent_account_id",
    "name",
    "official_name",
    "mask",
    "type",
    "subtype",
    "currency",
    "current",
    "available",
    "limit",
    "last_updated_datetime",
)

VERSION_COLUMNS = (
    "own_id, item_id, transaction_id, version, payload, payload_schema, user_fields, removed_at, review, known_at"
)

_FILTER = """user_number = $1 AND known_at <= $2 AND ($3::text IS NULL OR item_id = $3)
   AND ($4::boolean IS NULL OR (removed_at IS NOT NULL) = $4) AND ($5::boolean IS NULL OR (review IS NOT NULL) = $5)"""

# coalesce keeps the bounds usable by the index transactions_user_date in a generic plan.
_UNCHANGED_SINCE = f"""
SELECT {VERSION_COLUMNS}, date FROM reads.transactions
 WHERE {_FILTER} AND ($6::text IS NULL OR account_id = $6) AND ($7::boolean IS NULL OR pending = $7)
   AND date >= coalesce($8::date, '-infinity') AND date <= coalesce($9::date, 'infinity')
   AND date <= coalesce($10::date, 'infinity') AND ($10::date IS NULL OR date < $10 OR own_id < $11::bytea)
 ORDER BY date DESC, own_id DESC LIMIT $12"""

# By the index transaction_versions_user: versions that ended before are not read.
_CHANGED_SINCE = f"SELECT {VERSION_COLUMNS} FROM reads.transaction_versions WHERE until > $2 AND {_FILTER}"

# The last report of each source: the primary key of versions, read from its end.
_REPORTED = """
SELECT a.item_id, a.account_id, s.source, v.version, v.payload, v.payload_schema, v.known_at
  FROM reads.accounts a CROSS JOIN (VALUES ('cached'), ('realtime')) AS s(source)
 CROSS JOIN LATERAL (
       SELECT version, payload, payload_schema, known_at FROM reads.account_versions v
        WHERE v.item_id = a.item_id AND v.account_id = a.account_id AND v.source = s.source AND v.known_at <= $2
        ORDER BY version DESC LIMIT 1) v
 WHERE a.user_number = $1 ORDER BY a.item_id, a.account_id"""

# Summed by both sides first: a user has few accounts and an unbounded number of transfers.
_LEDGER = f"""
WITH moved AS (
    SELECT t.debit, t.credit, t.layer, sum(t.amount) AS amount
      FROM {OF_USER} JOIN reads.ledger_transfers t USING (own_id)
     WHERE t.known_at <= $3 AND t.effective <= coalesce($4::date, 'infinity')
     GROUP BY t.debit, t.credit, t.layer)
SELECT a.id AS account, a.kind, a.reference, a.currency, m.layer, sum(m.debits) AS debits, sum(m.credits) AS credits,
       sum(m.debits) - sum(m.credits) AS balance
  FROM (SELECT debit AS account, layer, amount AS debits, 0 AS credits FROM moved
         UNION ALL SELECT credit, layer, 0, amount FROM moved) AS m
  JOIN reads.ledger_accounts a ON a.id = m.account
 GROUP BY a.id, a.kind, a.reference, a.currency, m.layer
 ORDER BY a.kind, a.reference, a.currency, m.layer"""
