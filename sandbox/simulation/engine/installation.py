"""All that the processes of one simulated installation share: servers, Plaid, groups, and who looks on."""

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
from sandbox.simulation.engine.network import Connection, ProcessFaults, serve
from sandbox.simulation.memory.limits import MemoryLimits, Quotas
from sandbox.simulation.memory.projector import READER as PROJECTIONS
from sandbox.simulation.memory.projector import Projection
from sandbox.simulation.memory.rows import Credential, ItemQuarantine
from sandbox.simulation.memory.store import Database, MemoryStore
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.real import Parts, Real, RealLimits, RealStore, ask_for, settings_of
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
    """The loop's time as a moment."""

    def now(self) -> datetime:
        """The present moment."""
        return START + timedelta(seconds=asyncio.get_running_loop().time())


LATE: ContextVar[bool] = ContextVar("late", default=False)
"""Whether a request was held up between its token and its way to Plaid, because its process stood still."""


class Counting(RateLimiter):
    """Plaid's own counters, and beside them the same without the requests that were held up.

    `refused`: requests in time that are too many even so. A late one may be too many, and make another one too many.
    """

    def __init__(self, limits: dict[str, PlaidLimit]) -> None:
        super().__init__(limits)
        self._in_time = RateLimiter(limits)
        self.refused: list[str] = []

    def count(self, endpoint: str, item_id: str | None, now: datetime) -> None:
        """Count a request. Raises: PlaidFailure, where it is one too many."""
        if not LATE.get():
            try:
                self._in_time.count(endpoint, item_id, now)
            except PlaidFailure:
                self.refused.append(f"{endpoint} of {item_id} at {now:%X}")
        super().count(endpoint, item_id, now)


