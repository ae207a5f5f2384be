"""One incarnation of a worker: the real agents of the streams stage, or the projections, as a process."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from projections.publish.outbox import Outbox
from projections.publish.publisher import Publisher
from runtime.kafka.clients import Appended, Appender, Outgoing
from runtime.kafka.reader import GatheringReader
from runtime.plaid.models import AccountsAnswer, ItemAnswer, SyncPage
from runtime.retry import insist
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Claimed
from sandbox.simulation.engine.installation import LATE, Installation
from sandbox.simulation.engine.kafka import BrokerClient, feed
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.projector import MemoryOutbox, Projector
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
"""How often others' marks are looked for: seldom, since each look of a simulated hour costs machine time."""
LEASE_S = 30.0
LATE_S = 0.5
"""From waking to the request whose token was taken before: the few answers that a pass still waits for."""
TICK_S = 30.0
PROBE_EVERY_S = 15.0
SCHEDULE_S = 300.0
ACCOUNTS_S = 600.0
READER_BYTES_MAX = 1 << 20

Answer = TypeVar("Answer")


class PlaidClient:
    """One process's way to Plaid; what it asks is noted by lease, so that a zombie's requests can be counted."""

    def __init__(self, installation: Installation, wire: Connection) -> None:
        self._installation = installation
        self._wire = wire
        self._late = (0.0, 0)

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """One page of what changed after a cursor."""
        return await self._ask(token, "sync", lambda: self._installation.plaid.sync_page(token, cursor))

    async def accounts(self, token: str) -> AccountsAnswer:
        """The accounts with their cached balances."""
        return await self._ask(token, "accounts", lambda: self._installation.plaid.accounts(token))

    async def item(self, token: str) -> ItemAnswer:
        """The Item's state."""
        return await self._ask(token, "item", lambda: self._installation.plaid.item(token))

    async def remove(self, token: str) -> None:
        """End the Item."""
        await self._ask(token, "remove", lambda: self._installation.plaid.remove(token))

    async def refresh(self, token: str) -> None:
        """Have the bank asked."""
        await self._ask(token, "refresh", lambda: self._installation.plaid.refresh(token))

    async def _ask(self, token: str, what: str, request: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        async def asked() -> Answer:
            self._installation.monitor.asked(self._wire.process, token, what)
            LATE.set(self._is_late())
            return await request()

        # Counted by Plaid at the moment it is sent: what a quota gives out is spent at once.
        return await self._wire.ask(asked, out_s=0.0)

    def _is_late(self) -> bool:
        """Whether this request's token may be of the time before the process stood still: one a pass, right after."""
        process = self._wire.process
        if asyncio.get_running_loop().time() - process.woken_at > LATE_S:
            return False
        self._late = (process.woken_at, self._late[1] + 1 if self._late[0] == process.woken_at else 1)
        return self._late[1] <= SLOTS


class Worker:
    """A process of the streams stage with the projections beside it, as `tartan run streams projections` is."""

    def __init__(self, installation: Installation, name: str, rng: random.Random) -> None:
        self.installation = installation
        self.process = Process(name)
        self._rng = rng
        self._wire = Connection(self.process, rng, installation.hazards)
        self.store, self._limits = installation.ports(self._wire, lease_s=LEASE_S)
        self._due: asyncio.Queue[Claimed] = asyncio.Queue()
        self.lag_s = 0.0
        world = self._world()
        self._fetcher = FetchDeltas(world, lease_s=LEASE_S)
        self.dispatcher = Dispatcher(self.store, self._due.put, slots=SLOTS, poll_s=POLL_S)
        webhooks, heads, projected = (
            GatheringReader(records_max=rng.randint(1, 40), bytes_max=READER_BYTES_MAX) for _ in range(3)
        )
        wake = self.dispatcher.wake
        self._marker = MarkDue(webhooks, self.store.marking, on_commit=wake)
        self._follower = FollowHeads(
            heads, self.store.following, on_commit=self.dispatcher.wake_for_new_heads, on_erased=lambda user: None
        )
        self._readers = (webhooks, heads, projected)
        broker = BrokerClient(installation.broker, self._wire)
        outbox = MemoryOutbox(installation.projection, installation.database, self._wire)
        self._publisher = Publisher(cast(Appender, broker), cast(Outbox, outbox), topic_prefix="")
        self._projector = Projector(installation.projection, installation.database, self._wire, self._publisher, rng)

    def _world(self) -> SyncContext:
        installation, rng = self.installation, self._rng
        parts: dict[str, Any] = {
            "bank": PlaidClient(installation, self._wire),
            "log": BrokerClient(installation.broker, self._wire, on_put=self._put),
            "store": self.store,
            "clock": installation.now,
            "sleep": asyncio.sleep,
            "random": rng.random,
            "nonce": lambda: rng.randbytes(NONCE_BYTES),
            "accounts_interval_s": ACCOUNTS_S,
            "limits": self._limits,
            "record_bytes_max": installation.record_bytes_max,
            "monotonic": asyncio.get_running_loop().time,
        }
        return SyncContext(**{name: part for name, part in parts.items() if name in SyncContext._fields})

    def _put(self, process: Process, appended: Appended, record: Outgoing) -> None:
        head = changesets.read(record.value or b"").head
        if head.kind == gate.PART:
            self.installation.hazards.counts["update_in_parts"] += 1
        if self.installation.monitor.holds(process, head.item_id or ""):
            self.installation.monitor.sound.add((appended.partition, appended.offset))

    def start(self) -> None:
        """Start everything."""
        webhooks, heads, projected = self._readers
        groups = self.installation.groups
        process, store = self.process, self.store
        places: list[tuple[str, GatheringReader, Callable[[int], Awaitable[int]], bool]] = [
            (MARKER, webhooks, lambda partition: store.position(MARKER, partition), False),
            (FOLLOWER, heads, lambda partition: store.position(FOLLOWER, partition), True),
            ("projections", projected, self._projector.position, False),
        ]
        for name, reader, place, lags in places:
            lag = self._lag if lags else (lambda: 0.0)
            self._run(feed(groups[name], process, reader, place, lag_s=lag), name=f"feed {name}")
        self._run(self._marker.run(), name=MARKER)
        self._run(self._follower.run(), name=FOLLOWER)
        self._run(self._projector.run(projected), name="projector")
        self._run(self._publisher.run(), name="publisher")
        self._run(self._claim(), name="claimer")
        self._run(self._schedule(), name="schedule")
        self._run(self._probe(), name="probe")
        for number in range(SLOTS):
            self._run(self._fetch(), name=f"fetch {number}")

    def _run(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = self.process.start(work, name=name)
        task.add_done_callback(lambda ended: self.installation.ended(self.process, ended))

    def _lag(self) -> float:
        return self.lag_s

    async def _claim(self) -> None:
        await insist(self.store.inherit, action="inherit")
        await self.dispatcher.run()

    async def _fetch(self) -> None:
        while True:
            claimed = await self._due.get()
            try:
                await self._fetcher.fetch(claimed, claimed_at=self.dispatcher.claimed_at(claimed))
            finally:
                self.dispatcher.done(claimed)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                if await self._limits.probe():
                    self.dispatcher.wake()
            except Retry:
                continue

    async def _schedule(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self.installation.is_scheduling:
                continue
            try:
                if await self.store.mark_scheduled(interval_s=SCHEDULE_S, recheck_s=ACCOUNTS_S, spread_s=TICK_S):
                    self.dispatcher.wake()
            except Retry:
                continue
