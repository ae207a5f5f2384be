"""Write the log that `tartan chaos --rebuild` replays: generated histories, then updates that readers can check."""

import asyncio
import datetime
import random
import time
from collections.abc import Sequence

import asyncpg
import msgspec

from runtime.kafka.clients import Appender
from runtime.settings import Settings
from sandbox.infra.generated_log import GeneratedLog, append_records, create_users, transactions
from sandbox.infra.stack import TENANT
from schemas.log.records import Transaction

NAME = "UPDATE "
"""Prefix of the names of the updates' transactions."""
OPENING_BALANCE = 1_000
"""Balance of an account without updates."""
FIRST_DAY = datetime.date(2030, 1, 1)
"""Later than any history, so that updates come first in a list that begins with the newest."""
TICK_S = 0.05
USERS_AT_ONCE = 50
"""Users whose histories are in memory together while they are written."""


class LogWriter:
    """Append updates of random users at a rate, each user's one after the other.

    Update `n` of a user adds transaction `n`, sets the final amount of the one before, and reports a balance of
    1000 + n: a reader of a part of an update finds a state that never was.
    """

    def __init__(self, settings: Settings, *, users: int, seed: int) -> None:
        self._settings = settings
        self._appender = Appender(settings, client="chaos")
        self._rng = random.Random(seed)
        self._log = GeneratedLog()
        self._appended = 0
        self._template = transactions(1, seed)[0]
        self.users: Sequence[int] = range(1, users + 1)
        self.written = dict.fromkeys(self.users, 0)
        """Number of updates in the log, by user."""

    async def start(self) -> None:
        """Connect.

        Raises: Retry, where no broker answers.
        """
        await self._appender.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._appender.stop()

    async def write_histories(self, connection: asyncpg.Connection, count: int) -> None:
        """Create the users with their keys, and write their first sync runs: `count` transactions in all."""
        await create_users(connection, self._settings, self.users, tenant=TENANT)
        for begin in range(0, len(self.users), USERS_AT_ONCE):
            for user in self.users[begin : begin + USERS_AT_ONCE]:
                self._log.link(user)
                self._log.history(user, transactions(count // len(self.users), user))
            await self._append()

    @property
    def records(self) -> int:
        """Number of records in the log."""
        return len(self._log.records)

    async def write_updates(self, rate_per_s: float, ended: asyncio.Event) -> None:
        """Write updates until `ended` is set."""
        started, updates = time.monotonic(), 0
        while not ended.is_set():
            due = int((time.monotonic() - started) * rate_per_s) - updates
            # No user twice in a tick: an update is in the log before the user's next one is generated.
            users = self._rng.sample(self.users, min(due, len(self.users)))
            for user in users:
                number = self.written[user] + 1
                added = self._transaction(user, number, final=False)
                modified = [self._transaction(user, number - 1, final=True)] if number > 1 else []
                self._log.update(user, [added], modified, str(OPENING_BALANCE + number))
            await self._append()
            for user in users:
                self.written[user] += 1
            updates += len(users)
            await asyncio.sleep(TICK_S)

    def _transaction(self, user: int, number: int, *, final: bool) -> Transaction:
        return msgspec.structs.replace(
            self._template,
            transaction_id=f"update-{user}-{number}",
            name=f"{NAME}{number}",
            merchant_name=None,
            amount=amount(number, final=final),
            date=str(FIRST_DAY + datetime.timedelta(days=number)),
        )

    async def _append(self) -> None:
        records = self._log.records[self._appended :]
        await append_records(self._appender, self._settings, records)
        self._appended += len(records)


def amount(number: int, *, final: bool) -> str:
    """Return the amount of transaction `number`: as update `number` adds it, or final after the next update."""
    return f"{number}.2" if final else f"{number}.1"
