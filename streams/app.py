"""Compose the stage `streams`: connect it, start its agents and background tasks, and stop them in order. Shell.

The way of one webhook through this stage:

1. `mark_due` reads the topic `webhooks` and makes the Item due in Postgres.
2. `dispatcher` claims due Items, in fair order and as many as there are free slots.
3. `fetch_deltas` makes one sync run for each claimed Item: it reads Plaid's update and appends it to `changesets`.
4. `follow_heads` reads `changesets`, applies the gate and writes the head from which the Item's next sync run begins.

Beside them `schedule` and `sweep` make Items due by time and for missed webhooks, `probes` retries banks after an
outage, `listen` wakes the dispatcher for other processes' marks, and `alerts` sends incidents to the operators.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg

from runtime.kafka import faust_app, topics
from runtime.kafka.clients import Appender, LogEnds, Outgoing
from runtime.kafka.continuity import LogContinuity
from runtime.lifecycle import Running
from runtime.plaid.client import Plaid
from runtime.postgres.instance_lock import alone
from runtime.postgres.pool import open_pool
from runtime.retry import retry_until_done
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
from streams.schedule import scheduler
from streams.schedule.fair_queue import FairQueue
from streams.storage import consumer_transactions
from streams.storage.store import PostgresStore
from streams.webhooks import sweep
from streams.webhooks.consumer_lag import on_webhooks

STAGE = "streams"
DRAIN_S = 30.0
"""Longest wait at a stop for sync runs under way; half of the time that the process may take to stop."""
POOL_SPARE = 9
"""Connections beyond one a sync run: two agents, the dispatcher, the schedule, renewals, probes, the sweep, two of
alerts."""
WEBHOOKS_A_BATCH_MAX = 500
"""Marks in one transaction: about 20 ms, the longest that a webhook behind them waits."""
BATCH_BYTES_MAX = 16 * 1024 * 1024


class ChangesetLog:
    """The topic `changesets` in Kafka."""

    def __init__(self, appender: Appender, ends: LogEnds, topic: str) -> None:
        self._appender = appender
        self._ends = ends
        self._topic = topic

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and return its offset. Raises: InDoubt, Retry."""
        appended = await self._appender.append(self._topic, Outgoing(key, value), partition=partition)
        return appended.offset

    async def end(self, partition: int) -> int:
        """Return the next offset of a partition. Raises: Retry."""
        return (await self._ends.ends(self._topic, [partition]))[partition].end


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Run the stage for a block. Raises: Halt, Retry, where it cannot start."""
    async with AsyncExitStack() as stack:
        await topics.verify(settings)
        lock = await stack.enter_async_context(alone(settings, STAGE))
        parts = await _Parts.connect(settings, stack)
        # The lock proves that the process before this one is dead; the Items that it held wait until its appends are
        # read.
        await retry_until_done(parts.store.expire_inherited, action="inherit")
        tasks = [lock, *await _start(parts, stack)]
        ended = asyncio.ensure_future(_first_end(tasks))
        try:
            yield Running(STAGE, parts.not_ready, ended)
        finally:
            # After an agent crashed, its stream would never become empty: no task is left to acknowledge its records.
            if ended.done():
                parts.app.conf.stream_wait_empty = False
            timeout_s = 0.0 if ended.done() else DRAIN_S
            ended.cancel()
            await parts.dispatcher.drain(timeout_s=timeout_s)


class _Parts:
    """The connected parts of the stage."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, plaid: Plaid, appender: Appender, ends: LogEnds) -> None:
        self.settings, self.pool, self.plaid, self.ends = settings, pool, plaid, ends
        self.vault = Vault(settings.master_key())
        self.keyring = Keyring(self.vault)
        self.changesets = full_name(CHANGESETS, settings.topic_prefix)
        self.webhooks = full_name(WEBHOOKS, settings.topic_prefix)
        self.continuity = {
            topic: LogContinuity(
                ends, topic=topic, reader=reader, load=partial(consumer_transactions.load_positions, pool, reader)
            )
            for topic, reader in ((self.webhooks, MARKER), (self.changesets, FOLLOWER))
        }
        self.store = PostgresStore(pool, self.keyring, self.vault, settings, FairQueue(settings.weights()))
        self.limits = PostgresLimits(pool, settings, on_ready=lambda: self.dispatcher.wake())
        self.fetch_deltas = FetchDeltas(
            SyncContext(
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
            ),
            lease_s=settings.lease_s,
        )
        self.app = faust_app.build(settings, name=STAGE, positions=self._positions)
        due = self.app.channel(maxsize=settings.fetch_concurrency)
        self.app.agent(due, name="fetch_deltas", concurrency=settings.fetch_concurrency)(self._fetch)
        self.dispatcher = Dispatcher(
            self.store,
            lambda claimed: due.send(value=claimed),
            slots=settings.fetch_concurrency,
            poll_s=settings.claim_poll_s,
        )
        webhooks = faust_app.reader(
            self.app, self.webhooks, agent=MARKER, records_max=WEBHOOKS_A_BATCH_MAX, bytes_max=BATCH_BYTES_MAX
        )
        changesets = faust_app.reader(
            self.app,
            self.changesets,
            agent=FOLLOWER,
            records_max=settings.batch_records_max,
            bytes_max=settings.batch_bytes_max,
        )
        self.readers = {self.webhooks: webhooks, self.changesets: changesets}
        self.mark_due = MarkDue(webhooks, partial(consumer_transactions.marking, pool), on_commit=self.dispatcher.wake)
        self.follow_heads = FollowHeads(
            changesets,
            partial(consumer_transactions.following, pool),
            on_commit=self.dispatcher.wake_for_new_heads,
            on_erased=self.keyring.forget,
        )

    @classmethod
    async def connect(cls, settings: Settings, stack: AsyncExitStack) -> "_Parts":
        """Connect to Postgres, Plaid and Kafka. Raises: Halt, Retry."""
        size = max(settings.postgres_pool_size, settings.fetch_concurrency + POOL_SPARE)
        pool = await open_pool(settings, stage=STAGE, size=size)
        stack.push_async_callback(pool.close)
        plaid = Plaid(settings)
        stack.push_async_callback(plaid.close)
        appender, ends = Appender(settings, client=STAGE), LogEnds(settings)
        for client in (appender, ends):
            await client.start()
            stack.push_async_callback(client.stop)
        return cls(settings, pool, plaid, appender, ends)

    def not_ready(self) -> list[str]:
        """Return why this process does no work now."""
        reasons = [f"Postgres is away: {self.dispatcher.away}"] if self.dispatcher.away else []
        # An instance to which no partition is assigned is ready all the same: it makes sync runs.
        if not self.app.started or self.app.rebalancing:
            reasons.append("partitions are being assigned")
        return reasons

    async def _positions(self, partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Return the positions to start from, after a check that the log is the one read before."""
        positions: dict[tuple[str, int], int] = {}
        for topic, continuity in self.continuity.items():
            numbers = [number for name, number in partitions if name == topic]
            starts = await continuity.starts(numbers) if numbers else {}
            positions |= {(topic, number): position for number, position in starts.items()}
        return positions

    async def _fetch(self, due: Any) -> None:
        claimed: Claimed
        async for claimed in due:
            try:
                await self.fetch_deltas.fetch(claimed, claimed_at=self.dispatcher.claimed_at(claimed))
            finally:
                self.dispatcher.done(claimed)


async def _start(parts: _Parts, stack: AsyncExitStack) -> list["asyncio.Task[None]"]:
    """Start the stream engine, the agents and the background tasks.

    At a stop the engine ends first: it waits until the agents have processed the records that it has read.
    """
    tasks: list[asyncio.Task[None]] = []

    async def cancel() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(cancel)
    engine = await stack.enter_async_context(faust_app.running(parts.app))
    pool, settings, wake = parts.pool, parts.settings, parts.dispatcher.wake
    is_read = on_webhooks(pool, parts.ends, parts.webhooks, settings.partitions)
    works: dict[str, Coroutine[Any, Any, None]] = {
        "mark_due": parts.mark_due.run(),
        "follow_heads": parts.follow_heads.run(),
        "dispatcher": parts.dispatcher.run(),
        "schedule": scheduler.run(pool, settings, on_marked=wake),
        "probes": run_probes(pool, settings, wake),
        "sweep": sweep.run(pool, parts.plaid, parts.vault.open_token, parts.limits, settings, wake, is_read=is_read),
        "alerts": sender.run(pool, settings),
        "notifications": scheduler.listen(settings, on_due=wake),
    }
    for topic, continuity in parts.continuity.items():
        works[f"continuity of {topic}"] = continuity.watch(
            partial(faust_app.assigned, parts.app, topic), unacknowledged=parts.readers[topic].unacknowledged
        )
    tasks += [asyncio.create_task(work, name=name) for name, work in works.items()]
    return [engine, *tasks]


async def _first_end(tasks: list["asyncio.Task[None]"]) -> None:
    """Wait for the first task that ends; none of them does by itself. Raises: its error, or Halt."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        await task
        raise Halt(f"{task.get_name()} ended by itself")
