"""The streams stage's ports of the database twice: in memory and on a real Postgres, at one virtual time."""

import random
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg

from runtime.kafka.reader import Position
from runtime.plaid_limits import Limit
from runtime.scheduler import breakers, enqueue
from runtime.scheduler.types import Lane
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from sandbox.simulation.engine.installation import keys_of
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Connection, ProcessFaults
from sandbox.simulation.engine.postgres import TimedPool
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.limits import MemoryLimits, Quotas
from sandbox.simulation.memory.rows import Credential
from sandbox.simulation.memory.store import MemoryStore
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.trace import Trace
from schemas.log.records import Cause
from streams.limits.postgres_limits import PostgresLimits
from streams.ports import Following, Limits, Marking, Store
from streams.schedule.fair_queue import FairQueue
from streams.storage import consumer_transactions
from streams.storage.store import PostgresStore

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
LEASE_S = 30.0
LIMITS = "production,transactions/sync=6/40"
SYNC_LIMIT = Limit(6, 40)
PARTITIONS = 1
USER = 4711


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class Side:
    """One implementation of the ports, and what the gateway and the follower do to it."""

    clock: Clock
    store: Store
    limits: Limits
    marking: Callable[[Collection[int]], AbstractAsyncContextManager[Marking]]
    following: Callable[[Collection[int]], AbstractAsyncContextManager[Following]]
    probe: Callable[[], Any]
    register: Callable[[str, str, str], Any]
    ask: Callable[[str, Lane, bool], Any]
    read: Callable[[int], Any]
    row: Callable[[str], Any]


def memory(*, metered: bool) -> Side:
    """The ports in memory."""
    clock = Clock()
    tables = Tables(clock.now, random.Random(1))
    faults = ProcessFaults()
    database = Database(tables, random.Random(2), faults)
    connection = Connection(Process("w1"), random.Random(3), faults)
    monitor = LeaseMonitor(clock.now, [], Trace(shown=False))
    limits = {"transactions/sync": SYNC_LIMIT} if metered else {}
    quotas = Quotas(tables, limits, failures_max=3)
    tables.is_failing = quotas.is_failing
    store = MemoryStore(
        database, connection, monitor, lease_s=LEASE_S, holder="w1", limit=SYNC_LIMIT if metered else None
    )

    async def register(item_id: str, tenant: str, bank: str) -> None:
        tables.register(item_id, Credential(tenant, USER, bank, bank, item_id), partition=0, keys=keys_of(USER))

    async def ask(item_id: str, lane: Lane, unlink: bool) -> None:
        kind = "unlink" if unlink else "manual"
        tables.mark_item(item_id, Lane.WEBHOOK if unlink else lane, Cause(kind), unlink=unlink)

    async def read(position: int) -> None:
        tables.advance("follow_heads", {0: Position(position)})

    async def row(item_id: str) -> dict[str, Any]:
        found = tables.rows[item_id]
        return {name: getattr(found, name) for name in SHOWN}

    bounds = MemoryLimits(quotas, database, connection)
    return Side(clock, store, bounds, store.marking, store.following, bounds.probe, register, ask, read, row)


def postgres(pool: asyncpg.Pool, *, metered: bool) -> Side:
    """The ports on Postgres."""
    clock = Clock()
    timed = cast(asyncpg.Pool, TimedPool(pool, clock.now))
    vault = Vault(bytes(32))
    settings = Settings(lease_s=LEASE_S, instance_id="w1", plaid_limits=LIMITS if metered else "off")
    store = PostgresStore(timed, Keyring(vault), vault, settings, FairQueue(settings.weights()))

    async def register(item_id: str, tenant: str, bank: str) -> None:
        async with timed.acquire() as connection:
            await enqueue.register_item(
                connection,
                vault,
                item_id=item_id,
                tenant=tenant,
                user_number=USER,
                access_token=item_id,
                institution_id=bank,
                institution_name=bank,
                partitions=PARTITIONS,
            )

    async def ask(item_id: str, lane: Lane, unlink: bool) -> None:
        async with timed.acquire() as connection:
            if unlink:
                await enqueue.request_unlink(connection, item_id)
            else:
                await enqueue.mark_manual(connection, item_id)

    async def read(position: int) -> None:
        await pool.execute(
            "INSERT INTO tartan.positions (reader, partition, position) VALUES ('follow_heads', 0, $1) "
            "ON CONFLICT (reader, partition) DO UPDATE SET position = excluded.position",
            position,
        )

    async def row(item_id: str) -> dict[str, Any]:
        [found] = await pool.fetch("SELECT * FROM tartan.sync_state WHERE item_id = $1", item_id)
        return {name: found[name] for name in SHOWN}

    async def probe() -> int:
        async with timed.acquire() as connection:
            return await breakers.probe(cast(asyncpg.Connection, connection))

    marking = cast(Any, lambda partitions: consumer_transactions.marking(timed, partitions))
    following = cast(Any, lambda partitions: consumer_transactions.following(timed, partitions))
    bounds = PostgresLimits(timed, settings, jitter=lambda: 0.0)
    return Side(clock, store, bounds, marking, following, probe, register, ask, read, row)


SHOWN = (
    "generation",
    "done_generation",
    "lane",
    "due_at",
    "not_before",
    "lease_until",
    "wait_offset",
    "unlink_requested",
    "accounts_wanted",
    "accounts_at",
    "last_synced_at",
    "last_webhook_at",
    "stopped",
    "attempts",
    "not_ready",
    "history_incomplete",
)
"""Columns of `sync_state` that both must have alike."""
