"""Reads: what the tables show, each answer from one snapshot, each tenant its own."""

import datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from gateway.handlers import item_control
from gateway.handlers.balances.balance_cache import BalanceCache
from gateway.handlers.item_control import Owned
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
from runtime.users import keys

LIMIT_DEFAULT = 100


class Checks(NamedTuple):
    """How often the schedule asks about an Item, and about one that waits for its user. Units: seconds."""

    interval_s: float
    recheck_s: float


class Reads:
    """Handlers that only look."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, tokens: StreamTokens) -> None:
        self._checks = Checks(settings.schedule_interval_s, settings.accounts_interval_s)
        self._pool = pool
        self._tokens = tokens
        self._balances = BalanceCache(kept_s=settings.balance_cache_s)

    async def get_item(self, call: Call) -> Answer:
        """One Item."""
        async with snapshot(self._pool) as connection:
            owned = await item_control.item(connection, call.tenant, call.values["item_id"])
            if owned is None:
                raise not_found("item")
            shown = await queries.item(connection, owned.user, owned.item_id)
        return ok(_item(owned, shown, self._checks))

    async def list_items(self, call: Call) -> Answer:
        """All Items of a user."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            shown = {row["item_id"]: row for row in await queries.items(connection, user)}
            owned = await item_control.items(connection, call.tenant, user)
        return ok({"items": [_item(one, shown.get(one.item_id), self._checks) for one in owned]})

    async def list_accounts(self, call: Call) -> Answer:
        """All accounts of a user."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            shown = {row["item_id"]: row for row in await queries.items(connection, user)}
            accounts = await self._balances.accounts(connection, user)
            owned = await item_control.items(connection, call.tenant, user)
        fresh = {one.item_id: _freshness(one, shown.get(one.item_id) or {}, self._checks) for one in owned}
        return ok({"accounts": [{**account, "freshness": fresh.get(account["item_id"])} for account in accounts]})

    async def list_transactions(self, call: Call) -> Answer:
        """A page of a user's transactions."""
        values = call.values
        which = TransactionFilter(
            item_id=values["item_id"],
            account_id=values["account_id"],
            since=values["from"],
            until=values["to"],
            pending=values["pending"],
            in_review=values["in_review"] or False,
        )
        after = cursors.read(values["cursor"], which) if values["cursor"] is not None else None
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await queries.transactions(
                connection, user, which, limit=values["limit"] or LIMIT_DEFAULT, after=after
            )
        following = cursors.write(page.next, which) if page.next else None
        return ok({"transactions": page.rows, "next_cursor": following})

    async def get_transaction(self, call: Call) -> Answer:
        """One transaction."""
        own_id: bytes = call.values["transaction_id"]
        async with snapshot(self._pool) as connection:
            user = await item_control.owner_of(connection, call.tenant, own_id)
            row = None if user is None else await queries.transaction(connection, user, own_id)
        if row is None:
            raise not_found("transaction")
        return ok(row)

    async def create_stream_token(self, call: Call) -> Answer:
        """A token for the user's browser."""
        async with connected(self._pool) as connection:
            user = await user_of(connection, call)
        token, ends_at = self._tokens.issue(call.tenant, user)
        ends = datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
        return Answer(HTTPStatus.CREATED, {"token": token, "expires_at": ends})


async def user_of(connection: asyncpg.Connection, call: Call) -> int:
    """The number of the user that a call names. Raises: Problem 404."""
    user = await keys.find(connection, tenant=call.tenant, user_id=call.values["user_id"])
    if user is None:
        raise not_found("user")
    return user.number


def _item(owned: Owned, shown: Row | None, checks: Checks) -> dict[str, Any]:
    """An Item from its credentials and, once there, its row."""
    row = shown or {}
    return {
        "item_id": owned.item_id,
        "user_id": owned.user_id,
        "status": _status(owned, row),
        "code": row.get("code"),
        "reason": row.get("reason"),
        "effective_at": row.get("effective_at"),
        "institution_id": row.get("institution_id") or owned.institution_id,
        "institution_name": row.get("institution_name") or owned.institution_name,
        "transactions": row.get("transaction_rows") or 0,
        "linked_at": row.get("linked_at") or owned.created_at,
        "unlinked_at": row.get("unlinked_at") or owned.unlinked_at,
        "last_sync_at": row.get("last_sync_at"),
        "missing_rows": owned.missing_rows,
        **_freshness(owned, row, checks),
    }


def _freshness(owned: Owned, row: Row, checks: Checks) -> dict[str, Any]:
    """How far what is shown of an Item can be trusted to be what the bank has now."""
    return {
        "state": row.get("state"),
        "stopped": owned.stopped,
        "remedy": remedy(owned.stopped),
        "history_status": row.get("history_status"),
        "last_webhook_at": owned.last_webhook_at,
        "last_synced_at": owned.last_synced_at,
        "bank_updated_at": owned.bank_updated_at,
        "next_check_at": _next_check_at(owned, checks),
    }


def _next_check_at(owned: Owned, checks: Checks) -> datetime.datetime | None:
    """When Plaid is asked next, unless a webhook or somebody comes first; None where nothing is scheduled."""
    if owned.stopped == QUARANTINED:
        return None
    if owned.ready_at is not None:
        return owned.ready_at
    if owned.stopped is None:
        return (owned.last_synced_at or owned.created_at) + datetime.timedelta(seconds=checks.interval_s)
    if owned.stopped == LOGIN_REQUIRED and owned.last_attempt_at is not None:
        return owned.last_attempt_at + datetime.timedelta(seconds=checks.recheck_s)
    return None


def _status(owned: Owned, row: Row) -> str:
    if row.get("unlinked") or owned.unlinked_at is not None:
        return "unlinked"
    if owned.unlink_requested:
        return "unlinking"
    return row.get("state") or "linking"
