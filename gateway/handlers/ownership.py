"""Ownership: read from the control tables which tenant and user an Item, a user or a transaction belongs to."""

from datetime import datetime
from typing import NamedTuple

import asyncpg

from gateway.http.problems import not_found
from gateway.http.requests import Call
from runtime.users import keys


class OwnedItem(NamedTuple):
    """An Item of a tenant from credentials and schedule; it exists before any table shows it."""

    item_id: str
    user: int
    user_id: str
    partition: int
    institution_id: str | None
    institution_name: str | None
    created_at: datetime
    unlinked_at: datetime | None
    unlink_requested: bool
    last_synced_at: datetime | None
    last_attempt_at: datetime | None
    last_webhook_at: datetime | None
    ready_at: datetime | None
    bank_updated_at: datetime | None
    refreshed_at: datetime | None
    stopped: str | None
    quarantined_at: datetime | None
    missing_rows: int
    head_offset: int | None


class Link(NamedTuple):
    """Owner of an Item's credentials, and its sealed token; None once it is unlinked."""

    tenant: str
    user_id: str | None
    sealed_token: bytes | None


async def item_of(connection: asyncpg.Connection, call: Call) -> OwnedItem:
    """Return the Item that a call names.

    Raises: Problem 404, also where it is another tenant's.
    """
    row = await connection.fetchrow(_ITEM, call.tenant, call.values["item_id"])
    if row is None:
        raise not_found("item")
    return OwnedItem(*row.values())


async def items(connection: asyncpg.Connection, tenant: str, user: int) -> list[OwnedItem]:
    """Return all Items of a user."""
    return [OwnedItem(*row.values()) for row in await connection.fetch(_ITEMS, tenant, user)]


async def user_of(connection: asyncpg.Connection, call: Call) -> int:
    """Return the number of the user that a call names.

    Raises: Problem 404.
    """
    user = await keys.find(connection, tenant=call.tenant, user_id=call.values["user_id"])
    if user is None:
        raise not_found("user")
    return user.number


async def transaction_owner(connection: asyncpg.Connection, call: Call) -> int | None:
    """Return the user of the transaction that a call names; None too where it is another tenant's."""
    user: int | None = await connection.fetchval(_OWNER, call.tenant, call.values["transaction_id"])
    return user


async def lock_link(connection: asyncpg.Connection, item_id: str) -> Link | None:
    """Return the owner of an Item, if it is linked, and lock its link until the end of the transaction.

    The lock covers a COMMIT without an answer that is still under way, waiting for a standby: without it a read at
    that moment finds no row, and the Item is given back to Plaid and registered a moment later.
    """
    await connection.execute(_LOCK, item_id)
    row = await connection.fetchrow(_LINK, item_id)
    return Link(*row.values()) if row else None


async def sealed_token(connection: asyncpg.Connection, item_id: str) -> bytes | None:
    """Return an Item's sealed access token; None once it is unlinked."""
    sealed: bytes | None = await connection.fetchval(_SEALED, item_id)
    return sealed


_COLUMNS = """
    SELECT c.item_id, c.user_number, u.user_id, s.partition, c.institution_id, c.institution_name, c.created_at,
           c.unlinked_at, s.unlink_requested, s.last_synced_at, s.last_attempt_at, s.last_webhook_at, s.ready_at,
           s.bank_updated_at, s.refreshed_at, CASE WHEN k.quarantined_at IS NULL THEN s.stopped ELSE 'quarantined' END,
           k.quarantined_at, coalesce(r.missing_rows, 0), h.head_offset
    FROM tartan.credentials c JOIN tartan.users u USING (user_number)
    JOIN tartan.sync_state s USING (item_id) LEFT JOIN tartan.heads h USING (item_id)
    LEFT JOIN reads.items r USING (item_id)
    CROSS JOIN LATERAL (SELECT min(quarantined_at) AS quarantined_at FROM tartan.quarantines
        WHERE quarantines.item_id = c.item_id AND redrive_offset IS NULL) k"""
_ITEM = f"{_COLUMNS} WHERE c.tenant = $1 AND c.item_id = $2"
_ITEMS = f"{_COLUMNS} WHERE c.tenant = $1 AND c.user_number = $2 ORDER BY c.item_id"

# A statement of its own: the next one's snapshot is then taken after the wait. Taken before any row lock.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('tartan link ' || $1, 0))"
_LINK = """
    SELECT c.tenant, u.user_id, c.sealed_token FROM tartan.credentials c LEFT JOIN tartan.users u USING (user_number)
    WHERE c.item_id = $1"""

_SEALED = "SELECT sealed_token FROM tartan.credentials WHERE item_id = $1"

_OWNER = """
    SELECT t.user_number FROM reads.transactions t JOIN tartan.users u USING (user_number)
    WHERE u.tenant = $1 AND t.own_id = $2"""
