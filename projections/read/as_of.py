"""What was known at a time: what readers would have been given then, and what a replay of the log cut there gives.

`known_at` is inclusive. Several records of a partition may share one: the last of them counts, as it is behind the
others in the log. `effective_at` leaves out what is dated later.

Shape: as in projections.read.queries.
"""

import datetime
import heapq
from collections.abc import AsyncIterator

import asyncpg

from projections.ledger import override_rules
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
"""Where a page begins: date and own id of the last row before it."""

FETCHED = 500
"""Rows that one round trip brings: about 300 kB."""


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
    """A page of a user's transactions as they were known at a time, newest first.

    What is the same since then comes from an index in order; what became another one since then has its date in its
    payload only, so all of it is looked at, a piece at a time, and only a page is kept.
    """
    limit = min(limit, PAGE_MAX)
    until = min((date for date in (which.until, effective_at) if date is not None), default=None)
    bounds = _Bounds(which, until, after)
    async with snapshot(connection):
        found = [
            (row["date"], row["own_id"], row)
            for row in await connection.fetch(
                _SAME_SINCE,
                user,
                known_at,
                which.item_id,
                which.removed,
                which.in_review,
                which.account_id,
                which.pending,
                which.since,
                until,
                *(after or (None, None)),
                limit + 1,
            )
        ]
        async for row in _changed_since(connection, user, known_at, which):
            payload = _words(row)
            date = datetime.date.fromisoformat(payload.date)
            if bounds.hold(date, row["own_id"], payload):
                found.append((date, row["own_id"], row))
            if len(found) > 2 * PAGE_MAX:
                found = _newest(found, limit + 1)
    found = _newest(found, limit + 1)
    more = len(found) > limit
    page = found[:limit]
    return Page([transaction(row) for *_, row in page], (page[-1][0], page[-1][1]) if more else None)


async def accounts(connection: asyncpg.Connection, user: int, known_at: datetime.datetime) -> list[Row]:
    """The accounts of a user with what had been reported of them at a time, by Item and account."""
    shown: dict[tuple[str, str], list[asyncpg.Record]] = {}
    for row in await connection.fetch(_REPORTED, user, known_at):
        shown.setdefault((row["item_id"], row["account_id"]), []).append(row)
    return [_account(reports) for reports in shown.values()]


async def ledger_balances(
    connection: asyncpg.Connection, user: int, known_at: datetime.datetime, effective_at: datetime.date | None = None
) -> list[Row]:
    """Debits, credits and balance of each ledger account and layer, from the transfers known at a time.

    Accounts and layers without a transfer until then are left out.
    """
    own_ids = await opening_ids(connection, user)
    return [to_json(row) for row in await connection.fetch(_LEDGER, user, own_ids, known_at, effective_at)]


def transaction(row: StoredRow) -> Row:
    """A version of a transaction for readers: the bank's payload, what the user said, and when it was known."""
    payload = _words(row)
    return {
        "id": row["own_id"].hex(),
        "amount": payload.amount,
        "item_id": row["item_id"],
        "account_id": payload.account_id,
        "transaction_id": row["transaction_id"],
        "currency": payload.currency,
        "pending": payload.pending,
        "date": payload.date,
        "datetime": payload.datetime,
        "authorized_date": payload.authorized_date,
        "merchant_name": payload.merchant_name,
        "merchant_entity_id": payload.merchant_entity_id,
        "logo_url": payload.logo_url,
        "category_detailed": payload.category_detailed,
        "category_confidence": payload.category_confidence,
        "version": row["version"],
        **override_rules.effective(payload, override_rules.values(row["user_fields"])),
        "status": status(row),
        **to_json({name: row[name] for name in ("removed_at", "known_at")}),
    }


