"""The log that `tartan chaos --rebuild` replays: histories by the benchmark's writer, then updates that can be told
apart by whoever reads them."""

import asyncio
import datetime
import random
import time
from collections import defaultdict
from collections.abc import Sequence

import asyncpg
import msgspec

from runtime.kafka.clients import Appender, Outgoing, partition_of
from runtime.kafka.reader import Received
from runtime.settings import Settings
from runtime.users.keys import FIRST_GENERATION
from runtime.users.vault import Vault
from sandbox.infra.generated_log import GeneratedLog, data_key, name_of, transactions
from sandbox.infra.stack import TENANT
from schemas.log.records import Transaction
from schemas.topics import CHANGESETS, full_name

OPENED_WITH = 1_000
"""The balance of an account that no update has come to."""
FIRST_DAY = datetime.date(2030, 1, 1)
"""Later than any history, so that updates come first in a list that begins with the newest."""
TICK_S = 0.05
USERS_AT_ONCE = 50
"""Whose histories are in memory together, while they are written."""


class Writer:
    """Writes updates of random users at a rate, each user's one after the other.

    Update `n` of a user adds transaction `n`, gives that of before its final amount, and reports a balance of 1000 + n:
    who sees part of an update and not the rest sees what never was.
    """

    def __init__(self, settings: Settings, *, users: int, seed: int) -> None:
        self._settings = settings
        self._topic = full_name(CHANGESETS, settings.topic_prefix)
        self._appender = Appender(settings, client="chaos")
        self._chosen = random.Random(seed)
        self._log = GeneratedLog()
        self._template = transactions(1, seed)[0]
        self.users: Sequence[int] = range(1, users + 1)
        self.written = dict.fromkeys(self.users, 0)
        """Updates that are in the log, by user."""

    async def start(self) -> None:
        """Connect. Raises: Retry, where no broker answers."""
        await self._appender.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._appender.stop()

    async def histories(self, connection: asyncpg.Connection, count: int) -> None:
        """Make the users with their keys, and write the first synchronisations: `count` transactions in all."""
        vault = Vault(self._settings.master_key())
        await connection.executemany(_USER, [(user, TENANT, name_of(user)) for user in self.users])
        await connection.executemany(
            _KEY,
            [
                (user, vault.wrap_data_key(data_key(user), user=user, generation=FIRST_GENERATION), FIRST_GENERATION)
                for user in self.users
            ],
        )
        for begin in range(0, len(self.users), USERS_AT_ONCE):
            first = len(self._log.records)
            for user in self.users[begin : begin + USERS_AT_ONCE]:
                self._log.link(user)
                self._log.history(user, transactions(count // len(self.users), user))
            await self._append(self._log.records[first:])

    @property
    def records(self) -> int:
        """How many are in the log."""
        return len(self._log.records)

    async def live(self, rate_per_s: float, ended: asyncio.Event) -> None:
        """Write updates until that is set."""
        began, updates = time.monotonic(), 0
        while not ended.is_set():
            due = int((time.monotonic() - began) * rate_per_s) - updates
            # No user twice in a tick: what is told of one is in the log before the next is made.
            users = self._chosen.sample(self.users, min(due, len(self.users)))
            first = len(self._log.records)
            for user in users:
                self._update(user, self.written[user] + 1)
            await self._append(self._log.records[first:], users)
            updates += len(users)
            await asyncio.sleep(TICK_S)

    def _update(self, user: int, number: int) -> None:
        added = self._transaction(user, number, final=False)
        changed = [self._transaction(user, number - 1, final=True)] if number > 1 else []
        self._log.update(user, [added], changed, str(OPENED_WITH + number))

    def _transaction(self, user: int, number: int, *, final: bool) -> Transaction:
        return msgspec.structs.replace(
            self._template,
            transaction_id=f"update-{user}-{number}",
            name=f"UPDATE {number}",
            merchant_name=None,
            amount=amount(number, final=final),
            date=str(FIRST_DAY + datetime.timedelta(days=number)),
        )

    async def _append(self, records: Sequence[Received], users: Sequence[int] = ()) -> None:
        by_partition: dict[int, list[Outgoing]] = defaultdict(list)
        for record in records:
            assert record.key is not None
            number = partition_of(record.key, self._settings.partitions)
            by_partition[number].append(Outgoing(record.key, record.value))
        await asyncio.gather(
            *(self._appender.append_many(self._topic, number, those) for number, those in by_partition.items())
        )
        for user in users:
            self.written[user] += 1


def amount(number: int, *, final: bool) -> str:
    """The amount of transaction `number`: of update `number` alone, or after the one that follows it."""
    return f"{number}.2" if final else f"{number}.1"


_USER = "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3)"
_KEY = "INSERT INTO tartan.user_keys (user_number, wrapped, generation, state) VALUES ($1, $2, $3, 'active')"
