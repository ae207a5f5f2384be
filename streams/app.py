"""The stage's composition root: everything made, connected, watched, and taken down in order. Shell."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg
import faust

from runtime.kafka import faust_app, topics
from runtime.kafka.clients import Appender, LogEnds, Outgoing
from runtime.kafka.continuity import LogContinuity
from runtime.lifecycle import Running
from runtime.plaid.client import Plaid
from runtime.postgres.instance_lock import alone
from runtime.postgres.pool import open_pool
from runtime.retry import insist
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Claimed
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from schemas.errors import Halt
from schemas.log.changesets import NONCE_BYTES
from schemas.topics import CHANGESETS, WEBHOOKS, full_name
from streams.alerts import sender
from streams.dispatcher import Dispatcher
from streams.fetch_deltas import FetchDeltas
from streams.follow_heads import FollowHeads
from streams.limits.postgres_limits import PostgresLimits, run_probes
from streams.mark_due import MarkDue
from streams.ports import MARKER, SyncContext
from streams.schedule import notify, scheduler
from streams.storage import consumer_transactions
from streams.storage.store import PostgresStore
from streams.webhooks import sweep
from streams.webhooks.consumer_lag import on_webhooks

STAGE = "streams"
DRAIN_S = 30.0
"""Longest wait at a stop for passes under way; half of what the process may take."""
POOL_SPARE = 9
"""Connections beyond one a pass: two agents, the claimer, the schedule, renewals, probes, the sweep, two of alerts."""
WEBHOOKS_A_BATCH_MAX = 500
"""Marks in one transaction: about 20 ms, which is what a webhook behind them waits at most."""
BATCH_BYTES_MAX = 16 * 1024 * 1024


class ChangesetLog:
    """The topic `changesets`, through Kafka."""

    def __init__(self, appender: Appender, ends: LogEnds, topic: str) -> None:
        self._appender = appender
        self._ends = ends
        self._topic = topic

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and give its offset. Raises: InDoubt, Retry."""
        appended = await self._appender.append(self._topic, Outgoing(key, value), partition=partition)
        return appended.offset

    async def end(self, partition: int) -> int:
        """The next offset of a partition. Raises: Retry."""
        return (await self._ends.ends(self._topic, [partition]))[partition].end


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Run the stage for a block. Raises: Halt, Retry, where it cannot start."""
    async with AsyncExitStack() as stack:
        await topics.verify(settings)
        lock = await stack.enter_async_context(alone(settings, STAGE))
        parts = await _Parts.opened(settings, stack)
        # The lock says that the process before this one is dead; what it appended is read before its Items go on.
        await insist(parts.store.inherit, what="inherit")
        tasks = [lock, *await _started(parts, stack)]
        ended = asyncio.ensure_future(_first_end(tasks))
        try:
            yield Running(STAGE, parts.not_ready, ended)
        finally:
            # Where an agent crashed, what it holds would never end, and nobody is left to acknowledge what was read.
            if ended.done():
                parts.app.conf.stream_wait_empty = False
            timeout_s = 0.0 if ended.done() else DRAIN_S
            ended.cancel()
            await parts.dispatcher.drain(timeout_s=timeout_s)


class _Parts:
    """What the stage is made of."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, plaid: Plaid, appender: Appender, ends: LogEnds) -> None:
        self.settings = settings
        self.pool = pool
        self.plaid, self.ends = plaid, ends
        self.vault = Vault(settings.master_key())
        self.keyring = Keyring(self.vault)
        self.changesets = full_name(CHANGESETS, settings.topic_prefix)
        self.webhooks = full_name(WEBHOOKS, settings.topic_prefix)
        self.store = PostgresStore(pool, self.keyring, self.vault, settings)
        self.limits = PostgresLimits(pool, settings, on_ready=lambda: self.dispatcher.wake())
        world = SyncContext(
            bank=plaid,
            log=ChangesetLog(appender, ends, self.changesets),
            store=self.store,
            clock=lambda: datetime.now(UTC),
            sleep=asyncio.sleep,
            random=random.random,
            nonce=lambda: os.urandom(NONCE_BYTES),
            accounts_interval_s=settings.accounts_interval_s,
            days_requested=settings.days_requested,
            removals_share_max=settings.removals_share_max,
            record_bytes_max=settings.record_bytes_max,
            limits=self.limits,
        )
        self.fetcher = FetchDeltas(world, lease_s=settings.lease_s)
        self.witnesses = {
            self.webhooks: self._continuity(ends, self.webhooks, MARKER),
            self.changesets: self._continuity(ends, self.changesets, FOLLOWER),
        }
        self.app = faust_app.build(settings, name=STAGE, positions=self._positions)
        due = self.app.channel(maxsize=settings.fetch_concurrency)
        self.dispatcher = Dispatcher(
            self.store,
            lambda claimed: due.send(value=claimed),
            slots=settings.fetch_concurrency,
            poll_s=settings.claim_poll_s,
        )
        self.app.agent(due, name="fetch_deltas", concurrency=settings.fetch_concurrency)(self._fetch)
        self.marker, self.follower = self._agents(self.app)

    @classmethod
    async def opened(cls, settings: Settings, stack: AsyncExitStack) -> "_Parts":
        """Connect to everything. Raises: Halt, Retry."""
        size = max(settings.postgres_pool_size, settings.fetch_concurrency + POOL_SPARE)
        pool = await open_pool(settings, stage=STAGE, size=size)
        stack.push_async_callback(pool.close)
        plaid = Plaid(settings)
        stack.push_async_callback(plaid.close)
        appender, ends = Appender(settings, client=STAGE), LogEnds(settings)
        for connected in (appender, ends):
            await connected.start()
            stack.push_async_callback(connected.stop)
        return cls(settings, pool, plaid, appender, ends)

    def not_ready(self) -> list[str]:
        """Why this process does no work now."""
        reasons = [f"Postgres is away: {self.dispatcher.away}"] if self.dispatcher.away else []
        # An instance to which no partition is assigned is ready all the same: it fetches.
        if not self.app.started or self.app.rebalancing:
            reasons.append("partitions are being assigned")
        return reasons

    def _agents(self, app: faust.App) -> tuple[MarkDue, FollowHeads]:
        webhooks = faust_app.reader(
            app, self.webhooks, agent=MARKER, records_max=WEBHOOKS_A_BATCH_MAX, bytes_max=BATCH_BYTES_MAX
        )
        changesets = faust_app.reader(
            app,
            self.changesets,
            agent=FOLLOWER,
            records_max=self.settings.batch_records_max,
            bytes_max=self.settings.batch_bytes_max,
        )
        self.readers = {self.webhooks: webhooks, self.changesets: changesets}
        return (
            MarkDue(webhooks, partial(consumer_transactions.marking, self.pool), on_commit=self.dispatcher.wake),
            FollowHeads(
                changesets,
                partial(consumer_transactions.following, self.pool),
                on_commit=self.dispatcher.wake_for_new_heads,
                on_erased=self.keyring.forget,
            ),
        )

    def _continuity(self, ends: LogEnds, topic: str, reader: str) -> LogContinuity:
        return LogContinuity(
            ends, topic=topic, reader=reader, load=partial(consumer_transactions.load_positions, self.pool, reader)
        )

    async def _positions(self, wanted: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Where to begin in each partition, after a look whether the log is the one that was read."""
        found: dict[tuple[str, int], int] = {}
        for topic, continuity in self.witnesses.items():
            numbers = [number for name, number in wanted if name == topic]
            starts = await continuity.starts(numbers) if numbers else {}
            found |= {(topic, number): position for number, position in starts.items()}
        return found

    async def _fetch(self, due: Any) -> None:
        claimed: Claimed
        async for claimed in due:
            try:
                await self.fetcher.fetch(claimed, claimed_at=self.dispatcher.claimed_at(claimed))
            finally:
                self.dispatcher.done(claimed)


async def _started(parts: _Parts, stack: AsyncExitStack) -> list["asyncio.Task[None]"]:
    """Start the stream engine and what feeds and watches it.

    At a stop the engine ends first: it waits until the agents' bodies have dealt with what it has read.
    """
    tasks: list[asyncio.Task[None]] = []
    stack.push_async_callback(_cancelled, tasks)
    engine = await stack.enter_async_context(faust_app.running(parts.app))
    works: dict[str, Coroutine[Any, Any, None]] = {
        "mark_due": parts.marker.run(),
        "follow_heads": parts.follower.run(),
        "claimer": parts.dispatcher.run(),
        "schedule": scheduler.run(parts.pool, parts.settings, on_marked=parts.dispatcher.wake),
        "probes": run_probes(parts.pool, parts.settings, parts.dispatcher.wake),
        "sweep": sweep.run(
            parts.pool,
            parts.plaid,
            parts.vault.open_token,
            parts.limits,
            parts.settings,
            parts.dispatcher.wake,
            is_read=on_webhooks(parts.pool, parts.ends, parts.webhooks, parts.settings.partitions),
        ),
        "alerts": sender.run(parts.pool, parts.settings),
        "due_channel": notify.listen(parts.settings, on_due=parts.dispatcher.wake),
    }
    for topic, continuity in parts.witnesses.items():
        works[f"continuity of {topic}"] = continuity.watch(
            partial(faust_app.assigned, parts.app, topic), unacknowledged=parts.readers[topic].unacknowledged
        )
    tasks += [asyncio.create_task(work, name=name) for name, work in works.items()]
    return [engine, *tasks]


async def _cancelled(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _first_end(tasks: list["asyncio.Task[None]"]) -> None:
    """Wait for the first task that ends; none of them does by itself. Raises: its error, or Halt."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        await task
        raise Halt(f"{task.get_name()} ended by itself")
