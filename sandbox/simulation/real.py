"""The same ports with the streams stage's own statements, on a real Postgres at virtual time.

Each call is one statement or one transaction, done whole at one moment: while the answer is on its way, virtual time
stands still and no other statement begins. So no lock of Postgres' is ever waited for, and a seed repeats itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import asyncpg

from runtime import plaid_limits
from runtime.kafka.reader import Position
from runtime.plaid_limits import Limit
from runtime.scheduler import breakers, enqueue, quotas
from runtime.scheduler.types import Claimed, Claims, Hint, Lane, Mark, Released
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.loop import VirtualLoop
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.limits import MemoryLimits
from sandbox.simulation.memory.store import Database, MemoryStore, Transaction
from schemas.log.changesets import UserKeys
from streams.heads import HeadChanges, ItemHead
from streams.ports import MARKER
from streams.schedule.fair_queue import FairQueue
from streams.storage import consumer_transactions
from streams.storage.session import session
from streams.storage.store import PostgresStore

ITEMS_A_TICK_MAX = 2_000
DEAD_LETTERS_MAX = 1_000
"""Letters of a simulated story come in any number; the rate that stops a process has its own tests."""

Result = TypeVar("Result")


class Real:
    """A run's own database: one thing at a time, at virtual time."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.vault = Vault(bytes(32))
        self._turn = asyncio.Lock()

    async def do(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Await something real. Not for tasks of a process: one that is stopped here would stop time."""
        async with self._turn:
            return await cast(VirtualLoop, asyncio.get_running_loop()).real(work())


class Parts(NamedTuple):
    """What one process's ports are made of."""

    real: Real
    database: Database
    wire: Connection
    monitor: LeaseMonitor
    settings: Settings

    async def ask(self, work: Callable[[], Awaitable[Result]], noted: Callable[[Result], None] | None = None) -> Result:
        """Have the database do something; `noted` is told at that moment, whatever becomes of the answer."""

        async def served() -> Result:
            self.database.reach()
            result = await self.real.do(work)
            if noted is not None:
                noted(result)
            self.database.answer()
            return result

        return await self.wire.ask(served)


def settings_of(name: str, lease_s: float, limits: Mapping[str, Limit], failures_max: int) -> Settings:
    """A worker's settings."""
    changes = [f"{endpoint}={limit.item}/{limit.client}" for endpoint, limit in limits.items()]
    return Settings(
        lease_s=lease_s,
        instance_id=name,
        plaid_limits=",".join(["off", *changes]),
        institution_failures_max=failures_max,
        dead_letters_max=DEAD_LETTERS_MAX,
    )


class RealStore(MemoryStore):
    """The ports Store, Begin and BeginFollowing, and a reader's positions: what is asked is runtime's SQL."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(
            parts.database, parts.wire, parts.monitor, lease_s=parts.settings.lease_s, holder=parts.settings.instance_id
        )
        self._parts = parts
        self._pool = parts.real.pool
        self._store = PostgresStore(
            self._pool, Keyring(parts.real.vault), parts.real.vault, parts.settings, FairQueue(parts.settings.weights())
        )

    async def claim(self, slots: int) -> Claims:
        """Lease what is ready, as the turns of lanes and tenants and Plaid's quota allow."""

        def leased(claims: Claims) -> None:
            for claimed in claims:
                self._monitor.leased(self._wire.process, claimed, lease_s=self._lease_s)

        return await self._parts.ask(lambda: self._store.claim(slots), leased)

    async def inherit(self) -> int:
        """End the leases that a dead process with this name left. Gives how many."""
        return await self._parts.ask(self._store.expire_inherited, lambda _: self._monitor.inherited(self._holder))

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""

        def renewed(held: bool) -> None:
            if held:
                self._monitor.renewed(claimed, lease_s=self._lease_s)

        return await self._parts.ask(lambda: self._store.renew(claimed), renewed)

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""
        how = f"released {result.outcome}, due in {result.due_in_s}, stopped {result.stopped}, {result.error}"
        return await self._given_back(claimed, how, lambda: self._store.release(claimed, result))

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back untouched, to wait for the follower."""
        how = f"let go until {wait_offset}"
        await self._given_back(claimed, how, lambda: self._store.release_untouched(claimed, wait_offset=wait_offset))

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if time had."""
        await self._given_back(claimed, "expired", lambda: self._store.expire(claimed))

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        await self._given_back(claimed, "unlinked", lambda: self._store.finish_unlink(claimed))

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Set an Item aside until it is redriven."""
        await self._parts.ask(lambda: self._store.quarantine(claimed, reason))

    async def keys(self, user: int) -> UserKeys | None:
        """A user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        return await self._parts.ask(lambda: self._store.keys(user))

    def token(self, claimed: Claimed) -> str | None:
        """The Item's access token; None where there is none."""
        return self._store.token(claimed)

    async def count_gone(self) -> tuple[int, int]:
        """How many Items Plaid called gone within the hour, of how many."""
        return await self._parts.ask(self._store.count_gone)

    async def position(self, reader: str, partition: int) -> int:
        """Where a reader stands. Raises: Retry."""
        found = await self._parts.ask(lambda: consumer_transactions.load_positions(self._pool, reader, [partition]))
        return found.get(partition, Position(0)).next

    async def mark_scheduled(self, *, interval_s: float, recheck_s: float, spread_s: float) -> int:
        """One tick of the schedule. Raises: Retry."""

        async def ticked() -> int:
            async with session(self._pool) as connection:
                return await enqueue.mark_scheduled(
                    connection,
                    interval_s=interval_s,
                    recheck_s=recheck_s,
                    spread_s=spread_s,
                    items_max=ITEMS_A_TICK_MAX,
                )

        return await self._parts.ask(ticked)

    def _begin(self, reader: str, partitions: Collection[int]) -> Transaction:
        return RealTransaction(self._parts, reader, partitions)

    async def _given_back(self, claimed: Claimed, how: str, work: Callable[[], Awaitable[Result]]) -> Result:
        return await self._parts.ask(work, lambda _: self._monitor.given_back(claimed, how))


class RealTransaction(Transaction):
    """A transaction that reads as it goes, by the product's statements, and writes with its commit, at one moment.

    Left open over virtual time it would hold locks that others wait for in real time. The lock of its positions, which
    is what the product's own transactions wait for, is the simulation's.
    """

    def __init__(self, parts: Parts, reader: str, partitions: Collection[int]) -> None:
        super().__init__(parts.database, parts.wire, reader, partitions)
        self._parts = parts
        self._pool = parts.real.pool
        self._keys: list[bytes] = []
        self._marks: list[Mark] = []
        self._hints: list[Hint] = []
        self._items: list[str] = []
        self._followed: HeadChanges | None = None
        self._moved: Mapping[int, Position] = {}

    async def _placed(self) -> Mapping[int, Position]:
        found = await self._parts.real.do(
            lambda: consumer_transactions.load_positions(self._pool, self._reader, self._partitions)
        )
        return {partition: found.get(partition, Position(0)) for partition in self._partitions}

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Give the repeat keys that were not known; they are remembered at the commit."""
        self._keys = list(keys)

        async def read() -> set[bytes]:
            async with session(self._pool) as connection:
                return {row["key"] for row in await connection.fetch(_KNOWN_KEYS, self._keys)}

        return set(keys) - await self._look(read)

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due at the commit; how many marks there are."""
        self._marks, self._hints = list(marks), list(hints)
        return len(marks)

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """The heads that are known."""
        self._items = sorted(items)

        async def read() -> dict[str, ItemHead]:
            async with consumer_transactions.following(self._pool, self._partitions) as begun:
                return await begun.heads(self._items)

        return await self._look(read)

    async def erased(self, users: Collection[int]) -> set[int]:
        """Users whose key is destroyed."""

        async def read() -> set[int]:
            async with consumer_transactions.following(self._pool, self._partitions) as begun:
                return await begun.erased(sorted(users))

        return await self._look(read)

    async def apply(self, followed: HeadChanges) -> None:
        """Write heads and what histories lacked, make due again what was skipped or redriven, erase: at the commit."""
        self._followed = followed

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions at the commit."""
        self._moved = positions

    async def commit(self) -> None:
        """Write everything. Raises: Retry."""
        await self._look(self._marked if self._reader == MARKER else self._written)
        self.end()

    async def _marked(self) -> None:
        async with consumer_transactions.marking(self._pool, self._partitions) as begun:
            await begun.new_keys(self._keys)
            await begun.advance(self._moved)
            await begun.mark(self._marks, self._hints)

    async def _written(self) -> None:
        async with consumer_transactions.following(self._pool, self._partitions) as begun:
            await begun.heads(self._items)
            await begun.advance(self._moved)
            if self._followed is not None:
                await begun.apply(self._followed)

    async def _look(self, work: Callable[[], Awaitable[Result]]) -> Result:
        async def checked() -> Result:
            self._checked(lambda: None)
            return await work()

        return await self._parts.ask(checked)


class RealLimits(MemoryLimits):
    """The port Limits by the statements of scheduler.quotas and breakers; the waiting is virtual."""

    def __init__(self, parts: Parts, limits: Mapping[str, Limit]) -> None:
        super().__init__(cast(Any, None), parts.database, parts.wire)
        self._parts = parts
        self._limits = limits

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Plaid counted otherwise and answered 429. Raises: Retry."""
        await self._on(lambda found: quotas.record_exceeded(found, endpoint, item_id, error_code, self._limits))

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """A bank answered with an outage. Raises: Retry."""
        failures_max = self._parts.settings.institution_failures_max
        await self._on(lambda found: breakers.failed(found, institution_id, error_code, failures_max))

    async def institution_answered(self, institution_id: str) -> None:
        """A bank answered otherwise: its Items go on. Raises: Retry."""
        await self._on(lambda found: breakers.answered(found, institution_id))

    async def probe(self) -> int:
        """Let one Item of each bank whose time is over try. Raises: Retry."""
        return await self._on(breakers.probe)

    async def _look(self, endpoint: str, item_id: str) -> float:
        if endpoint not in self._limits:
            return 0.0
        if endpoint == plaid_limits.SYNC:
            return await self._on(lambda found: quotas.take_page(found, item_id, self._limits))
        return await self._on(lambda found: quotas.take(found, endpoint, item_id, self._limits))

    async def _on(self, work: Callable[[asyncpg.Connection], Awaitable[Result]]) -> Result:
        async def asked() -> Result:
            async with session(self._parts.real.pool) as connection:
                return await work(connection)

        return await self._parts.ask(asked)


async def ask_for(connection: asyncpg.Connection, item_id: str, lane: Lane, *, refresh: bool = False) -> None:
    """Do what the gateway does when a user asks for a sync or an unlink."""
    if lane is Lane.WEBHOOK:
        await enqueue.request_unlink(connection, item_id)
    else:
        await enqueue.mark_manual(connection, item_id, refresh=refresh)


_KNOWN_KEYS = "SELECT key FROM tartan.repeats WHERE key = ANY($1::bytea[])"
