"""Implement the streams stage's database ports for one process, over tables in memory or in Postgres."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from runtime.kafka.reader import Position
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.types import Claimed, Claims, Released
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.database import Database
from schemas.errors import Retry
from schemas.log.changesets import UserKeys
from streams.ports import MARKER

TRANSACTION_S_MAX = 120.0
"""Longest transaction, as TARTAN_TRANSACTION_TIMEOUT_S: a frozen process loses its locks."""


class SimulatedTransaction(ABC):
    """One transaction of mark_due or follow_heads, its positions locked. Its writes are visible at its commit."""

    def __init__(self, database: Database, connection: Connection, reader: str, partitions: Collection[int]) -> None:
        self._database = database
        self._connection = connection
        self._reader = reader
        self._partitions = sorted(partitions)
        self._is_open = False
        self.positions: Mapping[int, Position] = {}

    async def begin(self) -> None:
        """Lock the positions before anything is read. Raises: Retry."""
        await self._connection.call_async(self._lock)

    async def _lock(self) -> None:
        await self._database.lock([(self._reader, partition) for partition in self._partitions], self)
        self.positions = await self._load_positions()
        self._is_open = True
        asyncio.get_running_loop().call_later(TRANSACTION_S_MAX, self.end)
        if self._connection.process.dead:
            self.end()

    def end(self) -> None:
        """Release the locks; uncommitted writes are dropped."""
        self._is_open = False
        self._database.unlock(self)

    def check_open(self) -> None:
        """Raise Retry where the transaction was ended."""
        if not self._is_open:
            raise Retry("the transaction was ended")

    @abstractmethod
    async def _load_positions(self) -> Mapping[int, Position]: ...

    @abstractmethod
    async def commit(self) -> None:
        """Write everything. Raises: Retry."""


Transaction = TypeVar("Transaction", bound=SimulatedTransaction)


class StoreClient(ABC, Generic[Transaction]):
    """The ports Store, Begin and BeginFollowing, and a reader's positions; leases are reported to the monitor.

    `backend` has the methods of PostgresStore and the same two of a reader and the schedule; `_send` calls it.
    """

    def __init__(
        self, backend: Any, connection: Connection, monitor: LeaseMonitor, *, lease_s: float, holder: str
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._monitor = monitor
        self._lease_s = lease_s
        self._holder = holder

    @abstractmethod
    async def _send(self, request: Callable[[], Any], note: Callable[[Any], None] = lambda _: None) -> Any:
        """Call the backend; `note` gets the result at that moment, even if the answer is lost. Raises: Retry."""

    @abstractmethod
    def _transaction(self, reader: str, partitions: Collection[int]) -> Transaction: ...

    async def claim(self, slots: int) -> Claims:
        """Lease ready Items, as the fair queue and Plaid's quota allow."""

        def note(claims: Claims) -> None:
            for claimed in claims:
                self._monitor.record_claim(self._connection.process, claimed, lease_s=self._lease_s)

        claims: Claims = await self._send(lambda: self._backend.claim(slots), note)
        return claims

    async def inherit(self) -> int:
        """End the leases of a dead process with this name; return their number."""
        return int(
            await self._send(self._backend.expire_inherited, lambda _: self._monitor.record_inherited(self._holder))
        )

    async def renew(self, claimed: Claimed) -> bool:
        """Renew a lease; return False where it was lost."""

        def note(is_held: bool) -> None:
            if is_held:
                self._monitor.record_renewal(claimed, lease_s=self._lease_s)

        return bool(await self._send(lambda: self._backend.renew(claimed), note))

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Release an Item; return False where the lease was lost."""
        reason = f"released {result.outcome}, due in {result.due_in_s}, stopped {result.stopped}, {result.error}"
        return bool(await self._end(claimed, reason, lambda: self._backend.release(claimed, result)))

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Release an Item untouched, to wait for the follower."""
        reason = f"let go until {wait_offset}"
        await self._end(claimed, reason, lambda: self._backend.release_untouched(claimed, wait_offset=wait_offset))

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as its timeout does."""
        await self._end(claimed, "expired", lambda: self._backend.expire(claimed))

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        await self._end(claimed, "unlinked", lambda: self._backend.finish_unlink(claimed))

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Quarantine an Item until it is redriven."""
        await self._send(lambda: self._backend.quarantine(claimed, reason))

    async def keys(self, user: int) -> UserKeys | None:
        """Return a user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        keys: UserKeys | None = await self._send(lambda: self._backend.keys(user))
        return keys

    def token(self, claimed: Claimed) -> str | None:
        """Return the Item's access token, if it has one."""
        token: str | None = self._backend.token(claimed)
        return token

    async def count_gone(self) -> tuple[int, int]:
        """Count the Items that Plaid reported as gone within the hour, and all Items."""
        gone, items = await self._send(self._backend.count_gone)
        return gone, items

    async def position(self, reader: str, partition: int) -> int:
        """Return a reader's position. Raises: Retry."""
        return int(await self._send(lambda: self._backend.position(reader, partition)))

    async def mark_scheduled(self, *, interval_s: float, recheck_s: float, spread_s: float) -> int:
        """Run one tick of the schedule. Raises: Retry."""
        bounds = {"interval_s": interval_s, "recheck_s": recheck_s, "spread_s": spread_s}
        return int(await self._send(lambda: self._backend.mark_scheduled(**bounds)))

    @asynccontextmanager
    async def marking(self, partitions: Collection[int]) -> AsyncIterator[Transaction]:
        """Begin a transaction of mark_due. Raises: Retry."""
        async with self._begun(self._transaction(MARKER, partitions)) as transaction:
            yield transaction

    @asynccontextmanager
    async def following(self, partitions: Collection[int]) -> AsyncIterator[Transaction]:
        """Begin a transaction of follow_heads. Raises: Retry."""
        async with self._begun(self._transaction(FOLLOWER, partitions)) as transaction:
            yield transaction

    @asynccontextmanager
    async def _begun(self, transaction: Transaction) -> AsyncIterator[Transaction]:
        self._connection.process.on_kill.append(transaction.end)
        try:
            await transaction.begin()
            yield transaction
            await transaction.commit()
        finally:
            transaction.end()
            self._connection.process.on_kill.remove(transaction.end)

    async def _end(self, claimed: Claimed, reason: str, request: Callable[[], Any]) -> Any:
        return await self._send(request, lambda _: self._monitor.record_end(claimed, reason))
