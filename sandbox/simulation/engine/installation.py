"""Assemble a simulated installation: servers, Plaid, consumer groups, tables and monitors of its processes."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, cast

import asyncpg

from projections.gate.check import Owners
from projections.gate.quarantine import QuarantineSpan
from runtime.kafka.clients import partition_of
from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler import enqueue
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Lane
from sandbox.simulation.engine import postgres
from sandbox.simulation.engine.kafka import Broker, Group
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.loop import Process, VirtualLoop
from sandbox.simulation.engine.network import Connection, ProcessFaults, run_server_task
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.limits import MemoryLimits, Quotas
from sandbox.simulation.memory.projector import READER as PROJECTIONS
from sandbox.simulation.memory.projector import Projection
from sandbox.simulation.memory.rows import Credential, ItemQuarantine
from sandbox.simulation.memory.store import MemoryStore
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.real import DatabaseClient, RealDatabase, RealLimits, RealStore, request_sync, worker_settings
from sandbox.simulation.trace import Trace
from sandbox.simulator.api.limits import Limit as PlaidLimit
from sandbox.simulator.api.limits import RateLimiter
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.inprocess import InProcessPlaid
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from schemas.log.changesets import RECORD_BYTES_MAX, UserKeys, user_keys
from schemas.log.records import Cause
from schemas.topics import user_key
from streams.ports import MARKER

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
PARTITIONS = 3
FAILURES_MAX = 3


class VirtualClock:
    """Return the loop's time as a datetime."""

    def now(self) -> datetime:
        """Return the current time."""
        return START + timedelta(seconds=asyncio.get_running_loop().time())


IS_LATE: ContextVar[bool] = ContextVar("late", default=False)
"""True for a request whose process was frozen between taking its token and sending it."""


class CountingRateLimiter(RateLimiter):
    """Plaid's own limiter, and a second one that counts only requests in time.

    `refused`: requests that are over the limit even without the late ones, which may cause other refusals.
    """

    def __init__(self, limits: dict[str, PlaidLimit]) -> None:
        super().__init__(limits)
        self._in_time = RateLimiter(limits)
        self.refused: list[str] = []

    def count(self, endpoint: str, item_id: str | None, now: datetime) -> None:
        """Count a request. Raises: PlaidFailure, where it is over a limit."""
        if not IS_LATE.get():
            try:
                self._in_time.count(endpoint, item_id, now)
            except PlaidFailure:
                self.refused.append(f"{endpoint} of {item_id} at {now:%X}")
        super().count(endpoint, item_id, now)


