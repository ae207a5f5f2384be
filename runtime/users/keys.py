"""Users: their random numbers and their data keys."""

import os
import secrets
from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from runtime.users.vault import Vault
from schemas.errors import Retry
from schemas.ids import UserNumber
from schemas.log.changesets import UserKeys, user_keys

FIRST_GENERATION = 1
DATA_KEY_BYTES = 32
CACHED_USERS_MAX = 100_000
"""Unwrapped keys in memory: about 500 bytes each. Unwrapping one again costs a query."""


class User(NamedTuple):
    """A user of a tenant's application, and the number that replaces their id in topics."""

    number: UserNumber
    tenant: str
    user_id: str


class Destroyed(NamedTuple):
    """Marker of a user whose key was destroyed on purpose, by an erasure."""


class Keyring:
    """Unwraps users' keys and caches them. The writer of a key's tombstone must call `forget`."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known: dict[int, UserKeys] = {}

    async def of(self, connection: asyncpg.Connection, users: Iterable[int]) -> dict[int, UserKeys | Destroyed]:
        """Return the keys of users. A user without a key row is absent, which quarantines the user's Items.

        Raises: Halt, where a key does not unwrap.
        """
        users = set(users)
        keys: dict[int, UserKeys | Destroyed] = {user: self._known[user] for user in users if user in self._known}
        if missing := users - keys.keys():
            for row in await connection.fetch(_KEYS, list(missing)):
                keys[row["user_number"]] = self._unwrap(row)
        return keys

    def forget(self, user: int) -> None:
        """Drop a user's keys from memory."""
        self._known.pop(user, None)

    def _unwrap(self, row: asyncpg.Record) -> UserKeys | Destroyed:
        if row["wrapped"] is None:
            return Destroyed()
        user, generation = row["user_number"], row["generation"]
        keys = user_keys(self._vault.unwrap_data_key(row["wrapped"], user=user, generation=generation), generation)
        if len(self._known) >= CACHED_USERS_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[user] = keys
        return keys


async def find_or_create(connection: asyncpg.Connection, vault: Vault, *, tenant: str, user_id: str) -> User:
    """Return the user with this id of the application; create number and key in one synchronous commit if it is new.

    Idempotence: first links of one user at the same time get one number and one key.
    Raises: Retry, where the user was erased at the same moment.
    """
    user = await find(connection, tenant=tenant, user_id=user_id)
    if user is not None:
        return user
    number = secrets.randbits(63)
    wrapped = vault.wrap_data_key(os.urandom(DATA_KEY_BYTES), user=number, generation=FIRST_GENERATION)
    async with connection.transaction():
        # A key lost in a failover cannot be made again, so this commit waits for the standby where there is one.
        await connection.execute("SET LOCAL synchronous_commit = on")
        if await connection.fetchval(_CREATE, number, tenant, user_id) is not None:
            await connection.execute(_CREATE_KEY, number, FIRST_GENERATION, wrapped)
    user = await find(connection, tenant=tenant, user_id=user_id)
    if user is None:
        raise Retry("the user was erased while being linked")
    return user


async def find(connection: asyncpg.Connection, *, tenant: str, user_id: str) -> User | None:
    """Return the user with this id of the application."""
    row = await connection.fetchrow(_FIND, tenant, user_id)
    return User(UserNumber(row["user_number"]), tenant, user_id) if row else None


_KEYS = "SELECT user_number, generation, wrapped FROM tartan.user_keys WHERE user_number = ANY($1::bigint[])"
_FIND = "SELECT user_number FROM tartan.users WHERE tenant = $1 AND user_id = $2"
# Of two first links of one user at once, the second reads the first one's row.
_CREATE = """INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3)
             ON CONFLICT (tenant, user_id) DO NOTHING RETURNING user_number"""
_CREATE_KEY = "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, $2, $3, 'active')"
