"""Implement the streams stage's database ports over the tables in memory."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from runtime.kafka.reader import Position
from runtime.plaid_limits import Limit
from runtime.scheduler.types import Claimed, Claims, Hint, Mark
from sandbox.simulation.engine.lease_monitor import LeaseMonitor
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.engine.store_client import SimulatedTransaction, StoreClient
from sandbox.simulation.memory import claiming
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.tables import Tables
from schemas.errors import Quarantine
from schemas.log.changesets import UserKeys
from streams.heads import HeadChanges, ItemHead
from streams.schedule.fair_queue import FairQueue

Result = TypeVar("Result")


class MemoryBackend:
    """The statements of PostgresStore on tables in memory, for one process."""

    def __init__(self, tables: Tables, *, lease_s: float, holder: str, limit: Limit | None) -> None:
        self._tables = tables
        self._lease_s = lease_s
        self._holder = holder
        self._limit = limit
        self.fair_queue = FairQueue({})
        self.release = tables.release
        self.release_untouched = tables.release_untouched
        self.expire = tables.expire
        self.finish_unlink = tables.finish_unlink
        self.quarantine = tables.quarantine
        self.count_gone = tables.count_gone
        self.mark_scheduled = tables.mark_scheduled

    def claim(self, slots: int) -> Claims:
        """Lease ready Items."""
        return claiming.claim(
            self._tables,
            slots=slots,
            lease_s=self._lease_s,
            holder=self._holder,
            fair_queue=self.fair_queue.state(),
            limit=self._limit,
        )

    def expire_inherited(self) -> int:
        """End the leases of this holder."""
        return self._tables.expire_all(holder=self._holder)

    def renew(self, claimed: Claimed) -> bool:
        """Renew a lease."""
        return self._tables.renew(claimed, lease_s=self._lease_s)

    def keys(self, user: int) -> UserKeys | None:
        """Return a user's keys."""
        if user not in self._tables.keys:
            raise Quarantine(f"user {user} has no key")
        return self._tables.keys[user]

    def token(self, claimed: Claimed) -> str | None:
        """Return the Item's access token."""
        return None if claimed.sealed_token is None else claimed.sealed_token.decode()

    def position(self, reader: str, partition: int) -> int:
        """Return a reader's position."""
        return self._tables.position(reader, partition).next


class MemoryTransaction(SimulatedTransaction):
    """A transaction on tables in memory; writes are collected until the commit."""

    def __init__(self, database: Database, connection: Connection, reader: str, partitions: Collection[int]) -> None:
        super().__init__(database, connection, reader, partitions)
        self._tables = database.tables
        self._writes: list[Callable[[], object]] = []

    async def _load_positions(self) -> Mapping[int, Position]:
        return {partition: self._tables.position(self._reader, partition) for partition in self._partitions}

    async def commit(self) -> None:
        """Write everything. Raises: Retry."""

        def write() -> None:
            for statement in self._writes:
                statement()
            self.end()

        await self._execute(write)

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Store repeat keys and return the unknown ones."""
        now = self._tables.clock()
        fresh = await self._execute(lambda: {key for key in keys if key not in self._tables.repeats})
        self._writes.append(lambda: self._tables.repeats.update(dict.fromkeys(keys, now)))
        return fresh

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Mark Items due; return their number."""
        self._writes.append(lambda: self._tables.mark_webhooks(marks))
        self._writes.append(lambda: self._tables.add_hints(hints))
        return await self._execute(lambda: sum(mark.item_id in self._tables.rows for mark in marks))

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """Return the known heads."""
        heads = self._tables.heads
        return await self._execute(lambda: {name: heads[name] for name in sorted(items) if name in heads})

    async def erased(self, users: Collection[int]) -> set[int]:
        """Return the users whose key is destroyed."""
        return await self._execute(lambda: {user for user in users if self._tables.keys.get(user, 0) is None})

    async def apply(self, changes: HeadChanges) -> None:
        """Apply what follow_heads read from the log."""
        self._writes.append(lambda: self._tables.apply_heads(changes))

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Set the positions."""
        self._writes.append(lambda: self._tables.advance(self._reader, positions))

    async def _execute(self, effect: Callable[[], Result]) -> Result:
        def checked() -> Result:
            self.check_open()
            return effect()

        return await self._connection.call(lambda: self._database.execute(checked))


class MemoryStore(StoreClient[MemoryTransaction]):
    """The store of one process on tables in memory."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        monitor: LeaseMonitor,
        *,
        lease_s: float,
        holder: str,
        limit: Limit | None = None,
    ) -> None:
        self._database = database
        self._tables = database.tables
        backend = MemoryBackend(database.tables, lease_s=lease_s, holder=holder, limit=limit)
        self._fair_queue = backend.fair_queue
        super().__init__(backend, connection, monitor, lease_s=lease_s, holder=holder)

    async def claim(self, slots: int) -> Claims:
        """Lease ready Items, and count them in the fair queue when the answer arrives."""
        claims = await super().claim(slots)
        self._fair_queue.advance(claims)
        return claims

    async def _send(self, request: Callable[[], Any], note: Callable[[Any], None] = lambda _: None) -> Any:
        def execute() -> Any:
            result = request()
            note(result)
            return result

        return await self._connection.call(lambda: self._database.execute(execute))

    def _transaction(self, reader: str, partitions: Collection[int]) -> MemoryTransaction:
        return MemoryTransaction(self._database, self._connection, reader, partitions)
