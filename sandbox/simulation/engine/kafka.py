"""Kafka in memory: partitions that only grow, groups that share them out, appends whose answer may be missing."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from runtime.kafka.clients import Appended, InDoubt, Outgoing
from runtime.kafka.reader import GatheringReader, Received
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Connection, ProcessFaults
from schemas.errors import Retry

APPEND_S_MAX = 30.0
"""How long an append waits for its answer, as runtime.kafka.clients does."""
LATE_S_MAX = 120.0
"""How late a record may land whose append had no answer."""
TAKEN_MAX = 50
"""Records that a reader takes at once: few, so that batches are cut at many places."""

OnPut = Callable[[Process, Appended, Outgoing], None]
"""Told of a record whose append was answered."""
Place = Callable[[int], Awaitable[int]]
"""Where a reader stands in a partition, asked of the database. Raises: Retry."""


class Bell:
    """Wakes all who wait. Whoever looks first and then waits misses nothing: nothing runs between."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        """Wake all who wait now."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def wait(self) -> None:
        """Wait for the next ring."""
        one: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(one)
        await one


class Topic:
    """A topic. Shape: `records` by partition, each at the index that is its offset."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.records: list[list[Received]] = [[] for _ in range(partitions)]
        self.bell = Bell()

    def put(self, partition: int, record: Outgoing) -> int:
        """Append a record and give its offset."""
        records = self.records[partition]
        records.append(
            Received(
                partition, len(records), record.key, record.value or b"", dict(record.headers), record.timestamp_ms or 0
            )
        )
        self.bell.ring()
        return len(records) - 1

    def end(self, partition: int) -> int:
        """The next offset of a partition."""
        return len(self.records[partition])


class Fate(NamedTuple):
    """What becomes of an append without an answer. `lands_s` None: it never lands."""

    lands_s: float | None
    waits_s: float


class Broker:
    """All topics, and how they fail."""

    def __init__(self, rng: random.Random, hazards: ProcessFaults, *, partitions: int) -> None:
        self._rng = rng
        self._hazards = hazards
        self._partitions = partitions
        self._topics: dict[str, Topic] = {}
        self.doubt_share = 0.0
        self.away_until = 0.0
        self.pending = 0

    def topic(self, name: str) -> Topic:
        """A topic, made when it is first named."""
        if name not in self._topics:
            self._topics[name] = Topic(name, self._partitions)
        return self._topics[name]

    def is_away(self) -> bool:
        """Whether no broker answers now."""
        return asyncio.get_running_loop().time() < self.away_until

    def fate(self) -> Fate | None:
        """Decide whether an append stays without an answer, and what becomes of it."""
        if self._rng.random() >= self.doubt_share:
            return None
        kind = self._rng.choice(("append_in_doubt_now", "append_in_doubt_later", "append_in_doubt_never"))
        self._hazards.counts[kind] += 1
        waits_s = self._rng.choice((0.05, 2.0, APPEND_S_MAX))
        if kind.endswith("never"):
            return Fate(None, waits_s)
        return Fate(0.0 if kind.endswith("now") else waits_s + self._rng.random() * LATE_S_MAX, waits_s)


class BrokerClient:
    """One process's appends and looks at the ends: the port Log, and what a Publisher needs of an Appender."""

    def __init__(
        self, broker: Broker, wire: Connection, *, topic: str = "changesets", on_put: OnPut = lambda *_: None
    ) -> None:
        self._on_put = on_put
        self._broker = broker
        self._wire = wire
        self._topic = topic

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and give its offset. Raises: InDoubt, Retry."""
        topic = self._broker.topic(self._topic)
        return (await self._wire.ask(lambda: self._noted(topic, partition, Outgoing(key, value)))).offset

    async def _noted(self, topic: Topic, partition: int, record: Outgoing) -> Appended:
        appended = await self._arrived(topic, partition, [record])
        self._on_put(self._wire.process, appended, record)
        return appended

    async def end(self, partition: int) -> int:
        """The next offset of a partition. Raises: Retry."""
        return await self._wire.call(lambda: self._looked_at(partition))

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        """Append records of one partition in order. Raises: InDoubt, Retry."""
        await self._put(self._broker.topic(topic), partition, list(records))

    def _looked_at(self, partition: int) -> int:
        if self._broker.is_away():
            raise Retry("no broker answers")
        return self._broker.topic(self._topic).end(partition)

    async def _put(self, topic: Topic, partition: int, records: list[Outgoing]) -> Appended:
        return await self._wire.ask(lambda: self._arrived(topic, partition, records))

    async def _arrived(self, topic: Topic, partition: int, records: list[Outgoing]) -> Appended:
        if self._broker.is_away():
            raise Retry("no broker answers")
        fate = self._broker.fate()
        if fate is None:
            return _put_all(topic, partition, records)
        if fate.lands_s == 0.0:
            _put_all(topic, partition, records)
        elif fate.lands_s is not None:
            self._broker.pending += 1
            asyncio.get_running_loop().call_later(fate.lands_s, self._landed, topic, partition, records)
        await asyncio.sleep(fate.waits_s)
        raise InDoubt(f"an append to {topic.name} got no answer within {fate.waits_s:g} s")

    def _landed(self, topic: Topic, partition: int, records: list[Outgoing]) -> None:
        self._broker.pending -= 1
        _put_all(topic, partition, records)


def _put_all(topic: Topic, partition: int, records: list[Outgoing]) -> Appended:
    offset = -1
    for record in records:
        offset = topic.put(partition, record)
    return Appended(partition, offset)


class Group:
    """Shares a topic's partitions out among processes. Each share of a partition has a number of its own."""

    def __init__(self, topic: Topic, rng: random.Random) -> None:
        self.topic = topic
        self._rng = rng
        self._members: list[Process] = []
        self._shares: dict[Process, dict[int, int]] = {}
        self._number = 0

    def join(self, process: Process) -> None:
        """Let a process take part."""
        if process not in self._members:
            self._members.append(process)
            self.rebalance()

    def leave(self, process: Process) -> None:
        """Note that a process is no more seen; it may live on, and learns it late."""
        if process in self._members:
            self._members.remove(process)
            self.rebalance()

    def rebalance(self) -> None:
        """Share all partitions out anew."""
        self._shares = {member: {} for member in self._members}
        for partition in range(len(self.topic.records)):
            if self._members:
                self._number += 1
                self._shares[self._rng.choice(self._members)][partition] = self._number
        self.topic.bell.ring()

    def shares(self, process: Process) -> dict[int, int]:
        """The partitions of a process, each with the number of its share."""
        return self._shares.get(process, {})


async def feed(
    group: Group, process: Process, reader: GatheringReader, place: Place, *, lag_s: Callable[[], float]
) -> None:
    """Give a reader the records of the partitions that its process has, from the reader's positions on, for ever."""
    placed: dict[int, tuple[int, int]] = {}
    while True:
        shares = group.shares(process)
        for partition in [one for one in placed if shares.get(one) != placed[one][0]]:
            del placed[partition]
        fresh = [partition for partition in shares if partition not in placed]
        for partition in fresh:
            try:
                placed[partition] = (shares[partition], await place(partition))
            except Retry:
                await asyncio.sleep(0.5)
        moved = False
        for partition, (number, following) in list(placed.items()):
            records = group.topic.records[partition][following : following + TAKEN_MAX]
            for record in records:
                await reader.offer(record, _nothing)
            placed[partition] = (number, following + len(records))
            moved = moved or bool(records)
        lag = lag_s()
        if lag:
            await asyncio.sleep(lag)
        elif not moved and group.shares(process) == {one: number for one, (number, _) in placed.items()}:
            await group.topic.bell.wait()


def _nothing() -> None:
    """An acknowledgement is a hint for Kafka's lag displays; positions are the database's."""
