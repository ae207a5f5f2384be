"""Accounts that were read a moment ago, for as long as they are what a read would give.

What tables show of a user changes with the records that are accepted of that user, and with the epoch. So rows are
used again only while epoch and the user's newest record are those that they were read with, by the same snapshot that
reads the rest of the answer: who was pushed an event finds it in the next read.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

import asyncpg

from projections.read import queries
from projections.read.queries import Row

ACCOUNTS_MAX = 20_000
"""Accounts kept, about 2 kB each. Reading a user's again costs 0.3 ms."""


class _Kept(NamedTuple):
    newest: Hashable
    until: float
    accounts: list[Row]


class BalanceCache:
    """Accounts by user, the least recently used forgotten first. `clock` is monotonic, in seconds."""

    def __init__(
        self, *, kept_s: float, accounts_max: int = ACCOUNTS_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept_s = kept_s
        self._accounts_max = accounts_max
        self._clock = clock
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._accounts = 0

    async def accounts(self, connection: asyncpg.Connection, user: int) -> list[Row]:
        """The accounts of a user as this connection's snapshot shows them."""
        newest = await queries.newest(connection, user)
        return await self.of(user, newest, lambda: queries.accounts(connection, user))

    async def of(self, user: int, newest: Hashable | None, read: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
        """What is kept of a user with this newest record, else what `read` gives now. None: nothing is shown."""
        kept = self._kept.get(user)
        if kept is not None and kept.newest == newest and self._clock() < kept.until:
            self._kept.move_to_end(user)
            return kept.accounts
        accounts = await read()
        self._forget(user)
        if newest is not None and self._kept_s > 0:
            self._kept[user] = _Kept(newest, self._clock() + self._kept_s, accounts)
            self._accounts += _weight(accounts)
            while self._accounts > self._accounts_max:
                self._forget(next(iter(self._kept)))
        return accounts

    def _forget(self, user: int) -> None:
        kept = self._kept.pop(user, None)
        self._accounts -= _weight(kept.accounts) if kept else 0


def _weight(accounts: list[Row]) -> int:
    return len(accounts) + 1  # a user without accounts takes room, too
