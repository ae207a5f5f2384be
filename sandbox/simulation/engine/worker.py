"""Run one worker process: the real agents of the streams stage, with the projections beside them."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from projections.publish.outbox import Outbox
from projections.publish.publisher import Publisher
from runtime.kafka.clients import Appended, Appender, Outgoing
from runtime.kafka.reader import GatheringReader
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import AccountsAnswer, SyncPage
from runtime.retry import retry_until_done
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Claimed
from sandbox.simulation.engine.installation import IS_LATE, Installation
from sandbox.simulation.engine.kafka import BrokerClient, LoadPosition, feed
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.projector import READER as PROJECTIONS
from sandbox.simulation.memory.projector import ProjectionClient, Projector
from schemas.errors import Retry
from schemas.log import changesets, gate
from schemas.log.changesets import NONCE_BYTES
from streams.dispatcher import Dispatcher
from streams.fetch_deltas import FetchDeltas
from streams.follow_heads import FollowHeads
from streams.mark_due import MarkDue
from streams.ports import MARKER, SyncContext

SLOTS = 3
POLL_S = 20.0
"""Interval of the search for marks of other workers: long, since each search of a simulated hour costs real time."""
LEASE_S = 30.0
LATE_S = 0.5
"""Longest time from waking to a request whose token was taken before."""
TICK_S = 30.0
PROBE_EVERY_S = 15.0
SCHEDULE_S = 300.0
ACCOUNTS_S = 600.0
READER_BYTES_MAX = 1 << 20

Answer = TypeVar("Answer")


class PlaidClient:
    """One process's client of Plaid; requests are reported to the lease monitor."""

    def __init__(self, installation: Installation, connection: Connection) -> None:
        self._installation = installation
        self._plaid = installation.plaid
        self._connection = connection
        self._late = (0.0, 0)

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """Request one page of the changes after a cursor."""
        return await self._request(token, "sync", lambda: self._plaid.sync_page(token, cursor))

    async def accounts(self, token: str) -> AccountsAnswer:
        """Request the accounts with their cached balances."""
        return await self._request(token, "accounts", lambda: self._plaid.accounts(token))

    async def item(self, token: str) -> ItemAnswer:
        """Request the Item's state."""
        return await self._request(token, "item", lambda: self._plaid.item(token))

    async def remove(self, token: str) -> None:
        """Remove the Item."""
        await self._request(token, "remove", lambda: self._plaid.remove(token))

    async def refresh(self, token: str) -> None:
        """Request a refresh."""
        await self._request(token, "refresh", lambda: self._plaid.refresh(token))

    async def _request(self, token: str, endpoint: str, request: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        async def send() -> Answer:
            self._installation.monitor.record_request(self._connection.process, token, endpoint)
            IS_LATE.set(self._is_late())
            return await request()

        # Plaid counts it at the moment of sending: a token of a quota is spent at once.
        return await self._connection.call_async(send, request_s=0.0)

    def _is_late(self) -> bool:
        """Return whether this request's token may be older than the freeze: once for each slot, right after waking."""
        process = self._connection.process
        if asyncio.get_running_loop().time() - process.woken_at > LATE_S:
            return False
        self._late = (process.woken_at, self._late[1] + 1 if self._late[0] == process.woken_at else 1)
        return self._late[1] <= SLOTS


class Worker:
    """A process of the streams stage with the projections beside it, as `tartan run streams projections`."""

    def __init__(self, installation: Installation, name: str, rng: random.Random) -> None:
        self.installation = installation
        self.process = Process(name)
        self._rng = rng
        self._connection = Connection(self.process, rng, installation.faults)
        self.store, self._limits = installation.create_ports(self._connection, lease_s=LEASE_S)
        self._due: asyncio.Queue[Claimed] = asyncio.Queue()
        self.lag_s = 0.0
        self._fetcher = FetchDeltas(self._sync_context(), lease_s=LEASE_S)
        self.dispatcher = Dispatcher(self.store, self._due.put, slots=SLOTS, poll_s=POLL_S)
        webhooks, heads, projected = (
            GatheringReader(records_max=rng.randint(1, 40), bytes_max=READER_BYTES_MAX) for _ in range(3)
        )
        self._marker = MarkDue(webhooks, self.store.marking, on_commit=self.dispatcher.wake)
        self._follower = FollowHeads(
            heads, self.store.following, on_commit=self.dispatcher.wake_for_new_heads, on_erased=lambda user: None
        )
        self._readers = {MARKER: webhooks, FOLLOWER: heads, PROJECTIONS: projected}
        broker = BrokerClient(installation.broker, self._connection)
        projection = ProjectionClient(installation.projection, installation.database, self._connection)
        self._publisher = Publisher(cast(Appender, broker), cast(Outbox, projection), topic_prefix="")
        self._projector = Projector(projection, self._publisher, rng)

    def _sync_context(self) -> SyncContext:
        installation, rng = self.installation, self._rng
        return SyncContext(
            bank=PlaidClient(installation, self._connection),
            log=BrokerClient(installation.broker, self._connection, on_appended=self._record_append),
            store=self.store,
            clock=installation.now,
            sleep=asyncio.sleep,
            random=rng.random,
            nonce=lambda: rng.randbytes(NONCE_BYTES),
            accounts_interval_s=ACCOUNTS_S,
            limits=self._limits,
            record_bytes_max=installation.record_bytes_max,
            monotonic=asyncio.get_running_loop().time,
        )

    def _record_append(self, process: Process, appended: Appended, record: Outgoing) -> None:
        head = changesets.read(record.value or b"").head
        if head.kind == gate.PART:
            self.installation.faults.counts["update_in_parts"] += 1
        if self.installation.monitor.holds(process, head.item_id or ""):
            self.installation.monitor.sound.add((appended.partition, appended.offset))

    def start(self) -> None:
        """Start all tasks."""
        self._feed(MARKER, self._load_position_of(MARKER))
        self._feed(FOLLOWER, self._load_position_of(FOLLOWER), lag_s=lambda: self.lag_s)
        self._feed(PROJECTIONS, self._projector.position)
        self._run(self._marker.run(), name=MARKER)
        self._run(self._follower.run(), name=FOLLOWER)
        self._run(self._projector.run(self._readers[PROJECTIONS]), name="projector")
        self._run(self._publisher.run(), name="publisher")
        self._run(self._claim(), name="claimer")
        self._run(self._every(TICK_S, self._mark_scheduled), name="schedule")
        self._run(self._every(PROBE_EVERY_S, self._limits.probe), name="probe")
        for number in range(SLOTS):
            self._run(self._fetch(), name=f"fetch {number}")

    def _load_position_of(self, reader: str) -> LoadPosition:
        return lambda partition: self.store.position(reader, partition)

    def _feed(self, name: str, load_position: LoadPosition, *, lag_s: Callable[[], float] = lambda: 0.0) -> None:
        group, reader = self.installation.groups[name], self._readers[name]
        self._run(feed(group, self.process, reader, load_position, lag_s=lag_s), name=f"feed {name}")

    def _run(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = self.process.start(work, name=name)
        task.add_done_callback(lambda ended: self.installation.check_task(self.process, ended))

    async def _claim(self) -> None:
        await retry_until_done(self.store.inherit, action="inherit")
        await self.dispatcher.run()

    async def _fetch(self) -> None:
        while True:
            claimed = await self._due.get()
            try:
                await self._fetcher.fetch(claimed, claimed_at=self.dispatcher.claimed_at(claimed))
            finally:
                self.dispatcher.done(claimed)

    async def _every(self, interval_s: float, make_due: Callable[[], Awaitable[int]]) -> None:
        """Make Items due at an interval, and wake the dispatcher where there are any."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                if await make_due():
                    self.dispatcher.wake()
            except Retry:
                continue

    async def _mark_scheduled(self) -> int:
        if not self.installation.is_scheduling:
            return 0
        return await self.store.mark_scheduled(interval_s=SCHEDULE_S, recheck_s=ACCOUNTS_S, spread_s=TICK_S)
