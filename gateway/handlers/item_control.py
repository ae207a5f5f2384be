"""What the gateway asks of the control tables: whose an Item is, and where its sync stands."""

from datetime import datetime
from typing import NamedTuple

import asyncpg


class Owned(NamedTuple):
    """An Item of a tenant, as credentials and schedule know it, before any table shows it."""

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


class Linked(NamedTuple):
    """Whose an Item's row is, and its sealed token; None once it is unlinked."""

    tenant: str
    user_id: str | None
    sealed_token: bytes | None


async def item(connection: asyncpg.Connection, tenant: str, item_id: str) -> Owned | None:
    """One Item of a tenant; None too where it is another tenant's."""
    row = await connection.fetchrow(_ITEM, tenant, item_id)
    return Owned(*row.values()) if row else None


async def items(connection: asyncpg.Connection, tenant: str, user: int) -> list[Owned]:
    """All Items of a user."""
    return [Owned(*row.values()) for row in await connection.fetch(_ITEMS, tenant, user)]


async def linked(connection: asyncpg.Connection, item_id: str) -> Linked | None:
    """Who linked this Item, if anybody did. Call it in a transaction: until its end nobody else links the Item.

    The lock is for a COMMIT that got no answer and is still under way, waiting for a standby: without it a look at
    that moment finds no row, and the Item is given back to Plaid and registered a moment later.
    """
    await connection.execute(_LOCK, item_id)
    row = await connection.fetchrow(_LINKED, item_id)
    return Linked(*row.values()) if row else None


async def sealed_token(connection: asyncpg.Connection, item_id: str) -> bytes | None:
    """An Item's token as it is kept; None once it is unlinked."""
    sealed: bytes | None = await connection.fetchval(_SEALED, item_id)
    return sealed


async def is_user(connection: asyncpg.Connection, tenant: str, user: int) -> bool:
    """Whether a user with this number is there still."""
    return bool(await connection.fetchval(_USER, tenant, user))


async def owner_of(connection: asyncpg.Connection, tenant: str, own_id: bytes) -> int | None:
    """The user whose transaction this is; None too where it is another tenant's."""
    user: int | None = await connection.fetchval(_OWNER, tenant, own_id)
    return user


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
_LINKED = """
    SELECT c.tenant, u.user_id, c.sealed_token FROM tartan.credentials c LEFT JOIN tartan.users u USING (user_number)
    WHERE c.item_id = $1"""

_SEALED = "SELECT sealed_token FROM tartan.credentials WHERE item_id = $1"

_USER = "SELECT true FROM tartan.users WHERE tenant = $1 AND user_number = $2"

_OWNER = """
    SELECT t.user_number FROM reads.transactions t JOIN tartan.users u USING (user_number)
    WHERE u.tenant = $1 AND t.own_id = $2"""