class Installation:
    """One simulated installation. `failures`: violations that no fault explains."""

    def __init__(self, rng: random.Random, options: Options, trace: Trace, limits: Mapping[str, Limit]) -> None:
        self.trace = trace
        self.clock = VirtualClock()
        self.faults = ProcessFaults()
        self.failures: list[str] = []
        self.is_scheduling = True
        # In some runs records are so small that an update is cut into chunks.
        self.record_bytes_max = rng.choice((RECORD_BYTES_MAX, RECORD_BYTES_MAX, 2_500))
        self.broker = Broker(random.Random(rng.random()), self.faults, partitions=PARTITIONS)
        self.tables = Tables(self.now, random.Random(rng.random()))
        self.database = Database(self.tables, random.Random(rng.random()), self.faults)
        self.quotas = Quotas(self.tables, limits, failures_max=FAILURES_MAX)
        self.tables.is_failing = self.quotas.is_failing
        self.simulated_plaid = SimulatedPlaid(options, self.clock)
        self.rate_limiter = self.simulated_plaid.rate_limiter = CountingRateLimiter(
            {f"/{path}": PlaidLimit(*limit, "RATE_LIMIT") for path, limit in limits.items()}
        )
        slow_s = rng.choice((0.02, 1.0, 4.0))
        latency = random.Random(rng.random())
        self.plaid = InProcessPlaid(
            self.simulated_plaid, sleep=asyncio.sleep, latency=lambda path: latency.random() * slow_s
        )
        self.monitor = LeaseMonitor(self.now, self.failures, trace)
        self._names: dict[int, tuple[str, str]] = {}
        self.unreadable: set[int] = set()
        self._partitions: dict[str, int] = {}
        self.projection = Projection(self.owners, on_quarantined=self._store_quarantine)
        self.groups = {
            MARKER: Group(self.broker.topic("webhooks"), random.Random(rng.random())),
            FOLLOWER: Group(self.broker.topic("changesets"), random.Random(rng.random())),
            "projections": Group(self.broker.topic("changesets"), random.Random(rng.random())),
        }
        self._real: RealDatabase | None = None

    async def open_database(self, dsn: str) -> None:
        """Keep the scheduler's tables in this database instead of in memory."""
        self._pool = await cast(VirtualLoop, asyncio.get_running_loop()).real(postgres.open_pool(dsn))
        self._real = RealDatabase(cast(asyncpg.Pool, postgres.TimedPool(self._pool, self.now)))

    async def close(self) -> None:
        """Close the connections of the database."""
        if self._real is not None:
            self._pool.terminate()

    def create_ports(
        self, connection: Connection, *, lease_s: float
    ) -> tuple[MemoryStore | RealStore, MemoryLimits | RealLimits]:
        """Create one process's ports of the scheduler and of the quotas."""
        name, limits = connection.process.name, self.quotas.limits
        if self._real is not None:
            settings = worker_settings(name, lease_s, limits, FAILURES_MAX)
            client = DatabaseClient(self._real, self.database, connection, settings)
            return RealStore(client, self.monitor), RealLimits(client, limits)
        store = MemoryStore(
            self.database, connection, self.monitor, lease_s=lease_s, holder=name, limit=limits.get(SYNC)
        )
        return store, MemoryLimits(self.quotas, self.database, connection)

    async def load_tables(self) -> Tables:
        """Return the scheduler's tables as they are now, to read only."""
        real = self._real
        if real is None:
            return self.tables

        async def read() -> Tables:
            async with real.pool.acquire() as connection:
                return await postgres.load_tables(cast(asyncpg.Connection, connection), self.now)

        return await real.execute(read)

    def request_sync(self, item_id: str, lane: Lane, *, refresh: bool = False) -> None:
        """Request a sync, or with the lane WEBHOOK an unlink, as the gateway does for a user."""
        is_unlink = lane is Lane.WEBHOOK
        cause = Cause("unlink" if is_unlink else "manual")
        self._execute(
            lambda: self.tables.mark_item(item_id, lane, cause, unlink=is_unlink, refresh=refresh),
            lambda connection: request_sync(connection, item_id, lane, refresh=refresh),
        )

    def _execute(self, memory: Callable[[], object], real: Callable[[asyncpg.Connection], Awaitable[object]]) -> None:
        """Write as the gateway or the projections do: to the tables in memory, or in a real transaction."""
        if self._real is None:
            memory()
            return
        database = self._real

        async def write() -> object:
            async with database.pool.acquire() as connection, connection.transaction():
                return await real(cast(asyncpg.Connection, connection))

        async def serve() -> None:
            try:
                await database.execute(write)
            except Exception as error:  # noqa: BLE001 - reported with the run's other failures
                self.failures.append(f"the gateway failed: {error!r}")

        run_server_task(serve())

    def now(self) -> datetime:
        """Return the current time."""
        return self.clock.now()

    def link(self, item: Item, *, tenant: str) -> None:
        """Register an Item, as the gateway does after Link."""
        user = user_number(item.user)
        self._names[user] = (tenant, item.user)
        institution = item.institution
        credential = Credential(tenant, user, institution.institution_id, institution.name, item.access_token)
        partition = partition_of(user_key(user), PARTITIONS)
        self._partitions[item.item_id] = partition
        self._execute(
            lambda: self.tables.register(item.item_id, credential, partition=partition, keys=keys_of(user)),
            lambda connection: self._register(connection, item, user, credential),
        )
        self.monitor.register_token(item.access_token, item.item_id)

    async def _register(self, connection: asyncpg.Connection, item: Item, user: int, credential: Credential) -> None:
        assert self._real is not None
        vault = self._real.vault
        wrapped = vault.wrap_data_key(data_key_of(user), user=user, generation=1)
        await connection.execute(_USER, user, credential.tenant, item.user)
        await connection.execute(_KEY, user, wrapped)
        await enqueue.register_item(
            connection,
            vault,
            item_id=item.item_id,
            tenant=credential.tenant,
            user_number=user,
            access_token=item.access_token,
            institution_id=credential.institution_id,
            institution_name=credential.institution_name,
            partitions=PARTITIONS,
        )

    def owners(self, users: Collection[int]) -> Owners:
        """Return keys and names of users, except of those whose records are unreadable now."""
        known = [user for user in sorted(users) if user in self._names and user not in self.unreadable]
        return Owners({user: keys_of(user) for user in known}, {user: self._names[user] for user in known})

    def _store_quarantine(self, item_id: str, span: QuarantineSpan, reason: str) -> None:
        """Store that the projections quarantined or redrove an Item: claims read it."""
        is_open = span.redrive is None
        self.faults.counts["item_quarantined" if is_open else "item_redriven"] += 1
        self.trace.note(f"{item_id} is {'quarantined' if is_open else 'redriven'} at {span}: {reason}")
        row = ItemQuarantine(self._partitions[item_id], reason, PROJECTIONS, span.redrive)
        values = (item_id, span.first, row.partition, row.reason, row.reader, row.redrive_offset)
        self._execute(
            lambda: self.tables.quarantines.update({(item_id, span.first): row}),
            lambda connection: connection.execute(_QUARANTINE, *values),
        )

    def check_task(self, process: Process, task: "asyncio.Task[Any]") -> None:
        """Record the failure of an ended task, unless its process is dead."""
        if not (task.cancelled() or process.dead):
            self.failures.append(f"process ended: {task.get_name()}: {task.exception()!r}")


def user_number(user_id: str) -> int:
    """Return the number of a user, derived from the name; real ones are random."""
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "big") >> 1


def keys_of(user: int) -> UserKeys:
    """Return a user's keys, derived from the number; real ones are random."""
    return user_keys(data_key_of(user), 1)


def data_key_of(user: int) -> bytes:
    """Return a user's data key."""
    return blake2b(user.to_bytes(8, "big"), digest_size=32).digest()


_USER = "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_QUARANTINE = """
    INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader, redrive_offset, quarantined_at)
    VALUES ($1, $2, $3, $4, $5, $6, tartan.clock())
    ON CONFLICT (item_id, first_offset) DO UPDATE SET redrive_offset = excluded.redrive_offset"""
_KEY = """
    INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, $2, 'active')
    ON CONFLICT DO NOTHING"""