class Installation:
    """See the module. `failures` are what went wrong that no fault explains."""

    def __init__(self, rng: random.Random, options: Options, trace: Trace, limits: Mapping[str, Limit]) -> None:
        self.trace = trace
        self.clock = VirtualClock()
        self.hazards = ProcessFaults()
        self.failures: list[str] = []
        self.is_scheduling = True
        # In some runs records are so small that an update becomes parts.
        self.record_bytes_max = rng.choice((RECORD_BYTES_MAX, RECORD_BYTES_MAX, 2_500))
        self.broker = Broker(random.Random(rng.random()), self.hazards, partitions=PARTITIONS)
        self.tables = Tables(self.now, random.Random(rng.random()))
        self.database = Database(self.tables, random.Random(rng.random()), self.hazards)
        self.quotas = Quotas(self.tables, limits, failures_max=FAILURES_MAX)
        self.tables.is_failing = self.quotas.is_failing
        self.plaid_world = SimulatedPlaid(options, self.clock)
        self.counting = self.plaid_world.rate_limiter = Counting(
            {f"/{path}": PlaidLimit(*limit, "RATE_LIMIT") for path, limit in limits.items()}
        )
        slow_s = rng.choice((0.02, 1.0, 4.0))
        latency = random.Random(rng.random())
        self.plaid = InProcessPlaid(
            self.plaid_world, sleep=asyncio.sleep, latency=lambda path: latency.random() * slow_s
        )
        self.monitor = LeaseMonitor(self.now, self.failures, trace)
        self._names: dict[int, tuple[str, str]] = {}
        self.unreadable: set[int] = set()
        self._partitions: dict[str, int] = {}
        self.projection = Projection(self.owners, on_quarantined=self._quarantined)
        self.groups = {
            MARKER: Group(self.broker.topic("webhooks"), random.Random(rng.random())),
            FOLLOWER: Group(self.broker.topic("changesets"), random.Random(rng.random())),
            "projections": Group(self.broker.topic("changesets"), random.Random(rng.random())),
        }
        self.on_end = self._unexpected
        self._real: Real | None = None

    async def open(self, dsn: str) -> None:
        """Keep the scheduler's tables in this database instead of in memory."""
        virtual = cast(VirtualLoop, asyncio.get_running_loop())
        self._pool = await virtual.real(postgres.opened(dsn))
        self._real = Real(cast(asyncpg.Pool, postgres.TimedPool(self._pool, self.now)))

    async def close(self) -> None:
        """Let go of the database."""
        if self._real is not None:
            self._pool.terminate()

    def ports(self, wire: Connection, *, lease_s: float) -> tuple[MemoryStore, MemoryLimits]:
        """One process's way to the scheduler and to the quotas."""
        name, limits = wire.process.name, self.quotas.limits
        if self._real is not None:
            settings = settings_of(name, lease_s, limits, FAILURES_MAX)
            parts = Parts(self._real, self.database, wire, self.monitor, settings)
            return RealStore(parts), RealLimits(parts, limits)
        store = MemoryStore(self.database, wire, self.monitor, lease_s=lease_s, holder=name, limit=limits.get(SYNC))
        return store, MemoryLimits(self.quotas, self.database, wire)

    async def seen(self) -> Tables:
        """The scheduler's tables as they are now; not to be written to."""
        real = self._real
        if real is None:
            return self.tables

        async def read() -> Tables:
            async with real.pool.acquire() as connection:
                return await postgres.seen(cast(asyncpg.Connection, connection), self.now)

        return await real.do(read)

    def ask(self, item_id: str, lane: Lane, *, refresh: bool = False) -> None:
        """Do what the gateway does when a user asks for a sync, or, in the lane of webhooks, for an unlink."""
        unlink = lane is Lane.WEBHOOK
        cause = Cause("unlink" if unlink else "manual")
        self._do(
            lambda: self.tables.mark_one(item_id, lane, cause, unlink=unlink, refresh=refresh),
            lambda connection: ask_for(connection, item_id, lane, refresh=refresh),
        )

    def _do(self, memory: Callable[[], object], real: Callable[[asyncpg.Connection], Awaitable[object]]) -> None:
        if self._real is None:
            memory()
            return
        database = self._real

        async def done() -> object:
            async with database.pool.acquire() as connection, connection.transaction():
                return await real(cast(asyncpg.Connection, connection))

        async def served() -> None:
            try:
                await database.do(done)
            except Exception as error:  # noqa: BLE001 - told with the run's other failures
                self.failures.append(f"the gateway failed: {error!r}")

        serve(asyncio.get_running_loop(), served())

    def now(self) -> datetime:
        """The present moment."""
        return self.clock.now()

    def link(self, item: Item, *, tenant: str) -> None:
        """Do what the gateway does after Link."""
        user = user_number(item.user)
        self._names[user] = (tenant, item.user)
        institution = item.institution
        credential = Credential(tenant, user, institution.institution_id, institution.name, item.access_token)
        partition = partition_of(user_key(user), PARTITIONS)
        self._partitions[item.item_id] = partition
        self._do(
            lambda: self.tables.register(item.item_id, credential, partition=partition, keys=keys_of(user)),
            lambda connection: self._registered(connection, item, user, credential),
        )
        self.monitor.knows(item.access_token, item.item_id)

    async def _registered(self, connection: asyncpg.Connection, item: Item, user: int, credential: Credential) -> None:
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
        """Keys and names of users, but of those whose records the projections cannot read now."""
        known = [user for user in sorted(users) if user in self._names and user not in self.unreadable]
        return Owners({user: keys_of(user) for user in known}, {user: self._names[user] for user in known})

    def _quarantined(self, item_id: str, quarantined: QuarantineSpan, reason: str) -> None:
        """The projections set an Item aside or freed it: claims look at that."""
        is_open = quarantined.redrive is None
        self.hazards.counts["item_quarantined" if is_open else "item_redriven"] += 1
        self.trace.note(f"{item_id} is {'quarantined' if is_open else 'redriven'} at {quarantined}: {reason}")
        item_quarantine = ItemQuarantine(self._partitions[item_id], reason, PROJECTIONS, quarantined.redrive)
        key = (item_id, quarantined.first)
        self._do(
            lambda: self.tables.quarantines.update({key: item_quarantine}),
            lambda connection: connection.execute(
                _QUARANTINE,
                *key,
                item_quarantine.partition,
                item_quarantine.reason,
                item_quarantine.reader,
                item_quarantine.redrive_offset,
            ),
        )

    def ended(self, process: Process, task: "asyncio.Task[Any]") -> None:
        """A task of a process ended: an error is told and ends the process."""
        if task.cancelled() or process.dead:
            return
        error = task.exception()
        self.on_end(process, f"{task.get_name()}: {error!r}")

    def _unexpected(self, process: Process, why: str) -> None:
        self.failures.append(f"process ended: {why}")


def user_number(user_id: str) -> int:
    """The number of a user: from the name, where the real one is random."""
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "big") >> 1


def keys_of(user: int) -> UserKeys:
    """A user's keys: from the number, where the real ones are random."""
    return user_keys(data_key_of(user), 1)


def data_key_of(user: int) -> bytes:
    """A user's data key."""
    return blake2b(user.to_bytes(8, "big"), digest_size=32).digest()


_USER = "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_QUARANTINE = """
    INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader, redrive_offset, quarantined_at)
    VALUES ($1, $2, $3, $4, $5, $6, tartan.clock())
    ON CONFLICT (item_id, first_offset) DO UPDATE SET redrive_offset = excluded.redrive_offset"""
_KEY = """
    INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, $2, 'active')
    ON CONFLICT DO NOTHING"""
