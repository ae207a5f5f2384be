"""Cache of accounts: reuse a user's rows while the tables would return the same.

A user's rows change with the user's accepted records and with the epoch. So an entry is valid only while epoch and the
user's newest record are those that it was read with; the same snapshot that reads the rest of the answer checks them.
A client that received an event therefore finds it in its next read.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

import asyncpg

from projections.read import queries
from projections.read.queries import Row

ACCOUNTS_MAX = 20_000
"""Cached accounts, about 2 kB each. Reading a user's again costs 0.3 ms."""


class _Entry(NamedTuple):
    newest: Hashable
    expires_at: float
    accounts: list[Row]

    @property
    def weight(self) -> int:
        return len(self.accounts) + 1  # a user without accounts takes room, too


class AccountsCache:
    """Accounts by user; the least recently used entry is dropped first. `clock` is monotonic, in seconds."""

    def __init__(
        self, *, ttl_s: float, accounts_max: int = ACCOUNTS_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._accounts_max = accounts_max
        self._clock = clock
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._weight = 0

    async def accounts(self, connection: asyncpg.Connection, user: int) -> list[Row]:
        """Return the accounts of a user as this connection's snapshot shows them."""
        newest = await queries.newest(connection, user)
        return await self.of(user, newest, lambda: queries.accounts(connection, user))

    async def of(self, user: int, newest: Hashable | None, read: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
        """Return a valid entry, or read and store one. `newest`: epoch and newest record; None stores nothing."""
        entry = self._entries.get(user)
        if entry is not None and entry.newest == newest and self._clock() < entry.expires_at:
            self._entries.move_to_end(user)
            return entry.accounts
        accounts = await read()
        self._drop(user)
        if newest is not None and self._ttl_s > 0:
            entry = self._entries[user] = _Entry(newest, self._clock() + self._ttl_s, accounts)
            self._weight += entry.weight
            while self._weight > self._accounts_max:
                self._drop(next(iter(self._entries)))
        return accounts

    def _drop(self, user: int) -> None:
        entry = self._entries.pop(user, None)
        self._weight -= entry.weight if entry else 0
