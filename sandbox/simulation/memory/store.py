"""The streams stage's ports of the database in memory: one process's way to the tables."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from runtime.kafka.reader import Position
from runtime.plaid_limits import Limit
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Claimed, Claims, Hint, Mark, Released
from sandbox.simulation.engine.kafka import Bell
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.network import Connection, ProcessFaults
from sandbox.simulation.memory import claiming
from sandbox.simulation.memory.tables import Tables
from schemas.errors import Quarantine, Retry
from schemas.log.changesets import UserKeys
from streams.heads import HeadChanges, ItemHead
from streams.ports import MARKER
from streams.schedule.fair_queue import FairQueue

LOCK_S_MAX = 10.0
"""Longest wait for a lock, as TARTAN_LOCK_TIMEOUT_S."""
TRANSACTION_S_MAX = 120.0
"""Longest transaction, as TARTAN_TRANSACTION_TIMEOUT_S: a stopped process loses its locks."""

Result = TypeVar("Result")


class Database:
    """A server of tables: whether it answers, who holds which lock."""

    def __init__(self, tables: Tables, rng: random.Random, hazards: ProcessFaults) -> None:
        self.tables = tables
        self.away_until = 0.0
        self.lost_answers_share = 0.0
        self._rng = rng
        self._hazards = hazards
        self._locks: dict[tuple[str, int], object] = {}
        self._freed = Bell()

    def is_away(self) -> bool:
        """Whether no statement is answered now."""
        return asyncio.get_running_loop().time() < self.away_until

    def do(self, effect: Callable[[], Result]) -> Result:
        """Run a statement. Raises: Retry, where the database is away, or where its answer is lost on the way."""
        self.reach()
        result = effect()
        self.answer()
        return result

    def reach(self) -> None:
        """A statement comes in. Raises: Retry, where the database is away."""
        if self.is_away():
            raise Retry("the database is away")

    def answer(self) -> None:
        """A statement was run. Raises: Retry, where its answer is lost on the way."""
        if self.lost_answers_share and self._rng.random() < self.lost_answers_share:
            self._hazards.counts["store_answer_lost"] += 1
            raise Retry("the statement's answer is lost")

    async def lock(self, keys: Sequence[tuple[str, int]], owner: object) -> None:
        """Take locks in their order. Raises: Retry, where that takes longer than LOCK_S_MAX."""
        if self.is_away():
            raise Retry("the database is away")
        try:
            async with asyncio.timeout(LOCK_S_MAX):
                while any(self._locks.get(key, owner) is not owner for key in keys):
                    await self._freed.wait()
        except TimeoutError:
            raise Retry("a lock was not given in time") from None
        self._locks.update(dict.fromkeys(keys, owner))

    def free(self, owner: object) -> None:
        """Give back all locks of one owner."""
        for key in [key for key, held in self._locks.items() if held is owner]:
            del self._locks[key]
        self._freed.ring()


class MemoryStore:
    """The ports Store, Begin and BeginFollowing, and a reader's positions."""

    def __init__(
        self,
        database: Database,
        wire: Connection,
        monitor: LeaseMonitor,
        *,
        lease_s: float,
        holder: str,
        limit: Limit | None = None,
    ) -> None:
        self._limit = limit
        self._turns = FairQueue({})
        self._database = database
        self._monitor = monitor
        self._tables = database.tables
        self._wire = wire
        self._lease_s = lease_s
        self._holder = holder

    async def claim(self, slots: int) -> Claims:
        """Lease what is ready, as the turns of lanes and tenants and Plaid's quota allow."""
        claims = await self._do(lambda: self._claimed(slots))
        self._turns.advance(claims)
        return claims

    def _claimed(self, slots: int) -> Claims:
        claims = claiming.claim(
            self._tables,
            slots=slots,
            lease_s=self._lease_s,
            holder=self._holder,
            standing=self._turns.state(),
            limit=self._limit,
        )
        for claimed in claims:
            self._monitor.leased(self._wire.process, claimed, lease_s=self._lease_s)
        return claims

    async def inherit(self) -> int:
        """End the leases that a dead process with this name left. Gives how many."""
        return await self._do(self._inherited)

    def _inherited(self) -> int:
        self._monitor.inherited(self._holder)
        return self._tables.expire_all(holder=self._holder)

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""
        return await self._do(lambda: self._renewed(claimed))

    def _renewed(self, claimed: Claimed) -> bool:
        held = self._tables.renew(claimed, lease_s=self._lease_s)
        if held:
            self._monitor.renewed(claimed, lease_s=self._lease_s)
        return held

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""
        how = f"released {result.outcome}, due in {result.due_in_s}, stopped {result.stopped}, {result.error}"
        return await self._ended(claimed, how, lambda: self._tables.release(claimed, result))

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back untouched, to wait for the follower."""
        await self._ended(
            claimed,
            f"let go until {wait_offset}",
            lambda: self._tables.release_untouched(claimed, wait_offset=wait_offset),
        )

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if time had."""
        await self._ended(claimed, "expired", lambda: self._tables.expire(claimed))

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        await self._ended(claimed, "unlinked", lambda: self._tables.finish_unlink(claimed))

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Set an Item aside until it is redriven."""
        await self._do(lambda: self._tables.quarantine(claimed, reason=reason))

    async def keys(self, user: int) -> UserKeys | None:
        """A user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        return await self._do(lambda: self._keys_of(user))

    def _keys_of(self, user: int) -> UserKeys | None:
        if user not in self._tables.keys:
            raise Quarantine(f"user {user} has no key")
        return self._tables.keys[user]

    def token(self, claimed: Claimed) -> str | None:
        """The Item's access token; None where there is none."""
        return None if claimed.sealed_token is None else claimed.sealed_token.decode()

    async def count_gone(self) -> tuple[int, int]:
        """How many Items Plaid called gone within the hour, of how many."""
        return await self._do(self._tables.count_gone)

    async def position(self, reader: str, partition: int) -> int:
        """Where a reader stands. Raises: Retry."""
        return (await self._do(lambda: self._tables.position(reader, partition))).next

    async def mark_scheduled(self, *, interval_s: float, recheck_s: float, spread_s: float) -> int:
        """One tick of the schedule. Raises: Retry."""
        return await self._do(
            lambda: self._tables.mark_scheduled(interval_s=interval_s, recheck_s=recheck_s, spread_s=spread_s)
        )

    @asynccontextmanager
    async def marking(self, partitions: Collection[int]) -> AsyncIterator["Transaction"]:
        """Begin a transaction of mark_due. Raises: Retry."""
        async with self._transaction(MARKER, partitions) as begun:
            yield begun

    @asynccontextmanager
    async def following(self, partitions: Collection[int]) -> AsyncIterator["Transaction"]:
        """Begin a transaction of follow_heads. Raises: Retry."""
        async with self._transaction(FOLLOWER, partitions) as begun:
            yield begun

    @asynccontextmanager
    async def _transaction(self, reader: str, partitions: Collection[int]) -> AsyncIterator["Transaction"]:
        begun = self._begin(reader, partitions)
        self._wire.process.on_gone.append(begun.end)
        try:
            await begun.begin()
            yield begun
            await begun.commit()
        finally:
            begun.end()
            self._wire.process.on_gone.remove(begun.end)

    def _begin(self, reader: str, partitions: Collection[int]) -> "Transaction":
        return Transaction(self._database, self._wire, reader, partitions)

    async def _ended(self, claimed: Claimed, how: str, effect: Callable[[], Result]) -> Result:
        def ended() -> Result:
            self._monitor.given_back(claimed, how)
            return effect()

        return await self._do(ended)

    async def _do(self, effect: Callable[[], Result]) -> Result:
        return await self._wire.call(lambda: self._database.do(effect))