class _Bounds:
    """The part of a filter that only the payload of a version can tell."""

    def __init__(self, which: TransactionFilter, until: datetime.date | None, after: After | None) -> None:
        self._which = which
        self._since = which.since or datetime.date.min
        self._until = until or datetime.date.max
        self._after = after

    def hold(self, date: datetime.date, own_id: bytes, payload: Transaction) -> bool:
        which = self._which
        return (
            self._since <= date <= self._until
            and (self._after is None or (date, own_id) < self._after)
            and which.account_id in (None, payload.account_id)
            and which.pending in (None, payload.pending)
        )


_Dated = list[tuple[datetime.date, bytes, asyncpg.Record]]


def _newest(found: _Dated, count: int) -> _Dated:
    return heapq.nlargest(count, found, key=lambda one: one[:2])


async def _changed_since(
    connection: asyncpg.Connection, user: int, known_at: datetime.datetime, which: TransactionFilter
) -> AsyncIterator[asyncpg.Record]:
    arguments = (user, known_at, which.item_id, which.removed, which.in_review)
    async for row in connection.cursor(_CHANGED_SINCE, *arguments, prefetch=FETCHED):
        yield row


def _words(row: StoredRow) -> Transaction:
    payload: Transaction = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
    return payload


def _account(reports: list[asyncpg.Record]) -> Row:
    """An account from its last report of each source: like the row, it shows the source that spoke last."""
    last = max(reports, key=lambda report: report["version"])
    at = {f"{report['source']}_at": report["known_at"] for report in reports}
    payload: Account = codec.decoder(last["payload_schema"])(last["payload"], 0)[0]
    return {
        "item_id": last["item_id"],
        "account_id": last["account_id"],
        "persistent_account_id": payload.persistent_account_id,
        "name": payload.name,
        "official_name": payload.official_name,
        "mask": payload.mask,
        "type": payload.type,
        "subtype": payload.subtype,
        "currency": payload.currency,
        "current": payload.current,
        "available": payload.available,
        "limit": payload.limit,
        "last_updated_datetime": payload.last_updated_datetime,
        "source": last["source"],
        "version": last["version"],
        **to_json({"cached_at": None, "realtime_at": None, **at, "known_at": last["known_at"]}),
    }


_COLUMNS = (
    "own_id, item_id, transaction_id, version, payload, payload_schema, user_fields, removed_at, review, known_at"
)

_WHO = """user_number = $1 AND known_at <= $2 AND ($3::text IS NULL OR item_id = $3)
   AND ($4::boolean IS NULL OR (removed_at IS NOT NULL) = $4) AND ($5::boolean IS NULL OR (review IS NOT NULL) = $5)"""

# coalesce keeps the bounds usable by the index transactions_user_date in a generic plan.
_SAME_SINCE = f"""
SELECT {_COLUMNS}, date FROM reads.transactions
 WHERE {_WHO} AND ($6::text IS NULL OR account_id = $6) AND ($7::boolean IS NULL OR pending = $7)
   AND date >= coalesce($8::date, '-infinity') AND date <= coalesce($9::date, 'infinity')
   AND date <= coalesce($10::date, 'infinity') AND ($10::date IS NULL OR date < $10 OR own_id < $11::bytea)
 ORDER BY date DESC, own_id DESC LIMIT $12"""

# By the index on user and end: what ended before is not looked at.
_CHANGED_SINCE = f"SELECT {_COLUMNS} FROM reads.transaction_versions WHERE until > $2 AND {_WHO}"

# The last report of each source: the primary key of versions, read from its end.
_REPORTED = """
SELECT a.item_id, a.account_id, s.source, v.version, v.payload, v.payload_schema, v.known_at
  FROM reads.accounts a CROSS JOIN (VALUES ('cached'), ('realtime')) AS s(source)
 CROSS JOIN LATERAL (
       SELECT version, payload, payload_schema, known_at FROM reads.account_versions v
        WHERE v.item_id = a.item_id AND v.account_id = a.account_id AND v.source = s.source AND v.known_at <= $2
        ORDER BY version DESC LIMIT 1) v
 WHERE a.user_number = $1 ORDER BY a.item_id, a.account_id"""

# Summed by both sides first: a user has few accounts, and transfers without end.
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
