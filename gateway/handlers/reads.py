"""Reads: return rows of the tables, each answer from one snapshot, each tenant only its own."""

import datetime
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from gateway.handlers import ownership
from gateway.handlers.balances.balance_cache import AccountsCache
from gateway.handlers.ownership import OwnedItem, item_of, transaction_owner, user_of
from gateway.http import cursors
from gateway.http.auth import StreamTokens
from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import not_found
from gateway.http.requests import Call, ok
from projections.read import queries
from projections.read.queries import Row, TransactionFilter
from runtime.scheduler.stop_reasons import LOGIN_REQUIRED, QUARANTINED, remedy
from runtime.settings import Settings

LIMIT_DEFAULT = 100


class CheckIntervals(NamedTuple):
    """Intervals of the schedule for an Item, and for one that waits for its user's login. Units: seconds."""

    interval_s: float
    recheck_s: float


class Reads:
    """Handlers that only read."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, tokens: StreamTokens) -> None:
        self._intervals = CheckIntervals(settings.schedule_interval_s, settings.accounts_interval_s)
        self._pool = pool
        self._tokens = tokens
        self._accounts = AccountsCache(ttl_s=settings.balance_cache_s)

    async def get_item(self, call: Call) -> Answer:
        """Return one Item."""
        async with snapshot(self._pool) as connection:
            item = await item_of(connection, call)
            row = await queries.item(connection, item.user, item.item_id)
        return ok(_item(item, row or {}, self._intervals))

    async def list_items(self, call: Call) -> Answer:
        """Return all Items of a user."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            rows = {row["item_id"]: row for row in await queries.items(connection, user)}
            items = await ownership.items(connection, call.tenant, user)
        return ok({"items": [_item(item, rows.get(item.item_id) or {}, self._intervals) for item in items]})

    async def list_accounts(self, call: Call) -> Answer:
        """Return all accounts of a user."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            rows = {row["item_id"]: row for row in await queries.items(connection, user)}
            accounts = await self._accounts.accounts(connection, user)
            items = await ownership.items(connection, call.tenant, user)
        freshness = {item.item_id: _freshness(item, rows.get(item.item_id) or {}, self._intervals) for item in items}
        return ok({"accounts": [{**account, "freshness": freshness.get(account["item_id"])} for account in accounts]})

    async def list_transactions(self, call: Call) -> Answer:
        """Return a page of a user's transactions."""
        which, cursor = transaction_filter(call.values), call.values["cursor"]
        after = cursors.read(cursor, which) if cursor is not None else None
        limit = call.values["limit"] or LIMIT_DEFAULT
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await queries.transactions(connection, user, which, limit=limit, after=after)
        next_cursor = cursors.write(page.next, which) if page.next else None
        return ok({"transactions": page.rows, "next_cursor": next_cursor})

    async def get_transaction(self, call: Call) -> Answer:
        """Return one transaction."""
        async with snapshot(self._pool) as connection:
            user = await transaction_owner(connection, call)
            own_id: bytes = call.values["transaction_id"]
            row = None if user is None else await queries.transaction(connection, user, own_id)
        if row is None:
            raise not_found("transaction")
        return ok(row)

    async def create_stream_token(self, call: Call) -> Answer:
        """Issue a token for the user's browser."""
        async with connected(self._pool) as connection:
            user = await user_of(connection, call)
        token, ends_at = self._tokens.issue(call.tenant, user)
        expires_at = datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
        return Answer(HTTPStatus.CREATED, {"token": token, "expires_at": expires_at})


def transaction_filter(values: Mapping[str, Any]) -> TransactionFilter:
    """Build the filter of a list of transactions from the values of a request."""
    return TransactionFilter(
        item_id=values["item_id"],
        account_id=values["account_id"],
        since=values["from"],
        until=values.get("to"),
        pending=values["pending"],
        in_review=values["in_review"] or False,
    )


def _item(item: OwnedItem, row: Row, intervals: CheckIntervals) -> dict[str, Any]:
    """Merge an Item's credentials with its row, which is {} before its first changeset."""
    return {
        "item_id": item.item_id,
        "user_id": item.user_id,
        "status": _status(item, row),
        "code": row.get("code"),
        "reason": row.get("reason"),
        "effective_at": row.get("effective_at"),
        "institution_id": row.get("institution_id") or item.institution_id,
        "institution_name": row.get("institution_name") or item.institution_name,
        "transactions": row.get("transaction_rows") or 0,
        "linked_at": row.get("linked_at") or item.created_at,
        "unlinked_at": row.get("unlinked_at") or item.unlinked_at,
        "last_sync_at": row.get("last_sync_at"),
        "missing_rows": item.missing_rows,
        **_freshness(item, row, intervals),
    }


def _freshness(item: OwnedItem, row: Row, intervals: CheckIntervals) -> dict[str, Any]:
    return {
        "state": row.get("state"),
        "stopped": item.stopped,
        "remedy": remedy(item.stopped),
        "history_status": row.get("history_status"),
        "last_webhook_at": item.last_webhook_at,
        "last_synced_at": item.last_synced_at,
        "bank_updated_at": item.bank_updated_at,
        "next_check_at": _next_check_at(item, intervals),
    }


def _next_check_at(item: OwnedItem, intervals: CheckIntervals) -> datetime.datetime | None:
    """Return the time of the next sync run without a webhook or a request; None where nothing is scheduled."""
    if item.stopped == QUARANTINED:
        return None
    if item.ready_at is not None:
        return item.ready_at
    if item.stopped is None:
        return (item.last_synced_at or item.created_at) + datetime.timedelta(seconds=intervals.interval_s)
    if item.stopped == LOGIN_REQUIRED and item.last_attempt_at is not None:
        return item.last_attempt_at + datetime.timedelta(seconds=intervals.recheck_s)
    return None


def _status(item: OwnedItem, row: Row) -> str:
    if row.get("unlinked") or item.unlinked_at is not None:
        return "unlinked"
    if item.unlink_requested:
        return "unlinking"
    return row.get("state") or "linking"