class Transaction:
    """One transaction of mark_due or follow_heads. What it writes is there at its commit, at once."""

    def __init__(self, database: Database, wire: Connection, reader: str, partitions: Collection[int]) -> None:
        self._database = database
        self._tables = database.tables
        self._wire = wire
        self._reader = reader
        self._partitions = sorted(partitions)
        self._writes: list[Callable[[], object]] = []
        self._is_open = False
        self.positions: Mapping[int, Position] = {}

    async def begin(self) -> None:
        """Lock the positions before anything is read. Raises: Retry."""
        await self._wire.ask(self._begun)

    async def _begun(self) -> None:
        await self._database.lock([(self._reader, partition) for partition in self._partitions], self)
        self.positions = await self._placed()
        self._is_open = True
        asyncio.get_running_loop().call_later(TRANSACTION_S_MAX, self.end)
        if self._wire.process.dead:
            self.end()

    async def _placed(self) -> Mapping[int, Position]:
        return {partition: self._tables.position(self._reader, partition) for partition in self._partitions}

    def end(self) -> None:
        """Give the locks back; what was not committed is forgotten."""
        self._is_open = False
        self._database.free(self)

    async def commit(self) -> None:
        """Write everything. Raises: Retry."""
        await self._wire.call(lambda: self._database.do(self._committed))

    def _committed(self) -> None:
        if not self._is_open:
            raise Retry("the transaction was ended")
        for write in self._writes:
            write()
        self.end()

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Remember repeat keys and give those that were not known."""
        now = self._tables.clock()
        fresh = await self._read(lambda: {key for key in keys if key not in self._tables.repeats})
        self._writes.append(lambda: self._tables.repeats.update(dict.fromkeys(keys, now)))
        return fresh

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due; how many there were."""
        self._writes.append(lambda: self._tables.mark_webhooks(marks))
        self._writes.append(lambda: self._tables.add_hints(hints))
        return await self._read(lambda: sum(mark.item_id in self._tables.rows for mark in marks))

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """The heads that are known."""
        return await self._read(
            lambda: {item_id: self._tables.heads[item_id] for item_id in sorted(items) if item_id in self._tables.heads}
        )

    async def erased(self, users: Collection[int]) -> set[int]:
        """Users whose key is destroyed."""
        return await self._read(lambda: {user for user in users if self._tables.keys.get(user, 0) is None})

    async def apply(self, followed: HeadChanges) -> None:
        """Write heads and what histories lacked, make due again what was skipped or redriven, erase."""
        self._writes.append(lambda: self._tables.follow(followed))

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions."""
        self._writes.append(lambda: self._tables.advance(self._reader, positions))

    async def _read(self, effect: Callable[[], Result]) -> Result:
        return await self._wire.call(lambda: self._database.do(lambda: self._checked(effect)))

    def _checked(self, effect: Callable[[], Result]) -> Result:
        if not self._is_open:
            raise Retry("the transaction was ended")
        return effect()
