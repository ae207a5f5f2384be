"""Reads: what the tables show, each answer from one snapshot, each tenant its own."""

import datetime
from http import HTTPStatus
from typing import Any

import asyncpg

from gateway import control, cursors
from gateway.authentication import StreamTokens
from gateway.call import Call, ok
from gateway.control import Owned
from gateway.database import connected, snapshot
from gateway.idempotency import Answer
from gateway.problems import not_found
from projections import queries
from projections.queries import Row, TransactionFilter
from runtime import users

LIMIT_DEFAULT = 100


class Reads:
    """Handlers that only look."""

    def __init__(self, *, pool: asyncpg.Pool, tokens: StreamTokens) -> None:
        self._pool = pool
        self._tokens = tokens

    async def get_item(self, call: Call) -> Answer:
        """One Item."""
        async with snapshot(self._pool) as connection:
            owned = await control.item(connection, call.tenant, call.values["item_id"])
            if owned is None:
                raise not_found("item")
            return ok(_item(owned, await queries.item(connection, owned.user, owned.item_id)))

    async def list_items(self, call: Call) -> Answer:
        """All Items of a user."""
        async with snapshot(self._pool) as connection:
            user = await _user(connection, call)
            shown = {row["item_id"]: row for row in await queries.items(connection, user)}
            owned = await control.items(connection, call.tenant, user)
        return ok({"items": [_item(one, shown.get(one.item_id)) for one in owned]})

    async def list_accounts(self, call: Call) -> Answer:
        """All accounts of a user."""
        async with snapshot(self._pool) as connection:
            return ok({"accounts": await queries.accounts(connection, await _user(connection, call))})

    async def list_transactions(self, call: Call) -> Answer:
        """A page of a user's transactions."""
        values = call.values
        which = TransactionFilter(
            item_id=values["item_id"], account_id=values["account_id"], since=values["from"], until=values["to"],
            pending=values["pending"],
        )  # fmt: skip
        after = cursors.read(values["cursor"], which) if values["cursor"] is not None else None
        async with snapshot(self._pool) as connection:
            user = await _user(connection, call)
            page = await queries.transactions(
                connection, user, which, limit=values["limit"] or LIMIT_DEFAULT, after=after
            )
        following = cursors.write(page.next, which) if page.next else None
        return ok({"transactions": page.rows, "next_cursor": following})

    async def get_transaction(self, call: Call) -> Answer:
        """One transaction."""
        own_id: bytes = call.values["transaction_id"]
        async with snapshot(self._pool) as connection:
            user = await control.owner_of(connection, call.tenant, own_id)
            row = None if user is None else await queries.transaction(connection, user, own_id)
        if row is None:
            raise not_found("transaction")
        return ok(row)

    async def create_stream_token(self, call: Call) -> Answer:
        """A token for the user's browser."""
        async with connected(self._pool) as connection:
            user = await _user(connection, call)
        token, ends_at = self._tokens.issue(call.tenant, user)
        ends = datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
        return Answer(HTTPStatus.CREATED, {"token": token, "expires_at": ends})


async def _user(connection: asyncpg.Connection, call: Call) -> int:
    user = await users.find(connection, tenant=call.tenant, user_id=call.values["user_id"])
    if user is None:
        raise not_found("user")
    return user.number


def _item(owned: Owned, shown: Row | None) -> dict[str, Any]:
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
        "history_status": row.get("history_status"),
        "transactions": row.get("transaction_rows") or 0,
        "linked_at": row.get("linked_at") or owned.created_at,
        "unlinked_at": row.get("unlinked_at") or owned.unlinked_at,
        "last_sync_at": row.get("last_sync_at"),
        "last_asked_at": owned.last_asked_at,
        "last_webhook_at": owned.last_webhook_at,
        "next_sync_at": owned.next_sync_at,
    }


def _status(owned: Owned, row: Row) -> str:
    if row.get("unlinked") or owned.unlinked_at is not None:
        return "unlinked"
    if owned.unlink_requested:
        return "unlinking"
    return row.get("state") or "linking"
