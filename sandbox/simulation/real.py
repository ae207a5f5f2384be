"""Implement the same ports with the product's statements, on a real Postgres in virtual time.

Each call is one statement or one transaction, executed as a whole at one moment: while its answer is outstanding,
virtual time stops and no other statement begins. So no lock of Postgres is ever waited for, and a seed repeats itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import asyncpg

from runtime import plaid_limits
from runtime.kafka.reader import Position
from runtime.plaid_limits import Limit
from runtime.scheduler import breakers, enqueue, quotas
from runtime.scheduler.types import Hint, Lane, Mark
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.loop import VirtualLoop
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.engine.store_client import SimulatedTransaction, StoreClient
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.limits import LimitsClient
from streams.heads import HeadChanges, ItemHead
from streams.ports import MARKER
from streams.schedule.fair_queue import FairQueue
from streams.storage import consumer_transactions
from streams.storage.session import session
from streams.storage.store import PostgresStore

ITEMS_A_TICK_MAX = 2_000
DEAD_LETTERS_MAX = 1_000
"""Above the number in any scenario; the rate that stops a process has its own tests."""

Result = TypeVar("Result")


class RealDatabase:
    """A run's own database: one statement at a time."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.vault = Vault(bytes(32))
        self._turn = asyncio.Lock()

    async def execute(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Await a real answer. Not for tasks of a process: freezing one would stop time."""
        async with self._turn:
            return await cast(VirtualLoop, asyncio.get_running_loop()).real(work())


class DatabaseClient(NamedTuple):
    """One process's access to the real database, through the simulated one's faults and locks."""

    real: RealDatabase
    database: Database
    connection: Connection
    settings: Settings

    async def send(self, work: Callable[[], Awaitable[Any]], note: Callable[[Any], None] = lambda _: None) -> Any:
        """Execute a statement; `note` gets the result at that moment, even if the answer is lost. Raises: Retry."""

        async def serve() -> Any:
            self.database.check_available()
            result = await self.real.execute(work)
            note(result)
            self.database.check_answer()
            return result

        return await self.connection.call_async(serve)


def worker_settings(name: str, lease_s: float, limits: Mapping[str, Limit], failures_max: int) -> Settings:
    """Return a worker's settings."""
    changes = [f"{endpoint}={limit.item}/{limit.client}" for endpoint, limit in limits.items()]
    return Settings(
        lease_s=lease_s,
        instance_id=name,
        plaid_limits=",".join(["off", *changes]),
        institution_failures_max=failures_max,
        dead_letters_max=DEAD_LETTERS_MAX,
    )


class RealBackend(PostgresStore):
    """PostgresStore with the statements of a reader's position and of the schedule."""

    async def position(self, reader: str, partition: int) -> int:
        """Return a reader's position."""
        positions = await consumer_transactions.load_positions(self._pool, reader, [partition])
        return positions.get(partition, Position(0)).next

    async def mark_scheduled(self, *, interval_s: float, recheck_s: float, spread_s: float) -> int:
        """Run one tick of the schedule."""
        bounds = {"interval_s": interval_s, "recheck_s": recheck_s, "spread_s": spread_s}
        async with session(self._pool) as connection:
            return await enqueue.mark_scheduled(connection, **bounds, items_max=ITEMS_A_TICK_MAX)


class RealTransaction(SimulatedTransaction):
    """A transaction that reads at once, by the product's statements, and writes in one real transaction at its commit.

    A real transaction that is open over virtual time would hold locks that others wait for in real time. The lock of
    its positions, which is the one that the product's transactions wait for, is simulated.
    """

    def __init__(self, client: DatabaseClient, reader: str, partitions: Collection[int]) -> None:
        super().__init__(client.database, client.connection, reader, partitions)
        self._client = client
        self._pool = client.real.pool
        self._keys: list[bytes] = []
        self._marks: list[Mark] = []
        self._hints: list[Hint] = []
        self._items: list[str] = []
        self._changes: HeadChanges | None = None
        self._new_positions: Mapping[int, Position] = {}

    async def _load_positions(self) -> Mapping[int, Position]:
        positions = await self._client.real.execute(
            lambda: consumer_transactions.load_positions(self._pool, self._reader, self._partitions)
        )
        return {partition: positions.get(partition, Position(0)) for partition in self._partitions}

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the unknown repeat keys; they are stored at the commit."""
        self._keys = list(keys)

        async def read() -> set[bytes]:
            async with session(self._pool) as connection:
                return {row["key"] for row in await connection.fetch(_KNOWN_KEYS, self._keys)}

        return set(keys) - await self._execute(read)

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Mark Items due at the commit; return the number of marks."""
        self._marks, self._hints = list(marks), list(hints)
        return len(marks)

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """Return the known heads."""
        self._items = sorted(items)

        async def read() -> dict[str, ItemHead]:
            async with consumer_transactions.following(self._pool, self._partitions) as transaction:
                return await transaction.heads(self._items)

        return await self._execute(read)

    async def erased(self, users: Collection[int]) -> set[int]:
        """Return the users whose key is destroyed."""

        async def read() -> set[int]:
            async with consumer_transactions.following(self._pool, self._partitions) as transaction:
                return await transaction.erased(sorted(users))

        return await self._execute(read)

    async def apply(self, changes: HeadChanges) -> None:
        """Apply what follow_heads read from the log, at the commit."""
        self._changes = changes

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Set the positions at the commit."""
        self._new_positions = positions

    async def commit(self) -> None:
        """Write everything. Raises: Retry."""
        await self._execute(self._write_marks if self._reader == MARKER else self._write_heads)
        self.end()

    async def _write_marks(self) -> None:
        async with consumer_transactions.marking(self._pool, self._partitions) as transaction:
            await transaction.new_keys(self._keys)
            await transaction.advance(self._new_positions)
            await transaction.mark(self._marks, self._hints)

    async def _write_heads(self) -> None:
        async with consumer_transactions.following(self._pool, self._partitions) as transaction:
            await transaction.heads(self._items)
            await transaction.advance(self._new_positions)
            if self._changes is not None:
                await transaction.apply(self._changes)

    async def _execute(self, work: Callable[[], Awaitable[Result]]) -> Result:
        async def checked() -> Result:
            self.check_open()
            return await work()

        result: Result = await self._client.send(checked)
        return result


class RealStore(StoreClient[RealTransaction]):
    """The store of one process on the real database."""

    def __init__(self, client: DatabaseClient, monitor: LeaseMonitor) -> None:
        vault, settings = client.real.vault, client.settings
        backend = RealBackend(client.real.pool, Keyring(vault), vault, settings, FairQueue(settings.weights()))
        super().__init__(backend, client.connection, monitor, lease_s=settings.lease_s, holder=settings.instance_id)
        self._client = client

    async def _send(self, request: Callable[[], Any], note: Callable[[Any], None] = lambda _: None) -> Any:
        return await self._client.send(request, note)

    def _transaction(self, reader: str, partitions: Collection[int]) -> RealTransaction:
        return RealTransaction(self._client, reader, partitions)


class RealLimits(LimitsClient):
    """The port Limits by the statements of scheduler.quotas and breakers; waits are virtual."""

    def __init__(self, client: DatabaseClient, limits: Mapping[str, Limit]) -> None:
        self._client = client
        self._limits = limits

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Empty the buckets that a 429 of Plaid may concern. Raises: Retry."""
        await self._execute(
            lambda connection: quotas.record_exceeded(connection, endpoint, item_id, error_code, self._limits)
        )

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """Count an outage of a bank. Raises: Retry."""
        failures_max = self._client.settings.institution_failures_max
        await self._execute(lambda connection: breakers.failed(connection, institution_id, error_code, failures_max))

    async def institution_answered(self, institution_id: str) -> None:
        """Close a bank's breaker after a good answer. Raises: Retry."""
        await self._execute(lambda connection: breakers.answered(connection, institution_id))

    async def probe(self) -> int:
        """Release one Item of each bank whose breaker's time is over. Raises: Retry."""
        return await self._execute(breakers.probe)

    async def _try_take(self, endpoint: str, item_id: str) -> float:
        if endpoint not in self._limits:
            return 0.0
        if endpoint == plaid_limits.SYNC:
            return await self._execute(lambda connection: quotas.take_page(connection, item_id, self._limits))
        return await self._execute(lambda connection: quotas.take(connection, endpoint, item_id, self._limits))

    async def _execute(self, work: Callable[[asyncpg.Connection], Awaitable[Result]]) -> Result:
        async def execute() -> Result:
            async with session(self._client.real.pool) as connection:
                return await work(connection)

        result: Result = await self._client.send(execute)
        return result


async def request_sync(connection: asyncpg.Connection, item_id: str, lane: Lane, *, refresh: bool = False) -> None:
    """Request a sync or an unlink, as the gateway does for a user."""
    if lane is Lane.WEBHOOK:
        await enqueue.request_unlink(connection, item_id)
    else:
        await enqueue.mark_manual(connection, item_id, refresh=refresh)


_KNOWN_KEYS = "SELECT key FROM tartan.repeats WHERE key = ANY($1::bytea[])"
